"""Ctrl-C and its kin: the first signal lets the training end in order, with a checkpoint; the second stops at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ctrl-C; what Slurm, Kubernetes and `kill` send; a terminal that closes
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A terminal sends Ctrl-C to every process, and torchrun and `timeout` pass it on: so soon after the first, it is the same one
SAME_SECONDS = 1.0


_active: set[Interruption] = set()


def interrupt(number: int) -> None:
    """Note a signal in whatever is active, also in threads that signals do not reach."""
    for each in [*_active]:
        each.note(number)


class Interrupted(BaseException):
    """Raised by a signal in work that can be left, see `Interruption.leaving`."""


class Interruption:
    """Notes a signal while it is active (`with interruption:`), in the main thread; elsewhere those of `interrupt`.

    Attributes:
        noted: number of the signal that has come first, here or in another process of the training; 0 before.
    """

    def __init__(self) -> None:
        self.noted = 0
        self._first = 0.0
        self._leaves = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        """Catch the signals, but for those that this process ignores (as `nohup` sets it to)."""
        _active.add(self)
        if threading.current_thread() is threading.main_thread():
            caught = [s for s in SIGNALS if signal.getsignal(s) not in (signal.SIG_IGN, None)]
            self._previous = {number: signal.signal(number, self._handle) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        """Put the handlers back, after a signal as soon as no more of the same are to be expected."""
        _active.discard(self)
        if self.noted and self._previous:
            time.sleep(max(0.0, self._first + SAME_SECONDS - time.monotonic()))
        self._release()

    def note(self, number: int) -> None:
        """There was a signal."""
        if not self.noted:
            self.noted, self._first = number, time.monotonic()

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Within, a signal raises `Interrupted`, so that long work does not delay the checkpoint."""
        self._leaves = True
        try:
            if self.noted:
                raise Interrupted
            yield
        finally:
            self._leaves = False

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, _: Any) -> None:
        if self.noted and time.monotonic() - self._first > SAME_SECONDS:
            self._release()
            signal.raise_signal(number)
        self.note(number)
        if self._leaves:
            self._leaves = False
            raise Interrupted
