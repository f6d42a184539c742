"""Chains as tasks of a Ray cluster, on whatever machine has the processors and GPUs free.

Source: https://docs.ray.io/en/latest/ray-core/tasks.html.
"""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError, TaskCancelledError

from seqtune.errors import RunError
from seqtune.ray_cluster import connect
from seqtune.studies.execution import Failure, Task, run_chain
from seqtune.studies.points import Point
from seqtune.studies.processes import Stopped

CLOSE_SECONDS = 60.0


class ClusterTask:
    """A chain as a Ray task, which looks for a file that asks it to stop."""

    def __init__(self, reference: ray.ObjectRef, stop_file: Path):
        self.reference = reference
        self.stop_file = stop_file

    def done(self) -> bool:
        """True once it has ended."""
        return bool(ray.wait([self.reference], timeout=0)[0])

    def result(self) -> list[Failure]:
        """What went wrong with which point."""
        try:
            return ray.get(self.reference)
        except (TaskCancelledError, Stopped):
            raise Stopped from None
        except RayError as error:
            raise RunError(f"the Ray cluster lost a chain of points: {str(error).strip().splitlines()[-1]}") from None

    def stop(self) -> None:
        """Ask it to end."""
        self.stop_file.touch()
        # takes it out of the queue; what runs already may be in a system call, where Ray's interrupt does not arrive
        ray.cancel(self.reference, force=False)


class Cluster:
    """Chains as Ray tasks, each with its share of processors and GPUs.

    Args:
        address: of the cluster, or `local` for one on this machine.
        cpus: of a task.
        gpus: of a task.
        marker: a file of the study, by which a worker sees that it shares the file system.

    Raises:
        RunError: there is no such cluster, or no machine of it has so much.
    """

    def __init__(self, address: str, cpus: int, gpus: float, marker: Path):
        connect(address)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fits = [int(min(n.get("CPU", 0) // cpus, n.get("GPU", 0) // gpus if gpus else n.get("CPU", 0))) for n in nodes]
        self.width = sum(fits)
        if not self.width:
            best = max((n.get("CPU", 0), n.get("GPU", 0)) for n in nodes)
            raise RunError(
                f"a point wants {cpus} processors and {gpus:g} GPUs; the largest machine of the cluster has {best[0]:g} and "
                f"{best[1]:g}. Lower `cpus` and `gpus` in the study"
            )
        self.cpus = cpus
        self.marker = marker.resolve()
        self.references: list[ray.ObjectRef] = []
        self.remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run_here)

    def submit(self, chain: Sequence[Point]) -> Task:
        """Queue it."""
        stop_file = self.marker.with_name(f".stop-{uuid.uuid4().hex}")
        self.references.append(self.remote.remote(list(chain), self.cpus, str(Path.cwd()), self.marker, stop_file))
        return ClusterTask(self.references[-1], stop_file)

    def close(self) -> None:
        """Leave the cluster; what was stopped may write its checkpoint first."""
        if self.references:
            ray.wait(self.references, num_returns=len(self.references), timeout=CLOSE_SECONDS)
        ray.shutdown()
        for left in self.marker.parent.glob(".stop-*"):
            left.unlink(missing_ok=True)


def _run_here(chain: list[Point], threads: int, folder: str, marker: Path, stop_file: Path) -> list[Failure]:
    """In the worker."""
    if not marker.exists():
        raise RunError(
            f"{socket.gethostname()} does not see {marker}; --ray needs a file system that all machines of the cluster share, "
            "with the study's folders and data on it"
        )
    os.chdir(folder)
    # Ray's workers block Ctrl-C, and children inherit that: a training that is asked to stop would not hear of it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return run_chain(chain, threads, stop_file.exists)
