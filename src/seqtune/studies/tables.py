"""Results of a study as tables: a row a point, a row a combination of axes, and a row a pair of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars
from scipy import stats

from seqtune.scoring.evaluate import read_predictions
from seqtune.scoring.metrics import METRICS
from seqtune.scoring.significance import paired_randomization
from seqtune.studies.analysis import label
from seqtune.studies.execution import facts
from seqtune.studies.points import Point

SCORES = ("exact_match", "edit_similarity", "bleu_char", "structure_accuracy")
COSTS = ("steps", "tokens", "seconds", "wall_seconds", "evaluation_seconds", "flops", "peak_mib")
COMPARED = ("exact_match", "edit_similarity")
MAX_COMPARED = 16  # combinations, all pairs of which are compared; beyond, each with the best


def tabulate(points: Sequence[Point]) -> polars.DataFrame:
    """One row per point: its axes, scores with intervals, and what it cost."""
    axes = dict.fromkeys(name for point in points for name in point.values if name not in ("seed", "budget"))
    names = [*axes, "seed", *(["budget"] if "budget" in points[0].values else [])]
    rows = [{name: _cell(point.values.get(name)) for name in names} | _scores(point) | _costs(point) for point in points]
    return polars.DataFrame(rows, infer_schema_length=None)


def _cell(value: Any) -> int | float | str | None:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def _scores(point: Point) -> dict[str, Any]:
    metrics = json.loads((point.evaluation / "metrics.json").read_text())
    row: dict[str, Any] = {}
    for name in SCORES:
        if name in metrics:
            row |= {f"{name}{end}": metrics[name][key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
    return row | {"test_items": metrics["num_items"]}


def _costs(point: Point) -> dict[str, Any]:
    log = [json.loads(line) for line in (point.run / "log.jsonl").read_text().splitlines()]
    last = [line for line in log if "loss" in line][-1]
    data = json.loads((point.run / "data.json").read_text())
    size = json.loads((point.run / "environment.json").read_text()).get("num_parameters")
    row = {
        "training_rows": data["splits"]["train"], "parameters": size, "steps": last["step"], "tokens": last["num_tokens"],
        "seconds": last["seconds"], "flops": 6 * size * last["num_tokens"] if size else None,
    }  # fmt: skip
    spent = {"wall_seconds": None, "peak_mib": None} | facts(point)
    return row | spent | {"run": str(point.run), "evaluation": str(point.evaluation)}


def axes_of(results: polars.DataFrame) -> list[str]:
    """The columns of `tabulate`'s table that tell its points apart, seeds left out."""
    return results.columns[: results.columns.index("seed")] + (["budget"] if "budget" in results.columns else [])


def summarise(results: polars.DataFrame) -> polars.DataFrame:
    """One row per combination of axes: the mean over seeds, with a 95% t interval where there are several."""
    axes = axes_of(results)
    rows = []
    for key, group in results.group_by(axes, maintain_order=True):
        row: dict[str, Any] = dict(zip(axes, key, strict=True)) | {"seeds": group.height}
        for name in SCORES:
            if name not in group.columns:
                continue
            values = group[name].to_numpy()
            low, high = float(group[f"{name}_low"][0]), float(group[f"{name}_high"][0])
            if len(values) > 1:
                half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
                low, high = float(values.mean()) - half, float(values.mean()) + half
            row |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        rows.append(row | {name: group[name].mean() for name in COSTS if name in group.columns})
    return polars.DataFrame(rows, infer_schema_length=None)


def compare(results: polars.DataFrame) -> polars.DataFrame:
    """Paired randomisation tests between combinations of axes, on the items that they share.

    With several seeds, an item's statistics are their mean over seeds. Over all pairs of a metric, `p_adjusted` controls the
    share of false discoveries (Benjamini & Hochberg 1995). Combinations that were scored on other items are not compared.
    """
    axes = axes_of(results)
    groups = [(dict(zip(axes, key, strict=True)), group) for key, group in results.group_by(axes, maintain_order=True)]
    varied = [name for name in axes if results[name].n_unique() > 1]
    labels = [label(key, varied) for key, _ in groups]
    items = [_items(group["evaluation"].to_list()) for _, group in groups]
    pairs = list(itertools.combinations(range(len(groups)), 2))
    if len(groups) > MAX_COMPARED:
        best = max(range(len(groups)), key=lambda i: float(groups[i][1][COMPARED[-1]].to_numpy().mean()))
        pairs = [(best, other) for other in range(len(groups)) if other != best]
    rows: list[dict[str, Any]] = []
    for name in COMPARED:
        found = []
        for a, b in pairs:
            if items[a][0] == items[b][0]:
                tested = paired_randomization(METRICS[name], items[a][1][name], items[b][1][name])
                found.append({
                    "metric": name, "a": labels[a], "b": labels[b], "score_a": tested.a, "score_b": tested.b,
                    "difference": tested.difference, "p_value": tested.p_value,
                })  # fmt: skip
        adjusted = stats.false_discovery_control([row["p_value"] for row in found]) if found else []
        rows += [row | {"p_adjusted": float(p)} for row, p in zip(found, adjusted, strict=True)]
    return polars.DataFrame(rows, infer_schema_length=None)


def _items(evaluations: Sequence[str]) -> tuple[list[tuple[str, str | None]], dict[str, np.ndarray]]:
    """The items that a combination was scored on, and their statistics, averaged over its seeds."""
    seeds = [sorted(read_predictions(folder), key=lambda p: (p.input, p.reference or "")) for folder in evaluations]
    keys = [(p.input, p.reference) for p in seeds[0]]
    statistics = {}
    for name in COMPARED:
        arrays = [METRICS[name].statistics([p.prediction for p in s], [p.reference or "" for p in s]) for s in seeds]
        statistics[name] = np.mean(arrays, axis=0)
    return keys, statistics
