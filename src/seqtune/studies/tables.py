"""Results of a study as tables: a row a point, a row a combination of axes, and a row a pair of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars
from scipy import stats

from seqtune import runs
from seqtune.scoring.evaluate import read_predictions
from seqtune.scoring.metrics import METRICS
from seqtune.scoring.significance import paired_randomization
from seqtune.studies.execution import facts
from seqtune.studies.points import Point
from seqtune.training.log import kept_validation, read_log

SCORES = ("exact_match", "structure_accuracy", "edit_similarity", "bleu_char")  # of a study's tables, the leading one first
COSTS = ("training_rows", "steps", "tokens", "seconds", "wall_seconds", "cpu_share", "evaluation_seconds", "flops", "peak_mib")
COMPARED = ("exact_match", "edit_similarity")  # by paired tests; and what points are ranked by, in this order
VALIDATION = "validation_"  # before the name of a score: on the validation rows, of the weights that were kept
EQUAL_EFFORT = 0.8  # of points with a limit of minutes: the least share of the processors that one may have had of the other's
MAX_COMPARED = 16  # combinations, all pairs of which are compared; beyond, each with the best


def tabulate(points: Sequence[Point]) -> polars.DataFrame:
    """One row per point: its axes, scores with intervals, and what it cost."""
    axes = dict.fromkeys(name for point in points for name in point.values if name not in ("seed", "budget"))
    names = [*axes, "seed", *(["budget"] if "budget" in points[0].values else [])]
    rows = [{name: _cell(point.values.get(name)) for name in names} | _scores(point) | _costs(point) for point in points]
    return polars.DataFrame(rows, infer_schema_length=None)


def ranking(results: polars.DataFrame) -> list[str]:
    """Columns that points are ranked by: scores of the validation rows, where these tell the points apart.

    Points that share a run differ in decoding alone, and their validations are the same. Then, and where a point has no
    validation, it is the scores of the test rows, which flatter the point that they choose.
    """
    columns = [f"{VALIDATION}{name}" for name in COMPARED]
    told_apart = "run" in results.columns and results["run"].n_unique() == results.height
    validated = all(name in results.columns and results[name].null_count() == 0 for name in columns)
    return columns if told_apart and validated else list(COMPARED)


def _cell(value: Any) -> int | float | str | None:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def _scores(point: Point) -> dict[str, Any]:
    metrics = runs.read_json(point.evaluation / "metrics.json")
    row: dict[str, Any] = {}
    for name in SCORES:
        if name in metrics:
            row |= {f"{name}{end}": metrics[name][key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
    return row | {"test_items": metrics["num_items"]}


def _costs(point: Point) -> dict[str, Any]:
    log = read_log(point.run)
    last = [line for line in log if "loss" in line][-1]
    kept = kept_validation(log) or {}
    data = runs.read_json(point.run / "data.json")
    size = runs.read_json(point.run / "environment.json").get("num_parameters")
    row = {
        "training_rows": data["splits"]["train"], "parameters": size, "steps": last["step"], "tokens": last["num_tokens"],
        "seconds": last["seconds"], "flops": 6 * size * last["num_tokens"] if size else None,
    }  # fmt: skip
    validation = {f"{VALIDATION}{name}": kept.get(name) for name in COMPARED}
    spent = {"wall_seconds": None, "cpu_seconds": None, "peak_mib": None} | facts(point)
    wall, computed = spent["wall_seconds"], spent["cpu_seconds"]
    # what a limit of minutes buys depends on how free the machine was
    spent |= {
        "max_minutes": point.config.train.max_minutes,
        "cpu_share": round(computed / wall, 3) if wall and computed else None,
    }
    return row | validation | spent | {"run": str(point.run), "evaluation": str(point.evaluation)}


def label(values: Mapping[str, Any], axes: Sequence[str]) -> str:
    """How a point is called: its values along the axes, by the last part of their names.

    Example:
        >>> label({"train.clip": 0.50000001, "model.init": None}, ["train.clip", "model.init"])
        'clip 0.5'
    """
    return ", ".join(f"{name.rpartition('.')[2]} {short(values[name])}" for name in axes if values[name] is not None) or "base"


def short(value: Any) -> str:
    """A value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
            if name in group.columns:
                row |= _mean(group, name)
        rows.append(row | {name: group[name].mean() for name in COSTS if name in group.columns})
    return polars.DataFrame(rows, infer_schema_length=None)


def _mean(group: polars.DataFrame, name: str) -> dict[str, float | None]:
    """A score's mean over seeds and its interval; a score that is undefined for some seed has none."""
    ends = [name, f"{name}_low", f"{name}_high"]
    values = group[name].to_numpy()
    if group[name].null_count():
        return dict.fromkeys(ends)
    if len(values) == 1:
        return {end: float(group[end][0]) for end in ends}
    mean = float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return dict(zip(ends, (mean, mean - half, mean + half), strict=True))


def shares_of(results: polars.DataFrame) -> tuple[float, float] | None:
    """The least and the most that points with a limit of minutes got of the processors; `None` without such points."""
    if not {"max_minutes", "cpu_share"} <= set(results.columns):
        return None
    shares = results.filter(polars.col("max_minutes").is_not_null())["cpu_share"].drop_nulls().to_list()
    return (min(shares), max(shares)) if shares else None


def starved(results: polars.DataFrame) -> tuple[float, float] | None:
    """The same, if it was not equal enough for a comparison."""
    shares = shares_of(results)
    return shares if shares and shares[0] < EQUAL_EFFORT * shares[1] else None


def compare(results: polars.DataFrame) -> polars.DataFrame:
    """Paired randomisation tests between combinations of axes, on the items that they share.

    A pair with limits of minutes that got unequal shares of the processors is not tested: what differs may be the machine.

    With several seeds, an item's statistics are their mean over seeds. Over all pairs of a metric, `p_adjusted` controls the
    share of false discoveries (Benjamini & Hochberg 1995). Combinations that were scored on other items are not compared. Of
    more than `MAX_COMPARED` combinations, each is compared with the best by `ranking`.
    """
    axes = axes_of(results)
    groups = [(dict(zip(axes, key, strict=True)), group) for key, group in results.group_by(axes, maintain_order=True)]
    varied = [name for name in axes if results[name].n_unique() > 1]
    labels = [label(key, varied) for key, _ in groups]
    items = [_items(group["evaluation"].to_list()) for _, group in groups]
    pairs = list(itertools.combinations(range(len(groups)), 2))
    if len(groups) > MAX_COMPARED:
        columns = ranking(results)
        best = max(range(len(groups)), key=lambda i: [float(groups[i][1][name].to_numpy().mean()) for name in columns])
        pairs = [(best, other) for other in range(len(groups)) if other != best]
    rows: list[dict[str, Any]] = []
    for name in COMPARED:
        found = []
        for a, b in pairs:
            if items[a][0] == items[b][0]:
                tested = paired_randomization(METRICS[name], items[a][1][name], items[b][1][name])
                unequal = starved(polars.concat([groups[a][1], groups[b][1]]))
                found.append({
                    "metric": name, "a": labels[a], "b": labels[b], "score_a": tested.a, "score_b": tested.b,
                    "difference": tested.difference, "p_value": None if unequal else tested.p_value,
                    "note": f"unequal effort: {unequal[0]:.0%} and {unequal[1]:.0%} of a processor" if unequal else "",
                })  # fmt: skip
        known = [row["p_value"] for row in found if row["p_value"] is not None]
        adjusted = iter(stats.false_discovery_control(known) if known else ())
        rows += [row | {"p_adjusted": None if row["p_value"] is None else float(next(adjusted))} for row in found]
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
