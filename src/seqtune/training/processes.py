"""One process of perhaps several: device, parallelism and trackers, through accelerate."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.tracking import get_available_trackers
from torch import distributed

from seqtune.errors import ConfigError, LostProcessError, did_you_mean
from seqtune.sections import TrainConfig

LONGEST_WAIT = timedelta(days=7)
SHARING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
Value = TypeVar("Value")


def make_accelerator(config: TrainConfig, folder: Path) -> Accelerator:
    """Accelerate's handle on this process, its device and its trackers.

    Raises:
        ConfigError: `accelerate launch` was told to share the model out, which is done here.
    """
    # precision is ours (`autocast`): accelerate's is fixed for the life of the process
    state = process_state()
    accelerator = Accelerator(
        log_with=[*config.trackers] or None, project_dir=str(folder), mixed_precision="no", cpu=state._cpu
    )
    if accelerator.distributed_type in SHARING:
        raise ConfigError(
            f"accelerate launch is set to {accelerator.distributed_type.value}; launch without it (--multi_gpu, or torchrun): "
            "here it is train.parallel=fsdp that shares the model out"
        )
    if config.trackers:
        accelerator.init_trackers("seqtune", {k: v for k, v in config.model_dump().items() if k != "trackers"})
    return accelerator


def process_state() -> PartialState:
    """Which process this is, under torchrun; alone, the main one."""
    # without a GPU accelerate must be told that several processes share the work, or each trains by itself
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=several and not torch.accelerator.is_available())


class Agreement:
    """What all processes must know alike, exchanged between CPUs.

    A channel of its own (gloo), because that of the GPUs (NCCL) gives up after ten minutes, which a validation or a checkpoint
    in the main process may take, and because asking a GPU would wait for all the work in its queue.

    Args:
        num_processes: 1 for a process alone, which agrees with itself.
    """

    def __init__(self, num_processes: int):
        self._group: Any = distributed.new_group(backend="gloo", timeout=LONGEST_WAIT) if num_processes > 1 else None

    def largest(self, *values: float) -> list[float]:
        """The largest of each value over the processes."""
        if self._group is None:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX, self._group)
        return tensor.tolist()

    def from_main(self, value: Any) -> Any:
        """The main process's value."""
        if self._group is None:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, group=self._group, device=torch.device("cpu"))
        return box[0]

    def in_main(self, work: Callable[[], Value]) -> Value:
        """What the main process makes of the work; where it fails, all end."""
        return self.from_main(self._done(work if process_state().is_main_process else None))

    def everywhere(self, work: Callable[[], Value], *, first: bool = True) -> Value:
        """What each process makes of the work, some before the others; where one fails, all end, and it says why.

        Args:
            work: the same in all.
            first: true in one process of each machine, if the work leaves in the cache what the others then find there.
        """
        made = self._done(work if first else None)
        return self._done((lambda: made) if first else work)

    def _done(self, work: Callable[[], Value] | None) -> Any:
        made, error = None, None
        try:
            made = work() if work else None
        except Exception as found:  # whatever it is, the others wait for this process
            error = found
        number = process_state().process_index
        [failed] = self.largest(-number if error else -math.inf)
        if error and failed == -number:
            raise error
        if failed > -math.inf:
            raise SystemExit(1)  # in silence: the first of those that failed says why
        return made

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Within, the end of another process is an error that says so, as soon as this one waits for it.

        Raises:
            LostProcessError: there was a process too few.
        """
        try:
            yield
        except RuntimeError as error:
            if self._group is None or not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
                raise
            raise LostProcessError(
                f"another process of this training has ended, or is out of reach ({_first_line(error)}); its output may say "
                "why. The same command with --resume goes on from the last checkpoint, with any number of processes"
            ) from error

    def wait(self) -> None:
        """Until every process is here."""
        if self._group is not None:
            distributed.barrier(self._group)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_trackers(config: TrainConfig) -> None:
    """Refuse a tracker that is unknown or not installed; accelerate itself would go on without it.

    Raises:
        ConfigError: names it and what there is.
    """
    installed = [str(t) for t in get_available_trackers()]
    for name in config.trackers:
        if name not in installed:
            raise ConfigError(
                f"train.trackers: {name!r} is unknown or not installed{did_you_mean(name, installed)}; "
                f"installed: {', '.join(installed) or 'none'} (pip install 'seqtune[track]' brings tensorboard)"
            )


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Matrix products in `dtype`; nothing for fp32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
