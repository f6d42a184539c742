"""`fit` in several processes of a Ray cluster, told here as if it were done here."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from seqtune import folders, progress, runs
from seqtune.cluster.training import Training, rank
from seqtune.config import Config
from seqtune.errors import RunError
from seqtune.procedures.fit import Fitted, fit, run_folder
from seqtune.training.interruption import Interruption, interrupt

POLL_SECONDS = 0.2
LOCK_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Given:
    """What each process is given: the arguments of `fit`, the time of the command, and where the first tells what it does."""

    config: Config
    resume: bool
    overwrite: bool
    report: bool
    begun: float
    journal: Path


def fit_on_cluster(
    config: Config,
    address: str,
    num_workers: int,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    report: bool = False,
) -> Fitted:
    """Fine-tune as configured, in several processes of a Ray cluster whose machines share a file system.

    Where the cluster loses processes, those that it still has room for go on from the last checkpoint. An interruption writes
    a checkpoint, as in `fit`.

    Args:
        config: all settings.
        address: `host:port`, `ray://host:port`, `auto`, or `local` for a cluster on this machine.
        num_workers: processes at most; each has a GPU, where the cluster has any.
        resume: go on with a run that was begun.
        overwrite: replace a run that is there.
        quiet: show nothing.
        report: write the page, too.

    Raises:
        SeqtuneError: as `fit`; no cluster answers; it loses processes again and again.
    """
    folder = run_folder(config)
    runs.check_free(config, folder, resume=resume, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.ray-", dir=folder.parent))  # beside the run: all machines see it
    with ExitStack() as held:
        held.callback(shutil.rmtree, place, ignore_errors=True)
        journal = place / "journal"
        journal.touch()
        say = (lambda text: None) if quiet else lambda text: progress.console().print(text, markup=False)
        given = Given(config, resume, overwrite, report, journal.stat().st_mtime, journal)
        training = Training(address, num_workers, place, _in_process, given, say)
        held.callback(training.close)
        told = held.enter_context(journal.open(encoding="utf-8", errors="replace"))
        interruption = held.enter_context(Interruption())
        while not training.done():
            if interruption.noted:
                training.stop()
            _tell(told, quiet)
            time.sleep(POLL_SECONDS)
        _tell(told, quiet)
        return training.result()


def _tell(told: TextIO, quiet: bool) -> None:
    text = told.read()
    if text and not quiet:
        print(text, end="", file=sys.stderr, flush=True)


def _in_process(given: Given, again: bool, stopped: Callable[[], bool]) -> Fitted:
    """`fit` in one of the processes; of a run that was begun by this command and lost, the rest."""
    folder = run_folder(given.config)
    if again and rank() == 0:
        _wait_until_free(folder)
    facts = folder / "environment.json"  # written when an old run has been replaced
    is_new = facts.exists() and facts.stat().st_mtime >= given.begun
    overwrite = given.overwrite and not (again and is_new)
    threading.Thread(target=_watch, args=(stopped,), daemon=True).start()
    with given.journal.open("a", buffering=1, encoding="utf-8") as journal, redirect_stderr(journal):
        resume = given.resume or (again and not overwrite)
        return fit(given.config, resume=resume, overwrite=overwrite, report=given.report)


def _wait_until_free(folder: Path) -> None:
    """Wait for the lock of a process that was lost; a file server keeps it until it notices, for a minute or two."""
    deadline = time.monotonic() + LOCK_SECONDS
    while (folder / runs.RUN.marker).exists() and time.monotonic() < deadline:
        with suppress(RunError), folders.held(folder, runs.RUN):
            return
        time.sleep(POLL_SECONDS)


def _watch(stopped: Callable[[], bool]) -> None:
    """Pass on that the work was asked to stop; the training may not have begun yet."""
    while True:
        if stopped():
            interrupt(signal.SIGINT)
        time.sleep(POLL_SECONDS)
