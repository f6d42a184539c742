"""int8 weights on CPUs: less to read per token, some answers change."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from seqtune.errors import ConfigError


def quantized(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose linear layers hold int8 weights, one scale each; activations are quantised as they come.

    Raises:
        ConfigError: the model is not on a CPU, or has no linear layers that torch can quantise.
    """
    if model.device.type != "cpu":
        raise ConfigError(f"decode.weights = 'int8' is for CPUs; the model is on {model.device}: use 'bfloat16'")
    inner = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.get_output_embeddings()]
    if not inner:
        raise ConfigError(f"decode.weights = 'int8' finds no linear layers in {type(model).__name__}; use 'float32'")
    supported = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = "onednn" if "onednn" in supported else supported[-1]
    quantize: Any = torch.ao.quantization.quantize_dynamic  # pyright: ignore[reportAttributeAccessIssue]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces torchao, which would be one more dependency
        return quantize(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
