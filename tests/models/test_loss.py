"""The loss in packed rows, and where a model's logits are not its output layer's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as t
from torch.nn import functional

from conftest import FAMILIES, build_model
from seqtune.models.attention import use_fast_attention
from seqtune.models.loss import TargetLoss, can_pack
from seqtune.records import Encoded
from seqtune.tokens.batching import collate

VOCABULARY = 300
SIZE = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
HIDDEN = SIZE | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = HIDDEN | {"num_key_value_heads": 2, "pad_token_id": 0}
EAGER = {
    "gptj": t.GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64, **SIZE),
    "codegen": t.CodeGenConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64, **SIZE),
    "xglm": t.XGLMConfig(d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=64, **SIZE),
}


def new_model(config: t.PreTrainedConfig, spread: float = 0.1) -> t.PreTrainedModel:
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    use_fast_attention(model)
    return model


def rows() -> list[Encoded]:
    generator = np.random.default_rng(0)
    return [
        Encoded(generator.integers(5, VOCABULARY, n).astype(np.int32), start) for n, start in ((9, 3), (17, 1), (5, 2), (12, 7))
    ]


@pytest.mark.parametrize("family", [*EAGER, *(f for f in FAMILIES if f != "bloom")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rows_have_the_losses_that_each_has_alone(family, dtype):
    """Reference: transformers' own logits of each row by itself, without any mask; the row's neighbours must not matter."""
    model = new_model(EAGER[family]) if family in EAGER else build_model(family, VOCABULARY)
    use_fast_attention(model)
    assert can_pack(model)
    batch = collate(rows(), 0, pack_length=64)
    assert batch.input_ids_BT.shape == (1, 39)
    expected = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        packed = TargetLoss(model).token_losses(batch)
        for row in sorted(rows(), key=lambda r: -len(r.input_ids)):  # as they are packed
            ids = torch.from_numpy(row.input_ids.astype(np.int64))
            logits = model(input_ids=ids[None]).logits[0, :-1].float()
            expected.append(functional.cross_entropy(logits, ids[1:], reduction="none")[row.loss_start - 1 :])
    tolerance = 2e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(packed, torch.cat(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "config",
    [
        t.MistralConfig(sliding_window=4, **GROUPED),  # a window, and no list of layers that says which have it
        t.Gemma2Config(head_dim=8, **GROUPED),  # every second layer has a window
        t.FalconConfig(alibi=True, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **SIZE),  # reads no such mask
        t.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=VOCABULARY),  # takes no positions
    ],
    ids=lambda config: config.model_type,
)
def test_families_that_cannot_pack_are_refused(config):
    assert not can_pack(new_model(config))


def test_a_mistral_without_a_window_packs():
    assert can_pack(new_model(t.MistralConfig(sliding_window=None, **GROUPED)))


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_packing_is_judged_by_what_the_model_does(spread, monkeypatch):
    """A mask that hides nothing shows in the losses of the probe, at fresh weights as at any others."""
    model = new_model(EAGER["gptj"], spread)
    monkeypatch.setattr(
        "seqtune.models.loss.block_diagonal", lambda documents: torch.ones(1, 1, *documents.shape[1:] * 2).bool()
    )
    assert not can_pack(model)


def test_a_cap_on_logits_is_seen_at_weights_at_which_it_does_nothing():
    """Gemma 2 caps its logits at 30 tanh(x / 30): invisible in the small logits of fresh weights, not in those of trained ones."""
    model = new_model(t.Gemma2Config(head_dim=8, query_pre_attn_scalar=8, **GROUPED), spread=0.0)
    loss = TargetLoss(model)
    assert not loss.backbone_is_exact
    with torch.no_grad():
        model.model.norm.weight.fill_(2000.0)  # logits far above the cap, as long training may make them
    batch = collate(rows(), 0)
    logits = model(input_ids=batch.input_ids_BT).logits.detach().flatten(0, 1)[batch.positions_N]
    assert float(logits.abs().max()) > 29
    torch.testing.assert_close(loss(batch).detach(), functional.cross_entropy(logits, batch.targets_N, reduction="sum"))
    uncapped = new_model(t.Gemma2Config(head_dim=8, final_logit_softcapping=None, **GROUPED), spread=0.0)
    assert TargetLoss(uncapped).backbone_is_exact
