"""One decoder for eight families: their blocks, read from a transformers model, and its forward pass.

A family's own forward is some sixty small operations a layer, most of them bookkeeping. Here a layer is two norms, four
products and one attention. Weights stay the model's; what stands side by side or is laid out for the processor is a copy.

Shapes: B rows, Q tokens a row, D width, H heads, G heads of keys and values, W head width, S slots, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from seqtune.models.attention import attend, grouped
from seqtune.models.families import FAMILIES, alibi_slopes, local_window
from seqtune.models.fused import rms_norm, turn
from seqtune.models.packed import has_room, is_hooked
from seqtune.models.products import Product
from seqtune.models.soft_prompts import soft_prompt

# Settings that change a family's arithmetic in ways that the description does not have; a model with another value is not read.
PLAIN = {
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    "apply_residual_connection_post_layernorm": False, "slow_but_exact": False,
}  # fmt: skip
ROTARY = {"default", "linear", "llama3", "yarn"}  # whose angles depend on the position alone, not on the text's length
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", ""), partial(functional.gelu, approximate="tanh")),
}

Norm = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer; see `seqtune.models.families` for what its parts are called."""

    attention_norm: Norm
    feed_forward_norm: Norm
    qkv: Product
    out: Product
    gate: Product | None
    up: Product
    down: Product
    is_local: bool


@dataclass(frozen=True, slots=True)
class Masks:
    """What tokens may look at, added to the scores [B or 1, H or 1, Q, S].

    Attributes:
        everywhere: in most layers; `None` for all tokens before, when prompts are read.
        local: in layers with a window.
    """

    everywhere: torch.Tensor | None
    local: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Packed:
    """Texts behind one another in a row: where each token stands in its own, and who may look at whom, bool [B, 1, T, T]."""

    places_BT: torch.Tensor
    seen_B1TT: torch.Tensor


class KeysAndValues(Protocol):
    """Where one forward pass puts its keys and values, and what it sees of those before it."""

    prefix: torch.Tensor | None

    def put(self, layer: int, new_BQ2GW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's keys and values; returns the keys and the values that attention sees, [B, G, S, W] each."""
        ...


class Blocks:
    """A model's forward pass without its output layer and without dropout; see `blocks_of`.

    Args:
        model: in evaluation mode, or to be trained.
        trains: weights are read at every pass, and get gradients; else they are what they were when this was made.
    """

    def __init__(self, model: Any, *, trains: bool = False):
        self.config = config = model.config
        self.family = family = FAMILIES[config.model_type]
        backbone = getattr(model, model.base_model_prefix)
        self.product = partial(Product, packs=not trains and has_room(model), trains=trains)
        self.tokens = backbone.get_submodule(family.tokens)
        self.places = backbone.get_submodule(family.places) if family.places else None
        decoder: Any = getattr(backbone, "decoder", backbone)
        self.project_in = self._product_or_none(getattr(decoder, "project_in", None))
        self.project_out = self._product_or_none(getattr(decoder, "project_out", None))
        self.embedding_norm = _norm_or_none(getattr(backbone, "word_embeddings_layernorm", None))
        self.final_norm = _norm_or_none(getattr(decoder, family.final_norm))
        self.head = self.product([model.get_output_embeddings()])
        self.prompt = soft_prompt(model)

        self.norm_first = getattr(config, "do_layer_norm_before", True)
        self.parallel = config.model_type == "gpt_neox" and config.use_parallel_residual
        self.activation = ACTIVATIONS[_activation(config)]
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_width = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        self.scale = 1.0 if family.unscaled else self.head_width**-0.5
        self.slopes_H = alibi_slopes(self.num_heads).to(model.device) if config.model_type == "bloom" else None
        self.rotary = getattr(backbone, "rotary_emb", None)
        self.angles_PW = torch.empty(0)
        self.layers = [self._layer(layer) for layer in getattr(decoder, family.layers)]

    def _product_or_none(self, layer: nn.Module | None) -> Product | None:
        return None if layer is None else self.product([layer])

    def _layer(self, layer: Any) -> Layer:
        def product(*names: str) -> Product:
            return self.product([layer.get_submodule(name) for name in names])

        family, attention = self.family, getattr(layer, "attn", None)
        return Layer(
            _norm(layer.get_submodule(family.norms[0])),
            _norm(layer.get_submodule(family.norms[1])),
            product(*family.qkv),
            product(family.out),
            product(family.gate) if family.gate else None,
            product(family.up),
            product(family.down),
            getattr(attention, "attention_type", "global") == "local",
        )

    def __call__(
        self,
        ids_BQ: torch.Tensor,
        positions_BQ: torch.Tensor,
        masks: Masks,
        store: KeysAndValues,
        wanted_M: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the output layer reads at the tokens `ids_BQ` [B, Q, D], or at some of them [M, D].

        Args:
            ids_BQ: tokens.
            positions_BQ: where they stand in their texts, within what was reached.
            masks: what they may look at.
            store: keys and values of this pass go there; attention sees what it gives back.
            wanted_M: numbers of those tokens among all B * Q, row by row; the others only leave their keys and values.
        """
        if self.prompt is not None and self.prompt.is_prefix:
            store.prefix = self.prompt.keys_and_values()
        x_BQD = self.tokens(ids_BQ)
        if self.embedding_norm is not None:
            x_BQD = self.embedding_norm(x_BQD)
        if self.project_in is not None:
            x_BQD = self.project_in(x_BQD)
        if self.places is not None:
            x_BQD = x_BQD + functional.embedding(positions_BQ + self.family.first_place, self.places.weight)
        angles_BQ1W = None if self.rotary is None else self._angles(positions_BQ)
        x_ND = x_BQD.flatten(0, 1)
        for number, layer in enumerate(self.layers):
            attention = partial(self._attend, layer, number, ids_BQ.shape, angles_BQ1W, masks, store)
            x_ND = self._through(layer, x_ND, attention, wanted_M if number + 1 == len(self.layers) else None)
        if self.final_norm is not None:
            x_ND = self.final_norm(x_ND)
        if self.project_out is not None:
            x_ND = self.project_out(x_ND)
        return x_ND.unflatten(0, ids_BQ.shape) if wanted_M is None else x_ND

    def _through(
        self,
        layer: Layer,
        x_ND: torch.Tensor,
        attention: Callable[[torch.Tensor], torch.Tensor],
        wanted_M: torch.Tensor | None,
    ) -> torch.Tensor:
        """One layer: norms before attention and feed-forward network, or behind them; the two in turn, or side by side."""
        found_ND = attention(layer.attention_norm(x_ND) if self.norm_first else x_ND)
        if wanted_M is not None:
            found_ND, x_ND = found_ND[wanted_M], x_ND[wanted_M]
        if not self.norm_first:
            x_ND = layer.attention_norm(layer.out(found_ND, plus=x_ND))
            return layer.feed_forward_norm(self._feed_forward(layer, x_ND, x_ND))
        after_ND = layer.out(found_ND, plus=x_ND)
        read_ND = x_ND if self.parallel else after_ND
        return self._feed_forward(layer, layer.feed_forward_norm(read_ND), after_ND)

    def _feed_forward(self, layer: Layer, x_ND: torch.Tensor, residual_ND: torch.Tensor) -> torch.Tensor:
        if layer.gate is None:
            return layer.down(self.activation(layer.up(x_ND)), plus=residual_ND)
        return layer.down(layer.up(x_ND, times=self.activation(layer.gate(x_ND))), plus=residual_ND)

    def _attend(
        self,
        layer: Layer,
        number: int,
        shape: torch.Size,
        angles_BQ1W: torch.Tensor | None,
        masks: Masks,
        store: KeysAndValues,
        x_ND: torch.Tensor,
    ) -> torch.Tensor:
        """A layer's attention before its last product [N, H * W]."""
        heads, kv_heads, qkv_NO = self.num_heads, self.num_kv_heads, layer.qkv(x_ND)
        if self.family.by_head:
            all_BQH3W = qkv_NO.view(*shape, heads, 3, self.head_width)
            if angles_BQ1W is not None:
                all_BQH3W = turn(all_BQH3W, angles_BQ1W[:, :, None], 2)
            query_BQHW, new_BQ2GW = all_BQH3W[:, :, :, 0], all_BQH3W[:, :, :, 1:].transpose(2, 3)
        else:
            all_BQOW = qkv_NO.view(*shape, heads + 2 * kv_heads, self.head_width)
            if angles_BQ1W is not None:
                all_BQOW = turn(all_BQOW, angles_BQ1W, heads + kv_heads)
            query_BQHW, new_BQ2GW = all_BQOW[:, :, :heads], all_BQOW[:, :, heads:].unflatten(2, (2, kv_heads))
        key_BGSW, value_BGSW = store.put(number, new_BQ2GW)
        query_BHQW = query_BQHW.transpose(1, 2)
        mask = masks.local if layer.is_local and masks.local is not None else masks.everywhere
        if mask is not None and heads != kv_heads and not torch.is_grad_enabled():
            found_BHQW = grouped(query_BHQW, key_BGSW, value_BGSW, mask, self.scale)
        else:
            found_BHQW = attend(query_BHQW, key_BGSW, value_BGSW, mask, causal=mask is None, scale=self.scale)
        return found_BHQW.transpose(1, 2).reshape(len(x_ND), -1)

    def _angles(self, positions_BQ: torch.Tensor) -> torch.Tensor:
        """Cosines, then sines of the rotary angles [B, Q, 1, 2 * turned width]; the sines' first half negative."""
        return functional.embedding(positions_BQ, self.angles_PW)[:, :, None]

    def reach(self, num_places: int) -> None:
        """Be ready for tokens at the first `num_places` places of their texts; whoever runs the blocks says so beforehand."""
        if self.rotary is not None and num_places > len(self.angles_PW):
            positions = torch.arange(2 * num_places, device=self.tokens.weight.device)[None]
            cosines_1PW, sines_1PW = self.rotary(self.tokens.weight[:1], positions)
            low, high = sines_1PW.chunk(2, -1)
            self.angles_PW = torch.cat([cosines_1PW, -low, high], -1)[0]

    def read(
        self, ids_BT: torch.Tensor, store: KeysAndValues, wanted_M: torch.Tensor, packed: Packed | None = None
    ) -> torch.Tensor:
        """What the output layer reads at some tokens of texts that begin here [M, D]; each token sees those before it.

        Args:
            ids_BT: tokens, padding behind them.
            store: keys and values of this pass go there.
            wanted_M: numbers of the tokens, as for a call.
            packed: if several texts stand in a row.
        """
        num_tokens, window = ids_BT.size(1), local_window(self.config)
        self.reach(num_tokens)
        if packed is not None:
            local = None if window is None else packed.seen_B1TT.triu(1 - window.size)
            return self(ids_BT, packed.places_BT, Masks(packed.seen_B1TT, local), store, wanted_M)
        masks = self.prompt_masks(num_tokens, None if window is None else window.size)
        if window is not None and window.in_all_layers:
            masks = Masks(masks.local, None)
        return self(ids_BT, torch.arange(num_tokens, device=ids_BT.device).expand_as(ids_BT), masks, store, wanted_M)

    def prompt_masks(self, num_tokens: int, window: int | None) -> Masks:
        """What the tokens of prompts may look at: those before them; with a window, the last ones of those.

        Args:
            num_tokens: of the longest prompt.
            window: tokens that are seen in local layers, or in all of them.
        """
        everywhere = local = None
        if self.slopes_H is not None or (window is not None and num_tokens > window):
            places_T = torch.arange(num_tokens, device=self.tokens.weight.device)
            distance_TT = places_T[:, None] - places_T
            causal_TT = torch.zeros_like(distance_TT, dtype=self.tokens.weight.dtype).masked_fill_(distance_TT < 0, -math.inf)
            if window is not None:
                local = causal_TT.masked_fill(distance_TT >= window, -math.inf)[None, None]
            if self.slopes_H is not None:
                everywhere = self.with_slopes(causal_TT[None, None], places_T[None])
        return Masks(everywhere, local)

    def with_slopes(self, mask_B1QS: torch.Tensor, places_BS: torch.Tensor) -> torch.Tensor:
        """A mask with what BLOOM adds to scores: slope x place of the key [B, H, Q, S]."""
        if self.slopes_H is None:
            return mask_B1QS
        added_BH1S = self.slopes_H[:, None, None] * places_BS[:, None, None]
        return mask_B1QS + added_BH1S.to(mask_B1QS.dtype)


def blocks_of(model: PreTrainedModel, *, trains: bool = False) -> Blocks | None:
    """A model's blocks, if it is of a known family and does nothing that the description does not have.

    Args:
        model: see `Blocks`.
        trains: see `Blocks`.

    Example:
        blocks = blocks_of(model)
        blocks.reach(ids_BQ.size(1))
        hidden_BQD = blocks(ids_BQ, positions_BQ, blocks.prompt_masks(ids_BQ.size(1), None), cache.reading(first_row=0))
    """
    config = model.config
    if config.model_type not in FAMILIES or not type(model).__module__.startswith("transformers."):
        return None
    rotary = getattr(config, "rope_parameters", None) or {}
    differs = any(getattr(config, name, value) != value for name, value in PLAIN.items())
    kinds = getattr(config, "layer_types", None) or ()
    differs |= any(kind != "full_attention" for kind in kinds)  # Qwen2's layers may have windows, some of them
    if differs or rotary.get("rope_type", "default") not in ROTARY or _activation(config) not in ACTIVATIONS:
        return None
    try:
        blocks = Blocks(model, trains=trains)
    except AttributeError:  # a part was replaced by something else
        return None
    return blocks if _is_read_whole(model, blocks) else None


def _is_read_whole(model: Any, blocks: Blocks) -> bool:
    """True if nothing is hooked onto modules that our pass does not call."""
    products = [p for layer in blocks.layers for p in (layer.qkv, layer.out, layer.gate, layer.up, layer.down) if p is not None]
    called: Sequence[nn.Module] = [*(layer for product in products for layer in product.layers), blocks.tokens]
    inside = {id(part) for module in called for part in module.modules()}
    prefixed = [model.get_decoder()] if blocks.prompt is not None and blocks.prompt.is_prefix else []
    return not any(is_hooked(m) for m in model.modules() if id(m) not in inside and m not in prefixed)


def _activation(config: Any) -> str:
    name = FAMILIES[config.model_type].activation
    return getattr(config, name) if name else "gelu_new"


def _norm(module: Any) -> Norm:
    weight = module.weight
    if isinstance(module, nn.LayerNorm):
        return partial(torch.layer_norm, normalized_shape=tuple(weight.shape), weight=weight, bias=module.bias, eps=module.eps)
    return partial(rms_norm, weight_D=weight, eps=module.variance_epsilon)


def _norm_or_none(module: Any) -> Norm | None:
    return None if module is None else _norm(module)
