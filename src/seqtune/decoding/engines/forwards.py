"""How the native engine runs a model: through `seqtune.models.blocks`, or through the family's own forward.

Shapes: B rows, K beams, S slots, N rows that enter, T prompt tokens, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from seqtune.decoding.engines.slot_cache import PromptPass, TokenPass
from seqtune.models.blocks import Blocks, Masks
from seqtune.models.families import local_window


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

    def read(self, ids_NT: torch.Tensor, cache: PromptPass, wanted_M: torch.Tensor) -> torch.Tensor:
        """Last hidden states [M, D] of some tokens of prompts, numbered row by row; each token sees those before it."""
        ...

    def write(self, ids_BK: torch.Tensor, seen: Seen, cache: TokenPass, wanted_M: torch.Tensor | None = None) -> torch.Tensor:
        """Last hidden states of the newest tokens [B, K, D], or of some of them [M, D]."""
        ...


class Described:
    """Through `seqtune.models.blocks`."""

    takes_our_masks = True

    def __init__(self, blocks: Blocks):
        self.blocks, self.window = blocks, local_window(blocks.config)

    def head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """See `Forward.head`."""
        return self.blocks.head(hidden_ND)

    def read(self, ids_NT: torch.Tensor, cache: PromptPass, wanted_M: torch.Tensor) -> torch.Tensor:
        """See `Forward.read`."""
        return self.blocks.read(ids_NT, cache, wanted_M)

    def write(self, ids_BK: torch.Tensor, seen: Seen, cache: TokenPass, wanted_M: torch.Tensor | None = None) -> torch.Tensor:
        """See `Forward.write`."""
        everywhere, local = self.blocks.with_slopes(seen.mask_B1KS, seen.places_BS), None
        if self.window is not None:
            near = seen.within(self.window.size)
            everywhere, local = (near, None) if self.window.in_all_layers else (everywhere, near)
        self.blocks.reach(cache.cache.num_slots)  # a place is never larger than the token's slot
        return self.blocks(ids_BK, seen.place_BK.expand_as(ids_BK), Masks(everywhere, local), cache, wanted_M)


class Own:
    """Through the family's own forward: families that `Blocks` does not describe."""

    def __init__(self, model: Any):
        self.backbone = getattr(model, model.base_model_prefix)
        self.output, self.window = model.get_output_embeddings(), local_window(model.config)
        takes_positions = "position_ids" in inspect.signature(self.backbone.forward).parameters
        self.takes_our_masks = takes_positions and (self.window is None or self.window.in_all_layers)

    def read(self, ids_NT: torch.Tensor, cache: PromptPass, wanted_M: torch.Tensor) -> torch.Tensor:
        """See `Forward.read`."""
        positions_NT = torch.arange(ids_NT.size(1), device=ids_NT.device).expand(len(ids_NT), -1)
        return self._run(ids_NT, positions_NT, None, cache).flatten(0, 1)[wanted_M]

    def write(self, ids_BK: torch.Tensor, seen: Seen, cache: TokenPass, wanted_M: torch.Tensor | None = None) -> torch.Tensor:
        """See `Forward.write`."""
        mask_B1KS = seen.mask_B1KS if self.window is None else seen.within(self.window.size)
        hidden_BKD = self._run(ids_BK, seen.place_BK.expand_as(ids_BK), mask_B1KS, cache)
        return hidden_BKD if wanted_M is None else hidden_BKD.flatten(0, 1)[wanted_M]

    def head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """See `Forward.head`."""
        return self.output(hidden_ND)

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: Any) -> torch.Tensor:
        return self.backbone(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state
