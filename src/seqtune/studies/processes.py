"""Verbs of the command line in processes of their own: which processors and GPU each sees, its lock, and how it is stopped.

Two studies may want the same run at the same time, and a study that was killed may leave a training behind that goes on:
whoever trains holds a lock that its process inherits, and others wait for it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from seqtune.errors import RunError

POLL_SECONDS = 0.1


class Stopped(Exception):
    """The chain was asked to stop; its training has written a checkpoint."""


def visible_gpus() -> list[str]:
    """Names of this machine's NVIDIA GPUs, as `CUDA_VISIBLE_DEVICES` takes them: those that it lists already, else all."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")  # it comes with the driver
    if program is None:
        return []
    asked = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


@contextmanager
def locked(run: Path, stopped: Callable[[], bool]) -> Iterator[IO[str]]:
    """Hold the lock of a run; wait while another process holds it.

    Raises:
        Stopped: `stopped()` came true while it waited.
    """
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
    check(stopped)


def check(stopped: Callable[[], bool]) -> None:
    """Raise `Stopped` if that was asked for."""
    if stopped():
        raise Stopped


class Process:
    """Runs verbs of the command line.

    Args:
        threads: processors each may use.
        lock: stays locked until the last process that inherited it has ended.
        stopped: asked now and then.
        gpu: the only one that they see; `None` for all.

    Attributes:
        cpu_seconds: processor time of all that has run, also of what was interrupted.
    """

    def __init__(self, threads: int, lock: IO[str], stopped: Callable[[], bool], gpu: str | None = None):
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        if gpu is not None:
            self.environment["CUDA_VISIBLE_DEVICES"] = gpu
        self.lock = lock
        self.stopped = stopped
        self.cpu_seconds = 0.0

    def __call__(self, arguments: Sequence[str]) -> int:
        """Returns the process's peak memory in MiB.

        Raises:
            RunError: it failed; with what it said last.
            Stopped: it was interrupted on request.
        """
        with tempfile.TemporaryFile("w+") as log:
            # a session of its own: Ctrl-C reaches it once, from here, and it writes a checkpoint
            process = subprocess.Popen(
                [sys.executable, "-m", "seqtune", *arguments], stdout=log, stderr=log, env=self.environment,
                pass_fds=[self.lock.fileno()], start_new_session=True,
            )  # fmt: skip
            try:
                usage = self._wait(process)
            except BaseException:
                process.send_signal(signal.SIGINT)
                self._ended(process, os.wait4(process.pid, 0))
                raise
            if process.returncode:
                log.seek(0)
                raise RunError(_last_words(log.read().strip()) or f"it ended with {process.returncode} and said nothing")
        return round(usage.ru_maxrss / 1024)

    def _wait(self, process: subprocess.Popen[bytes]) -> Any:
        while True:
            ended = os.wait4(process.pid, os.WNOHANG)
            if ended[0]:
                return self._ended(process, ended)
            _rest(self.stopped)

    def _ended(self, process: subprocess.Popen[bytes], ended: tuple[int, int, Any]) -> Any:
        """Take note of how a process ended; returns what it has used itself, its own memory and not the largest of all."""
        _, status, usage = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_seconds += usage.ru_utime + usage.ru_stime
        return usage


def _last_words(text: str) -> str:
    """The error message that a verb ended with, or the last line of its output."""
    _, said, error = f"\n{text}".rpartition("\nerror: ")
    return error if said else text.rpartition("\n")[2]
