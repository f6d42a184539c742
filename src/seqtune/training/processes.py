"""One process of perhaps several: device, parallelism and trackers, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers

from seqtune.config import TrainConfig
from seqtune.errors import ConfigError, did_you_mean


def make_accelerator(config: TrainConfig, folder: Path) -> Accelerator:
    """Accelerate's handle on this process, its device and its trackers."""
    # precision is ours (`autocast`): accelerate's is fixed for the life of the process
    state = process_state()
    accelerator = Accelerator(
        log_with=[*config.trackers] or None, project_dir=str(folder), mixed_precision="no", cpu=state._cpu
    )
    if config.trackers:
        accelerator.init_trackers("seqtune", {k: v for k, v in config.model_dump().items() if k != "trackers"})
    return accelerator


def process_state() -> PartialState:
    """Which process this is, under torchrun; alone, the main one."""
    # without a GPU accelerate must be told that several processes share the work, or each trains by itself
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=several and not torch.accelerator.is_available())


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


@contextmanager
def no_sync(accelerator: Accelerator, module: torch.nn.Module, skip: bool) -> Iterator[None]:
    """Leave gradients to themselves if more are to come in this step."""
    if skip:
        with accelerator.no_sync(module):
            yield
    else:
        yield
