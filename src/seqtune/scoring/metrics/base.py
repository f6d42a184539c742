"""What a metric is: statistics that add up over items, and a value computed from their sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Metric:
    """A score whose statistics add up, so that any resample or swap of items is a sum and no text is read twice.

    Attributes:
        name: key in `metrics.json`.
        signature: how it is computed, with the versions that matter.
        statistics: (predictions, references) -> float array [N, K].
        value: sums [K] -> score. Means are sum / count with the count among the statistics.
        higher_is_better: direction, for comparisons.
    """

    name: str
    signature: str
    statistics: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    value: Callable[[np.ndarray], float]
    higher_is_better: bool = True


def mean_metric(name: str, signature: str, item: Callable[[str, str], float], *, higher_is_better: bool = True) -> Metric:
    """A metric that is the mean over items of `item(prediction, reference)`.

    Example:
        >>> metric = mean_metric("exact_match", "v", lambda p, r: float(p == r))
        >>> metric.value(metric.statistics(["a", "b"], ["a", "c"]).sum(axis=0))
        0.5
    """

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        values = [item(p, r) for p, r in zip(predictions, references, strict=True)]
        return np.column_stack([values, np.ones(len(values))])

    return Metric(name, signature, statistics, lambda sums: float(sums[0] / sums[1]), higher_is_better)
