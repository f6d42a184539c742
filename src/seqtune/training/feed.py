"""What each optimizer step reads: collated by a thread while the step before it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from seqtune.models.loading import SMALL
from seqtune.records import Batch
from seqtune.tokens.batching import PlannedStep, StepPlan, collate, cut
from seqtune.tokens.token_table import TokenTable

AHEAD = 2  # steps that are collated ahead
PACK_LENGTH = 512  # tokens of a packed row: longer ones waste attention, shorter ones waste room


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step's input in one process.

    Attributes:
        batches: this process's share of each batch, with the weight of its loss: 0 where the batch had no row for it.
        num_tokens: real tokens of the step in all processes.
        num_loss_tokens: those that carry loss.
        epoch: 0-based.
        number: of the step in its epoch, 0-based.
    """

    batches: list[tuple[Batch, float]]
    num_tokens: int
    num_loss_tokens: int
    epoch: int
    number: int


def part_tokens(num_parameters: int, num_trained: int) -> int:
    """Padded tokens that a CPU computes at once: activations are held for so many, and gradients add up part by part.

    Fewer for large models, whose products are as quick on fewer rows; fewest where most weights are frozen and there are hardly
    any gradients to add up. Measured in `bench/LOG.md`.
    """
    if 2 * num_trained <= num_parameters:
        return 512
    return 2048 if num_parameters < SMALL else 1024


class Feed:
    """Steps in order, for one of several processes.

    Args:
        rows: encoded rows.
        plan: which rows each step reads.
        rank: this process.
        width: number of processes.
        part_tokens: padded tokens computed at once, `None` for whole batches.
        on_gpu: put batches into pinned memory, from which a GPU copies without waiting.
    """

    def __init__(self, rows: TokenTable, plan: StepPlan, rank: int, width: int, part_tokens: int | None, on_gpu: bool):
        self.rows, self.plan, self.rank, self.width, self.on_gpu = rows, plan, rank, width, on_gpu
        self.part_tokens = part_tokens
        self.pack_length = PACK_LENGTH if plan.config.batching == "pack" else None

    def steps_from(self, done: int, epoch: int, number: int) -> Iterator[Step]:
        """The steps that are left, as `StepPlan.steps_from` plans them."""
        waiting: deque[Future[Step]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
            for planned in self.plan.steps_from(done, epoch, number):
                waiting.append(pool.submit(self._step, planned))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _step(self, planned: PlannedStep) -> Step:
        # every process takes every n-th row; one that gets none reads a row for nothing, to keep in step with the others
        collated = []
        for batch in planned.batches:
            share = batch[self.rank :: self.width]
            collated += [
                (self._collate(part), float(len(share) > 0)) for part in self._parts(share if len(share) else batch[:1])
            ]
        read = np.concatenate(planned.batches)
        num_tokens = int(self.plan.lengths[read].sum())
        num_loss_tokens = num_tokens - int(self.rows.loss_starts[read].sum())
        return Step(collated, num_tokens, num_loss_tokens, planned.epoch, planned.number)

    def _parts(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Cut what would hold many activations at once; gradients add up, so the step stays the same."""
        if self.part_tokens is None or self.pack_length:
            return iter([indices])
        ordered = indices[np.argsort(self.plan.lengths[indices], kind="stable")]
        return cut(ordered, self.plan.lengths[ordered], self.part_tokens, None)

    def _collate(self, indices: np.ndarray) -> Batch:
        batch = collate([self.rows[i] for i in indices.tolist()], 0, self.pack_length)
        return batch.pin() if self.on_gpu else batch
