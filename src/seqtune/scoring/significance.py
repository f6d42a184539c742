"""Bootstrap intervals and paired randomisation, over per-item statistics that were computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from seqtune.records import Score
from seqtune.scoring.metrics.base import Metric

NUM_RESAMPLES = 1000
NUM_SWAPS = 10_000
CHUNK = 100  # resamples drawn at once, so that memory stays flat on long files


def bootstrap_interval(value: Callable[[np.ndarray], float], statistics: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval over resampled items.

    Args:
        value: turns sums [K] into a value.
        statistics: [N, K].
        seed: the same seed gives the same interval.
    """
    generator = np.random.default_rng(seed)
    num_items = len(statistics)
    values = []
    for _ in range(NUM_RESAMPLES // CHUNK):
        counts = generator.multinomial(num_items, np.full(num_items, 1 / num_items), size=CHUNK)
        values.extend(value(sums) for sums in counts @ statistics)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def scored(value: Callable[[np.ndarray], float], statistics: np.ndarray, signature: str) -> Score:
    """A value and its interval over all rows of `statistics` [N, K]."""
    low, high = bootstrap_interval(value, statistics)
    signature = f"{signature}|n:{len(statistics)}|ci:95% bootstrap {NUM_RESAMPLES}, seed 0"
    return Score(value(statistics.sum(axis=0)), low, high, signature)


def scored_mean(values: Sequence[float | bool | None] | np.ndarray, signature: str) -> Score:
    """The mean over items and its interval; an item whose value is `None` does not count.

    Example:
        >>> scored_mean([1.0, None, 0.0], "validity").value
        0.5
    """
    rows = np.array([[0.0, 0.0] if v is None else [v, 1.0] for v in values], dtype=float).reshape(len(values), 2)
    return scored(lambda sums: float(sums[0] / sums[1]) if sums[1] else 0.0, rows, signature + "|mean of items")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same items.

    Attributes:
        a: first system's value.
        b: second system's value.
        difference: b - a.
        p_value: share of random swaps at least as extreme, two-sided, (k + 1) / (n + 1).
        num_swaps: random assignments drawn.
    """

    a: float
    b: float
    difference: float
    p_value: float
    num_swaps: int


def paired_randomization(metric: Metric, statistics_a: np.ndarray, statistics_b: np.ndarray, seed: int = 0) -> Comparison:
    """Approximate randomisation test: swap the systems' items at random and see how often the gap is as wide.

    Source: Noreen 1989; Riezler & Maxwell 2005, https://aclanthology.org/W05-0908/.

    Args:
        metric: turns sums into a value.
        statistics_a: [N, K] of the first system.
        statistics_b: [N, K] of the second system, same items in the same order.
        seed: the same seed gives the same p-value.
    """
    generator = np.random.default_rng(seed)
    sums_a, sums_b = statistics_a.sum(axis=0), statistics_b.sum(axis=0)
    value_a, value_b = metric.value(sums_a), metric.value(sums_b)
    observed = abs(value_b - value_a)
    gap = statistics_b - statistics_a
    extreme = 0
    for _ in range(NUM_SWAPS // CHUNK):
        moved = generator.integers(0, 2, size=(CHUNK, len(gap))) @ gap
        for shift in moved:
            difference = abs(metric.value(sums_b - shift) - metric.value(sums_a + shift))
            extreme += difference >= observed - 1e-12
    p_value = (extreme + 1) / (NUM_SWAPS + 1)
    return Comparison(value_a, value_b, value_b - value_a, p_value, NUM_SWAPS)
