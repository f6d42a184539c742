"""Lengths -> batches: neighbours in length share a batch, under a token budget or a row count.

The plan depends on (lengths, seed, epoch) alone, never on the number of processes: each process takes
every n-th row of a batch, so one process and many take the same optimisation steps.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seqtune.records import Batch, Encoded
from seqtune.sections import TrainConfig

POOL_BATCHES = 32  # rows are sorted by length inside pools of about this many batches
MIN_POOLS = 8  # of which an epoch has at least so many


def plan_epoch(lengths: np.ndarray, config: TrainConfig, epoch: int) -> list[np.ndarray]:
    """Row indices of each batch of one epoch; every row appears exactly once.

    Args:
        lengths: tokens per row [N].
        config: resolved: `token_budget` (the most rows x longest row in a batch, or the most tokens if packed; a longer row is
            a batch of its own), or `batch_size` instead; `batching`; `seed`.
        epoch: 0-based; each epoch is shuffled anew.

    Example:
        >>> sorted(len(b) for b in plan_epoch(np.array([5, 5, 5, 9]), TrainConfig(token_budget=10), 0))
        [1, 1, 2]
    """
    token_budget, batch_size = config.token_budget, config.batch_size
    assert token_budget or batch_size
    generator = np.random.default_rng([config.seed, epoch])
    order = generator.permutation(np.arange(len(lengths), dtype=np.int32))
    if config.batching == "pack":
        return list(_cut_by_sum(order, lengths[order], token_budget, batch_size))
    per_batch = batch_size or max(1, int((token_budget or 0) / max(1.0, float(lengths.mean()))))
    # in a small table, batches of one length each would follow from sorting it all: they learn worse than mixed ones
    pool_size = per_batch * max(1, min(POOL_BATCHES, len(order) // (per_batch * MIN_POOLS)))
    keys = lengths.astype(np.uint16) if lengths.max() < 2**16 else lengths  # numpy sorts short integers several times faster
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(keys[pool], kind="stable")]
        batches.extend(cut(pool, lengths[pool], token_budget, batch_size))
    return [batches[i] for i in generator.permutation(len(batches))]


def _cut_by_sum(
    rows: np.ndarray, lengths: np.ndarray, token_budget: int | None, batch_size: int | None
) -> Iterator[np.ndarray]:
    sums = np.cumsum(lengths)
    start = before = 0
    while start < len(rows):
        end = start + batch_size if batch_size else int(np.searchsorted(sums, before + (token_budget or 0), "right"))
        end = min(max(start + 1, end), len(rows))
        yield rows[start:end]
        start, before = end, int(sums[end - 1])


def cut(
    rows: np.ndarray, lengths: Sequence[int] | np.ndarray, token_budget: int | None, batch_size: int | None
) -> Iterator[np.ndarray]:
    """Cut rows that are sorted by length into batches under a budget of rows x longest row, or of so many rows."""
    longest = np.asarray(lengths).tolist()
    start = 0

    def size(end: int) -> int:
        return (end - start) * longest[end - 1]

    while start < len(rows):
        ends = range(start + 1, len(rows) + 1)  # their sizes ascend
        end = start + max(1, batch_size or bisect.bisect_right(ends, token_budget or 0, key=size))
        yield rows[start:end]
        start = end


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What one optimizer step reads.

    Attributes:
        epoch: 0-based.
        number: of the step in its epoch, 0-based.
        batches: row indices of each batch.
    """

    epoch: int
    number: int
    batches: list[np.ndarray]


class StepPlan:
    """Which rows each optimizer step reads: epoch after epoch, each planned when it is reached.

    The number of steps is known beforehand: the first epoch's, times the number of epochs. Later epochs fall into batches in
    other ways and take up to about one step in a hundred more or fewer, so where there are several, the end of the training
    may lie a few steps before the end of the last one, or after it.

    Args:
        lengths: tokens per row [N].
        config: resolved: budget, accumulation, epochs and seed.

    Attributes:
        total_steps: of the training.
    """

    def __init__(self, lengths: np.ndarray, config: TrainConfig):
        self.lengths = lengths
        self.config = config
        assert config.epochs, "resolved settings have a number of epochs"
        self._planned = (0, plan_epoch(lengths, config, 0))
        steps = math.ceil(len(self._planned[1]) / config.gradient_accumulation)
        whole, part = divmod(config.epochs, 1)
        total = int(whole) * steps + (max(1, round(part * steps)) if part else 0)
        self.total_steps = min(total, config.max_steps or total)

    def _batches(self, epoch: int) -> list[np.ndarray]:
        if self._planned[0] != epoch:
            self._planned = (epoch, plan_epoch(self.lengths, self.config, epoch))
        return self._planned[1]

    def steps_from(self, done: int, epoch: int, number: int) -> Iterator[PlannedStep]:
        """Yield the steps that are left.

        Args:
            done: steps that are done.
            epoch: of the last of them.
            number: how many of them are of that epoch, which may be at its end.
        """
        width = self.config.gradient_accumulation
        while done < self.total_steps:
            batches = self._batches(epoch)[number * width : (number + 1) * width]
            if batches:
                yield PlannedStep(epoch, number, batches)
                done, number = done + 1, number + 1
            else:
                epoch, number = epoch + 1, 0


def by_length(lengths: Sequence[int], token_budget: int) -> list[np.ndarray]:
    """Batches in order of length, longest first, for prediction: memory trouble shows at once."""
    order = np.argsort(lengths, kind="stable")
    return list(cut(order, np.asarray(lengths)[order], token_budget, None))[::-1]


def collate(rows: Sequence[Encoded], pad_id: int, pack_length: int | None = None) -> Batch:
    """Right-pad rows, or pack several of them into one, and list the positions that carry loss.

    Args:
        rows: encoded rows.
        pad_id: what fills up.
        pack_length: put as many rows behind one another as fit into this many tokens (or into the longest row).

    Example:
        >>> batch = collate([Encoded(np.array([7, 8, 9]), 1), Encoded(np.array([5, 6]), 1)], pad_id=0)
        >>> batch.input_ids_BT.tolist(), batch.positions_N.tolist(), batch.targets_N.tolist()
        ([[7, 8], [5, 0]], [0, 1, 2], [8, 9, 6])
        >>> batch = collate([Encoded(np.array([7, 8, 9]), 1), Encoded(np.array([5, 6]), 1)], 0, pack_length=4)
        >>> batch.input_ids_BT.tolist(), batch.places_BT.tolist(), batch.documents_BT.tolist()
        ([[7, 8, 5]], [[0, 1, 0]], [[0, 0, 1]])
    """
    # the last token is only ever predicted, so it need not be read
    lengths = [len(row.input_ids) - 1 for row in rows]
    bins = [[i] for i in range(len(rows))] if pack_length is None else _fill(lengths, pack_length)
    longest = max(sum(lengths[i] for i in members) for members in bins)
    ids = np.full((len(bins), longest), pad_id, dtype=np.int64)
    places, documents = np.zeros_like(ids), np.full_like(ids, len(rows))
    positions, targets = [], []
    for b, members in enumerate(bins):
        start = 0
        for i in members:
            row, end = rows[i], start + lengths[i]
            ids[b, start:end] = row.input_ids[:-1]
            places[b, start:end] = np.arange(lengths[i])
            documents[b, start:end] = i
            positions.append(np.arange(start + row.loss_start - 1, end, dtype=np.int64) + b * longest)
            targets.append(row.input_ids[row.loss_start :].astype(np.int64))
            start = end
    packed = pack_length is not None
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(targets)),
        sum(len(row.input_ids) for row in rows),
        torch.from_numpy(places) if packed else None,
        torch.from_numpy(documents) if packed else None,
    )


def _fill(lengths: Sequence[int], size: int) -> list[list[int]]:
    """First-fit decreasing: rows into as few bins as that rule finds."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        which = next((b for b, left in enumerate(room) if left >= lengths[i]), None)
        if which is None:
            which = len(bins)
            bins.append([])
            room.append(max(size, *lengths))
        bins[which].append(i)
        room[which] -= lengths[i]
    return bins
