"""Attention of families whose own forward is slow or takes too little: GPT-Neo in SDPA, BLOOM with given key positions."""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomModel
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention


def use_fast_attention(model: PreTrainedModel) -> None:
    """Give GPT-Neo scaled-dot-product attention; transformers runs it eagerly. Other families stay as they are."""
    layers: Any = [m for m in model.modules() if isinstance(m, GPTNeoSelfAttention)]
    for layer in layers:
        layer._attn = MethodType(_gpt_neo_attention, layer)
    if layers:
        model.config._attn_implementation = "sdpa"  # the causal mask then stays implicit


def _gpt_neo_attention(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, None]:
    """GPT-Neo's attention [B, H, Q, D]: no scaling, and in local layers no key further back than the window.

    A mask with two heads holds the global layers' mask and the local layers' one (the native engine's, whose
    keys do not lie in order).
    """
    num_queries, num_keys = query.size(-2), key.size(-2)
    local = self.attention_type == "local"
    dropout = self.attn_dropout.p if self.training else 0.0
    if attention_mask is not None and attention_mask.size(1) == 2:
        mask = attention_mask[:, 1:] if local else attention_mask[:, :1]
    elif local and num_keys > self.config.window_size:
        mask = self.bias[:, :, num_keys - num_queries : num_keys, :num_keys]  # causal, and within the window
        if attention_mask is not None:
            mask = attention_mask & mask if attention_mask.dtype == torch.bool else attention_mask.masked_fill(~mask, -math.inf)
    else:
        mask = attention_mask
    causal = mask is None and num_queries > 1
    out = functional.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout, is_causal=causal, scale=1.0)
    return out, None


def has_key_positions(model: PreTrainedModel) -> bool:
    """True for BLOOM, whose attention depends on where keys stand in the text rather than on rotated or added positions."""
    return isinstance(getattr(model, model.base_model_prefix, None), BloomModel)


class KeyPositions:
    """Tells BLOOM where its keys stand while they do not lie in the order of the text.

    Example:
        with KeyPositions(model.transformer) as where:
            where.positions_BS = torch.tensor([[0, 1, 2, 2]])
            model(input_ids, attention_mask=mask_B1QS, past_key_values=cache)
    """

    def __init__(self, backbone: Any):
        self.backbone = backbone
        self.positions_BS: torch.Tensor | None = None

    def __enter__(self) -> KeyPositions:
        """Put our table of biases in place of the model's."""
        self.backbone.build_alibi_tensor = self._alibi
        return self

    def __exit__(self, *_: object) -> None:
        """Put the model's own back."""
        del self.backbone.build_alibi_tensor

    def _alibi(self, attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype) -> torch.Tensor:
        """Slope x position [B * H, 1, S]; Press et al. 2022, https://arxiv.org/abs/2108.12409."""
        assert self.positions_BS is not None
        closest = 2 ** math.floor(math.log2(num_heads))
        first = [2.0 ** (-8.0 * (i + 1) / closest) for i in range(closest)]
        rest = [2.0 ** (-4.0 * (2 * i + 1) / closest) for i in range(num_heads - closest)]
        slopes_H = torch.tensor(first + rest, device=self.positions_BS.device)
        alibi_BHS = slopes_H[None, :, None] * self.positions_BS[:, None, :]
        return alibi_BHS.flatten(0, 1)[:, None].to(dtype)
