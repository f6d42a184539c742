"""A model that is decoded with many times is laid out for the processor once."""

from __future__ import annotations

import pytest
import torch

from seqtune.config import ModelConfig
from seqtune.data.tasks import Task
from seqtune.decoding.engines import forwards
from seqtune.decoding.predictor import Predictor
from seqtune.models import loading, products
from seqtune.records import Example
from seqtune.sections import DecodeConfig


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="nothing is laid out where oneDNN is missing")
def test_searches_and_tasks_over_one_model_share_its_layout(llama_folder, monkeypatch):
    """Each change of a request's settings made a copy of all weights, and each call laid them out again."""
    laid_out, pack = [], products.pack

    def counted(weight, bias):
        laid_out.append(weight.numel())
        return pack(weight, bias)

    monkeypatch.setattr(products, "pack", counted)
    monkeypatch.setattr(products, "can_pack", lambda weight: weight.ndim == 2)  # small ones too
    source = ModelConfig(name=str(llama_folder))
    task = Task("input", "output", "plain", "{output}", "\n")
    model, tokenizer = loading.load_model(source, seed=0), loading.load_tokenizer(source)
    predictor = Predictor(model, tokenizer, task, DecodeConfig(max_new_tokens=4))
    first = predictor.predict([Example("1", "is it?", None)])
    count = len(laid_out)
    assert count > len(model.model.layers)
    assert predictor.predict([Example("1", "is it?", None)]) == first
    predictor.searching_by(DecodeConfig(num_beams=3, max_new_tokens=4)).predict([Example("1", "is it?", None)])
    predictor.asking(task).predict([Example("1", "is it?", None)])
    assert len(laid_out) == count
    assert predictor.frozen.int8 is predictor.searching_by(DecodeConfig(weights="int8")).engine.frozen


def test_another_frozen_model_sees_what_training_changed(llama_folder):
    """What is laid out is a copy, so it must not outlive a step of training: validations make a predictor each."""
    source = ModelConfig(name=str(llama_folder))
    model, tokenizer = loading.load_model(source, seed=0), loading.load_tokenizer(source)
    task = Task("input", "output", "plain", "{output}", "\n")

    def score() -> float:
        predictor = Predictor(model, tokenizer, task, DecodeConfig(max_new_tokens=4))
        assert isinstance(predictor.frozen, forwards.FrozenModel)
        return predictor.predict([Example("1", "is it?", None)])[0].score

    before = score()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    assert score() != pytest.approx(before, rel=1e-6)
