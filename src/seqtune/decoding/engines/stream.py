"""A batch that is never closed: inputs enter and leave it at any step (continuous batching, Yu et al. 2022, Orca).

Rows and slots follow what is active and what waits: a longer input makes the rows longer, and when the longest have left there
are more of them again. What all rows hold together stays within `decode.token_budget`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seqtune.decoding.engines.decoder import DROP_EVERY, Decoder
from seqtune.decoding.engines.forwards import Forward
from seqtune.records import Candidate
from seqtune.sections import DecodeConfig

# what a forward pass costs beside its tokens, as much as reading so many more; padding may cost what it saves
PASS_COST = 64
GROW_ROWS = 1.5  # when the longest inputs are done, the others are laid out anew for so many times the rows

# is told each token of a greedy answer as it is chosen; what is true ends the answer there
Listener = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class _Input:
    """An input that waits or is being decoded; `need` is the slots that its row takes."""

    source: np.ndarray
    limit: int
    need: int
    heard: Listener | None


class Stream:
    """Decodes whatever is added, under one setting of the search. Call it within `torch.inference_mode()`.

    Args:
        model: one that fits (`seqtune.decoding.engines.exactness`).
        forward: how it is run; several streams may share it.
        end: end token.
        config: beams, length penalty and token budget; `num_return` is not looked at.

    Attributes:
        clock: the order of the input that entered last.

    Example:
        stream = Stream(model, forward, end, DecodeConfig(num_beams=5))
        stream.add(7, source, limit=40)
        while not stream.is_idle:
            for name, candidates in stream.step(): ...
    """

    def __init__(self, model: Any, forward: Forward, end: int, config: DecodeConfig):
        self.config, self.clock = config, 0.0
        self.decoder = Decoder(model, forward, end, config, num_rows=0, num_slots=0)
        self._inputs: dict[int, _Input] = {}
        self._queue: list[tuple[float, int]] = []  # a heap; names that were removed stay in it until they come up
        self._num_waiting = 0
        self._changed, self._missed, self._admitted = False, 0, 0

    @property
    def is_idle(self) -> bool:
        """Nothing is waiting or being decoded."""
        return not self._inputs

    @property
    def num_waiting(self) -> int:
        """Inputs that have not entered."""
        return self._num_waiting

    @property
    def num_active(self) -> int:
        """Inputs that are being decoded."""
        return len(self.decoder.rows)

    def add(self, name: int, source: np.ndarray, limit: int, order: float = 0, heard: Listener | None = None) -> None:
        """Have an input decoded.

        Args:
            name: its own; none that waits or is being decoded has the same.
            source: prompt token ids [T].
            limit: the most new tokens.
            order: inputs with a smaller one enter first.
            heard: with one beam, is called with every new token; ends the answer there if it returns what is true.
        """
        assert name not in self._inputs
        # a row holds a prompt, its hypothesis, and what the beams wrote since dead slots were dropped
        need = len(source) + limit + self.config.num_beams * DROP_EVERY
        self._inputs[name] = _Input(source, limit, need, heard)
        heapq.heappush(self._queue, (order, name))
        self._num_waiting += 1
        self._changed = True

    def remove(self, name: int) -> None:
        """Forget an input, wherever it is; its row is free for others. One that is not there has been answered."""
        if self._inputs.pop(name, None) is None:
            return
        names = self.decoder.rows.names
        if name in names:
            self.decoder.leave([names.index(name)])
        else:
            self._num_waiting -= 1
        self._changed = True

    def step(self) -> list[tuple[int, list[Candidate]]]:
        """Read the prompts of some inputs that wait, or take one token in every row; returns what was finished by that."""
        if self._may_enter():
            names = self._next_group(self._admitted)
            self._admitted -= len(names)
            entering = [self._inputs[name] for name in names]
            done_B = self.decoder.enter(names, [i.source for i in entering], [i.limit for i in entering])
            told = names
        elif self.num_active:
            done_B, told = self.decoder.step(), self.decoder.rows.names
        else:
            return []
        over = self._tell(told)
        rows = self.decoder.rows
        finished = sorted({*torch.nonzero(done_B).flatten().tolist(), *over})
        found = [
            (rows.names[row], rows.beams.candidates(row, self.config.num_beams, self.config.length_penalty)) for row in finished
        ]
        if finished:
            self.decoder.leave(finished)
            for name, _ in found:
                del self._inputs[name]
            self._changed = True
        return found

    def _tell(self, names: list[int]) -> list[int]:
        """Tell the listeners among these rows, which are the last ones, their newest token; returns the rows that they end."""
        if self.config.num_beams > 1 or not any(self._inputs[name].heard for name in names):
            return []
        first = len(self.decoder.rows) - len(names)
        tokens = self.decoder.rows.beams.last_tokens()[first:, 0].tolist()
        over = []
        for row, (name, token) in enumerate(zip(names, tokens, strict=True), start=first):
            heard = self._inputs[name].heard
            if heard is not None and heard(token):
                over.append(row)
        return over

    def _may_enter(self) -> bool:
        """Whether the next step reads prompts, of at most `_admitted` inputs.

        While prompts are read, all active rows stand still for the time of a forward pass, so they are read together: what
        waits is admitted when the steps that free rows have missed add up to that time. (Whether more inputs come soon is not
        known; who waits until waiting has cost what it may save never loses more than twice of that.)
        """
        while self._queue and self._queue[0][1] not in self._inputs:
            heapq.heappop(self._queue)
        if not self._queue:
            self._missed = self._admitted = 0
            return False
        head = self._inputs[self._queue[0][1]]
        if self._changed or head.need > self.decoder.cache.num_slots:
            self._changed = False
            self._fit(head)
        num_rows = self.decoder.cache.num_rows
        free = num_rows - self.num_active
        if free <= 0 or head.need > self.decoder.cache.num_slots:
            self._admitted = 0
            return False
        if not self._admitted:
            could_run = min(free, self._num_waiting)
            self._missed += could_run
            step = PASS_COST + self.num_active * self.config.num_beams
            if self._missed * step < self.num_active * PASS_COST:
                return False
            self._missed, self._admitted = 0, could_run
        self._admitted = min(self._admitted, free)
        return True

    def _fit(self, head: _Input) -> None:
        """Have as many rows, of as many slots, as what is active and the first input that waits need.

        They are laid out anew for a longer input, as soon as what is active leaves room for it; and when there can be many
        more rows, because the longest inputs are done: they would cost all others their room.
        """
        decoder, cache = self.decoder, self.decoder.cache
        rows = decoder.rows
        num_slots = max([head.need, *(self._inputs[name].need for name in rows.names)])
        used = max(rows.used, default=0) + self.config.num_beams
        most = max(1, self.config.token_budget // num_slots)
        num_rows = min(most, _power_of_two(len(rows) + self._num_waiting))
        if head.need > cache.num_slots:
            if len(rows) < most:
                decoder.resize(max(num_rows, len(rows) + 1), max(num_slots, used))
        elif num_rows >= GROW_ROWS * cache.num_rows and used <= num_slots:
            decoder.resize(num_rows, num_slots)

    def _next_group(self, free: int) -> list[int]:
        """The next inputs, as far as padding them costs less than reading them one after the other."""
        names: list[int] = []
        longest = total = 0
        while self._queue and len(names) < free:
            name = self._queue[0][1]
            if name in self._inputs:
                size = len(self._inputs[name].source)
                longest, total = max(longest, size), total + size
                padding = longest * (len(names) + 1) - total
                if padding > PASS_COST * len(names) or self._inputs[name].need > self.decoder.cache.num_slots:
                    break
                names.append(name)
            self.clock = heapq.heappop(self._queue)[0]
        self._num_waiting -= len(names)
        return names


def _power_of_two(number: int) -> int:
    """The next power of two: rows for a few more than there are, so that each that comes does not move all others."""
    return 1 << (number - 1).bit_length()
