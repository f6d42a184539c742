"""Lengths -> batches: neighbours in length share a batch, under a token budget or a row count.

The plan depends on (lengths, seed, epoch) alone, never on the number of processes: each process takes
every n-th row of a batch, so one process and many take the same optimisation steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from seqtune.config import TrainConfig
from seqtune.records import Batch, Encoded

POOL_BATCHES = 32  # rows are sorted by length inside pools of about this many batches


def plan_epoch(lengths: np.ndarray, token_budget: int, batch_size: int | None, seed: int, epoch: int) -> list[np.ndarray]:
    """Row indices of each batch of one epoch; every row appears exactly once.

    Args:
        lengths: tokens per row [N].
        token_budget: the most rows x longest row in a batch; a longer single row is a batch of its own.
        batch_size: rows per batch instead of the budget.
        seed: shuffling seed.
        epoch: 0-based; each epoch is shuffled anew.

    Example:
        >>> sorted(len(b) for b in plan_epoch(np.array([5, 5, 5, 9]), 10, None, 0, 0))
        [1, 1, 2]
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    per_batch = batch_size or max(1, int(token_budget / max(1.0, float(lengths.mean()))))
    pool_size = per_batch * POOL_BATCHES
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches.extend(_cut(pool, lengths[pool], token_budget, batch_size))
    return [batches[i] for i in generator.permutation(len(batches))]


def _cut(
    rows: np.ndarray, lengths: Sequence[int] | np.ndarray, token_budget: int, batch_size: int | None
) -> Iterator[np.ndarray]:
    start = 0
    for end in range(1, len(rows) + 1):
        size = end - start
        full = size > batch_size if batch_size else size * int(lengths[end - 1]) > token_budget
        if full and size > 1:
            yield rows[start : end - 1]
            start = end - 1
    if start < len(rows):
        yield rows[start:]


class StepPlan:
    """Which rows each optimizer step reads, for every epoch.

    Args:
        lengths: tokens per row [N].
        config: resolved: budget, accumulation, epochs and seed.
    """

    def __init__(self, lengths: np.ndarray, config: TrainConfig):
        self.lengths = lengths
        self.config = config
        self.epoch_steps: list[int] = []
        assert config.epochs, "resolved settings have a number of epochs"
        whole, part = divmod(config.epochs, 1)
        total = 0
        for epoch in range(math.ceil(config.epochs)):
            steps = math.ceil(len(self._batches(epoch)) / config.gradient_accumulation)
            self.epoch_steps.append(steps)
            total += steps if epoch < whole else max(1, round(part * steps))
            if config.max_steps and total >= config.max_steps:
                break
        self.total_steps = min(total, config.max_steps or total)

    def _batches(self, epoch: int) -> list[np.ndarray]:
        c = self.config
        assert c.token_budget
        return plan_epoch(self.lengths, c.token_budget, c.batch_size, c.seed, epoch)

    def steps_from(self, done: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Yield (epoch, batches of the step) from step number `done` on."""
        first = 0
        for epoch, steps in enumerate(self.epoch_steps):
            if done < first + steps:
                batches = self._batches(epoch)
                for i in range(max(0, done - first), steps):
                    if first + i >= self.total_steps:
                        return
                    width = self.config.gradient_accumulation
                    yield epoch, batches[i * width : (i + 1) * width]
            first += steps


def by_length(lengths: Sequence[int], token_budget: int) -> list[np.ndarray]:
    """Batches in order of length, longest first, for prediction: memory trouble shows at once."""
    order = np.argsort(lengths, kind="stable")
    return list(_cut(order, np.asarray(lengths)[order], token_budget, None))[::-1]


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Right-pad rows and list the positions that carry loss.

    Example:
        >>> batch = collate([Encoded(np.array([7, 8, 9]), 1), Encoded(np.array([5, 6]), 1)], pad_id=0)
        >>> batch.input_ids_BT.tolist(), batch.positions_N.tolist(), batch.targets_N.tolist()
        ([[7, 8], [5, 0]], [0, 1, 2], [8, 9, 6])
    """
    # the last token is only ever predicted, so it need not be read
    longest = max(len(row.input_ids) for row in rows) - 1
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    positions, targets = [], []
    for i, row in enumerate(rows):
        length = len(row.input_ids) - 1
        ids[i, :length] = row.input_ids[:-1]
        positions.append(np.arange(row.loss_start - 1, length, dtype=np.int64) + i * longest)
        targets.append(row.input_ids[row.loss_start :].astype(np.int64))
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(targets)),
        sum(len(row.input_ids) for row in rows),
    )
