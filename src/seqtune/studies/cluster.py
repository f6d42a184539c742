"""Chains as tasks of a Ray cluster, on whatever machine has the processors and GPUs free.

Source: https://docs.ray.io/en/latest/ray-core/tasks.html.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError, TaskCancelledError

from seqtune.errors import RunError
from seqtune.ray_cluster import connect
from seqtune.studies.execution import Failure, Stopped, Task, run_chain
from seqtune.studies.points import Point

CLOSE_SECONDS = 60.0


class ClusterTask:
    """A chain as a Ray task."""

    def __init__(self, reference: ray.ObjectRef):
        self.reference = reference

    def done(self) -> bool:
        """True once it has ended."""
        return bool(ray.wait([self.reference], timeout=0)[0])

    def result(self) -> list[Failure]:
        """What went wrong with which point."""
        try:
            return ray.get(self.reference)
        except TaskCancelledError:
            raise Stopped from None
        except RayError as error:
            if "Stopped" in str(error) or "KeyboardInterrupt" in str(error):
                raise Stopped from None
            raise RunError(f"the Ray cluster lost a chain of points: {str(error).strip().splitlines()[-1]}") from None

    def stop(self) -> None:
        """Interrupt it: the worker hears of it as of Ctrl-C and hands that on to its process."""
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
        self.references.append(self.remote.remote(list(chain), self.cpus, str(Path.cwd()), str(self.marker)))
        return ClusterTask(self.references[-1])

    def close(self) -> None:
        """Leave the cluster; what was stopped may write its checkpoint first."""
        if self.references:
            ray.wait(self.references, num_returns=len(self.references), timeout=CLOSE_SECONDS)
        ray.shutdown()


def _run_here(chain: list[Point], threads: int, folder: str, marker: str) -> list[Failure]:
    """In the worker."""
    if not Path(marker).exists():
        raise RunError(
            f"{socket.gethostname()} does not see {marker}; --ray needs a file system that all machines of the cluster share, "
            "with the study's folders and data on it"
        )
    os.chdir(folder)
    return run_chain(chain, threads)
