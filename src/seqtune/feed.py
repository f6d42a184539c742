"""What each optimizer step reads: collated by a thread while the step before it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from seqtune.batching import StepPlan, collate
from seqtune.records import Batch, Encoded

AHEAD = 2  # steps that are collated ahead
PACK_LENGTH = 512  # tokens of a packed row: longer ones waste attention, shorter ones waste room


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step's input in one process.

    Attributes:
        epoch: 0-based.
        batches: this process's share of each batch, with the weight of its loss: 0 where the batch had no row for it.
        num_tokens: real tokens of the step in all processes.
        num_loss_tokens: those that carry loss.
    """

    epoch: int
    batches: list[tuple[Batch, float]]
    num_tokens: int
    num_loss_tokens: int


class Feed:
    """Steps in order, for one of several processes.

    Args:
        rows: encoded rows.
        plan: which rows each step reads.
        rank: this process.
        width: number of processes.
        pin: put batches into pinned memory, from which a GPU copies without waiting.
    """

    def __init__(self, rows: Sequence[Encoded], plan: StepPlan, rank: int, width: int, pin: bool):
        self.rows, self.plan, self.rank, self.width, self.pin = rows, plan, rank, width, pin
        self.pack_length = PACK_LENGTH if plan.config.batching == "pack" else None

    def steps_from(self, done: int) -> Iterator[Step]:
        """Steps after the first `done` ones."""
        waiting: deque[Future[Step]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
            for epoch, batches in self.plan.steps_from(done):
                waiting.append(pool.submit(self._step, epoch, batches))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _step(self, epoch: int, batches: list[np.ndarray]) -> Step:
        # every process takes every n-th row; one that gets none reads a row for nothing, to keep in step with the others
        shares = [batch[self.rank :: self.width] for batch in batches]
        collated = [
            (self._collate(share if len(share) else batch[:1]), float(len(share) > 0))
            for share, batch in zip(shares, batches, strict=True)
        ]
        lengths = [int(self.plan.lengths[batch].sum()) for batch in batches]
        num_loss_tokens = sum(self.rows[i].num_loss_tokens for batch in batches for i in batch)
        return Step(epoch, collated, sum(lengths), num_loss_tokens)

    def _collate(self, indices: np.ndarray) -> Batch:
        batch = collate([self.rows[i] for i in indices.tolist()], 0, self.pack_length)
        return batch.pin() if self.pin else batch
