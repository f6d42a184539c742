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
    order = generator.permutation(len(lengths))
    if config.batching == "pack":
        return list(_cut_by_sum(order, lengths[order], token_budget, batch_size))
    per_batch = batch_size or max(1, int((token_budget or 0) / max(1.0, float(lengths.mean()))))
    # in a small table, batches of one length each would follow from sorting it all: they learn worse than mixed ones
    pool_size = per_batch * max(1, min(POOL_BATCHES, len(order) // (per_batch * MIN_POOLS)))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches.extend(cut(pool, lengths[pool], token_budget, batch_size))
    return [batches[i] for i in generator.permutation(len(batches))]


def _cut_by_sum(
    rows: np.ndarray, lengths: np.ndarray, token_budget: int | None, batch_size: int | None
) -> Iterator[np.ndarray]:
    start = total = 0
    for end, length in enumerate(lengths.tolist()):
        full = end - start >= batch_size if batch_size else total + length > (token_budget or 0)
        if full and end > start:
            yield rows[start:end]
            start, total = end, 0
        total += length
    if start < len(rows):
        yield rows[start:]


def cut(
    rows: np.ndarray, lengths: Sequence[int] | np.ndarray, token_budget: int | None, batch_size: int | None
) -> Iterator[np.ndarray]:
    """Cut rows that are sorted by length into batches under a budget of rows x longest row, or of so many rows."""
    start = 0
    for end in range(1, len(rows) + 1):
        size = end - start
        full = size > batch_size if batch_size else size * int(lengths[end - 1]) > (token_budget or 0)
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
        return plan_epoch(self.lengths, self.config, epoch)

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
