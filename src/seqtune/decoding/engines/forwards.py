"""How the native engine runs a model: through `seqtune.models.blocks`, or through the family's own forward.

Shapes: B rows, K beams, S slots, N rows that enter, T prompt tokens, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from seqtune.decoding.engines.slot_cache import PromptPass, TokenPass
from seqtune.decoding.engines.weights import quantized
from seqtune.models.blocks import Blocks, Masks, blocks_of
from seqtune.models.packed import packed


@dataclass(frozen=True, slots=True)
class Seen:
    """What the tokens of a step look at.

    Attributes:
        mask_B1KS: 0 where a beam looks at a slot, -inf elsewhere.
        places_BS: where the token in a slot stands in its text.
        place_BK: and where the new ones stand; [B, 1] where all of a row's stand at the same place.
    """

    mask_B1KS: torch.Tensor
    places_BS: torch.Tensor
    place_BK: torch.Tensor

    def within(self, size: int) -> torch.Tensor:
        """The mask without what is further back than a window of `size` tokens."""
        too_far_BKS = self.places_BS[:, None] <= self.place_BK[..., None] - size
        return self.mask_B1KS.masked_fill(too_far_BKS[:, None], -math.inf)


class Forward(Protocol):
    """How a model is run.

    Attributes:
        takes_our_masks: what a token looks at can be said to it.
    """

    takes_our_masks: bool

    def head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Logits [N, V]."""
        ...

    def read(self, ids_NT: torch.Tensor, cache: PromptPass) -> torch.Tensor:
        """Last hidden states of prompts [N, T, D]; each token sees those before it."""
        ...

    def write(self, ids_BK: torch.Tensor, seen: Seen, cache: TokenPass) -> torch.Tensor:
        """Last hidden states of the newest tokens [B, K, D]."""
        ...


class Described:
    """Through `seqtune.models.blocks`."""

    takes_our_masks = True

    def __init__(self, model: Any, blocks: Blocks):
        self.blocks, self.window = blocks, local_window(model.config)

    def head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """See `Forward.head`."""
        return self.blocks.head(hidden_ND)

    def read(self, ids_NT: torch.Tensor, cache: PromptPass) -> torch.Tensor:
        """See `Forward.read`."""
        size = None if self.window is None else self.window.size
        masks = self.blocks.prompt_masks(ids_NT.size(1), size)
        if self.window is not None and self.window.in_all_layers:
            masks = Masks(masks.local, None)
        positions_NT = torch.arange(ids_NT.size(1), device=ids_NT.device).expand(len(ids_NT), -1)
        return self.blocks(ids_NT, positions_NT, masks, cache)

    def write(self, ids_BK: torch.Tensor, seen: Seen, cache: TokenPass) -> torch.Tensor:
        """See `Forward.write`."""
        everywhere, local = self.blocks.with_slopes(seen.mask_B1KS, seen.places_BS), None
        if self.window is not None:
            near = seen.within(self.window.size)
            everywhere, local = (near, None) if self.window.in_all_layers else (everywhere, near)
        return self.blocks(ids_BK, seen.place_BK.expand_as(ids_BK), Masks(everywhere, local), cache)


class Own:
    """Through the family's own forward: families that `Blocks` does not describe."""

    def __init__(self, model: Any):
        self.backbone = getattr(model, model.base_model_prefix)
        self.output, self.window = model.get_output_embeddings(), local_window(model.config)
        takes_positions = "position_ids" in inspect.signature(self.backbone.forward).parameters
        self.takes_our_masks = takes_positions and (self.window is None or self.window.in_all_layers)

    def read(self, ids_NT: torch.Tensor, cache: PromptPass) -> torch.Tensor:
        """See `Forward.read`."""
        positions_NT = torch.arange(ids_NT.size(1), device=ids_NT.device).expand(len(ids_NT), -1)
        return self._run(ids_NT, positions_NT, None, cache)

    def write(self, ids_BK: torch.Tensor, seen: Seen, cache: TokenPass) -> torch.Tensor:
        """See `Forward.write`."""
        mask_B1KS = seen.mask_B1KS if self.window is None else seen.within(self.window.size)
        return self._run(ids_BK, seen.place_BK.expand_as(ids_BK), mask_B1KS, cache)

    def head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """See `Forward.head`."""
        return self.output(hidden_ND)

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: Any) -> torch.Tensor:
        return self.backbone(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state


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


class FrozenModel:
    """A model that stays as it is while this lives, so that `Blocks` lays its weights out for the processor once.

    Whoever changes the model (training goes on, an adapter comes or goes) makes a new one. A pickle has the model alone.

    Args:
        model: is switched to evaluation.

    Example:
        frozen = FrozenModel(model)
        with frozen.forward() as forward:
            stream = Stream(model, forward, end, DecodeConfig())
    """

    def __init__(self, model: PreTrainedModel):
        self.model: Any = model.eval()

    @cached_property
    def _blocks(self) -> Blocks | None:
        return blocks_of(self.model)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    @cached_property
    def int8(self) -> FrozenModel:
        """A copy with int8 weights, by which this one is not run any more."""
        self.forget()
        return FrozenModel(quantized(self.model))

    def forget(self) -> None:
        """Give back what is laid out; it is laid out anew when it is asked for."""
        self.__dict__.pop("_blocks", None)

    @contextmanager
    def forward(self) -> Iterator[Forward]:
        """The way to run the model; for a family's own forward, weights are laid out for as long as this lasts."""
        if self._blocks is not None:
            yield Described(self.model, self._blocks)
            return
        with packed(self.model):
            yield Own(self.model)
