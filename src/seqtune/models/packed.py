"""Weights laid out for the few rows a step that decoding has, on CPUs.

torch hands an fp32 product to MKL, which reads the weight as it lies, one output after the other. With AVX-512, oneDNN is up to
twice as fast on a weight laid out beforehand, as torch's own compiler does when it freezes a model; but a call costs some 30
microseconds more, and on Intel's processors MKL is as fast where the weight is small. MKL itself is up to half faster on the
transposed weight (figures in `bench/LOG.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from seqtune.models.machine import available_memory, has_avx512, is_intel

TYPICAL_ROWS = 160  # 32 inputs of 5 beams; a layout made for this many is within some per cent at 1 to 2,048
SMALLEST = 2**15  # weights; below, calling anything costs more than the product
LARGE = 2**20  # weights from which on oneDNN is ahead of Intel's MKL, too


class OneDnnWeight:
    """A weight in oneDNN's layout, and the bias [O] of its layer.

    Args:
        weight_OI: the weight.
        bias_O: may be `None`.
    """

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None):
        self.weight, self.bias_O = torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), TYPICAL_ROWS), bias_O

    def __call__(
        self, inputs: torch.Tensor, *, plus: torch.Tensor | None = None, times: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What `torch.nn.functional.linear` gives, up to rounding; `plus` is added to it, or it is multiplied by `times`."""
        if plus is None and times is None:
            return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias_O, "none", [], "")
        other, operation = (plus, "add") if plus is not None else (times, "mul")
        return torch.ops.mkldnn._linear_pointwise.binary(inputs, other, self.weight, self.bias_O, operation)


class TransposedWeight:
    """The same with the weight transposed."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None):
        self.weight_IO, self.bias_O = weight_OI.T.contiguous(), bias_O

    def __call__(
        self, inputs: torch.Tensor, *, plus: torch.Tensor | None = None, times: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `OneDnnWeight`."""
        first = self.bias_O if self.bias_O is not None else plus
        if first is None or inputs.ndim != 2:
            found = inputs @ self.weight_IO
            found = found if first is None else found.add_(first)
        else:
            found = torch.addmm(first, inputs, self.weight_IO)
        if plus is not None and first is not plus:
            found.add_(plus)
        return found if times is None else found.mul_(times)


PackedWeight = OneDnnWeight | TransposedWeight


def pack(weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> PackedWeight:
    """The weight in the layout that is fastest on this machine, copied where it lies in another one."""
    by_onednn = has_avx512() and not (is_intel() and weight_OI.numel() < LARGE)
    kind: Callable[..., PackedWeight] = OneDnnWeight if by_onednn else TransposedWeight
    return kind(weight_OI.detach(), bias_O)


def can_pack(weight: torch.Tensor) -> bool:
    """True for a matrix that is multiplied faster when it is packed."""
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return torch.backends.mkldnn.is_available() and on_cpu and weight.ndim == 2 and weight.numel() >= SMALLEST


def has_room(model: nn.Module) -> bool:
    """True if packed copies of a model's weights take at most half of the memory left."""
    return 2 * sum(p.nbytes for p in model.parameters() if can_pack(p)) <= available_memory()


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of a model on a CPU multiply with packed copies of their weights while this lasts.

    Results differ from those of `torch.nn.functional.linear` by rounding. Where there is not `has_room`, nothing is packed.

    Example:
        with torch.inference_mode(), packed(model):
            model(input_ids)
    """
    modules: list[Any] = list(model.modules()) if has_room(model) else []
    layers: list[Any] = [module for module in modules if is_plain(module) and can_pack(module.weight)]
    try:
        for layer in layers:
            weight_OI = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
            setattr(layer, "forward", pack(weight_OI, layer.bias))  # noqa: B010 - a forward of another shape
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def is_plain(layer: Any) -> bool:
    """True for a linear layer that does nothing else than multiply and add."""
    # subclasses, quantised ones among them, have a forward of their own; so has a module that somebody hooked
    return type(layer) in {nn.Linear, Conv1D} and not is_hooked(layer)


def is_hooked(module: nn.Module) -> bool:
    """True if calling a module does more than what its class says."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "forward" in module.__dict__ or any(hooks)
