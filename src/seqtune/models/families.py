"""Where the families that `seqtune.models.blocks` walks through keep the parts of their layers; which layers look how far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps what; names of modules, those of `layer_*` within a layer.

    Attributes:
        layers: the list of layers.
        tokens: embedding of tokens.
        final_norm: norm behind the last layer; a model may lack it.
        norms: of a layer, the attention's and the feed-forward network's.
        qkv: linear layers that make queries, keys and values; a single one makes all three.
        out: the attention's last linear layer.
        up: the feed-forward network's first linear layer.
        down: its last.
        gate: the linear layer whose activation multiplies what `up` gives.
        places: embedding of positions.
        first_place: row of `places` for the first token.
        by_head: a single `qkv` gives head after head, with query, key and value in each.
        unscaled: scores are not divided by the root of the head width.
        activation: the setting that names the activation.
    """

    layers: str
    tokens: str
    final_norm: str
    norms: tuple[str, str]
    qkv: tuple[str, ...]
    out: str
    up: str
    down: str
    gate: str | None = None
    places: str | None = None
    first_place: int = 0
    by_head: bool = False
    unscaled: bool = False
    activation: str = "hidden_act"


LLAMA = Family(
    "layers", "embed_tokens", "norm", ("input_layernorm", "post_attention_layernorm"),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj",
    gate="mlp.gate_proj",
)  # fmt: skip
FAMILIES = {
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA,
    "opt": Family(
        "layers", "decoder.embed_tokens", "final_layer_norm", ("self_attn_layer_norm", "final_layer_norm"),
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.out_proj", "fc1", "fc2",
        places="decoder.embed_positions", first_place=2, activation="activation_function",
    ),
    "gpt2": Family(
        "h", "wte", "ln_f", ("ln_1", "ln_2"), ("attn.c_attn",), "attn.c_proj", "mlp.c_fc", "mlp.c_proj", places="wpe",
        activation="activation_function",
    ),
    "gpt_neo": Family(
        "h", "wte", "ln_f", ("ln_1", "ln_2"), ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        "attn.attention.out_proj", "mlp.c_fc", "mlp.c_proj", places="wpe", unscaled=True, activation="activation_function",
    ),
    "gpt_neox": Family(
        "layers", "embed_in", "final_layer_norm", ("input_layernorm", "post_attention_layernorm"),
        ("attention.query_key_value",), "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", by_head=True,
    ),
    "bloom": Family(
        "h", "word_embeddings", "ln_f", ("input_layernorm", "post_attention_layernorm"), ("self_attention.query_key_value",),
        "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", by_head=True, activation="",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LocalWindow:
    """Layers that look at the last `size` tokens only, their own included."""

    size: int
    in_all_layers: bool


def local_window(config: Any) -> LocalWindow | None:
    """The window of GPT-Neo's local layers, or of all layers (Mistral, Phi-3, StarCoder 2); else `None`.

    Families that list their layers' kinds in `layer_types` are not served where a listed kind is not full attention.
    """
    config = config.get_text_config()
    if getattr(config, "window_size", None) is not None:
        return LocalWindow(config.window_size, in_all_layers=False)
    if getattr(config, "sliding_window", None) is not None and not getattr(config, "layer_types", None):
        return LocalWindow(config.sliding_window, in_all_layers=True)
    return None


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """The factor of each head [H]; Press et al. 2022, https://arxiv.org/abs/2108.12409."""
    closest = 2 ** math.floor(math.log2(num_heads))
    first = [2.0 ** (-8.0 * (i + 1) / closest) for i in range(closest)]
    rest = [2.0 ** (-4.0 * (2 * i + 1) / closest) for i in range(num_heads - closest)]
    return torch.tensor(first + rest)
