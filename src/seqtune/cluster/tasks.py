"""Work as tasks of a Ray cluster, on whatever machine has the processors and GPUs free; each can be asked to stop.

Source: https://docs.ray.io/en/latest/ray-core/tasks.html.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, TaskCancelledError

from seqtune.cluster.connection import connect, explained, settle
from seqtune.errors import RunError

CLOSE_SECONDS = 60.0

# what it is given, threads to use, and whether it was asked to stop -> its result
Work = Callable[[Any, int, Callable[[], bool]], Any]


class Task:
    """A Ray task, which looks for a file that asks it to stop.

    Args:
        reference: Ray's.
        stop_file: is made to stop it.
        stopped: what `result` raises if it was taken out of the queue.
    """

    def __init__(self, reference: ray.ObjectRef, stop_file: Path, stopped: type[Exception]):
        self.reference, self.stop_file, self.stopped = reference, stop_file, stopped

    def done(self) -> bool:
        """True once it has ended."""
        return bool(ray.wait([self.reference], timeout=0)[0])

    def result(self) -> Any:
        """What the work returned.

        Raises:
            RunError: the cluster lost it.
        """
        try:
            return ray.get(self.reference)
        except (TaskCancelledError, self.stopped):
            raise self.stopped from None
        except RayError as error:
            raise explained(error, "a task") from None

    def stop(self) -> None:
        """Ask it to end."""
        self.stop_file.touch()
        # takes it out of the queue; what runs already may be in a system call, where Ray's interrupt does not arrive
        ray.cancel(self.reference, force=False)


class Tasks:
    """A cluster as a place to submit work to, each piece with its share of processors and GPUs.

    Args:
        address: of the cluster, or `local` for one on this machine.
        cpus: of a task.
        gpus: of a task.
        marker: a file by which a worker sees that it shares the file system.
        work: what each task does.
        stopped: what it raises when it was asked to stop.

    Raises:
        RunError: there is no such cluster, or no machine of it has so much.
    """

    def __init__(self, address: str, cpus: int, gpus: float, marker: Path, work: Work, stopped: type[Exception]):
        connect(address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fits = [int(min(n.get("CPU", 0) // cpus, n.get("GPU", 0) // gpus if gpus else n.get("CPU", 0))) for n in nodes]
        self.width = sum(fits)
        if not self.width:
            best = max((n.get("CPU", 0), n.get("GPU", 0)) for n in nodes)
            raise RunError(
                f"a task wants {cpus} processors and {gpus:g} GPUs; the largest machine of the cluster has {best[0]:g} and "
                f"{best[1]:g}. Lower `cpus` and `gpus`"
            )
        self.cpus, self.work, self.stopped = cpus, work, stopped
        self.marker = marker.resolve()
        self.references: list[ray.ObjectRef] = []
        self.remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_in_worker)

    def submit(self, given: Any) -> Task:
        """Queue work on what is given."""
        stop_file = self.marker.with_name(f".stop-{uuid.uuid4().hex}")
        self.references.append(self.remote.remote(self.work, given, self.cpus, Path.cwd(), self.marker, stop_file))
        return Task(self.references[-1], stop_file, self.stopped)

    def close(self) -> None:
        """Leave the cluster; what was stopped may write its checkpoint first."""
        if self.references:
            ray.wait(self.references, num_returns=len(self.references), timeout=CLOSE_SECONDS)
        ray.shutdown()
        for left in self.marker.parent.glob(".stop-*"):
            left.unlink(missing_ok=True)


def _in_worker(work: Work, given: Any, threads: int, folder: Path, marker: Path, stop_file: Path) -> Any:
    settle(folder, marker)
    # Ray's workers block Ctrl-C, and children inherit that: a training that is asked to stop would not hear of it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return work(given, threads, stop_file.exists)
