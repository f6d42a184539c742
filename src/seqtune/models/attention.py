"""Our own attention, where that of transformers is slow: short rows in bf16, GPT-Neo, shared heads of keys while decoding.

Shapes: B rows, H heads, G heads of keys, Q queries, K keys, D head width.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

OWN = "seqtune_sdpa"  # the name under which transformers knows `_attention`
MAX_PRODUCT_KEYS = 512  # for longer rows, the memory that the scores take outweighs the faster backward pass


def use_fast_attention(model: PreTrainedModel) -> None:
    """Let a model that attends through SDPA use `attend` instead, and GPT-Neo too; other eager families stay as they are."""
    layers: Any = [m for m in model.modules() if isinstance(m, GPTNeoSelfAttention)]
    for layer in layers:
        layer._attn = MethodType(_gpt_neo_attention, layer)
    if layers:
        model.config._attn_implementation = "sdpa"  # the causal mask then stays implicit
    elif model.config._attn_implementation == "sdpa":
        AttentionInterface.register(OWN, _attention)
        AttentionMaskInterface.register(OWN, sdpa_mask)
        model.set_attn_implementation(OWN)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention [B, H, Q, D]: torch's fused kernel, or for short rows in bf16 on a CPU plain products.

    In the latter case the backward pass of the fused kernel takes ten times as long (torch 2.13; measured in `bench/LOG.md`).

    Args:
        query: [B, H, Q, D].
        key: [B, G, K, D]; G heads, each shared by as many of the H.
        value: [B, G, K, D].
        mask: true, or 0, where a query may look; bool or added to the scores; `None` for everything.
        dropout: share of the weights dropped.
        causal: no query looks at a later key; needs `mask` to be `None`.
        scale: of the scores; default D^-0.5.
    """
    groups = query.size(1) // key.size(1)
    if not _trains_short_rows(query, key):
        return functional.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=groups > 1
        )
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if mask is None:
        mask = query.new_zeros(query.size(-2), key.size(-2))
        mask = mask.fill_(-math.inf).triu_(1) if causal else mask
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -math.inf)
    mask = mask.expand(*query.shape[:2], -1, -1).flatten(0, 1) if mask.ndim == 4 else mask
    factor = query.size(-1) ** -0.5 if scale is None else scale
    scores = torch.baddbmm(mask.to(query.dtype), query.flatten(0, 1), key.flatten(0, 1).mT, alpha=factor)
    weights = functional.dropout(scores.softmax(-1), dropout).to(value.dtype)
    return torch.bmm(weights, value.flatten(0, 1)).unflatten(0, query.shape[:2])


def _trains_short_rows(query: torch.Tensor, key: torch.Tensor) -> bool:
    if query.device.type != "cpu" or not torch.is_grad_enabled() or key.size(-2) > MAX_PRODUCT_KEYS:
        return False
    # rotary embeddings turn queries into fp32, so under autocast their own dtype says nothing
    return torch.bfloat16 == (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype)


def _attention(  # noqa: PLR0913, PLR0917 - the signature that models call
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """`attend` behind the signature that transformers calls, which otherwise goes to transformers' own SDPA.

    That one copies keys and values once for each head of queries that shares them. While tokens are generated these copies are
    most of the work, so there the queries of a group stand as further queries before their one head of keys.
    """
    groups = query.size(1) // key.size(1)
    generates = query.size(2) < key.size(2) and not torch.is_grad_enabled()
    if groups > 1 and generates and attention_mask is not None:
        return grouped(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None
    if not _trains_short_rows(query, key):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **others)
    causal = (
        attention_mask is None
        and query.size(2) > 1
        and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    )
    out = attend(query, key, value, attention_mask, dropout=dropout, causal=causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def grouped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask_B1QK: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Attention [B, H, Q, D] where several heads of queries share one head of keys and values, with nothing copied."""
    heads, num_queries = key.size(1), query.size(2)
    groups = query.size(1) // heads
    folded = query.unflatten(1, (heads, groups)).flatten(2, 3)  # [B, heads, groups * Q, D]
    mask = mask_B1QK.unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(2, 3)
    out = functional.scaled_dot_product_attention(folded, key, value, mask, scale=scale)
    return out.unflatten(2, (groups, num_queries)).flatten(1, 2)


def by_head(both_BK2GD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values apart, [B, G, K, D] each."""
    key_BKGD, value_BKGD = both_BK2GD.unbind(2)
    return key_BKGD.transpose(1, 2), value_BKGD.transpose(1, 2)


def _gpt_neo_attention(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, None]:
    """GPT-Neo's attention [B, H, Q, D]: no scaling, and in local layers no key further back than the window."""
    num_queries, num_keys = query.size(-2), key.size(-2)
    local = self.attention_type == "local"
    dropout = self.attn_dropout.p if self.training else 0.0
    if local and num_keys > self.config.window_size:
        mask = self.bias[:, :, num_keys - num_queries : num_keys, :num_keys]  # causal, and within the window
        if attention_mask is not None:
            mask = attention_mask & mask if attention_mask.dtype == torch.bool else attention_mask.masked_fill(~mask, -math.inf)
    else:
        mask = attention_mask
    causal = mask is None and num_queries > 1
    return attend(query, key, value, mask, dropout=dropout, causal=causal, scale=1.0), None
