"""CTranslate2: quantised decoding on CPUs and GPUs for the families that it has a loader for."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel

from seqtune.config import DecodeConfig
from seqtune.errors import ConfigError, MissingDependencyError
from seqtune.records import Candidate

FAMILIES = (
    "bloom",
    "codegen",
    "falcon",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gptj",
    "llama",
    "mistral",
    "mpt",
    "opt",
    "phi",
    "qwen2",
)


def check(model: PreTrainedModel) -> Any:
    """The package, if it is there and has a loader for the family; else the errors of `CTranslate2Engine`."""
    family = model.config.model_type
    if family not in FAMILIES:
        raise ConfigError(
            f"decode.engine = 'ctranslate2' has no loader for {family!r} (it has: {', '.join(FAMILIES)}); use 'native'"
        )
    try:
        return importlib.import_module("ctranslate2")
    except ImportError:
        raise MissingDependencyError("ctranslate2", "fast", "the engine 'ctranslate2'") from None


class CTranslate2Engine:
    """Greedy and beam search through CTranslate2; the model is converted once and kept beside its folder.

    Args:
        model: tells family and device.
        end: end token.
        config: `weights` is int8, float16 or float32.
        folder: the model's folder.

    Raises:
        ConfigError: there is no loader for the family, or no folder to convert.
        MissingDependencyError: ctranslate2 is not installed.
    """

    def __init__(self, model: PreTrainedModel, end: int, config: DecodeConfig, folder: Path | None):
        self.package: Any = check(model)
        if folder is None or not folder.is_dir():
            raise ConfigError("decode.engine = 'ctranslate2' needs a run or model folder on disk")
        self.end, self.config = end, config
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        weights = "float32" if config.weights == "auto" else config.weights
        device = model.device.type
        threads = {"intra_threads": torch.get_num_threads()} if device == "cpu" else {}
        try:
            converted = self._converted(folder, weights)
            self.generator = self.package.Generator(str(converted), device=device, compute_type=weights, **threads)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"ctranslate2 cannot serve {str(folder)!r} as {weights} on {device} ({reason}); use decode.engine = 'native'"
            ) from None

    def _converted(self, folder: Path, weights: str) -> Path:
        newest = max(file.stat().st_mtime_ns for file in folder.glob("*.safetensors"))
        final = folder.parent / f"{folder.name}-ctranslate2-{weights}"
        if final.exists() and final.stat().st_mtime_ns > newest:
            return final
        hidden = final.with_name(f".{final.name}.{os.getpid()}")
        converter: Any = importlib.import_module("ctranslate2.converters").TransformersConverter(str(folder))
        try:
            converter.convert(str(hidden), quantization=weights, force=True)
            settings = json.loads((hidden / "config.json").read_text())
            for name in ("bos_token", "eos_token", "unk_token"):  # the loader of OPT writes null where a tokenizer has none
                settings[name] = settings.get(name) or self.tokenizer.eos_token
            (hidden / "config.json").write_text(json.dumps(settings))
            shutil.rmtree(final, ignore_errors=True)
            hidden.rename(final)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        return final

    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """See `Engine.generate`."""
        config = self.config
        limit = max(limits)
        prompts = [self.tokenizer.convert_ids_to_tokens(source.tolist()) for source in sources]
        rows = max(1, config.token_budget // (config.num_beams * (max(map(len, sources)) + limit)))
        order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            results = self.generator.generate_batch(
                [prompts[i] for i in batch], beam_size=config.num_beams, num_hypotheses=config.num_return,
                length_penalty=config.length_penalty, max_length=limit, end_token=[self.end], return_end_token=True,
                include_prompt_in_result=False, sampling_topk=1, return_scores=True,
            )  # fmt: skip
            for index, result in zip(batch, results, strict=True):
                ids = [list(found)[: limits[index]] for found in result.sequences_ids]
                scores = [s * len(i) ** config.length_penalty for s, i in zip(result.scores, result.sequences_ids, strict=True)]
                yield index, [Candidate(i, float(s)) for i, s in zip(ids, scores, strict=True)]
