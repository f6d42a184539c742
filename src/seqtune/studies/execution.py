"""One chain of points -> trained, decoded and scored, each verb in a process of its own; on this machine, several at once.

Two studies may want the same run at the same time, and a study that was killed may leave a training behind that goes on:
whoever trains holds a lock that its process inherits, and others wait for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO, Any, Protocol

from seqtune import folders, runs
from seqtune.cpus import available_cpus
from seqtune.errors import RunError, SeqtuneError
from seqtune.studies.points import Point

POLL_SECONDS = 0.1
FACTS = "study.json"
Failure = dict[str, str]


class Stopped(Exception):
    """The chain was asked to stop; its training has written a checkpoint."""


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
    """Chains on this machine, `jobs` at once, which share its processors."""

    def __init__(self, jobs: int):
        self.width = jobs
        self.threads = max(1, available_cpus() // jobs)
        self.pool = ThreadPoolExecutor(jobs)

    def submit(self, chain: Sequence[Point]) -> Task:
        """Begin, or queue."""
        event = Event()
        return LocalTask(self.pool.submit(run_chain, chain, self.threads, event.is_set), event)

    def close(self) -> None:
        """Wait for what runs, drop what is queued."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def run_chain(chain: Sequence[Point], threads: int, stopped: Callable[[], bool] = lambda: False) -> list[Failure]:
    """Train and decode what is missing, one point after the other.

    Raises:
        Stopped: `stopped()` came true.
    """
    failures = []
    for index, point in enumerate(chain):
        _check(stopped)
        try:
            with _locked(point.run, stopped) as lock:
                if not runs.is_complete(point.run):
                    _train(point, chain[:index], _Process(threads, lock, stopped))
                if not (point.evaluation / "metrics.json").exists():
                    _evaluate(point, _Process(threads, lock, stopped))
        except SeqtuneError as error:
            failures.append(describe_failure(point, error))
    return failures


def describe_failure(point: Point, error: Exception) -> Failure:
    """What is written down about a point that could not be run."""
    return {"point": json.dumps(point.values, default=str), "error": str(error)}


@contextmanager
def _locked(run: Path, stopped: Callable[[], bool]) -> Iterator[IO[str]]:
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _rest(stopped)
        yield lock


def _rest(stopped: Callable[[], bool]) -> None:
    time.sleep(POLL_SECONDS)
    _check(stopped)


def _check(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise Stopped


class _Process:
    """Runs verbs of the command line.

    Args:
        threads: processors each may use.
        lock: stays locked until the last process that inherited it has ended.
        stopped: asked now and then.
    """

    def __init__(self, threads: int, lock: IO[str], stopped: Callable[[], bool]):
        self.threads = threads
        self.lock = lock
        self.stopped = stopped

    def __call__(self, arguments: Sequence[str]) -> int:
        """Returns the process's peak memory in MiB.

        Raises:
            RunError: it failed; with its last line.
            Stopped: it was interrupted on request.
        """
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        with tempfile.TemporaryFile("w+") as log:
            # a session of its own: Ctrl-C reaches it once, from here, and it writes a checkpoint
            process = subprocess.Popen(
                [sys.executable, "-m", "seqtune", *arguments], stdout=log, stderr=log, env=environment,
                pass_fds=[self.lock.fileno()], start_new_session=True,
            )  # fmt: skip
            try:
                usage = self._wait(process)
            except BaseException:
                process.send_signal(signal.SIGINT)
                process.wait()
                raise
            if process.returncode:
                log.seek(0)
                lines = log.read().strip().splitlines() or [f"it ended with {process.returncode} and said nothing"]
                raise RunError(lines[-1].removeprefix("error: "))
        return round(usage.ru_maxrss / 1024)

    def _wait(self, process: subprocess.Popen[bytes]) -> Any:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)  # this child's own memory, not the largest of all
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                return usage
            _rest(self.stopped)


def _train(point: Point, shorter: Sequence[Point], process: _Process) -> None:
    settings = point.run.with_suffix(".yaml")
    runs.write_text(settings, point.config.to_yaml())
    started = time.monotonic()
    taken_over = _take_over(point, shorter)
    peak = process(["fit", str(settings), "--resume"])
    seconds = round(time.monotonic() - started, 1)
    runs.write_json(point.run / FACTS, {"wall_seconds": seconds, "peak_mib": peak, "steps_taken_over": taken_over})


def _take_over(point: Point, shorter: Sequence[Point]) -> int:
    """Let the training begin where the longest finished one of the same beginning ended; returns the steps it has saved."""
    if point.prefix is None or point.run.exists():
        return 0
    lenders = [p for p in shorter if p.length < point.length and runs.is_complete(p.run)]
    found = runs.latest_checkpoint(lenders[-1].run / "checkpoints") if lenders else None
    if found is None:
        return 0
    hidden = point.run.with_name(f".{point.run.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    folders.create(hidden, runs.RUN)
    shutil.copytree(found, hidden / "checkpoints" / found.name)
    for name in ("log.jsonl", "data.json"):
        shutil.copy(lenders[-1].run / name, hidden / name)
    runs.write_text(hidden / "config.yaml", point.config.to_yaml())
    hidden.rename(point.run)
    return int(found.name.removeprefix("step-"))


def _evaluate(point: Point, process: _Process) -> None:
    """Decode the run's own test rows another way."""
    folder = point.evaluation
    folder.mkdir(parents=True, exist_ok=True)
    decode = [f"decode.{k}={json.dumps(v)}" for k, v in point.config.decode.model_dump().items()]
    flags = [flag for text in decode for flag in ("--set", text)]
    started = time.monotonic()
    peak = process(["evaluate", str(point.run), str(point.run), "--no-baselines", "--out", str(folder), *flags])
    runs.write_json(folder / FACTS, {"evaluation_seconds": round(time.monotonic() - started, 1), "evaluation_peak_mib": peak})


def facts(point: Point) -> dict[str, Any]:
    """What the point cost, as far as that was written down: its training, and a decoding of its own."""
    paths = dict.fromkeys((point.run / FACTS, point.evaluation / FACTS))
    return {key: value for path in paths if path.exists() for key, value in json.loads(path.read_text()).items()}
