"""One chain of points -> trained, decoded and scored, each verb in a process of its own; on this machine, several at once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, Protocol

from seqtune import folders, runs
from seqtune.config import load_config
from seqtune.cpus import available_cpus
from seqtune.errors import RunError, SeqtuneError
from seqtune.studies.points import Point, evaluation_folder
from seqtune.studies.processes import Process, check, locked, visible_gpus

FACTS = "study.json"
DECODE = "decode.json"  # the settings that an evaluation was decoded with
OWN_SCORES = ("metrics.json", runs.PREDICTIONS, "task.yaml")
Failure = dict[str, str]


class Task(Protocol):
    """A chain on its way."""

    def done(self) -> bool:
        """True once it has ended."""
        ...

    def result(self) -> list[Failure]:
        """What went wrong with which point; `Stopped` if it was stopped."""
        ...

    def stop(self) -> None:
        """Ask it to end soon."""
        ...


class Executor(Protocol):
    """Where chains are run."""

    width: int

    def submit(self, chain: Sequence[Point]) -> Task:
        """Begin, or queue."""
        ...

    def close(self) -> None:
        """Wait for what runs, drop what is queued."""
        ...


class LocalTask:
    """A chain in a thread."""

    def __init__(self, future: Future[list[Failure]], event: Event):
        self.future = future
        self.event = event

    def done(self) -> bool:
        """True once it has ended."""
        return self.future.done()

    def result(self) -> list[Failure]:
        """What went wrong with which point."""
        return self.future.result()

    def stop(self) -> None:
        """Interrupt its process."""
        self.event.set()
        self.future.cancel()


class Local:
    """Chains on this machine, `jobs` at once, which share its processors, and its GPUs if there are fewer than jobs."""

    def __init__(self, jobs: int):
        self.width = jobs
        self.threads = max(1, available_cpus() // jobs)
        self.pool = ThreadPoolExecutor(jobs)
        gpus = visible_gpus() if jobs > 1 else []  # a single job finds the first one itself
        self.free_gpus: SimpleQueue[str | None] = SimpleQueue()
        for job in range(jobs):
            self.free_gpus.put(gpus[job % len(gpus)] if gpus else None)

    def submit(self, chain: Sequence[Point]) -> Task:
        """Begin, or queue."""
        event = Event()
        return LocalTask(self.pool.submit(self._run, chain, event), event)

    def _run(self, chain: Sequence[Point], event: Event) -> list[Failure]:
        gpu = self.free_gpus.get()
        try:
            return run_chain(chain, self.threads, event.is_set, gpu)
        finally:
            self.free_gpus.put(gpu)

    def close(self) -> None:
        """Wait for what runs, drop what is queued."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def run_chain(
    chain: Sequence[Point], threads: int, stopped: Callable[[], bool] = lambda: False, gpu: str | None = None
) -> list[Failure]:
    """Train and decode what is missing, one point after the other.

    Args:
        chain: points that follow each other.
        threads: processors to use.
        stopped: asked now and then.
        gpu: the only one to use; `None` leaves the choice to the training.

    Raises:
        Stopped: `stopped()` came true.
    """
    failures = []
    for index, point in enumerate(chain):
        check(stopped)
        try:
            with locked(point.run, stopped) as lock:
                process = Process(threads, lock, stopped, gpu)
                if not runs.is_complete(point.run):
                    _train(point, chain[:index], process)
                _keep_own_scores(point.run)
                if not (point.evaluation / "metrics.json").exists():
                    _evaluate(point, process)
        except SeqtuneError as error:
            failures.append(describe_failure(point, error))
    return failures


def sweep(point: Point) -> None:
    """Remove the half-written files beside a point that has its scores; a point that is gone on with removes its own."""
    for path in (*_beside(point.run), point.evaluation / FACTS):
        folders.sweep_beside(path)


def stop_all(tasks: Iterable[Task]) -> None:
    """Ask everything that runs to end, so that each training writes its checkpoint."""
    for task in tasks:
        task.stop()


def describe_failure(point: Point, error: Exception) -> Failure:
    """What is written down about a point that could not be run."""
    return {"point": json.dumps(point.values, default=str), "error": str(error)}


def _train(point: Point, shorter: Sequence[Point], process: Process) -> None:
    """Begin a training or go on with it; its cost is that of all parts together."""
    settings, file = _beside(point.run)
    runs.write_text(settings, point.config.to_yaml())
    begun = point.run.exists()
    noted = runs.read_json(file) if begun and file.exists() else {}
    spent, computed = (noted.get(name) if begun else 0.0 for name in ("wall_seconds", "cpu_seconds"))
    cost = {
        "wall_seconds": None,  # unknown, if this part is killed
        "cpu_seconds": None,
        "peak_mib": noted.get("peak_mib"),
        "steps_taken_over": noted.get("steps_taken_over", 0) if begun else _take_over(point, shorter),
    }
    runs.write_json(file, cost)
    started, before = time.monotonic(), process.cpu_seconds
    try:
        peak = process(["fit", str(settings), "--resume", "--json", *_trust(point.config.model.trust_remote_code)])
        cost["peak_mib"] = max(cost["peak_mib"] or 0, peak)
    finally:
        cost["wall_seconds"] = None if spent is None else round(spent + time.monotonic() - started, 1)
        cost["cpu_seconds"] = None if computed is None else round(computed + process.cpu_seconds - before, 1)
        runs.write_json(file, cost)


def _take_over(point: Point, shorter: Sequence[Point]) -> int:
    """Let the training begin where the longest finished one of the same beginning ended; returns the steps it has saved."""
    if point.prefix is None:
        return 0
    length = point.length.value or 0  # a chain has one unit
    lenders = [p for p in shorter if (p.length.value or 0) < length and runs.is_complete(p.run)]
    found = runs.latest_checkpoint(lenders[-1].run / "checkpoints") if lenders else None
    if found is None:
        return 0
    with folders.writing(point.run) as hidden:
        folders.create(hidden, runs.RUN)
        shutil.copytree(found, hidden / "checkpoints" / found.name)
        for name in ("log.jsonl", "data.json"):
            shutil.copy(lenders[-1].run / name, hidden / name)
        runs.write_text(hidden / "config.yaml", point.config.to_yaml())
    return int(found.name.removeprefix("step-"))


def _keep_own_scores(run: Path) -> None:
    """Put the scores that the training ended with where the scores of its way of decoding belong, if they are not there yet."""
    decode = load_config(run / "config.yaml").decode
    folder = evaluation_folder(run, decode)
    if folder.exists() or not (run / "metrics.json").exists():
        return
    folder.parent.mkdir(exist_ok=True)
    with folders.writing(folder) as hidden:
        hidden.mkdir()
        for name in OWN_SCORES:
            shutil.copy(run / name, hidden / name)
        runs.write_json(hidden / DECODE, decode.model_dump())


def _evaluate(point: Point, process: Process) -> None:
    """Decode the run's own test rows another way."""
    if not (point.run / runs.PREDICTIONS).exists():
        raise RunError("a study scores its points on test rows, and there were none; give data.split.test a share, such as 0.1")
    folder = point.evaluation
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / DECODE, point.config.decode.model_dump())
    decode = [f"decode.{k}={json.dumps(v)}" for k, v in point.config.decode.model_dump().items()]
    flags = [flag for text in decode for flag in ("--set", text)]
    flags += _trust(point.config.model.trusted_with(point.run))
    started = time.monotonic()
    peak = process(["evaluate", str(point.run), str(point.run), "--no-baselines", "--out", str(folder), *flags])
    runs.write_json(folder / FACTS, {"evaluation_seconds": round(time.monotonic() - started, 1), "evaluation_peak_mib": peak})


def _trust(names: Sequence[str]) -> list[str]:
    return [flag for name in names for flag in ("--trust-remote-code", name)]


def _beside(run: Path) -> tuple[Path, Path]:
    """The files of a training that lie beside its folder: its settings, and what it cost."""
    return run.with_suffix(".yaml"), training_facts(run)


def training_facts(run: Path) -> Path:
    """A file beside the run, because it is there before the run's folder is."""
    return run.with_suffix(".json")


def facts(point: Point) -> dict[str, Any]:
    """What the point cost, as far as that was written down: its training, and a decoding of its own."""
    paths = (training_facts(point.run), point.evaluation / FACTS)
    noted = [runs.read_json(path) for path in paths if path.exists()]
    return {key: value for cost in noted for key, value in cost.items()}
