"""Steps of fixed shapes from buffers that stay: the same answers, through a stand-in for CUDA graphs that computes a step again."""

from __future__ import annotations

import gc

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import FAMILIES, build_model
from seqtune.decoding.engines.forwards import Described, Seen
from seqtune.decoding.engines.graphs import SLOTS, Graphed
from seqtune.decoding.engines.reference import TransformersEngine
from seqtune.decoding.engines.slot_cache import SlotCache, TokenPass
from seqtune.decoding.engines.stream import Stream
from seqtune.models.blocks import blocks_of
from seqtune.sections import DecodeConfig

END = 2


class Captures:
    """Like CUDA's: what is captured is run once before; a replay reads the buffers as they are then, and writes one result."""

    def __init__(self) -> None:
        self.num_captured = self.num_replayed = 0

    def __call__(self, step):
        self.num_captured += 1
        result = step().clone().fill_(torch.nan)

        def replay() -> None:
            self.num_replayed += 1
            result.copy_(step())

        return replay, result


def described(family: str) -> Described:
    model = build_model(family, 300).eval()
    blocks = blocks_of(model)
    assert blocks is not None
    return Described(blocks)


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_answers_are_those_of_transformers(family, inputs, num_beams):
    sources, limits = inputs
    forward = described(family)
    model = build_model(family, 300).eval()
    config = DecodeConfig(num_beams=num_beams, num_return=num_beams, token_budget=900)
    expected = dict(TransformersEngine(model, END, config).generate(sources, limits))
    captures = Captures()
    stream = Stream(model, Graphed(forward, captures), END, config)
    found = {}
    for name in range(10):
        stream.add(name, sources[name], limits[name], order=name)
    for _ in range(4):
        found.update(stream.step())
    for name in range(10, len(sources)):
        stream.add(name, sources[name], limits[name], order=name)
    while not stream.is_idle:
        found.update(stream.step())
    assert {name: [c.ids for c in own] for name, own in found.items()} == {
        name: [c.ids for c in own] for name, own in expected.items()
    }
    assert captures.num_captured < captures.num_replayed / 2


@torch.inference_mode()
def test_a_step_reads_nothing_back(inputs):
    """What a graph holds must not wait for a result: under fake tensors, which have no values, that is an error."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        forward = described("llama")
        cache = SlotCache(4, 2 * SLOTS)
        rows, beams = 3, 2
        for width in (40, SLOTS + 1):
            forward.read(torch.zeros(4, 8, dtype=torch.long), cache.reading(first_row=0), torch.arange(2))
            zeros = torch.zeros(rows, beams, dtype=torch.long)
            seen = Seen(torch.zeros(rows, 1, beams, width), torch.zeros(rows, width, dtype=torch.long), zeros[:, :1])
            graphed = Graphed(forward, lambda step: (lambda: None, step()))
            assert graphed.write(zeros, seen, TokenPass(cache, zeros.flatten(), rows, width)).shape[:2] == (rows, beams)
            ((_, steps),) = graphed.steps.values()
            assert list(steps) == [(4, beams, SLOTS if width < SLOTS else 2 * SLOTS)]


@torch.inference_mode()
def test_graphs_go_with_their_cache():
    forward, cache = described("llama"), SlotCache(2, SLOTS)
    graphed = Graphed(forward, lambda step: (lambda: None, step()))
    forward.read(torch.zeros(2, 8, dtype=torch.long), cache.reading(first_row=0), torch.arange(2))

    def take(cache: SlotCache, width: int) -> list[tuple[int, int, int]]:
        zeros = torch.zeros(2, 1, dtype=torch.long)
        seen = Seen(torch.zeros(2, 1, 1, width), torch.zeros(2, width, dtype=torch.long), zeros)
        graphed.write(zeros, seen, TokenPass(cache, zeros.flatten(), 2, width))
        return list(graphed.steps[cache][1])

    assert take(cache, 9) == [(2, 1, SLOTS)]
    cache.resize(2, 2 * SLOTS, 2, 9)
    assert take(cache, SLOTS + 9) == [(2, 1, 2 * SLOTS)]  # what was captured before read keys and values that are gone
    assert take(cache, 9) == [(2, 1, 2 * SLOTS), (2, 1, SLOTS)]
    del cache
    gc.collect()
    assert not graphed.steps
