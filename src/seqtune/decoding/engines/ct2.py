"""CTranslate2: quantised decoding on CPUs and GPUs for the families that it has a loader for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers import AutoTokenizer, PreTrainedModel

from seqtune import folders
from seqtune.decoding.engines.batches import with_one_limit
from seqtune.decoding.engines.weights import resolved
from seqtune.errors import ConfigError, MissingDependencyError
from seqtune.records import Candidate
from seqtune.sections import DecodeConfig

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


def convert(source: Path, folder: Path, weights: str, end: str) -> None:
    """Write a Hugging Face folder as CTranslate2 has it.

    Args:
        source: the Hugging Face folder.
        folder: where to write; it may hold other files.
        weights: compute type, such as "int8".
        end: the end token, which also stands in for tokens that the tokenizer lacks.
    """
    converter: Any = importlib.import_module("ctranslate2.converters").TransformersConverter(str(source))
    converter.convert(str(folder), quantization=weights, force=True)
    settings = json.loads((folder / "config.json").read_text())
    for name in ("bos_token", "unk_token"):  # the loader of OPT writes null where a tokenizer has none
        settings[name] = settings.get(name) or end
    (folder / "config.json").write_text(json.dumps(settings | {"eos_token": end}))


class CTranslate2Engine:
    """Greedy and beam search through CTranslate2; the model is converted once and kept beside its folder.

    Args:
        model: tells the family; its weights are read from the folder.
        end: end token.
        config: the `decode` section.
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
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        weights, device = resolved(config), "cuda" if self.package.get_cuda_device_count() else "cpu"
        threads = {"intra_threads": torch.get_num_threads()} if device == "cpu" else {}
        converted = folder.parent / f"{folder.name}-ctranslate2-{weights}"
        try:
            # one process converts and the others wait for it; nobody reads what another one is replacing
            with FileLock(converted.with_name(f".{converted.name}.lock")):
                self._convert(folder, converted, weights)
                self.generator = self.package.Generator(str(converted), device=device, compute_type=weights, **threads)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"ctranslate2 cannot serve {str(folder)!r} as {weights} on {device} ({reason}); use decode.engine = 'native'"
            ) from None

    def _convert(self, folder: Path, converted: Path, weights: str) -> None:
        """Write the converted model, unless it is there and younger than the weights."""
        newest = max(file.stat().st_mtime_ns for file in folder.glob("*.safetensors"))
        if converted.exists() and converted.stat().st_mtime_ns > newest:
            return
        with folders.writing(converted, folders.aside(converted)) as unfinished:
            convert(folder, unfinished, weights, self.tokenizer.eos_token)

    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """See `Engine.generate`."""
        config = self.config
        for batch, limit in with_one_limit(sources, limits, config):
            results = self.generator.generate_batch(
                [self.tokenizer.convert_ids_to_tokens(sources[i].tolist()) for i in batch],
                beam_size=config.num_beams, num_hypotheses=config.num_return,
                length_penalty=config.length_penalty, max_length=limit, end_token=[self.end], return_end_token=True,
                include_prompt_in_result=False, sampling_topk=1, return_scores=True,
            )  # fmt: skip
            for index, result in zip(batch, results, strict=True):
                found = zip(result.sequences_ids, result.scores, strict=True)
                yield index, [Candidate(list(ids), float(s * len(ids) ** config.length_penalty)) for ids, s in found]
