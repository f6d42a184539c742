"""Metrics for tasks with a set of answers: per class, by order, and of the probabilities that the model gave.

Statistics per item add up, as for every metric here; macro-F1 and Matthews' coefficient need no more than how often each class
was right, given and due. What is none of the answers (an input that was refused, a reference from outside) is one class more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from seqtune.records import Hypothesis, Prediction
from seqtune.scoring.metrics.base import Metric, item_statistics, mean_metric

NUM_BINS = 10  # of equal width, for the calibration error


def answer_metrics(answers: Sequence[str], *, ordered: bool) -> dict[str, Metric]:
    """The metrics that compare answers with references.

    Args:
        answers: the set; from low to high if `ordered`.
        ordered: add those that count how far off an answer is.

    Example:
        >>> metric = answer_metrics(["no", "yes"], ordered=False)["matthews"]
        >>> metric.value(metric.statistics(["yes", "no", "no"], ["yes", "no", "yes"]).sum(axis=0))
        0.5
    """
    places = {answer: place for place, answer in enumerate(answers)}
    classes = f"classes:{len(answers)} answers, and one for everything else"
    found = [
        Metric("macro_f1", f"mean of F1 over classes that occur|{classes}", partial(_counts, places), _macro_f1),
        Metric(
            "matthews", f"R_K, Gorodkin 2004|{classes}", partial(_counts, places), _matthews,
            "all references are of one class",
        ),
    ]  # fmt: skip
    if ordered:
        left_out = "left out: items whose reference or answer is none of them"
        found += [
            Metric(
                "quadratic_kappa", f"weights:(i-j)^2|answers:{len(answers)} in order|{left_out}", partial(_distances, places),
                _quadratic_kappa, "all references are the same",
            ),
            mean_metric("within_1", f"answers:{len(answers)} in order; the right one or next to it", partial(_near, places)),
        ]  # fmt: skip
    return {metric.name: metric for metric in found}


def _counts(places: dict[str, int], predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Per class: right, given, due; [N, 3 C]."""
    other, rows = len(places), np.arange(len(references))
    given, due = (np.array([places.get(t, other) for t in texts], dtype=int) for texts in (predictions, references))
    right = np.array([p == r for p, r in zip(predictions, references, strict=True)], dtype=float)
    statistics = np.zeros((len(rows), 3, other + 1))
    statistics[rows, 0, due] = right
    statistics[rows, 1, given] = 1
    statistics[rows, 2, due] = 1
    return statistics.reshape(len(rows), -1)


def _macro_f1(sums: np.ndarray) -> float:
    right, given, due = sums.reshape(3, -1)
    occur = given + due > 0
    return float(np.mean(2 * right[occur] / (given + due)[occur])) if occur.any() else math.nan


def _matthews(sums: np.ndarray) -> float:
    right, given, due = sums.reshape(3, -1)
    total = due.sum()
    if (due > 0).sum() < 2:
        return math.nan
    spread = (total**2 - given @ given) * (total**2 - due @ due)
    return float((right.sum() * total - given @ due) / math.sqrt(spread)) if spread > 0 else 0.0


def _distances(places: dict[str, int], predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """The squared distance, and per class given and due; [N, 1 + 2 C], zeros for an item that is left out."""
    statistics = np.zeros((len(references), 1 + 2 * len(places)))
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        given, due = places.get(prediction), places.get(reference)
        if given is not None and due is not None:
            statistics[row, 0] = (given - due) ** 2
            statistics[row, 1 + given] = statistics[row, 1 + len(places) + due] = 1
    return statistics


def _quadratic_kappa(sums: np.ndarray) -> float:
    given, due = sums[1:].reshape(2, -1)
    total, steps = due.sum(), np.arange(len(due))
    if (due > 0).sum() < 2:
        return math.nan
    return float(1 - sums[0] * total / (given @ ((steps[:, None] - steps) ** 2) @ due))


def _near(places: dict[str, int], prediction: str, reference: str) -> float:
    given, due = places.get(prediction), places.get(reference)
    return float(given is not None and due is not None and abs(given - due) <= 1)


def probabilities(hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
    """The probability of each answer among all those that were weighed; together they are 1.

    Example:
        >>> both = (Hypothesis("yes", math.log(0.3), 2, True), Hypothesis("no", math.log(0.1), 2, True))
        >>> probabilities(both)["yes"]
        0.75
    """
    highest = max((h.score for h in hypotheses), default=0.0)
    shares = {h.text: math.exp(h.score - highest) for h in hypotheses}
    total = sum(shares.values())
    return {text: share / total for text, share in shares.items()}


def probability_statistics(predictions: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """What `calibration_error` [N, 3 * bins] and the log loss, a mean [N, 2], are computed from."""
    bins = np.zeros((len(predictions), NUM_BINS, 3))
    losses: list[float | None] = []
    for row, prediction in enumerate(predictions):
        found = probabilities(prediction.hypotheses)
        due = found.get(prediction.reference or "")
        losses.append(None if due is None else -math.log(max(due, 1e-300)))
        if prediction.prediction in found:
            sure = found[prediction.prediction]
            right = prediction.prediction == prediction.reference
            bins[row, min(int(sure * NUM_BINS), NUM_BINS - 1)] = (1, sure, right)
    return bins.reshape(len(predictions), -1), item_statistics(losses)


def calibration_error(sums: np.ndarray) -> float:
    """Expected calibration error: how far the share of right answers is from their probability (https://arxiv.org/abs/1706.04599)."""
    number, sure, right = sums.reshape(NUM_BINS, 3).T
    return float(np.abs(sure - right).sum() / number.sum()) if number.sum() else math.nan
