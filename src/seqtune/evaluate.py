"""Predictions and references -> scores, with intervals and strata; no model, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqtune.errors import DataError
from seqtune.metrics import METRICS, Metric
from seqtune.records import Prediction, Score
from seqtune.significance import NUM_RESAMPLES, Comparison, bootstrap_interval, paired_randomization

NUM_STRATA = 4


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read `predictions.jsonl`; only `prediction` and `reference` are required, rows without reference are refused.

    Raises:
        DataError: the file is missing or empty, or a line is broken; names the line.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{str(path)!r} does not exist; it should be a predictions.jsonl")
    predictions = []
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                predictions.append(_prediction(line, number, str(path)))
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text: {error}") from None
    if not predictions:
        raise DataError(f"{str(path)!r} holds no predictions")
    return predictions


def _prediction(line: str, number: int, path: str) -> Prediction:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path!r}, line {number}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise DataError(f"{path!r}, line {number}: not a JSON object")
    for key in ("prediction", "reference"):
        if not isinstance(record.get(key), str):
            raise DataError(
                f"{path!r}, line {number}: {key!r} is {record.get(key)!r}; scoring needs a text there in every line"
            )
    identity, text = str(record.get("id", number)), str(record.get("input", ""))
    return Prediction(
        identity, text, record["reference"], record["prediction"], float(record.get("score") or 0.0), (),
        str(record.get("status", "ok")),
    )  # fmt: skip


def score(metric: Metric, statistics: np.ndarray) -> Score:
    """A metric's value and interval over all rows of `statistics`."""
    low, high = bootstrap_interval(metric, statistics)
    signature = f"{metric.signature}|n:{len(statistics)}|ci:95% bootstrap {NUM_RESAMPLES}, seed 0"
    return Score(metric.value(statistics.sum(axis=0)), low, high, signature)


def evaluate(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """All text metrics, overall and by input length; the content of `metrics.json`.

    Raises:
        DataError: there is nothing to score, or a reference is missing.
    """
    if not predictions:
        raise DataError("there are no predictions to score")
    missing = next((p for p in predictions if p.reference is None), None)
    if missing:
        raise DataError(f"item {missing.id!r} has no reference; scoring needs one for every item")
    hypotheses = [p.prediction for p in predictions]
    references = [p.reference or "" for p in predictions]
    result: dict[str, Any] = {"num_items": len(predictions)}
    statistics = {name: metric.statistics(hypotheses, references) for name, metric in METRICS.items()}
    for name, metric in METRICS.items():
        result[name] = score(metric, statistics[name]).to_dict()
    statuses = [p.status for p in predictions]
    result["status"] = {name: statuses.count(name) for name in sorted(set(statuses))}
    result["by_input_length"] = _strata([len(p.input) for p in predictions], statistics)
    return result


def _strata(lengths: list[int], statistics: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Exact match and edit similarity in bands of input length with about equally many items."""
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, NUM_STRATA + 1), method="inverted_cdf"))
    bands = np.clip(np.searchsorted(edges, lengths, side="left"), 1, max(1, len(edges) - 1))
    strata = []
    for band in np.unique(bands):
        inside = bands == band
        members = np.array(lengths)[inside]
        row: dict[str, Any] = {
            "min_characters": int(members.min()),
            "max_characters": int(members.max()),
            "num_items": int(inside.sum()),
        }
        for name in ("exact_match", "edit_similarity"):
            row[name] = score(METRICS[name], statistics[name][inside]).to_dict()
        strata.append(row)
    return strata


def compare(a: Sequence[Prediction], b: Sequence[Prediction]) -> dict[str, Any]:
    """Paired randomisation test of every metric between two systems on the same items.

    Raises:
        DataError: the files do not hold the same items with the same references.
    """
    other = {p.id: p for p in b}
    if len(other) != len(b) or len({p.id for p in a}) != len(a):
        raise DataError("an id appears twice in one of the files; items cannot be paired")
    if set(other) != {p.id for p in a}:
        only_a = [p.id for p in a if p.id not in other]
        only_b = sorted(set(other) - {p.id for p in a})
        raise DataError(
            f"the files hold different items: {len(only_a)} only in the first (such as {only_a[:3]}), "
            f"{len(only_b)} only in the second (such as {only_b[:3]})"
        )
    paired = [other[p.id] for p in a]
    for first, second in zip(a, paired, strict=True):
        if first.reference != second.reference:
            raise DataError(f"item {first.id!r} has different references in the two files; they are not comparable")
    references = [p.reference or "" for p in a]
    result: dict[str, Any] = {"num_items": len(a)}
    for name, metric in METRICS.items():
        outcome: Comparison = paired_randomization(
            metric,
            metric.statistics([p.prediction for p in a], references),
            metric.statistics([p.prediction for p in paired], references),
        )
        result[name] = {
            "a": outcome.a,
            "b": outcome.b,
            "difference": outcome.difference,
            "p_value": outcome.p_value,
            "signature": f"{metric.signature}|paired randomization {outcome.num_swaps} swaps, two-sided, seed 0",
        }
    return result
