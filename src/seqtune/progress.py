"""How far the work is: a bar on a terminal, plain lines otherwise; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 10.0  # between lines in a pipe


def console() -> Console:
    """A console that writes to stderr; lines are not wrapped unless it is a terminal."""
    return Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)


class Tick(Protocol):
    """A function that a procedure calls again and again with what is done so far, and a remark."""

    def __call__(self, done: float, remark: str = "") -> None:
        """Show it."""
        ...


def silent(done: float, remark: str = "") -> None:
    """A `Tick` that shows nothing."""


@contextmanager
def show(title: str, total: float | None, *, enabled: bool = True) -> Iterator[Tick]:
    """Show progress while a block of code runs.

    Args:
        title: what is being done.
        total: what `done` will be at the end: 1 for a share, shown in percent; `None` if it is not known.
        enabled: show anything.

    Yields:
        The function to call with what is done so far.

    Example:
        with show("evaluate", len(rows)) as tick:
            for number, row in enumerate(rows, start=1):
                answer(row)
                tick(number)
    """
    if not enabled:
        yield silent
    elif sys.stderr.isatty():
        # the remark of a share says what time is left; with the time that has passed it would not fit into 80 columns
        counts = (TaskProgressColumn(),) if total == 1 else (MofNCompleteColumn(), TimeElapsedColumn())
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), *counts, TextColumn("{task.fields[remark]}"))
        with Progress(*columns, console=console()) as bar:
            task = bar.add_task(title, total=total, remark="")

            def tick(done: float, remark: str = "") -> None:
                bar.update(task, completed=done, remark=remark)

            yield tick
    else:
        yield _plain(title, total)


def _plain(title: str, total: float | None) -> Tick:
    last = time.monotonic()

    def tick(done: float, remark: str = "") -> None:
        nonlocal last
        if (total is not None and done >= total) or time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            count = f"{done:,.0f}" if total is None else f"{done:.0%}" if total == 1 else f"{done:g}/{total:g}"
            print(f"{title}: {count} {remark}".rstrip(), file=sys.stderr, flush=True)

    return tick


def confirmed(question: str) -> bool:
    """Ask the person at the terminal; no, where there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return console().input(f"{question} [y/N] ", markup=False).strip().lower() in ("y", "yes")


def remaining(seconds: float) -> str:
    """A number of seconds as minutes and seconds, or hours, minutes and seconds.

    Example:
        >>> remaining(75), remaining(3700)
        ('1:15', '1:01:40')
    """
    hours, rest = divmod(int(max(0.0, seconds)), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
