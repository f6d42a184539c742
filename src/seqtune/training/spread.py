"""One model spread over the processes of a training: a copy in each (DDP), or a shard in each (FSDP2).

`Copies` and `Shards` hold the same things, so the loop does not know which it has. What has to be whole (a checkpoint, a
validation, Newton-Schulz) asks `whole` for it, and `shard_like` lays it out again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from seqtune.errors import ConfigError
from seqtune.models.loss import TargetLoss


class Copies:
    """Every process trains a copy, and gradients are averaged between them; also one process alone.

    Attributes:
        model: the one that was given.
        trained: the one that is optimised, here the same.
        loss: the module to call, on this process's share of a batch.
    """

    def __init__(self, model: PreTrainedModel, accelerator: Accelerator):
        self._accelerator = accelerator
        self.model = self.trained = model.to(accelerator.device)  # type: ignore[arg-type]
        self.loss: Any = accelerator.prepare(TargetLoss(self.trained, through_blocks=True))

    def adding_up(self) -> AbstractContextManager[Any]:
        """Within, gradients stay with their process: more are to come in this step."""
        return self._accelerator.no_sync(self.loss)

    @contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """The model with the weights that are trained, on the device; every process must come."""
        yield self.model

    def finish(self) -> None:
        """Leave the trained weights in `model`."""
        # the wrapper goes first: if it were the last to hold the process group, the group's destructor would wait for its
        # threads with the interpreter locked, and they for the interpreter
        self.loss = self._accelerator.unwrap_model(self.loss)


class Shards:
    """Every process holds its share of each weight, gradient and optimizer state (FSDP2); a block is whole while it computes.

    The loss is the root of the sharding, so that the output layer and the embeddings are whole plain tensors wherever it reads
    them. The main process keeps the given model beside its shards, in the CPU's memory, and the trained weights are written
    into it whenever they are needed as one.

    Source: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html.

    Attributes:
        model: the one that was given; of use in the main process alone, within `whole` and after `finish`.
        trained: the sharded one that is optimised.
        loss: the module to call, on this process's share of a batch, as often as all other processes do.
    """

    def __init__(self, model: PreTrainedModel, accelerator: Accelerator):
        self._device, self._is_main = accelerator.device, accelerator.is_main_process
        self.model = model
        self.trained = copy.deepcopy(model) if self._is_main else model
        self.loss: Any = TargetLoss(self.trained)
        mesh = init_device_mesh(self._device.type, (accelerator.num_processes,))
        for block in _blocks(self.trained):
            fully_shard(block, mesh=mesh)
        fully_shard(self.loss, mesh=mesh)

    def adding_up(self) -> AbstractContextManager[Any]:
        """Gradients are shared out after every batch: waiting would mean to hold all of them."""
        return nullcontext()

    @contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """The model with the weights that are trained, on the device, in the main process; every process must come."""
        self._collect()
        if not self._is_main:
            yield self.model
            return
        try:
            yield self.model.to(self._device)  # type: ignore[arg-type]
        finally:
            self.model.to("cpu")  # type: ignore[arg-type]

    def finish(self) -> None:
        """Leave the trained weights in the main process's `model`."""
        self._collect()
        self.loss, self.trained = None, self.model

    @torch.no_grad()
    def _collect(self) -> None:
        ours = dict(self.model.named_parameters())
        for name, parameter in self.trained.named_parameters():
            if parameter.requires_grad:
                full = whole(parameter.detach())
                if self._is_main:
                    ours[name].copy_(full)


def spread(model: PreTrainedModel, accelerator: Accelerator, parallel: str) -> Copies | Shards:
    """A model on the processes that there are.

    Args:
        model: whole, in every process.
        accelerator: this process.
        parallel: `train.parallel`.

    Raises:
        ConfigError: its family does not say what its blocks are.
    """
    return Shards(model, accelerator) if parallel == "fsdp" and accelerator.num_processes > 1 else Copies(model, accelerator)


def _blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if not blocks:
        raise ConfigError(
            f"train.parallel = 'fsdp' does not fit {type(model).__name__}: transformers does not say what its blocks are, one "
            "of which at a time would be put together; use 'ddp'"
        )
    return blocks


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor put together from its shards, which takes every process; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This process's share of a whole tensor, as it has one of the parameter; asks no other process.

    Example:
        >>> shard_like(torch.ones(2), torch.zeros(2))  # a parameter that is whole has whole shares
        tensor([1., 1.])
    """
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    there = tensor.to(parameter.device)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)
