"""One training in several processes of a Ray cluster, which know each other; a lost one stops it, and the rest goes on.

Source: https://docs.ray.io/en/latest/train/train.html.
"""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context
from ray.train.torch import TorchTrainer

from seqtune.cluster.connection import connect, settle
from seqtune.errors import InterruptedRunError, LostProcessError, RunError, SeqtuneError

LOSSES = 10  # after so many the cluster is given up
# what is lost is seen to here, by what the cluster then has
AT_ONCE = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
PAUSE_SECONDS = 5.0  # until a cluster knows that it has lost a machine

# what it is given, whether processes were lost before, and whether it was asked to stop -> its result
Work = Callable[[Any, bool, Callable[[], bool]], Any]


class Training:
    """Work in several processes at once, under torch's process group; begun as soon as it is made.

    A process that is lost ends the others. The work begins again on what the cluster then has, with as many processes or with
    fewer, and is told so.

    Args:
        address: of the cluster, or `local` for one on this machine.
        num_workers: processes at most.
        folder: one of its own, empty, that all machines share.
        work: what each process does.
        given: to the work.
        say: told in words when processes are lost.

    Raises:
        RunError: there is no such cluster.
    """

    def __init__(self, address: str, num_workers: int, folder: Path, work: Work, given: Any, say: Callable[[str], None]):
        os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"  # else what a process prints is printed twice
        connect(address)
        logging.getLogger("ray.train").setLevel(logging.ERROR)  # what it has to say about losses is said here
        self.num_workers, self.folder, self.say = num_workers, folder.resolve(), say
        self.stop_file, self.failure = self.folder / "stop", self.folder / "failure.json"
        files = {"marker": self.folder / "marker", "stop": self.stop_file, "failure": self.failure}
        files["marker"].touch()
        self.given = {"work": work, "given": given, "folder": Path.cwd(), **files}
        self.thread = ThreadPoolExecutor(1)  # in the main one Ray would take Ctrl-C for itself, and leave no time to save
        self.future = self.thread.submit(self._run)

    def done(self) -> bool:
        """True once it has ended."""
        return self.future.done()

    def result(self) -> Any:
        """What the first process returned.

        Raises:
            RunError: what a process raised; or the cluster lost processes again and again.
            InterruptedRunError: they were asked to stop, and did.
        """
        return self.future.result()

    def stop(self) -> None:
        """Ask it to end."""
        self.stop_file.touch()

    def close(self) -> None:
        """Leave the cluster."""
        ray.shutdown()
        self.thread.shutdown(wait=False)

    def _run(self) -> Any:
        for losses in range(LOSSES):
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            width, cpus, gpus = share([(int(n.get("CPU", 0)), int(n.get("GPU", 0))) for n in nodes], self.num_workers)
            self.say(f"{width} {'process' if width == 1 else 'processes'} on the Ray cluster, each with {_words(cpus, gpus)}")
            trainer = TorchTrainer(
                _in_worker,
                train_loop_config=self.given | {"again": losses > 0},
                scaling_config=ScalingConfig(
                    num_workers=width, use_gpu=gpus > 0, resources_per_worker={"CPU": cpus, "GPU": gpus}
                ),
                run_config=RunConfig(name=f"ray-{losses}", storage_path=str(self.folder), failure_config=AT_ONCE),
            )
            try:
                result, said = trainer.fit().return_value, ""
            except (TrainingFailedError, RayError) as error:
                result, said = None, _what_happened(error)
            if self.failure.exists():
                failed = json.loads(self.failure.read_text(encoding="utf-8"))
                raise InterruptedRunError(failed["text"], failed["signal"]) if failed["signal"] else RunError(failed["text"])
            if not said:
                return result
            self.say(f"{said}; going on from the last checkpoint")
            time.sleep(PAUSE_SECONDS)
        raise RunError(f"the Ray cluster lost processes {LOSSES} times; the same command with --resume goes on")


def share(machines: Sequence[tuple[int, int]], num_workers: int) -> tuple[int, int, int]:
    """How many processes a cluster has room for, up to a number, and the processors and GPUs of each: as many as all can have.

    Args:
        machines: processors and GPUs of each.
        num_workers: processes wanted.

    Raises:
        RunError: there are no machines with processors.

    Example:
        >>> share([(8, 2), (8, 1)], 3), share([(4, 0), (4, 0)], 3), share([(1, 0)], 2)
        ((3, 4, 1), (3, 2, 0), (1, 1, 0))
    """
    gpus = int(any(gpus for _, gpus in machines))

    def room(cpus: int) -> int:
        return sum(min(have // cpus, held) if gpus else have // cpus for have, held in machines)

    width = min(num_workers, room(1))
    if not width:
        raise RunError("the Ray cluster has no machine with a processor free for training")
    return width, max(cpus for cpus in range(1, max(have for have, _ in machines) + 1) if room(cpus) >= width), gpus


def _what_happened(error: Exception) -> str:
    """Why the processes ended, if it was not by a mistake of theirs.

    Raises:
        RunError: they cannot work where they are.
    """
    last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    if isinstance(error, ControllerError):
        return f"the cluster did not start the processes ({last})"
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, (SeqtuneError, OSError)) and not isinstance(cause, (LostProcessError, RayError)):
            raise RunError(str(cause))
    return f"the cluster lost processes of the training ({last})"


def _words(cpus: int, gpus: int) -> str:
    return f"{cpus} {'processor' if cpus == 1 else 'processors'}" + (" and a GPU" if gpus else "")


def _in_worker(config: dict[str, Any]) -> Any:
    settle(config["folder"], config["marker"])
    try:
        return config["work"](config["given"], config["again"], config["stop"].exists)
    except LostProcessError:
        raise
    except SystemExit:  # another process says why
        return None
    except Exception as error:
        known, number = isinstance(error, SeqtuneError), getattr(error, "signal", 0)
        text = str(error) if known else f"process {rank()} of the training failed: {traceback.format_exc()}"
        with suppress(FileExistsError), config["failure"].open("x", encoding="utf-8") as file:
            json.dump({"text": text, "signal": number}, file)
        if number:  # all were interrupted alike
            return None
        raise  # the end of this process ends the others, which may wait for it


def rank() -> int:
    """In the work: this process's number."""
    return get_context().get_world_rank()
