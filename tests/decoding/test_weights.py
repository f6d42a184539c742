"""`decode.weights`: what each engine makes of it, and what is refused."""

import pytest
import torch

from conftest import build_model
from seqtune.decoding.engines import check_engine, make_engine, weights
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.weights import quantized
from seqtune.errors import ConfigError
from seqtune.models.adapters import Adapter
from seqtune.models.soft_prompts import num_virtual_tokens
from seqtune.sections import AdapterConfig, DecodeConfig


def test_int8_stays_close_and_leaves_the_model_alone():
    model = build_model("llama", 300)
    before = {n: p.clone() for n, p in model.named_parameters()}
    small = quantized(model)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours, theirs = small(input_ids=ids).logits, model(input_ids=ids).logits
    assert not torch.equal(ours, theirs)
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.98
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_int8_is_refused_where_it_does_nothing():
    with pytest.raises(ConfigError, match="finds no linear layers in GPT2LMHeadModel"):
        make_engine(FrozenModel(build_model("gpt2", 300)), 1, DecodeConfig(weights="int8"))
    with pytest.raises(ConfigError, match="'int8' needs decode.engine = 'native'"):
        make_engine(FrozenModel(build_model("llama", 300)), 1, DecodeConfig(weights="int8", engine="transformers"))
    with pytest.raises(ConfigError, match="finds no linear layers in GPT2LMHeadModel"):
        check_engine(FrozenModel(build_model("gpt2", 300)), DecodeConfig(weights="int8"))  # before the work starts


def test_int8_is_refused_on_gpus_before_the_work_starts(monkeypatch):
    monkeypatch.setattr(weights, "best_device", lambda: torch.device("cuda"))
    with pytest.raises(ConfigError, match="'int8' is for CPUs, and this machine decodes on cuda: use 'bfloat16'"):
        check_engine(FrozenModel(build_model("llama", 300)), DecodeConfig(weights="int8"))


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "bottleneck", "ia3", "oft"])
def test_int8_serves_adapters(method):
    model = build_model("llama", 300)
    Adapter.attach(model, AdapterConfig(method=method, num_virtual_tokens=3))
    check_engine(FrozenModel(model.eval()), DecodeConfig(weights="int8"), method)
    small = quantized(model)
    ids = torch.cat([300 + torch.arange(num_virtual_tokens(model)), torch.arange(3, 40)])[None]
    with torch.no_grad():
        ours, theirs = small(input_ids=ids, use_cache=False).logits, model(input_ids=ids, use_cache=False).logits
    assert not torch.equal(ours, theirs), "the copy must compute with its own weights"
    assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.98


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_int8_is_refused_under_lora(method):
    with pytest.raises(ConfigError, match=f"cannot quantise the layers that {method} adds to: merge them first"):
        check_engine(FrozenModel(build_model("llama", 300)), DecodeConfig(weights="int8"), method)


@pytest.mark.parametrize("engine", ["native", "transformers"])
def test_weights_other_than_the_models_are_refused(engine):
    """Engines that compute with the model at hand do not convert it; whoever loads it does (`Predictor`)."""
    model = build_model("llama", 300)
    with pytest.raises(ConfigError, match="decode.weights = 'bfloat16', but the model was handed over in float32"):
        make_engine(FrozenModel(model), 1, DecodeConfig(weights="bfloat16", engine=engine))
    for dtype, names in ((torch.float32, ("auto", "float32")), (torch.bfloat16, ("auto", "bfloat16"))):
        for name in names:
            make_engine(FrozenModel(model.to(dtype)), 1, DecodeConfig(weights=name, engine=engine))


def test_auto_is_bfloat16_on_gpus_that_compute_with_it(monkeypatch):
    for device, has_units, expected in (("cpu", True, "float32"), ("cuda", True, "bfloat16"), ("cuda", False, "float32")):
        monkeypatch.setattr(weights, "best_device", lambda device=device: torch.device(device))
        monkeypatch.setattr(weights, "has_bf16_units", lambda has_units=has_units: has_units)
        assert weights.resolved(DecodeConfig()) == expected
        assert weights.resolved(DecodeConfig(weights="float16")) == "float16"
