"""int8 weights: close to the model they are made from, and refused where they do nothing."""

import pytest
import torch

from conftest import build_model
from seqtune.config import DecodeConfig
from seqtune.decoding.engines import make_engine
from seqtune.decoding.engines.quantized import quantized
from seqtune.errors import ConfigError


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
        make_engine(build_model("gpt2", 300), 1, DecodeConfig(weights="int8"))
    with pytest.raises(ConfigError, match="'int8' needs decode.engine = 'native'"):
        make_engine(build_model("llama", 300), 1, DecodeConfig(weights="int8", engine="transformers"))
