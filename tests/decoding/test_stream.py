"""A batch that is never closed gives each input what it gets alone, whoever enters, leaves or is taken away beside it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from conftest import build_model
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.native import NativeEngine
from seqtune.decoding.engines.reference import TransformersEngine
from seqtune.decoding.engines.stream import Stream
from seqtune.models.attention import use_fast_attention
from seqtune.sections import DecodeConfig

END = 2


@pytest.fixture(scope="module")
def model():
    made = build_model("llama", 300)
    use_fast_attention(made)
    return made


@pytest.mark.parametrize("num_beams", [1, 4])
@torch.inference_mode()
def test_inputs_that_come_and_go_get_what_transformers_gives_them(model, inputs, num_beams):
    """They come while others are being decoded, short ones before long ones; a third of them is taken away again."""
    sources, limits = inputs
    config = DecodeConfig(num_beams=num_beams, num_return=num_beams, token_budget=700)
    expected = dict(TransformersEngine(model, END, config).generate(sources, limits))
    rng, waiting, gone, found, heard = random.Random(2), list(range(len(sources))), set(), {}, {}
    with FrozenModel(model).forward() as forward:
        stream = Stream(model, forward, END, config)
        while waiting or not stream.is_idle:
            for _ in range(min(len(waiting), rng.randrange(3))):
                name = waiting.pop(0)
                listener = heard.setdefault(name, []).append if name % 2 else None
                stream.add(name, sources[name], limits[name], order=name, heard=listener)
            if rng.random() < 0.2 and (here := sorted(set(range(len(sources))) - set(waiting) - set(found) - gone)):
                gone.add(rng.choice(here))
                stream.remove(max(gone, key=lambda n: n in here))
                for name in gone:
                    stream.remove(name)  # once more does no harm
            found.update(stream.step())
            assert stream.num_active + stream.num_waiting == len(stream._inputs)
    assert gone
    assert sorted(found) == sorted(set(range(len(sources))) - gone)
    for name, candidates in found.items():
        assert [c.ids for c in candidates] == [c.ids for c in expected[name]]
        if num_beams == 1 and name % 2:
            assert heard[name] == candidates[0].ids


def test_a_listener_ends_an_answer_where_it_will(model, inputs):
    sources, limits = inputs
    engine = NativeEngine(FrozenModel(model), END, DecodeConfig(token_budget=700))
    whole = {index: candidates[0].ids for index, candidates in engine.generate(sources, limits)}
    stops = {index: ids[len(ids) // 2] for index, ids in whole.items()}
    given = [stops[index].__eq__ for index in range(len(sources))]
    cut = {index: candidates[0].ids for index, candidates in engine.generate(sources, limits, given)}
    assert cut == {index: ids[: ids.index(stops[index]) + 1] for index, ids in whole.items()}
    assert any(len(cut[index]) < len(ids) for index, ids in whole.items())


@torch.inference_mode()
def test_what_was_there_first_is_not_disturbed_by_a_longer_one(model):
    """The rows become longer, and the search's state too; nothing that was found is lost."""
    with FrozenModel(model).forward() as forward:
        stream = Stream(model, forward, END, DecodeConfig(num_beams=3))
        stream.add(0, np.arange(5, 9), 20)
        stream.step()
        before = stream.decoder.cache.num_slots
        stream.add(1, np.arange(3, 93), 30)
        found = {}
        while not stream.is_idle:
            found.update(stream.step())
        assert stream.decoder.cache.num_slots > before
    expected = dict(
        TransformersEngine(model, END, DecodeConfig(num_beams=3)).generate([np.arange(5, 9), np.arange(3, 93)], [20, 30])
    )
    assert [found[i][0].ids for i in (0, 1)] == [expected[i][0].ids for i in (0, 1)]


@torch.inference_mode()
def test_a_long_input_waits_for_room_and_then_gets_it(model):
    """A budget for three short rows; a long one takes all of it, and those after it wait for no longer than it takes."""
    with FrozenModel(model).forward() as forward:
        stream = Stream(model, forward, END, DecodeConfig(token_budget=120))
        for name in range(3):
            stream.add(name, np.arange(5, 9), 10, order=name)
        stream.step()
        stream.add(3, np.arange(3, 73), 30, order=3)
        stream.add(4, np.arange(5, 9), 10, order=4)
        together, order = [], []
        while not stream.is_idle:
            order += [name for name, _ in stream.step()]
            together.append(set(stream.decoder.rows.names))
    assert not any({3, other} <= names for names in together for other in (0, 1, 2))
    assert set(order) == set(range(5))


@torch.inference_mode()
def test_the_next_to_enter_is_the_first_in_order(model):
    """So that many inputs of one request let those of another one in between."""
    with FrozenModel(model).forward() as forward:
        stream = Stream(model, forward, END, DecodeConfig(token_budget=60))
        for name in range(4):
            stream.add(name, np.arange(5, 9), 8, order=name)
        stream.step()
        stream.add(9, np.arange(7, 12), 8, order=0.5)
        order = []
        while not stream.is_idle:
            order += [name for name, _ in stream.step()]
    assert order.index(9) <= 2


@torch.inference_mode()
def test_prompts_are_read_together_once_waiting_has_cost_what_that_saves(model, monkeypatch):
    """Eight rows, of which one after the other ends: who comes then waits for others, and not for long."""
    with FrozenModel(model).forward() as forward:
        stream = Stream(model, forward, -1, DecodeConfig(token_budget=8 * 64))
        groups, enter = [], stream.decoder.enter
        monkeypatch.setattr(stream.decoder, "enter", lambda names, *rest: (groups.append(list(names)), enter(names, *rest))[1])
        for name in range(8):
            stream.add(name, np.arange(5, 9 + name), 20 - name)
        finished, waited, came = [], {}, {}
        for step in range(200):
            for name, _ in stream.step():
                finished.append(name)
                if len(came) < 8:
                    new = 8 + len(came)
                    came[new] = step
                    stream.add(new, np.arange(5, 15), 20, order=step)
            waited |= {name: step - came[name] for group in groups for name in group if name in came and name not in waited}
            if stream.is_idle:
                break
    assert sorted(finished) == list(range(16))
    assert groups[0] == list(range(8)), "prompts of unlike lengths, as padding them costs less than eight passes"
    assert max(map(len, groups[1:])) > 1
    assert len(groups) < 8
    assert 0 < max(waited.values()) <= 8


@torch.inference_mode()
def test_prompts_are_not_padded_beyond_what_a_pass_costs(model, monkeypatch):
    with FrozenModel(model).forward() as forward:
        stream = Stream(model, forward, END, DecodeConfig(token_budget=10_000))
        groups, enter = [], stream.decoder.enter
        monkeypatch.setattr(stream.decoder, "enter", lambda names, *rest: (groups.append(list(names)), enter(names, *rest))[1])
        for name, size in enumerate((200, 190, 10, 9)):
            stream.add(name, np.arange(size) % 290 + 3, 2)
        while not stream.is_idle:
            stream.step()
    assert groups == [[0, 1], [2, 3]]
