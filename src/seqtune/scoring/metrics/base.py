"""What a metric is: numbers per item that can be added up, and a value computed from their sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Metric:
    """A score that is computed from sums over items, so a bootstrap sample needs no second look at the texts.

    Attributes:
        name: key in `metrics.json`.
        signature: how it is computed, with the versions that matter.
        statistics: (predictions, references) -> float array [N, K].
        value: sums [K] -> score, NaN where it is undefined. Whether it is undefined depends on the references alone.
        undefined: the reason to show when the value is NaN; "" for a metric that is always defined.
    """

    name: str
    signature: str
    statistics: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    value: Callable[[np.ndarray], float]
    undefined: str = ""


def item_statistics(values: Sequence[float | bool | None] | np.ndarray) -> np.ndarray:
    """A row (value, 1) per item, or (0, 0) for an item that does not count; float array [N, 2].

    Example:
        >>> item_statistics([0.5, None]).tolist()
        [[0.5, 1.0], [0.0, 0.0]]
    """
    rows = [(0.0, 0.0) if v is None else (float(v), 1.0) for v in values]
    return np.array(rows, dtype=float).reshape(len(rows), 2)


def mean(sums: np.ndarray) -> float:
    """The mean from the sums of `item_statistics`; NaN if no item counts."""
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def mean_metric(name: str, signature: str, item: Callable[[str, str], float | None], undefined: str = "") -> Metric:
    """A metric that is the mean over items of `item(prediction, reference)`; `None` leaves an item out.

    Example:
        >>> metric = mean_metric("exact_match", "v", lambda p, r: float(p == r))
        >>> metric.value(metric.statistics(["a", "b"], ["a", "c"]).sum(axis=0))
        0.5
    """

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return item_statistics([item(p, r) for p, r in zip(predictions, references, strict=True)])

    return Metric(name, f"{signature}|mean of items", statistics, mean, undefined)
