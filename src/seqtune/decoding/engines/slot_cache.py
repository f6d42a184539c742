"""Keys and values of the rows that are being decoded, and what one forward pass writes and sees of them.

A forward is handed a `PromptPass` or a `TokenPass`: `Blocks` calls its `put`, a family's own forward its `update`, as that of
transformers' cache. Each is made for one forward and says where that forward's keys and values go; nothing needs to be set
beforehand or put back afterwards.

Shapes: R rows of the cache, S slots a row, G heads of keys and values, W head width; B rows of a forward, Q tokens a row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from seqtune.models.attention import by_head
from seqtune.models.soft_prompts import PassingCache, put_prefix


class SlotCache:
    """Keys and values of all layers, [R, S, 2, G, W] each.

    Args:
        num_rows: R, to begin with.
        num_slots: S, to begin with; see `resize`.

    Example:
        cache = SlotCache(num_rows=2, num_slots=16)
        backbone(input_ids=prompts_BT, past_key_values=cache.reading(first_row=0))
        backbone(input_ids=tokens_BQ, attention_mask=mask_B1QS, past_key_values=cache.generating(slots_BQ, num_seen=7))
    """

    def __init__(self, num_rows: int, num_slots: int):
        self.num_rows, self.num_slots = num_rows, num_slots
        self.stores: list[torch.Tensor] = []

    def reading(self, first_row: int) -> PromptPass:
        """For a forward over prompts, which fill the rows from `first_row` on."""
        return PromptPass(self, first_row)

    def generating(self, slots_BQ: torch.Tensor, num_seen: int) -> TokenPass:
        """For a forward over the next tokens of the first B rows.

        Args:
            slots_BQ: the slot that each token goes to.
            num_seen: attention gets the slots before this one; which of them a query looks at, the mask says.
        """
        rows_B1 = torch.arange(len(slots_BQ), device=slots_BQ.device)[:, None]
        return TokenPass(self, (slots_BQ + rows_B1 * self.num_slots).flatten(), len(slots_BQ), num_seen)

    def store(self, layer: int, new_BQ2GW: torch.Tensor) -> torch.Tensor:
        """A layer's keys and values, made when a forward first comes with some."""
        if layer == len(self.stores):
            self.stores.append(_zeros((self.num_rows, self.num_slots, *new_BQ2GW.shape[2:]), new_BQ2GW))
        return self.stores[layer]

    def resize(self, num_rows: int, num_slots: int, rows: int, used: int) -> None:
        """Have another number of rows and of slots a row; the first `used` slots of the first `rows` rows stay."""
        for layer, store in enumerate(self.stores):
            self.stores[layer] = _zeros((num_rows, num_slots, *store.shape[2:]), store)
            self.stores[layer][:rows, :used] = store[:rows, :used]
        self.num_rows, self.num_slots = num_rows, num_slots

    def move(self, source: int, target: int, num_slots: int) -> None:
        """Copy the first slots of a row to another row."""
        for store in self.stores:
            store[target, :num_slots] = store[source, :num_slots]

    def spread(self, num_slots: int) -> None:
        """Copy the first slots of the first row to all other rows."""
        for store in self.stores:
            store[1:, :num_slots] = store[:1, :num_slots]

    def gather(self, index_BS: torch.Tensor) -> None:
        """Bring the named slots of the first B rows to their front."""
        rows, slots = index_BS.shape
        flat = (index_BS + torch.arange(rows, device=index_BS.device)[:, None] * self.num_slots).flatten()
        for store in self.stores:
            store[:rows, :slots] = store.flatten(0, 1)[flat].unflatten(0, (rows, slots))


class _Pass(PassingCache):
    """What is the same for every forward.

    Attributes:
        prefix: keys and values of a tuned prefix [2 * layers, G, P, W]; whoever runs the forward sets it.
    """

    def __init__(self, cache: SlotCache):
        self.cache = cache
        self.prefix: torch.Tensor | None = None

    def put(self, layer: int, new_BQ2GW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's keys and values; returns the keys and the values that attention shall see, [B, G, S, W] each."""
        raise NotImplementedError

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`put` as transformers calls it, with keys and values [B, G, Q, W]."""
        return self.put(layer, torch.stack([key.transpose(1, 2), value.transpose(1, 2)], 2))


class PromptPass(_Pass):
    """One forward over prompts: tokens go to the first slots of their rows and see one another only."""

    def __init__(self, cache: SlotCache, first_row: int):
        super().__init__(cache)
        self.first_row = first_row

    def put(self, layer: int, new_BQ2GW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompts' own keys and values are all that is seen."""
        rows, tokens = new_BQ2GW.shape[:2]
        if self.prefix is not None:
            key, value = put_prefix(self.prefix, *by_head(new_BQ2GW), layer)
            new_BQ2GW = torch.stack([key.transpose(1, 2), value.transpose(1, 2)], 2)
        self.cache.store(layer, new_BQ2GW)[self.first_row : self.first_row + rows, :tokens] = new_BQ2GW
        return by_head(new_BQ2GW)


class TokenPass(_Pass):
    """One forward over generated tokens; see `SlotCache.generating`.

    Args:
        cache: is written to.
        flat_N: row * S + slot of each token.
        num_rows: attention sees that many rows of the cache,
        num_seen: and of each row that many slots.
    """

    def __init__(self, cache: SlotCache, flat_N: torch.Tensor, num_rows: int, num_seen: int):
        super().__init__(cache)
        self.flat_N, self.num_rows, self.num_seen = flat_N, num_rows, num_seen

    def put(self, layer: int, new_BQ2GW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All slots of the rows are seen, as far as they are in use."""
        store = self.cache.store(layer, new_BQ2GW)
        store.flatten(0, 1).index_copy_(0, self.flat_N, new_BQ2GW.flatten(0, 1))
        return by_head(store[: self.num_rows, : self.num_seen])


def _zeros(size: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros, because what is masked must still be a number; on CPUs pages come from the system as they are touched."""
    if like.device.type != "cpu":
        return like.new_zeros(size)
    return torch.from_numpy(np.zeros(math.prod(size) * like.element_size(), dtype=np.uint8)).view(like.dtype).view(size)
