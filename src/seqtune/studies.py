"""A study: a base configuration, axes, seeds and a budget -> runs -> one tidy table; resumable, and no point is run twice.

A run is named by what decides its weights: its settings without `decode` and `out`, and its data's contents. Points that differ
in decoding alone share a run, and so do equal points of different studies that share a `store`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import polars
import yaml
from pydantic import Field
from scipy import stats

from seqtune import progress, runs
from seqtune.config import Config, PositiveFloat, PositiveInt, Section, load_config, read_yaml_mapping, validate
from seqtune.cpus import available_cpus
from seqtune.errors import ConfigError, RunError, did_you_mean

BUDGETS = {
    "epochs": "train.epochs",
    "steps": "train.max_steps",
    "target_tokens": "train.target_tokens",
    "minutes": "train.max_minutes",
}
SCORES = ("exact_match", "edit_similarity", "bleu_char", "structure_accuracy")


class Budget(Section):
    """What all points get the same of."""

    kind: Literal["epochs", "steps", "target_tokens", "minutes"]
    value: PositiveFloat


class Study(Section):
    """The content of a study file."""

    name: str
    base: dict[str, Any] = Field(description="settings of every point, as in a configuration file")
    axes: dict[str, list[Any]] = Field(default_factory=dict, description="setting -> values; all combinations are run")
    points: list[dict[str, Any]] = Field(default_factory=list, description="instead of, or beside, axes: single points")
    seeds: list[int] = Field(default=[0], min_length=1, description="replicates; each seeds training and the random start")
    budget: Budget | list[Budget] | None = Field(default=None, description="equal for all points; several make one more axis")
    out: str = Field(description="folder for results and report")
    store: str | None = Field(default=None, description="folder of the runs; default: `runs` beside `out`")
    jobs: PositiveInt = Field(default=1, description="points run at once; they share the processors")


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration of a study.

    Attributes:
        values: axis -> value, with `seed` and `budget`.
        config: resolved.
        run: the run folder.
    """

    values: dict[str, Any]
    config: Config
    run: Path

    @property
    def evaluation(self) -> Path:
        """Where its scores lie: the run folder, or a folder in it for another way of decoding than the run's own."""
        stored = self.run / "config.yaml"
        decode = self.config.decode
        own = not stored.exists() or load_config(stored).decode == decode
        return self.run if own else self.run / "evaluations" / _digest([decode.model_dump()])


@dataclass(slots=True)
class Outcome:
    """A study that was run.

    Attributes:
        folder: holds `results.csv`, `results.parquet`, `summary.csv`.
        results: a row per point.
        failures: what could not be run, and why.
    """

    folder: Path
    results: polars.DataFrame
    failures: list[dict[str, str]] = field(default_factory=list)


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: it is missing, or a key or axis is wrong; names all of them.
    """
    study: Study = validate(Study, read_yaml_mapping(path, "study"))
    known = _leaf_names()
    unknown = [key for key in (*study.axes, *(k for p in study.points for k in p)) if key not in known]
    if unknown:
        lines = [f"{key}: no setting of that name{did_you_mean(key, known)}" for key in dict.fromkeys(unknown)]
        raise ConfigError("the study names axes that do not exist:\n" + "\n".join(f"  {line}" for line in lines))
    if not study.axes and not study.points:
        raise ConfigError("a study needs axes, or a list of points")
    return study


def _leaf_names() -> set[str]:
    def walk(section: Any, prefix: str) -> Iterator[str]:
        for name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, Section):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    return set(walk(Config(), "")) | {"data.split"}


def plan(study: Study) -> list[Point]:
    """All points, in the order of the axes.

    Raises:
        ConfigError: a point's settings do not go together.
    """
    combinations = [dict(zip(study.axes, values, strict=True)) for values in itertools.product(*study.axes.values())]
    chosen = (combinations if study.axes else []) + study.points
    budgets = study.budget if isinstance(study.budget, list) else [study.budget]
    return [_point(study, values, budget, seed) for budget in budgets for values in chosen for seed in study.seeds]


def _point(study: Study, values: dict[str, Any], budget: Budget | None, seed: int) -> Point:
    overrides: dict[str, Any] = dict(values) | {"train.seed": seed}
    shown = dict(values) | {"seed": seed}
    if budget is not None:
        value: Any = int(budget.value) if budget.kind in ("steps", "target_tokens") else budget.value
        overrides[BUDGETS[budget.kind]] = value
        if budget.kind in ("minutes", "steps"):  # they end it, not the number of epochs
            overrides["train.epochs"] = 1000
        shown["budget"] = f"{budget.value:g} {budget.kind}"
    config = load_config(None, _flattened(study.base) | overrides)
    store = Path(study.store) if study.store else Path(study.out).parent / "runs"
    training = {k: v for k, v in config.model_dump().items() if k not in ("decode", "out")}
    run = store / _digest([training, *map(_contents, (config.data.path, config.data.validation_path, config.data.test_path))])
    return Point(shown, config.model_copy(update={"out": str(run)}), run)


def _flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{key}" != "data.split":
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


def _contents(name: str | None) -> str | None:
    path = Path(name) if name else None
    if path is None or not path.is_file():
        return name
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_done(point: Point) -> bool:
    """True once the point has its scores."""
    return runs.is_complete(point.run) and (point.evaluation / "metrics.json").exists()


def estimate(points: Sequence[Point]) -> float | None:
    """Seconds that the missing points will take one after the other, by the median of those done; `None` if none is."""
    times = [_facts(p)["wall_seconds"] for p in points if is_done(p) and (p.run / "study.json").exists()]
    return median(times) * sum(not is_done(p) for p in points) if times else None


def run(study: Study, *, quiet: bool = False) -> Outcome:
    """Run what is missing, then tabulate; a point that fails is listed, and the others go on.

    Raises:
        RunError: no point could be run.
    """
    points = plan(study)
    folder = Path(study.out)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [p for p in points if not is_done(p)]
    by_run: dict[Path, list[Point]] = {}
    for point in missing:  # points of one run follow each other in one worker, so it is trained once
        by_run.setdefault(point.run, []).append(point)
    failures: list[dict[str, str]] = []
    started = time.monotonic()
    with progress.show("study", len(points), enabled=not quiet) as tick, ThreadPoolExecutor(study.jobs) as pool:
        done = len(points) - len(missing)
        tick(done, "runs that were there already" if done else "")
        for group, errors in pool.map(lambda group: (group, _run_group(group, study.jobs)), by_run.values()):
            failures += errors
            done += len(group)
            left = (time.monotonic() - started) / max(1, done - len(points) + len(missing)) * (len(points) - done)
            tick(done, f"{progress.remaining(left)} left")
    runs.write_json(folder / "failures.json", failures)
    if len(failures) == len(points):
        raise RunError(f"no point of {study.name!r} could be run; first: {failures[0]['error']}")
    results = tabulate([p for p in points if is_done(p)])
    results.write_csv(folder / "results.csv")
    results.write_parquet(folder / "results.parquet")
    summarise(results).write_csv(folder / "summary.csv")
    (folder / "study.yaml").write_text(yaml.safe_dump(study.model_dump(), sort_keys=False), encoding="utf-8")
    return Outcome(folder, results, failures)


def _run_group(group: list[Point], jobs: int) -> list[dict[str, str]]:
    """Train once, then decode as each point asks; returns what went wrong."""
    failures = []
    for point in group:
        try:
            if not runs.is_complete(point.run):
                _train(point, jobs)
            if not (point.evaluation / "metrics.json").exists():
                _evaluate(point, jobs)
        except RunError as error:
            failures.append({"point": json.dumps(point.values, default=str), "error": str(error)})
    return failures


def _train(point: Point, jobs: int) -> None:
    point.run.parent.mkdir(parents=True, exist_ok=True)
    settings = point.run.with_suffix(".yaml")
    settings.write_text(point.config.to_yaml(), encoding="utf-8")
    started = time.monotonic()
    peak = _command(["fit", str(settings), "--resume"], jobs)
    facts = {"wall_seconds": round(time.monotonic() - started, 1), "peak_mib": peak}
    runs.write_json(point.run / "study.json", facts)


def _evaluate(point: Point, jobs: int) -> None:
    """Decode the run's own test rows another way."""
    point.evaluation.mkdir(parents=True, exist_ok=True)
    decode = [f"decode.{k}={json.dumps(v)}" for k, v in point.config.decode.model_dump().items()]
    flags = [flag for text in decode for flag in ("--set", text)]
    stored = str(point.run / "predictions.jsonl")
    columns = ["--input", "input", "--output", "reference", "--no-baselines"]
    _command(["evaluate", str(point.run), stored, *columns, "--out", str(point.evaluation), *flags], jobs)


def _command(arguments: list[str], jobs: int) -> int:
    """Run a verb in a process of its own; returns its peak memory in MiB."""
    threads = str(max(1, available_cpus() // jobs))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", "seqtune", *arguments], stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)  # this child's own memory, not the largest of all
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RunError((log.read().strip().splitlines() or ["no message"])[-1])
    return round(usage.ru_maxrss / 1024)


def _facts(point: Point) -> dict[str, Any]:
    path = point.run / "study.json"
    return json.loads(path.read_text()) if path.exists() else {"wall_seconds": None, "peak_mib": None}


COPIED = (
    "config.yaml",
    "environment.json",
    "data.json",
    "task.yaml",
    "metrics.json",
    "predictions.jsonl",
    "log.jsonl",
    "study.json",
)
COPY_README = """# Carbon copy of the study {name}

Everything that its scores rest on, without models and without training data. To score any point again, no model needed:

    seqtune score runs/<run>/predictions.jsonl

`results.csv` names each point's run; its `config.yaml` trains it again where the data are at hand (fingerprints: `data.json`).
"""


def carbon_copy(study: Study, path: Path) -> int:
    """Zip what another person needs to check a study: settings, environments, fingerprints, predictions, scores.

    Args:
        study: one that was run, at least in part.
        path: .zip to write.

    Returns:
        How many points are in it.

    Raises:
        RunError: nothing was run yet.
    """
    done = [p for p in plan(study) if is_done(p)]
    if not done:
        raise RunError(f"no point of {study.name!r} has been run; run it first: seqtune study FILE")
    hidden = path.with_name("." + path.name)
    try:
        with zipfile.ZipFile(hidden, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("README.md", COPY_README.format(name=study.name))
            for name in ("study.yaml", "results.csv", "summary.csv", "failures.json"):
                archive.write(Path(study.out) / name, name)
            for folder in dict.fromkeys(f for p in done for f in (p.run, p.evaluation)):
                for name in COPIED:
                    if (folder / name).exists():
                        archive.write(folder / name, f"runs/{folder.relative_to(done[0].run.parent)}/{name}")
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    return len(done)


def tabulate(points: Sequence[Point]) -> polars.DataFrame:
    """One row per point: its axes, scores with intervals, and what it cost."""
    rows = []
    axes = dict.fromkeys(name for point in points for name in point.values if name not in ("seed", "budget"))
    names = [*axes, "seed", *(["budget"] if "budget" in points[0].values else [])]
    for point in points:
        metrics = json.loads((point.evaluation / "metrics.json").read_text())
        log = [json.loads(line) for line in (point.run / "log.jsonl").read_text().splitlines()]
        last = [line for line in log if "loss" in line][-1]
        data = json.loads((point.run / "data.json").read_text())
        row: dict[str, Any] = {name: _cell(point.values.get(name)) for name in names}
        for name in SCORES:
            if name in metrics:
                row |= {
                    name: metrics[name]["value"],
                    f"{name}_low": metrics[name]["low"],
                    f"{name}_high": metrics[name]["high"],
                }
        size = json.loads((point.run / "environment.json").read_text()).get("num_parameters")
        row |= {
            "test_items": metrics["num_items"], "training_rows": data["splits"]["train"], "steps": last["step"],
            "tokens": last["num_tokens"], "seconds": last["seconds"],
            "flops": 6 * size * last["num_tokens"] if size else None, **_facts(point), "run": str(point.run),
        }  # fmt: skip
        rows.append(row)
    return polars.DataFrame(rows, infer_schema_length=None)


def _cell(value: Any) -> int | float | str | None:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)


def summarise(results: polars.DataFrame) -> polars.DataFrame:
    """One row per combination of axes: the mean over seeds, with a 95% t interval where there are several."""
    axes = results.columns[: results.columns.index("seed")] + (["budget"] if "budget" in results.columns else [])
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
        means = {name: group[name].mean() for name in ("steps", "tokens", "seconds", "wall_seconds", "peak_mib")}
        rows.append(row | means)
    return polars.DataFrame(rows, infer_schema_length=None)
