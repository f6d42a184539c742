"""Rows of a running batch, decoded step by step: prompts are stored once, beams never move.

A forward pass (`seqtune.decoding.engines.forwards`) reads one "row" an input, whose K query positions are the K beams; keys and
values of the prompt lie in the row's first slots, those of generated tokens in the slots after them, in order of generation and
beam. What a beam may look at is an additive mask over slots: when beams are reordered, only mask rows are exchanged, never keys
or values.
Now and then the slots that no beam looks at any more are dropped.

Shapes: B active rows, K beams, S slots, N rows that enter, T prompt tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from seqtune.decoding.engines.beams import Beams
from seqtune.decoding.engines.forwards import Forward, Seen
from seqtune.decoding.engines.slot_cache import SlotCache
from seqtune.sections import DecodeConfig

DROP_EVERY = 16  # steps between looking for slots that no beam needs


@dataclass(slots=True)
class Rows:
    """The rows that are being decoded; row b of every attribute, and of the cache, belongs to one input.

    Attributes:
        names: which input.
        used: slots in use, from the first one on.
        prompts_B: tokens of the prompt.
        mask_BKS: 0 where a beam looks at a slot, -inf elsewhere.
        places_BS: where the token in a slot stands in its text.
        beams: the search's state.
    """

    names: list[int]
    used: list[int]
    prompts_B: torch.Tensor
    mask_BKS: torch.Tensor
    places_BS: torch.Tensor
    beams: Beams

    @classmethod
    def after_prompts(cls, names: list[int], lengths: list[int], beams: Beams, num_slots: int, dtype: torch.dtype) -> Rows:
        """Rows whose slots hold their prompts and nothing else.

        Args:
            names: which inputs.
            lengths: tokens of their prompts.
            beams: a row each.
            num_slots: S.
            dtype: the mask's.
        """
        device = beams.steps_B.device
        prompts_B, slots_S = torch.tensor(lengths, dtype=torch.long, device=device), torch.arange(num_slots, device=device)
        mask_BKS = torch.full((len(names), beams.num_beams, num_slots), -math.inf, dtype=dtype, device=device)
        mask_BKS.masked_fill_((slots_S < prompts_B[:, None])[:, None], 0.0)
        places_BS = slots_S.repeat(len(names), 1)
        return cls(names, lengths, prompts_B, mask_BKS, places_BS, beams)

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, index: list[int]) -> Rows:
        """The named rows, in that order."""
        return Rows(
            [self.names[row] for row in index],
            [self.used[row] for row in index],
            self.prompts_B[index],
            self.mask_BKS[index],
            self.places_BS[index],
            self.beams.rows(index),
        )

    def join(self, other: Rows) -> Rows:
        """These rows, then the other's."""
        return Rows(
            self.names + other.names,
            self.used + other.used,
            torch.cat([self.prompts_B, other.prompts_B]),
            torch.cat([self.mask_BKS, other.mask_BKS]),
            torch.cat([self.places_BS, other.places_BS]),
            self.beams.join(other.beams),
        )

    def take_slots(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Give each beam's last token the next slot of its row, where that beam looks at it.

        Returns:
            Slots [B, K], and where the token stands in its text [B, 1].
        """
        num_beams, device = self.beams.num_beams, self.prompts_B.device
        slots_BK = torch.tensor(self.used, device=device)[:, None] + torch.arange(num_beams, device=device)
        place_B1 = (self.prompts_B + self.beams.steps_B - 1)[:, None]
        self.used = [used + num_beams for used in self.used]
        self.mask_BKS.scatter_(2, slots_BK[..., None], 0.0)
        self.places_BS.scatter_(1, slots_BK, place_B1.expand(-1, num_beams))
        return slots_BK, place_B1

    def follow(self, parents_BK: torch.Tensor) -> None:
        """Let each beam look at what the beam that it continues looks at."""
        seen = max(self.used)
        index_BKS = parents_BK[..., None].expand(-1, -1, seen)
        self.mask_BKS[:, :, :seen] = self.mask_BKS[:, :, :seen].gather(1, index_BKS)

    def drop_dead_slots(self) -> torch.Tensor | None:
        """Forget the slots that no beam looks at, and bring the others to the front.

        Returns:
            Which slots go to the front of each row [B, fewer], for the cache to follow; `None` where too few are dead.
        """
        num_beams, slots = self.beams.num_beams, max(self.used)
        alive_BS = (self.mask_BKS[:, :, :slots] > -math.inf).any(1)
        counts = alive_BS.sum(1).tolist()
        kept = max(counts)
        if kept > slots - num_beams:
            return None
        index_BS = torch.argsort(alive_BS.to(torch.uint8), dim=1, descending=True, stable=True)[:, :kept]
        self.used = counts
        self.places_BS[:, :kept] = self.places_BS.gather(1, index_BS)
        kept_BKS = self.mask_BKS.gather(2, index_BS[:, None].expand(-1, num_beams, -1))
        self.mask_BKS.fill_(-math.inf)
        self.mask_BKS[:, :, :kept] = kept_BKS
        return index_BS

    def resize(self, num_slots: int) -> None:
        """Add slots that nothing looks at, or take away such slots behind those in use."""
        more = num_slots - self.mask_BKS.size(2)
        self.mask_BKS = functional.pad(self.mask_BKS, (0, more), value=-math.inf)
        self.places_BS = functional.pad(self.places_BS, (0, more))


class Decoder:
    """Decodes rows step by step: a model, the cache of its keys and values, and the rows' state.

    Args:
        model: in evaluation mode.
        forward: how it is run.
        end: end token.
        config: beams and length penalty.
        num_rows: the most rows at once.
        num_slots: slots a row to begin with; they grow.
    """

    def __init__(self, model: Any, forward: Forward, end: int, config: DecodeConfig, num_rows: int, num_slots: int):
        self.model, self.forward, self.end, self.config = model, forward, end, config
        self.cache = SlotCache(num_rows, num_slots)
        beams = Beams.empty([], config.num_beams, 0, model.device)
        self.rows = Rows.after_prompts([], [], beams, num_slots, model.dtype)
        self.num_taken = 0

    def enter(self, names: list[int], prompts: list[np.ndarray], limits: list[int]) -> torch.Tensor:
        """Read prompts and take their first token; returns which of the active rows are finished, bool [B]."""
        lengths = [len(prompt) for prompt in prompts]
        ids_NT = np.zeros((len(prompts), max(lengths)), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids_NT[row, : len(prompt)] = prompt
        device = self.model.device
        num_steps = max(self.rows.beams.num_steps if len(self.rows) else 0, *limits)
        self.rows.beams = self.rows.beams.with_steps(num_steps)
        beams = Beams.empty(limits, self.config.num_beams, num_steps, device)
        new = Rows.after_prompts(names, lengths, beams, self.cache.num_slots, self.model.dtype)

        ends_N = torch.arange(len(prompts), device=device) * ids_NT.shape[1] + new.prompts_B - 1
        into = self.cache.reading(first_row=len(self.rows))
        hidden_ND = self.forward.read(torch.from_numpy(ids_NT).to(device), into, ends_N)
        _, done_N = new.beams.advance(self.forward.head(hidden_ND)[:, None], self.end, self.config.length_penalty)

        done_B = torch.cat([done_N.new_zeros(len(self.rows)), done_N])
        self.rows = self.rows.join(new)
        return done_B

    def step(self) -> torch.Tensor:
        """Take one token in every row; returns which rows are finished, bool [B]."""
        self._make_room()
        rows, num_beams = self.rows, self.config.num_beams
        slots_BK, place_B1 = rows.take_slots()
        num_seen = max(rows.used)

        seen = Seen(rows.mask_BKS[:, None, :, :num_seen], rows.places_BS[:, :num_seen], place_B1)
        hidden_BKD = self.forward.write(rows.beams.last_tokens(), seen, self.cache.generating(slots_BK, num_seen))
        logits_BKV = self.forward.head(hidden_BKD.flatten(0, 1)).unflatten(0, (len(rows), num_beams))
        parents_BK, done_B = rows.beams.advance(logits_BKV, self.end, self.config.length_penalty)

        if num_beams > 1:
            rows.follow(parents_BK)
        return done_B

    def leave(self, finished: Sequence[int]) -> None:
        """Close the gaps that finished rows leave: the last rows move there."""
        gone = set(finished)
        order = list(range(len(self.rows)))
        remaining = len(order) - len(gone)
        movers = [row for row in range(remaining, len(order)) if row not in gone]
        for target, source in zip([row for row in sorted(gone) if row < remaining], movers, strict=True):
            self.cache.move(source, target, self.rows.used[source])
            order[target] = source
        self.rows = self.rows.rows(order[:remaining])

    def resize(self, num_rows: int, num_slots: int) -> None:
        """Have room for other numbers of rows and of slots a row; the active rows stay."""
        self.cache.resize(num_rows, num_slots, len(self.rows), max(self.rows.used, default=0))
        self.rows.resize(num_slots)

    def _make_room(self) -> None:
        """Before a step: drop dead slots when it is time to, and add slots where a row has none left."""
        if self.config.num_beams > 1 and self.num_taken % DROP_EVERY == DROP_EVERY - 1:
            index_BS = self.rows.drop_dead_slots()
            if index_BS is not None:
                self.cache.gather(index_BS)
        self.num_taken += 1
        if max(self.rows.used) + self.config.num_beams > self.cache.num_slots:
            self.resize(self.cache.num_rows, 2 * self.cache.num_slots)
