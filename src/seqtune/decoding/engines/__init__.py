"""Decoding engines behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import PreTrainedModel

from seqtune import progress
from seqtune.config import DecodeConfig
from seqtune.decoding.engines import ct2, vllm
from seqtune.decoding.engines.exactness import fits
from seqtune.decoding.engines.native import NativeEngine
from seqtune.decoding.engines.quantized import quantized
from seqtune.decoding.engines.reference import TransformersEngine
from seqtune.errors import ConfigError
from seqtune.records import Candidate


class Engine(Protocol):
    """Turns encoded prompts into token hypotheses."""

    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """Decode, in whatever order and batches suit the engine.

        Args:
            sources: prompt token ids, each [T].
            limits: the most tokens per hypothesis, the end token included.

        Yields:
            Index of a source and its `num_return` hypotheses, best first.
        """
        ...


def check_engine(model: PreTrainedModel, config: DecodeConfig, adapter_method: str = "full") -> None:
    """Find out before the work starts whether the engine can serve the model.

    Args:
        model: with its adapter, if it has one.
        config: the `decode` section.
        adapter_method: that adapter's method.

    Raises:
        ConfigError: it cannot.
        MissingDependencyError: it is not installed.
    """
    if adapter_method != "full" and config.engine in ("ctranslate2", "vllm"):
        raise ConfigError(
            f"decode.engine = {config.engine!r} reads whole models, and this is an adapter ({adapter_method}) on its base: "
            "export it first (seqtune export RUN --to hf), or use 'native'"
        )
    if adapter_method == "prefix_tuning" and config.engine == "transformers":
        raise ConfigError("decode.engine = 'transformers' makes caches of its own, which know no tuned prefix; use 'native'")
    if adapter_method == "prefix_tuning" and config.engine == "auto" and not fits(model):
        raise ConfigError(
            f"adapter.method 'prefix_tuning' needs the native engine, which does not fit {type(model).__name__}; "
            "use 'prompt_tuning' or 'p_tuning'"
        )
    if config.engine == "ctranslate2":
        ct2.check(model)
    elif config.engine == "vllm":
        vllm.check(config)
    elif config.engine == "native" and not fits(model):
        raise ConfigError(
            f"decode.engine = 'native' does not fit {type(model).__name__}: its cached and its plain forward differ; "
            "use 'transformers', or 'auto', which chooses"
        )
    elif config.weights == "int8" and (config.engine == "transformers" or not fits(model)):
        raise ConfigError("decode.weights = 'int8' needs decode.engine = 'native' or 'ctranslate2'")


def make_engine(
    model: PreTrainedModel, end: int, config: DecodeConfig, folder: Path | None = None, adapter_method: str = "full"
) -> Engine:
    """The engine that `decode.engine` names; `auto` is the native one wherever it is exact, else transformers.

    Args:
        model: in evaluation mode.
        end: end token.
        config: the `decode` section.
        folder: where the model lies, for engines that load it themselves.
        adapter_method: of the model's adapter, if it has one.

    Raises:
        ConfigError: the engine cannot serve this model.
        MissingDependencyError: it is not installed.
    """
    check_engine(model, config, adapter_method)
    if config.engine == "ctranslate2":
        return ct2.CTranslate2Engine(model, end, config, folder)
    if config.engine == "vllm":
        return vllm.VllmEngine(model, end, config, folder)
    if config.engine != "transformers" and fits(model):
        return NativeEngine(quantized(model) if config.weights == "int8" else model, end, config)
    if config.engine == "auto":
        note = f"decoding through transformers: the native engine does not fit {type(model).__name__}"
        progress.console().print(f"[dim]{note}[/dim]")
    return TransformersEngine(model, end, config)
