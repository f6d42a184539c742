"""Answers from a set, as a predictor gives them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from seqtune.data.tasks import Task
from seqtune.decoding.engines.choices import ChoiceEngine
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ConfigError
from seqtune.models import loading
from seqtune.records import Example
from seqtune.sections import DecodeConfig, ModelConfig

END = 2


def test_answers_are_ranked_by_their_probability_or_by_that_of_a_token(llama_folder):
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    answers = [[t, *more, END] for t in range(20, 40) for more in ([], [50, 51, 52, 53])]
    prompt = [np.array([5, 6])]
    (_, whole), (_, by_token) = (
        next(ChoiceEngine(FrozenModel(model), answers, DecodeConfig(normalize_answers=n)).generate(prompt, [1]))
        for n in (False, True)
    )
    assert {tuple(c.ids): c.score for c in whole} == {tuple(c.ids): c.score for c in by_token}
    assert [c.score for c in whole] == sorted((c.score for c in whole), reverse=True)
    assert [c.score / len(c.ids) for c in by_token] == sorted((c.score / len(c.ids) for c in whole), reverse=True)
    assert [c.ids for c in whole] != [c.ids for c in by_token]


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
