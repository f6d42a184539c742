"""What `decode.weights` means: the precision in which an engine holds a model's weights."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from seqtune.errors import ConfigError
from seqtune.models.machine import best_device, has_bf16_units
from seqtune.sections import DecodeConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolved(config: DecodeConfig) -> str:
    """`decode.weights`, with `auto` resolved: bfloat16 on GPUs that compute with it, float32 elsewhere."""
    if config.weights != "auto":
        return config.weights
    return "bfloat16" if best_device().type == "cuda" and has_bf16_units() else "float32"


def dtype_of(config: DecodeConfig) -> torch.dtype:
    """What a model is loaded in; for int8, float32, which is quantised then."""
    return DTYPES.get(resolved(config), torch.float32)


def check_dtype(model: PreTrainedModel, config: DecodeConfig) -> None:
    """See that a model which somebody loaded has the weights that were asked for; `auto` takes it as it is.

    Raises:
        ConfigError: it has others.
    """
    wanted = DTYPES.get(config.weights, model.dtype)
    if wanted != model.dtype:
        raise ConfigError(
            f"decode.weights = {config.weights!r}, but the model was handed over in {str(model.dtype).removeprefix('torch.')}: "
            "load it from its run folder, or leave decode.weights at 'auto'"
        )


def check_int8(model: PreTrainedModel, adapter_method: str) -> None:
    """See that torch can quantise the model, before the work starts.

    Raises:
        ConfigError: this machine decodes on a GPU, the model has no linear layers, or LoRA reads their weights.
    """
    if adapter_method in ("lora", "qlora"):
        raise ConfigError(
            f"decode.weights = 'int8' cannot quantise the layers that {adapter_method} adds to: "
            "merge them first (seqtune export RUN --to hf), or use 'float32'"
        )
    device = best_device()
    if device.type != "cpu":
        raise ConfigError(f"decode.weights = 'int8' is for CPUs, and this machine decodes on {device.type}: use 'bfloat16'")
    if not any(isinstance(m, nn.Linear) and m is not model.get_output_embeddings() for m in model.modules()):
        raise ConfigError(f"decode.weights = 'int8' finds no linear layers in {type(model).__name__}; use 'float32'")


def quantized(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU whose linear layers hold int8 weights, one scale each; activations are quantised as they come.

    There is less to read per token; some answers change.
    """
    supported = torch.backends.quantized.supported_engines
    torch.backends.quantized.engine = "onednn" if "onednn" in supported else supported[-1]
    quantize: Any = torch.ao.quantization.quantize_dynamic  # pyright: ignore[reportAttributeAccessIssue]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces torchao, which would be one more dependency
        return quantize(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
