"""Training through `seqtune.models.blocks`: losses and gradients of the families' own modules, and when those are used."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers as t
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from conftest import FAMILIES, build_model
from seqtune.models.attention import use_fast_attention
from seqtune.models.fused import rms_norm, turn
from seqtune.models.loss import TargetLoss, can_pack
from seqtune.records import Encoded
from seqtune.tokens.batching import collate

VOCABULARY = 300
WIDTH, EPS = 24, 1e-5


def make(family: str) -> t.PreTrainedModel:
    model = build_model(family, VOCABULARY)
    use_fast_attention(model)
    return model.train()


def batches(model: t.PreTrainedModel) -> list:
    generator = np.random.default_rng(0)
    rows = [
        Encoded(generator.integers(5, VOCABULARY, n).astype(np.int32), start) for n, start in ((9, 3), (37, 1), (5, 2), (12, 7))
    ]
    return [collate(rows, 0), *([collate(rows, 0, pack_length=64)] if can_pack(model) else [])]


def gradients(losses: TargetLoss, batch, dtype: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    losses.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = losses(batch)
        loss.backward()  # within, as the training loop does it
    return loss.detach(), {name: p.grad.clone() for name, p in losses.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [*FAMILIES, "mistral", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_the_modules(family, dtype):
    model = make(family)
    own, ours = TargetLoss(model), TargetLoss(model, through_blocks=True)
    assert own.blocks is None
    assert ours.blocks is not None
    for batch in batches(model):
        expected_loss, expected = gradients(own, batch, dtype)
        loss, found = gradients(ours, batch, dtype)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=0)
        assert set(found) == set(expected)
        whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
        for name, gradient in expected.items():  # some are rounding alone, such as that of the keys' biases
            difference = (found[name] - gradient).norm() / torch.maximum(gradient.norm(), whole / 100)
            assert difference < (1e-4 if dtype == torch.float32 else 0.05), name


def test_windows_are_those_of_the_modules():
    """Mistral's, in all layers; longer rows than the window."""
    model = make("mistral")
    model.config.sliding_window = 8
    batch = batches(model)[0]
    own, ours = TargetLoss(model), TargetLoss(model, through_blocks=True)
    assert ours.blocks is not None
    expected_loss, expected = gradients(own, batch, torch.float32)
    loss, found = gradients(ours, batch, torch.float32)
    torch.testing.assert_close(loss, expected_loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_what_is_trained_is_what_the_next_step_reads(family):
    model = make(family)
    losses = TargetLoss(model, through_blocks=True)
    batch = batches(model)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(3):
        gradients(losses, batch, torch.float32)
        optimizer.step()
        with torch.no_grad():
            expected = TargetLoss(model)(batch)
        torch.testing.assert_close(losses(batch).detach(), expected, rtol=1e-5, atol=0)


def test_frozen_parts_get_no_gradient():
    model = make("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name or "layers.1.self_attn.k_proj" in name)
    batch = batches(model)[0]
    _, expected = gradients(TargetLoss(model), batch, torch.float32)
    _, found = gradients(TargetLoss(model, through_blocks=True), batch, torch.float32)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def change_dropout(model):
    model.config.attention_dropout = 0.1


def add_a_hook(model):
    model.model.layers[0].register_forward_hook(lambda *_: None)


def checkpoint(model):
    model.gradient_checkpointing_enable()


def compile_it(model):
    model.model.compile()


def scale_a_norm(model):
    """A norm that computes something else, as Gemma's does."""
    norm = model.model.norm
    forward = type(norm).forward
    norm.__class__ = type("Other", (type(norm),), {"forward": lambda self, x: 2 * forward(self, x)})


@pytest.mark.parametrize("change", [change_dropout, add_a_hook, checkpoint, compile_it, scale_a_norm])
def test_models_that_do_more_are_trained_by_their_own_modules(change):
    model = make("llama")
    assert TargetLoss(model, through_blocks=True).blocks is not None
    change(model)
    assert TargetLoss(model, through_blocks=True).blocks is None


@pytest.mark.parametrize("config", [t.OPTConfig, t.GPT2Config])
def test_so_are_those_that_drop_at_random_as_these_families_do_by_default(config):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    assert TargetLoss(t.AutoModelForCausalLM.from_config(config(**size)), through_blocks=True).blocks is None


def test_so_are_those_with_windows_in_some_layers():
    config = t.Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, use_sliding_window=True, sliding_window=16, max_window_layers=1,
    )  # fmt: skip
    assert TargetLoss(t.AutoModelForCausalLM.from_config(config), through_blocks=True).blocks is None


def tiny_gpt2() -> t.PreTrainedModel:
    size = {"n_positions": 8, "n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": VOCABULARY}
    return t.AutoModelForCausalLM.from_config(t.GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **size))


def test_so_are_those_with_dropout_in_a_module():
    model = tiny_gpt2()
    model.transformer.drop.p = 0.1
    assert TargetLoss(model, through_blocks=True).blocks is None


def test_a_model_with_few_places_is_asked_no_longer_text():
    assert TargetLoss(tiny_gpt2(), through_blocks=True).blocks is not None


@pytest.mark.parametrize("shape", [(WIDTH,), (7, WIDTH), (3, 5, WIDTH)])
@pytest.mark.parametrize("trains", ["both", "weight", "input", "nothing"])
def test_norms_and_their_gradients_are_those_of_transformers(shape, trains):
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(WIDTH, EPS)
    nn.init.normal_(theirs.weight, 1.0, 0.3)
    weight, values, gradient = copy.deepcopy(theirs.weight), 3 * torch.randn(shape), torch.randn(shape)
    found = []
    for norm, factor in ((theirs, theirs.weight), (lambda x: rms_norm(x, weight, EPS), weight)):
        x = values.clone().requires_grad_(trains in {"both", "input"})
        factor.requires_grad_(trains in {"both", "weight"})
        out = norm(x)
        if out.requires_grad:
            out.backward(gradient)
        found.append((out.detach(), x.grad, factor.grad))
    for expected, ours in zip(*found, strict=True):
        assert (expected is None) == (ours is None)
        if expected is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_norms_round_as_those_of_transformers_in_bf16():
    norm, x = LlamaRMSNorm(WIDTH, EPS).bfloat16(), torch.randn(5, WIDTH, dtype=torch.bfloat16)
    torch.testing.assert_close(rms_norm(x, norm.weight, EPS), norm(x), rtol=0, atol=0)


@pytest.mark.parametrize("turned", [8, 4])
def test_turned_heads_and_their_gradients_are_those_of_transformers(turned):
    torch.manual_seed(0)
    values, gradient = torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8)
    halves = torch.randn(2, 5, turned // 2)
    angles = torch.cat([halves, halves], -1)
    cosines, sines = angles.cos(), angles.sin()
    theirs, ours = values.clone().requires_grad_(), values.clone().requires_grad_()
    heads, rest = theirs[:, :, :2].transpose(1, 2), theirs[:, :, 2:].transpose(1, 2)
    found, _ = apply_rotary_pos_emb(heads[..., :turned], heads[..., :turned], cosines, sines)
    expected = torch.cat([torch.cat([found, heads[..., turned:]], -1), rest], 1).transpose(1, 2)
    low, high = sines.chunk(2, -1)
    packed = torch.cat([cosines, -low, high], -1)[:, :, None]
    result = turn(ours, packed, 2)
    torch.testing.assert_close(result, expected)
    expected.backward(gradient)
    result.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad)
    with torch.no_grad():
        torch.testing.assert_close(turn(values.clone(), packed, 2), expected)
