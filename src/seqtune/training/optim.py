"""Optimizers, the mean of the weights, and the schedule of the learning rate."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from seqtune import plugins
from seqtune.sections import TrainConfig
from seqtune.training.spread import shard_like, whole

MUON_MOMENTUM = 0.95
# Odd quintics a x + b x^3 + c x^5, applied one after the other: each has the least largest distance from 1 on the interval that
# the one before leaves, beginning with 0.003 to 1 (the idea of Amsel et al. 2025, https://arxiv.org/abs/2505.16932; a test
# finds them again by linear programming). Three train as well as Jordan's five and cost less: bench/LOG.md
POLYNOMIALS = (
    (8.383674, -24.765908, 18.357084),
    (4.043421, -3.011405, 0.569512),
    (3.505571, -2.626654, 0.525719),
)


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Push the singular values of stacked matrices [K, M, N] towards 1.

    `torch.optim.Muon` always iterates in bf16, which is several times slower on CPUs without bf16 units.
    """
    x = matrices.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz, for hidden matrices (Jordan et al. 2024).

    Matrices of one shape are stacked and iterated together, which matters for small models. Sharded ones are put together for
    it in every process, which then keeps its share of the update: the same steps, and a shape's matrices are whole meanwhile.

    Args:
        parameters: two-dimensional parameters, or groups of them; a group with `inputs_first` holds weights [inputs, outputs],
            as GPT-2's Conv1D has them, in place of nn.Linear's [outputs, inputs].
        lr: step size; an update is scaled by sqrt(max(1, outputs / inputs)).
        weight_decay: decoupled.
        dtype: what the iteration runs in; bf16 where the hardware has units for it.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "inputs_first": False})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            shapes: defaultdict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                inputs, outputs = shape if group["inputs_first"] else reversed(shape)
                scale = group["lr"] * math.sqrt(max(1.0, outputs / inputs))
                update = orthogonalize(torch.stack([whole(self._nesterov(p)) for p in parameters]), self.dtype)
                for parameter, direction in zip(parameters, update, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(shard_like(direction.to(parameter.dtype), parameter), alpha=-scale)

    def _nesterov(self, parameter: nn.Parameter) -> torch.Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MUON_MOMENTUM)
        return parameter.grad.lerp(state["momentum"], MUON_MOMENTUM)


class WeightAverage:
    """An exponential moving average (EMA) of the weights whose horizon grows: the running mean over the last steps.

    It looks back over about `window` times the steps so far, where an EMA of constant decay looks back over a fixed number of
    steps (polynomial-decay averaging, Shamir and Zhang 2013, https://arxiv.org/abs/1212.1824; why averages help: Izmailov et
    al. 2018, https://arxiv.org/abs/1803.05407). The window shrinks with the learning rate: a decayed training ends on its own
    weights, one that stops early on better ones. Validations and the final model use the average.

    Args:
        parameters: trained parameters.
        window: the horizon as a share of the steps so far.

    Example:
        >>> weight = nn.Parameter(torch.tensor([0.0]))
        >>> average = WeightAverage([weight], window=1.0)
        >>> for value in (0.0, 3.0):
        ...     _ = weight.data.fill_(value)
        ...     average.update()
        >>> average.means[0].item()  # the second step counts 1 / (1 + 2)
        1.0
    """

    def __init__(self, parameters: Iterable[nn.Parameter], window: float):
        self.parameters = list(parameters)
        self.window = window
        self.num_steps = 0
        self.means = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, factor: float = 1.0) -> None:
        """Take the weights as they are into the mean.

        Args:
            factor: share of the peak learning rate, by which the window shrinks.
        """
        self.num_steps += 1
        share = 1.0 if self.num_steps == 1 else 1 / (1 + factor * self.window * self.num_steps)
        for mean, parameter in zip(self.means, self.parameters, strict=True):
            mean.lerp_(parameter.detach(), share)

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap weights and means."""
        for mean, parameter in zip(self.means, self.parameters, strict=True):
            weights = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(weights)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its whole state, for a checkpoint."""
        return {"num_steps": torch.tensor(self.num_steps)} | {str(i): mean for i, mean in enumerate(self.means)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from what `tensors` gave."""
        self.num_steps = int(tensors["num_steps"])
        for i, mean in enumerate(self.means):
            mean.copy_(shard_like(tensors[str(i)], mean))


def build_optimizers(model: PreTrainedModel, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW alone, or Muon for hidden matrices and AdamW for embeddings, output layer, norms and biases.

    Each group keeps its peak rate in `peak`, from which `set_learning_rates` scales.

    Args:
        model: the model to train.
        config: resolved (`seqtune.training.defaults.resolve`).
    """
    assert config.learning_rate, "resolved settings have a rate"
    muon = config.optimizer == "muon"
    hidden = _hidden_matrices(model) if muon else []
    taken = {id(p) for group in hidden for p in group["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (0.9, 0.95 if muon else 0.999)
    filled = [g for g in groups if g["params"]]
    if config.optimizer == "paged_adamw":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # there they work unpaged
            adamw = plugins.load("bitsandbytes.optim:PagedAdamW32bit")(filled, lr=config.learning_rate, betas=betas)
    else:
        adamw = torch.optim.AdamW(filled, lr=config.learning_rate, betas=betas, fused=True)
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if hidden:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        optimizers.append(Muon(hidden, config.muon_learning_rate, config.weight_decay, dtype))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _hidden_matrices(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Muon's groups: two-dimensional weights of the blocks, not embeddings, not the output layer; those of Conv1D apart."""
    outside = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings()
    outside |= {id(p) for p in head.parameters()} if head is not None else set()
    matrices = [p for p in model.parameters() if p.ndim == 2 and p.requires_grad and id(p) not in outside]
    conv1d = {id(m.weight) for m in model.modules() if isinstance(m, Conv1D)}
    groups = [
        {"params": [p for p in matrices if id(p) not in conv1d], "inputs_first": False},
        {"params": [p for p in matrices if id(p) in conv1d], "inputs_first": True},
    ]
    return [g for g in groups if g["params"]]


def learning_rate_factor(progress: float, config: TrainConfig) -> float:
    """Share of the peak rate at `progress` in [0, 1]: warm-up, then the schedule.

    Example:
        >>> round(learning_rate_factor(0.515, TrainConfig(warmup=0.03)), 3)
        0.5
    """
    assert config.warmup is not None, "resolved settings have a warm-up"
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-3)
    if config.schedule == "constant":
        return 1.0
    rest = min(1.0, (progress - config.warmup) / max(1e-9, 1 - config.warmup))
    return 1 - rest if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * rest))


def set_learning_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Scale every group's rate from its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
