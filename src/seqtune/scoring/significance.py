"""95% intervals and paired randomisation tests, over per-item statistics that were computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from seqtune.records import Score
from seqtune.scoring.metrics.base import Metric, item_statistics, mean

NUM_RESAMPLES = 1000
NUM_SWAPS = 10_000
CHUNK = 100  # resamples drawn at once; all at once would take too much memory on long files


def bootstrap_interval(value: Callable[[np.ndarray], float], statistics: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval over resampled items; a resample in which the value is undefined is passed over.

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
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(num_successes: int, num_items: int) -> tuple[float, float]:
    """95% interval of a proportion. Unlike the bootstrap's it has a width at 0 of n and at n of n.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.

    Example:
        >>> wilson_interval(0, 20)
        (0.0, 0.16113012549493165)
    """
    z = NormalDist().inv_cdf(0.975)
    share = num_successes / num_items
    centre = share + z**2 / (2 * num_items)
    half = z * math.sqrt(share * (1 - share) / num_items + z**2 / (4 * num_items**2))
    scale = 1 + z**2 / num_items
    low = (centre - half) / scale if num_successes > 0 else 0.0
    high = (centre + half) / scale if num_successes < num_items else 1.0
    return low, high


def score(value: Callable[[np.ndarray], float], statistics: np.ndarray, signature: str) -> Score | None:
    """A value over all rows of `statistics` [N, K] with its interval, `None` where it is undefined.

    A mean of values that are all 0 or 1 is a proportion and gets Wilson's interval, everything else the bootstrap's. The
    signature says which, and how many items count.
    """
    sums = statistics.sum(axis=0)
    found = value(sums)
    if math.isnan(found):
        return None
    num_items = int(sums[1]) if value is mean else len(statistics)
    if value is mean and np.isin(statistics, (0, 1)).all():
        (low, high), method = wilson_interval(int(sums[0]), num_items), "Wilson"
    else:
        (low, high), method = bootstrap_interval(value, statistics), f"bootstrap {NUM_RESAMPLES}, seed 0"
    return Score(found, low, high, f"{signature}|n:{num_items}|ci:95% {method}")


def mean_score(values: Sequence[float | bool | None] | np.ndarray, signature: str) -> Score | None:
    """The mean over items and its interval. An item whose value is `None` does not count; `None` if no item counts.

    Example:
        >>> mean_score([1.0, None, 0.0], "validity").value
        0.5
    """
    return score(mean, item_statistics(values), signature + "|mean of items")


def defined(scores: Mapping[str, Score | None]) -> dict[str, Any]:
    """The JSON form of the scores that there are; an undefined one is left out."""
    return {name: found.to_dict() for name, found in scores.items() if found is not None}


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
    """Approximate randomisation test: swap items between the systems at random and count how often the difference is as large.

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
