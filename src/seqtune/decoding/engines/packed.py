"""Weights in the layout that oneDNN multiplies fastest: on CPUs, for the few rows a step that decoding has.

torch sends an fp32 product to MKL, which reads the weight as it lies; with 32 rows that reaches half of what oneDNN reaches
on a weight laid out beforehand, as torch's own compiler does when it freezes a model (figures in `bench/LOG.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from seqtune.models.machine import available_memory

TYPICAL_ROWS = 160  # 32 inputs of 5 beams; a layout made for this many is within some per cent at 1 to 2,048
SMALLEST = 2**17  # weights; below, calling oneDNN costs what it gains


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of a model on a CPU multiply with packed copies of their weights while this lasts.

    Results differ from those of `torch.nn.functional.linear` by rounding. The copies take the room of the weights once more;
    where that is more than half of the memory left, nothing is packed.

    Example:
        with torch.inference_mode(), packed(model):
            model(input_ids)
    """
    layers: list[Any] = [m for m in model.modules() if _gains(m)] if _available() else []
    if 2 * sum(layer.weight.nbytes for layer in layers) > available_memory():
        layers = []
    try:
        for layer in layers:
            layer.forward = partial(_linear, _packed_weight(layer), layer.bias)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _gains(module: Any) -> bool:
    # subclasses, quantised ones among them, have a forward of their own; so has a module that somebody hooked
    if type(module) not in {nn.Linear, Conv1D} or "forward" in module.__dict__:
        return False
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= SMALLEST


def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _packed_weight(layer: nn.Linear | Conv1D) -> torch.Tensor:
    weight_OI = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), TYPICAL_ROWS)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
