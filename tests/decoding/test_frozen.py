"""A model that is decoded with many times is laid out for the processor once."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from seqtune.config import ModelConfig
from seqtune.data.tasks import Task
from seqtune.decoding.engines import make_engine
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.native import NativeEngine
from seqtune.decoding.engines.reference import TransformersEngine
from seqtune.decoding.predictor import Predictor
from seqtune.models import loading, products
from seqtune.models.packed import OneDnnWeight
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


def changed(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def test_another_frozen_model_sees_what_training_changed(llama_folder, monkeypatch):
    """What is laid out is a copy, so it must not outlive a step of training: validations make a predictor each."""
    monkeypatch.setattr(products, "can_pack", lambda weight: weight.ndim == 2)
    source, prompts = ModelConfig(name=str(llama_folder)), [np.arange(5, 12), np.arange(30, 39)]
    model, search = loading.load_model(source, seed=0), DecodeConfig(num_beams=2, num_return=2)
    before = dict(NativeEngine(FrozenModel(model), 2, search).generate(prompts, [6, 6]))
    ours = dict(NativeEngine(FrozenModel(changed(model)), 2, search).generate(prompts, [6, 6]))
    theirs = dict(TransformersEngine(model, 2, search).generate(prompts, [6, 6]))
    for index, candidates in theirs.items():
        assert [c.ids for c in ours[index]] == [c.ids for c in candidates]
        assert [c.score for c in ours[index]] == pytest.approx([c.score for c in candidates], rel=1e-4)
    assert [c.score for c in before[0]] != pytest.approx([c.score for c in theirs[0]], rel=1e-2)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="nothing is laid out where oneDNN is missing")
def test_a_predictor_that_has_predicted_is_pickled_without_what_was_laid_out(llama_folder, monkeypatch):
    """oneDNN's layouts cannot be pickled, and scikit-learn pickles and copies estimators."""
    monkeypatch.setattr(products, "can_pack", lambda weight: weight.ndim == 2)
    monkeypatch.setattr(products, "pack", OneDnnWeight)
    source, task = ModelConfig(name=str(llama_folder)), Task("input", "output", "plain", "{output}", "\n")
    model, tokenizer = loading.load_model(source, seed=0), loading.load_tokenizer(source)
    predictor = Predictor(model, tokenizer, task, DecodeConfig(max_new_tokens=4))
    examples = [Example("1", "is it?", None)]
    found = predictor.predict(examples)
    for copied in (pickle.loads(pickle.dumps(predictor.frozen)), copy.deepcopy(predictor.frozen)):
        assert Predictor(copied.model, tokenizer, task, DecodeConfig(max_new_tokens=4)).predict(examples) == found


def test_what_is_laid_out_is_given_back_where_it_is_not_used(llama_folder):
    model = loading.load_model(ModelConfig(name=str(llama_folder)), seed=0)
    frozen = FrozenModel(model)
    engine = make_engine(frozen, 2, DecodeConfig(weights="int8"))
    assert isinstance(engine, NativeEngine)
    assert engine.frozen is frozen.int8
    assert "_blocks" not in vars(frozen)
