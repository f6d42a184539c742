"""A study from its file to its tables: what is missing is run, here or on a cluster, and all that is there is tabulated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars
import yaml

from seqtune import folders, plugins, progress, runs
from seqtune.cpus import available_cpus
from seqtune.errors import RunError
from seqtune.studies.execution import Executor, Failure, Local, describe_failure, run_chain, stop_all, sweep
from seqtune.studies.points import Point, Study, chains, is_done, plan, points_of, shared_prefixes
from seqtune.studies.processes import POLL_SECONDS, Stopped
from seqtune.studies.tables import compare, summarise, tabulate
from seqtune.studies.times import seconds_left

TABLE_SECONDS = 30.0  # between tables of what is done so far


@dataclass(slots=True)
class Outcome:
    """A study that was run.

    Attributes:
        folder: holds `results.csv`, `results.parquet`, `summary.csv`, `comparisons.csv`.
        results: a row per point.
        failures: what could not be run, and why.
    """

    folder: Path
    results: polars.DataFrame
    failures: list[Failure] = field(default_factory=list)


def run(study: Study, *, ray: str | None = None, quiet: bool = False) -> Outcome:
    """Run what is missing, then tabulate; a point that fails is listed, and the others go on.

    Args:
        study: from `load_study`.
        ray: address of a Ray cluster, or `local`; `None` for processes on this machine.
        quiet: show no progress.

    Raises:
        RunError: no point could be run, or there is no such cluster.
    """
    folder = Path(study.out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "study.yaml"
    runs.write_text(settings, yaml.safe_dump(study.model_dump(), sort_keys=False))
    points = plan(study)
    if not quiet:
        for line in shared_prefixes(points):
            progress.console().print(line)
    executor: Executor
    if ray is None:
        executor = Local(study.jobs)
    else:
        cpus = study.cpus or max(1, available_cpus() // study.jobs)
        executor = plugins.load("seqtune.cluster.tasks:Tasks")(ray, cpus, study.gpus, settings, run_chain, Stopped)
    total = study.search.trials if study.search else len(points)
    try:
        with progress.show("study", total, enabled=not quiet) as tick:
            if study.search is not None:
                failures = plugins.load("seqtune.studies.search:search")(study, executor, tick)
            else:
                failures = _run_grid(points, executor, tick, folder)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, or a signal
        progress.console().print("stopping: each training writes its checkpoint, and the same command goes on from there")
        raise
    finally:
        executor.close()
    runs.write_json(folder / "failures.json", failures)
    done = [p for p in points_of(study) if is_done(p)]
    if not done:
        raise RunError(
            f"no point of {study.name!r} could be run; first: {failures[0]['error'] if failures else 'none was tried'}"
        )
    for point in done:
        sweep(point)
    results = _write_tables(folder, done)
    runs.write_text(folder / "comparisons.csv", compare(results).write_csv())
    return Outcome(folder, results, failures)


def _write_tables(folder: Path, done: Sequence[Point]) -> polars.DataFrame:
    results = tabulate(done)
    runs.write_text(folder / "results.csv", results.write_csv())
    with folders.writing(folder / "results.parquet") as hidden:
        results.write_parquet(hidden)
    runs.write_text(folder / "summary.csv", summarise(results).write_csv())
    return results


def _run_grid(points: list[Point], executor: Executor, tick: progress.Tick, folder: Path) -> list[Failure]:
    waiting = [chain for chain in chains(points) if not all(is_done(p) for p in chain)]
    done = len(points) - sum(map(len, waiting))
    tick(done, "were there already" if done else "")
    tasks = {executor.submit(chain): chain for chain in waiting}
    failures: list[Failure] = []
    left, since, written = seconds_left(points, executor.width), time.monotonic(), time.monotonic()
    try:
        while tasks:
            time.sleep(POLL_SECONDS)
            ended = [task for task in tasks if task.done()]
            for task in ended:
                chain = tasks.pop(task)
                done += len(chain)
                try:
                    failures += task.result()
                except RunError as error:  # a machine of the cluster was lost, and its points with it
                    failures += [describe_failure(point, error) for point in chain if not is_done(point)]
            if ended:
                left, since = seconds_left(points, executor.width), time.monotonic()
            if ended and time.monotonic() - written > TABLE_SECONDS and (finished := [p for p in points if is_done(p)]):
                _write_tables(folder, finished)
                written = time.monotonic()
            tick(done, "" if left is None else f"{progress.remaining(left - (time.monotonic() - since))} left")
    except BaseException:
        stop_all(tasks)
        raise
    return failures
