"""How likely texts are after contexts, against the model's own forward over one text at a time."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from seqtune.decoding.engines import likelihood
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.likelihood import BATCH_COSTS, Asked, Tree, cheapest_batches, groups, likelihoods

END = 2
ANSWERS = [[7, 8, 9, END], [7, 8, END], [7, END], [11, 12, END], [13, END]]  # one begins like another, one is inside another
COMMON = [5 + n % 23 for n in range(40)]
CONTEXTS = [[5, 6, 7, 8, 9, 10], [5], [9, 9, 5, 6], [*COMMON, 6, 7], [*COMMON, 9], [*COMMON, 6, 7, 8, 8], COMMON]


@pytest.fixture
def model(family_folder):
    return AutoModelForCausalLM.from_pretrained(family_folder, dtype=torch.float32).eval()


@torch.inference_mode()
def expected(model, context: list[int], answer: list[int]) -> tuple[float, bool]:
    logits = model(input_ids=torch.tensor([[*context, *answer]])).logits[0].double().log_softmax(-1)
    rows = logits[len(context) - 1 : len(context) - 1 + len(answer)]
    return float(sum(row[t] for row, t in zip(rows, answer, strict=True))), rows.argmax(-1).tolist() == answer


def asked(model) -> list[Asked]:
    found = []
    for context in CONTEXTS:
        with torch.inference_mode():  # an answer that is the likeliest, so that both kinds are there
            best = int(model(input_ids=torch.tensor([context])).logits[0, -1].argmax())
        found.append(Asked(np.array(context, dtype=np.int32), Tree.of([*ANSWERS, [best]])))
    return found


def check(model, token_budget: int) -> None:
    questions = asked(model)
    found = dict(likelihoods(FrozenModel(model), questions, token_budget))
    assert len(found) == len(CONTEXTS)
    for index, context in enumerate(CONTEXTS):
        answers = [[token for _, token in edges] for edges in questions[index].tree.edges]
        for own, answer in zip(found[index], answers, strict=True):
            score, is_greedy = expected(model, context, answer)
            assert own.log_probability == pytest.approx(score, abs=3e-4)
            assert own.is_greedy == is_greedy
        assert found[index][-1].is_greedy


def test_every_continuation_gets_the_probability_that_the_model_gives_it(model):
    check(model, 16_384)


@pytest.mark.parametrize("cut", ["rows", "logits", "own forward"])
def test_so_it_does_however_the_work_is_cut(llama_folder, monkeypatch, cut):
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    if cut == "logits":
        monkeypatch.setattr(likelihood, "LOGITS", 1)
    if cut == "own forward":
        monkeypatch.setattr(likelihood, "fits", lambda model: False)
    check(model, 1 if cut == "rows" else 16_384)


def test_what_contexts_have_in_common_is_read_once(llama_folder, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    assert likelihood.fits(FrozenModel(model))  # asked once a model, and not to be counted
    lengths = []
    plain = FrozenModel.forward

    class Counting:
        def __init__(self, inner):
            self.inner, self.head = inner, inner.head

        def read(self, ids, cache, wanted):
            lengths.append(ids.numel())
            return self.inner.read(ids, cache, wanted)

        def write(self, ids, seen, cache, wanted):
            lengths.append(ids.numel())
            return self.inner.write(ids, seen, cache, wanted)

    @contextmanager
    def counted(frozen, **asked):
        with plain(frozen, **asked) as forward:
            yield Counting(forward)

    monkeypatch.setattr(FrozenModel, "forward", counted)
    contexts = [np.array([*COMMON, 5 + n], dtype=np.int32) for n in range(10)]
    dict(likelihoods(FrozenModel(model), [Asked(c, Tree.of([[7], [8]])) for c in contexts], 16_384))
    assert lengths == [len(COMMON), 10]


def test_groups_share_what_all_of_them_begin_with():
    contexts = [np.array(c) for c in CONTEXTS]
    found = {shared: sorted(members) for shared, members in groups(contexts) if shared}
    assert found == {len(COMMON) - 1: [3, 4, 5, 6]}, "the whole of one is the beginning of the others: its last token stays"
    assert sorted(i for _, members in groups(contexts) for i in members) == list(range(len(contexts)))


def test_the_tree_holds_common_beginnings_once():
    tree = Tree.of(ANSWERS)
    assert tree.tokens == [7, 8, 9, 11, 12, 13]
    assert tree.depths == [1, 2, 3, 1, 2, 1]
    seen = tree.sees().astype(int).tolist()
    assert seen[2] == [1, 1, 1, 0, 0, 0]  # 9 sees 7 and 8
    assert seen[4] == [0, 0, 0, 1, 1, 0]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(0, 40), st.integers(20, 300))
def test_no_other_way_to_cut_rows_into_batches_reads_fewer_tokens(lengths, shared, budget):
    def cost(batches):
        return sum(len(batch) * max(lengths[i] for i in batch) + BATCH_COSTS for batch in batches)

    def allowed(batches):
        return all(len(batch) == 1 or len(batch) * (shared + max(lengths[i] for i in batch)) <= budget for batch in batches)

    found = cheapest_batches(lengths, shared, budget)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert allowed(found)
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cuts = (
        [order[a:b] for a, b in pairwise([0, *places, len(order)])]
        for number in range(len(order))
        for places in combinations(range(1, len(order)), number)
    )
    assert cost(found) == min(cost(batches) for batches in cuts if allowed(batches))
    assert [max(lengths[i] for i in batch) for batch in found] == sorted(
        (max(lengths[i] for i in b) for b in found), reverse=True
    )
