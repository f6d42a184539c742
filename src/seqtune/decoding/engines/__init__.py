"""Decoding engines behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from seqtune import plugins, progress
from seqtune.decoding.engines import ct2, vllm
from seqtune.decoding.engines.choices import ChoiceEngine
from seqtune.decoding.engines.exactness import fits
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.native import NativeEngine
from seqtune.decoding.engines.reference import TransformersEngine
from seqtune.decoding.engines.weights import check_dtype, check_int8
from seqtune.errors import ConfigError
from seqtune.records import Candidate
from seqtune.sections import DecodeConfig

READS_FOLDER = ("ctranslate2", "vllm")  # engines that read the weights from the model's folder; ours need not be loaded


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


def of_a_pack(config: DecodeConfig) -> bool:
    """True for an engine that another package brings: `PACK:NAME`."""
    return ":" in config.engine


def check_engine(frozen: FrozenModel, config: DecodeConfig, adapter_method: str = "full") -> None:
    """Find out before the work starts whether the engine can serve the model.

    Args:
        frozen: the model, with its adapter if it has one.
        config: the `decode` section.
        adapter_method: that adapter's method.

    Raises:
        ConfigError: it cannot.
        MissingDependencyError: it is not installed.
    """
    model = frozen.model
    if adapter_method != "full" and config.engine in READS_FOLDER:
        raise ConfigError(
            f"decode.engine = {config.engine!r} reads whole models, and this is an adapter ({adapter_method}) on its base: "
            "export it first (seqtune export RUN --to hf), or use 'native'"
        )
    if adapter_method == "prefix_tuning" and (config.engine == "transformers" or of_a_pack(config)):
        raise ConfigError(
            f"decode.engine = {config.engine!r} makes caches of its own, which know no tuned prefix; use 'native'"
        )
    if adapter_method == "prefix_tuning" and config.engine == "auto" and not fits(frozen):
        raise ConfigError(
            f"adapter.method 'prefix_tuning' needs the native engine, which does not fit {type(model).__name__}; "
            "use 'prompt_tuning' or 'p_tuning'"
        )
    if of_a_pack(config):
        plugins.find("engines", config.engine)
        if config.weights == "int8":
            raise ConfigError("decode.weights = 'int8' needs decode.engine = 'native' or 'ctranslate2'")
    elif config.engine == "ctranslate2":
        ct2.check(model)
    elif config.engine == "vllm":
        vllm.check(config)
    elif config.engine == "native" and not fits(frozen):
        raise ConfigError(
            f"decode.engine = 'native' does not fit {type(model).__name__}: its cached and its plain forward differ; "
            "use 'transformers', or 'auto', which chooses"
        )
    elif config.weights == "int8":
        if config.engine == "transformers" or not fits(frozen):
            raise ConfigError("decode.weights = 'int8' needs decode.engine = 'native' or 'ctranslate2'")
        check_int8(model, adapter_method)


def make_choice_engine(frozen: FrozenModel, answers: Sequence[Sequence[int]], config: DecodeConfig) -> Engine:
    """The engine for a task with a set of answers.

    Args:
        frozen: the model, with the weights that `decode.weights` asks for.
        answers: token ids of each, end token included.
        config: the `decode` section.

    Raises:
        ConfigError: the engine that it names cannot tell the probabilities of given answers.
    """
    if config.engine in READS_FOLDER or of_a_pack(config):
        raise ConfigError(
            f"decode.engine = {config.engine!r} writes texts of its own; a task with format.answers needs 'native' or 'auto'"
        )
    check_dtype(frozen.model, config)
    return ChoiceEngine(frozen.int8 if config.weights == "int8" else frozen, answers, config)


def make_engine(
    frozen: FrozenModel, end: int, config: DecodeConfig, folder: Path | None = None, adapter_method: str = "full"
) -> Engine:
    """The engine that `decode.engine` names; `auto` is the native one wherever it is exact, else transformers.

    Args:
        frozen: the model, with the weights that `decode.weights` asks for; for the engines of `READS_FOLDER` its
            architecture is enough, without weights (on torch's device `meta`).
        end: end token.
        config: the `decode` section.
        folder: where the model lies, for the engines of `READS_FOLDER`.
        adapter_method: of the model's adapter, if it has one.

    Raises:
        ConfigError: the engine cannot serve this model, or the model has other weights than were asked for.
        MissingDependencyError: it is not installed.
    """
    model = frozen.model
    check_engine(frozen, config, adapter_method)
    if config.engine == "ctranslate2":
        return ct2.CTranslate2Engine(model, end, config, folder)
    if config.engine == "vllm":
        return vllm.VllmEngine(end, config, folder)
    assert model.device.type != "meta", "this engine computes with the model at hand"
    check_dtype(model, config)
    if of_a_pack(config):
        return plugins.find("engines", config.engine)(model, end, config)
    if config.engine != "transformers" and fits(frozen):
        return NativeEngine(frozen.int8 if config.weights == "int8" else frozen, end, config)
    if config.engine == "auto":
        note = f"decoding through transformers: the native engine does not fit {type(model).__name__}"
        progress.console().print(f"[dim]{note}[/dim]")
    return TransformersEngine(model, end, config)
