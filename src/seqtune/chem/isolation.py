"""Work on molecules in processes of their own, so that one which hangs or crashes RDKit costs nothing but itself.

Pieces of many items go to worker processes (pebble). A piece that is not back in time, or whose worker died, is
done again item by item; what fails then is reported as that item's failure.
"""

from __future__ import annotations

import atexit
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import TimeoutError as LateError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from seqtune.cpus import available_cpus
from seqtune.errors import SeqtuneError

T = TypeVar("T")
R = TypeVar("R")
TIMEOUT = 20.0  # seconds for one item; a fresh worker imports RDKit in it, and perhaps starts a JVM
PATIENCE = 3  # a piece gets so many times as long
PIECE = 256  # items that travel together


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that gave no result; `reason` is `timeout` or `crash`."""

    reason: str


class Workers:
    """Worker processes; they start with the first piece of work.

    Args:
        num_workers: processes; default: one per available core.
        timeout: seconds for one item.

    Example:
        list(workers().map(canonical, ["OCC", "not a molecule"]))   # ["CCO", None]
    """

    def __init__(self, num_workers: int | None = None, timeout: float = TIMEOUT):
        self.num_workers = num_workers or available_cpus()
        self.timeout = timeout
        # spawned, because the parent may hold threads (torch, polars) that a forked child would inherit half of
        self.pool = ProcessPool(self.num_workers, context=multiprocessing.get_context("spawn"))

    def stop(self) -> None:
        """End the processes."""
        self.pool.stop()
        self.pool.join()

    def map(self, function: Callable[[T], R], items: Iterable[T], piece: int = PIECE) -> Iterator[R | Failure]:
        """Results in the order of the items; at most a few pieces are under way, however many items there are.

        Args:
            function: importable by name; what it raises is raised here.
            items: anything that pickles.
            piece: items that travel together.
        """
        return self.map_pieces(partial(_apply, function), items, piece)

    def map_pieces(
        self, function: Callable[[Sequence[T]], Sequence[R]], items: Iterable[T], piece: int = PIECE
    ) -> Iterator[R | Failure]:
        """The same with a function of several items at once, for work that is cheaper so."""
        waiting: deque[tuple[list[T], ProcessFuture]] = deque()
        source = iter(items)
        while True:
            while len(waiting) < 2 * self.num_workers + 1 and (some := list(islice(source, piece))):
                waiting.append((some, self._send(function, some)))
            if not waiting:
                return
            some, future = waiting.popleft()
            yield from self._collect(function, some, future)

    def _send(self, function: Callable[[Any], Any], items: Sequence[Any]) -> ProcessFuture:
        limit = self.timeout * (PATIENCE if len(items) > 1 else 1)
        return self.pool.schedule(function, args=(items,), timeout=limit)

    def _collect(self, function: Callable[[Any], Any], items: list[Any], future: ProcessFuture) -> list[Any]:
        try:
            return future.result()
        except BrokenProcessPool:
            raise SeqtuneError(
                "worker processes cannot start; in a script of your own, put the code below `if __name__ == '__main__':`"
            ) from None
        except (LateError, ProcessExpired) as error:
            if len(items) == 1:
                return [Failure("timeout" if isinstance(error, LateError) else "crash")]
        futures = [self._send(function, [item]) for item in items]
        return [self._collect(function, [item], one)[0] for item, one in zip(items, futures, strict=True)]


@cache
def workers() -> Workers:
    """The worker processes of this program, one per core; they live until it ends."""
    made = Workers()
    atexit.register(made.stop)
    return made


def _apply(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]
