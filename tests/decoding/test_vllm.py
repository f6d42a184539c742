"""The vllm engine against a stand-in that keeps to vLLM's documented interface; vLLM itself needs a GPU."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from conftest import build_model, build_tokenizer
from seqtune.data.tasks import Task
from seqtune.decoding.engines import make_engine, weights
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.reference import TransformersEngine
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ConfigError
from seqtune.models import loading
from seqtune.records import Example
from seqtune.sections import DecodeConfig

SOURCES, LIMITS = [np.arange(5, 12), np.arange(40, 44), np.arange(80, 90)], [9, 4, 12]


@dataclass
class SamplingParams:
    """The fields in use, with vLLM's defaults; `logprobs=None` returns no probabilities, 0 those of the chosen tokens."""

    temperature: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    detokenize: bool = True


class LLM:
    """Greedy, one prompt after the other; `cumulative_logprob` is `None` unless log-probabilities are asked for."""

    made: ClassVar[list[dict]] = []

    def __init__(self, model: str, **options):
        self.made.append(options)
        self.model = AutoModelForCausalLM.from_pretrained(model)
        self.end = GenerationConfig.from_pretrained(model).eos_token_id

    def generate(self, prompts, sampling_params, *, use_tqdm=True):
        return [self._answer(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

    @torch.no_grad()
    def _answer(self, prompt: list[int], settings: SamplingParams):
        assert settings.temperature == 0, "greedy"
        stops = {*settings.stop_token_ids, *([] if settings.ignore_eos else [self.end])}
        ids, total = [], 0.0
        while len(ids) < settings.max_tokens and (not ids or ids[-1] not in stops):
            log_probs = self.model(torch.tensor([prompt + ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(log_probs.argmax()))
            total += log_probs[ids[-1]].item()
        total = None if settings.logprobs is None else total
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids), cumulative_logprob=total)])


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, LLM.made = LLM, SamplingParams, []
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return LLM.made


@pytest.fixture
def saved(tmp_path):
    """A model in a folder that names another end token, the first that the model writes."""
    tokenizer = build_tokenizer("llama")
    model = build_model("llama", len(tokenizer))
    expected = dict(TransformersEngine(model, 2, DecodeConfig()).generate(SOURCES, LIMITS))
    model.generation_config = GenerationConfig(eos_token_id=expected[0][0].ids[0])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with torch.device("meta"):
        return type(model)(model.config), tmp_path / "model", expected


def test_vllm_decodes_what_transformers_decodes_and_needs_no_second_model(vllm, saved):
    without_weights, folder, expected = saved
    found = dict(
        make_engine(FrozenModel(without_weights), 2, DecodeConfig(engine="vllm", weights="float32"), folder).generate(
            SOURCES, LIMITS
        )
    )
    assert len(vllm) == 1
    for i in range(3):
        assert [c.ids for c in found[i]] == [c.ids for c in expected[i]]
        assert [c.score for c in found[i]] == pytest.approx([c.score for c in expected[i]], rel=1e-4)


def test_the_weights_that_were_asked_for_reach_vllm(vllm, saved, monkeypatch):
    without_weights, folder, _ = saved
    monkeypatch.setattr(weights, "has_bf16_units", lambda: True)
    for name in ("auto", "float16"):
        make_engine(FrozenModel(without_weights), 2, DecodeConfig(engine="vllm", weights=name), folder)
    assert [made["dtype"] for made in vllm] == ["bfloat16", "float16"]
    with pytest.raises(ConfigError, match="'int8' needs decode.engine = 'native' or 'ctranslate2'"):
        make_engine(FrozenModel(without_weights), 2, DecodeConfig(engine="vllm", weights="int8"), folder)


def test_what_vllm_cannot_do_is_refused(vllm, saved, monkeypatch):
    without_weights, folder, _ = saved
    with pytest.raises(ConfigError, match="decodes greedily; num_beams = 3 needs 'native'"):
        make_engine(FrozenModel(without_weights), 2, DecodeConfig(engine="vllm", num_beams=3), folder)
    with pytest.raises(ConfigError, match="'vllm' needs a run or model folder on disk"):
        make_engine(FrozenModel(without_weights), 2, DecodeConfig(engine="vllm"))

    def refuse(*_, **__):
        raise ValueError("Model architectures ['GPTNeoForCausalLM'] are not supported for now.")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    with pytest.raises(ConfigError, match=r"vllm cannot serve .* are not supported for now.\); use decode.engine = 'native'"):
        make_engine(FrozenModel(without_weights), 2, DecodeConfig(engine="vllm", weights="float32"), folder)


def test_a_model_that_the_engine_reads_itself_is_not_loaded_before(vllm, saved, monkeypatch):
    _, folder, _ = saved
    monkeypatch.setattr(loading, "load_model", None)
    task = Task("input", "output", "plain", "{output}", "\n")
    predictor = Predictor.of_model(str(folder), task, DecodeConfig(engine="vllm", weights="float32", max_new_tokens=5))
    [answer] = predictor.predict([Example("1", "ethane", None)])
    assert len(answer.hypotheses) == 1
    assert len(vllm) == 1
