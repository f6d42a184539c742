"""Answers from a set: the probability of each against the model's own forward over prompt and answer, one text at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from seqtune.config import DecodeConfig, ModelConfig
from seqtune.data.tasks import Task
from seqtune.decoding.engines import choices
from seqtune.decoding.engines.choices import ChoiceEngine, Tree
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ConfigError
from seqtune.models import loading
from seqtune.records import Example

END = 2
ANSWERS = [[7, 8, 9, END], [7, 8, END], [7, END], [11, 12, END], [13, END]]  # one begins like another, one is inside another
PROMPTS = [[5, 6, 7, 8, 9, 10], [5], [9, 9, 5, 6]]


@pytest.fixture
def model(family_folder):
    return AutoModelForCausalLM.from_pretrained(family_folder, dtype=torch.float32).eval()


@torch.inference_mode()
def log_probability(model, prompt: list[int], answer: list[int]) -> float:
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return float(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))


def scores(engine: ChoiceEngine) -> list[dict[tuple[int, ...], float]]:
    found = dict(engine.generate([np.array(p, dtype=np.int32) for p in PROMPTS], [1] * len(PROMPTS)))
    for candidates in found.values():
        assert [c.score for c in candidates] == sorted((c.score for c in candidates), reverse=True)
    return [{tuple(c.ids): c.score for c in found[i]} for i in range(len(PROMPTS))]


def test_every_answer_gets_the_probability_that_the_model_gives_it(model):
    for row, prompt in zip(scores(ChoiceEngine(model, ANSWERS, DecodeConfig())), PROMPTS, strict=True):
        for answer in ANSWERS:
            assert row[tuple(answer)] == pytest.approx(log_probability(model, prompt, answer), abs=2e-4)


def test_batches_and_the_way_without_shared_prompts_give_the_same(model, monkeypatch):
    whole = scores(ChoiceEngine(model, ANSWERS, DecodeConfig()))
    small = scores(ChoiceEngine(model, ANSWERS, DecodeConfig(token_budget=1)))
    monkeypatch.setattr(choices, "LOGITS", 1)  # one row of logits, and one answer, at a time
    cut = scores(ChoiceEngine(model, ANSWERS, DecodeConfig()))
    monkeypatch.setattr(choices, "fits", lambda model: False)
    apart = scores(ChoiceEngine(model, ANSWERS, DecodeConfig()))
    for others in (small, cut, apart):
        for row, other in zip(whole, others, strict=True):
            assert row == pytest.approx(other, abs=2e-4)


def test_ranking_by_token_prefers_what_is_likely_at_every_step(llama_folder):
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    answers = [[t, *more, END] for t in range(20, 40) for more in ([], [50, 51, 52, 53])]
    prompt = [np.array([5, 6])]
    (_, whole), (_, by_token) = (
        next(ChoiceEngine(model, answers, DecodeConfig(normalize_answers=n)).generate(prompt, [1])) for n in (False, True)
    )
    assert {tuple(c.ids): c.score for c in whole} == {tuple(c.ids): c.score for c in by_token}
    assert [c.score / len(c.ids) for c in by_token] == sorted((c.score / len(c.ids) for c in whole), reverse=True)
    assert [c.ids for c in whole] != [c.ids for c in by_token]


def test_the_tree_holds_common_beginnings_once():
    tree = Tree.of(ANSWERS)
    assert tree.tokens == [7, 8, 9, 11, 12, 13]
    assert tree.depths == [1, 2, 3, 1, 2, 1]
    seen = (tree.mask() == 0).int().tolist()
    assert seen[2] == [1, 1, 1, 0, 0, 0]  # 9 sees 7 and 8
    assert seen[4] == [0, 0, 0, 1, 1, 0]


def predictor(folder, **changes) -> Predictor:
    source = ModelConfig(name=str(folder))
    task = Task("input", "output", "plain", "{output}", "\n", answers=("yes", "no", "not at all"))
    settings = DecodeConfig(**changes.pop("decode", {}))
    return Predictor(
        loading.load_model(source, seed=0), loading.load_tokenizer(source), dataclasses.replace(task, **changes), settings
    )


def test_a_prediction_carries_all_answers_and_its_probability(llama_folder):
    (found,) = predictor(llama_folder).predict([Example("1", "is it?", None)])
    assert {h.text for h in found.hypotheses} == {"yes", "no", "not at all"}
    assert found.prediction == found.hypotheses[0].text
    assert found.status == "ok"
    odds = np.exp([h.score for h in found.hypotheses])
    assert float(found.details["probability"]) == pytest.approx(odds[0] / odds.sum(), abs=1e-4)


def test_what_cannot_be_an_answer_is_said(llama_folder):
    with pytest.raises(ConfigError, match="names other columns"):
        predictor(llama_folder, target="{kind}: {output}")
    with pytest.raises(ConfigError, match="writes texts of its own"):
        predictor(llama_folder, decode={"engine": "ctranslate2"})
