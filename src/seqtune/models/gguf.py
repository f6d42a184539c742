"""GGUF file -> safetensors folder in the cache: dequantised once, and from then on a base like any other.

transformers reads the file (https://huggingface.co/docs/transformers/gguf); what it makes of it is saved in fp32, which holds
every dequantised value exactly.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from seqtune import folders, plugins
from seqtune.errors import MissingDependencyError, ModelError
from seqtune.models.gguf_header import check_header
from seqtune.models.location import ORIGIN, converted_folder
from seqtune.progress import console

# texts of many kinds; a tokenizer that does not give them back would spoil answers in silence
PROBES = (
    "Ethanol has two carbons.",
    "CC(=O)Oc1ccccc1C(=O)O",
    "naïve café → 北京 ½",
    "two  blanks,\na line and\ta tab",
    "3.14159",
)
FACTS = {"name": "general.name", "licence": "general.license", "organization": "general.organization"}


def converted(file: Path) -> Path:
    """The safetensors folder of a GGUF file; made now if it is not there, all or nothing.

    Raises:
        MissingDependencyError: the package gguf is not installed.
        ModelError: the file is damaged, its architecture cannot be read, or its tokenizer does not give texts back.
    """
    final = converted_folder(file)
    if final.exists():
        return final
    if find_spec("gguf") is None:
        raise MissingDependencyError("gguf", "gguf", f"reading {file.name!r}")
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.with_name(f".{final.name}.lock")):  # one process converts, and the others wait for it
        if not final.exists():
            _make(file, final)
    return final


def _make(file: Path, final: Path) -> None:
    console().print(f"reading {file.name}: dequantised once, kept in {final}", markup=False)
    with folders.writing(final) as hidden:
        _convert(file, hidden)


def _convert(file: Path, folder: Path) -> None:
    facts = _facts(file)
    options: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a bar of transformers' own
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
            model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    except (ValueError, KeyError, NotImplementedError, RuntimeError, TypeError, IndexError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{str(file)!r}: transformers cannot read this GGUF file ({reason})") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    _check(tokenizer, file)
    # it is dequantised; with these notes of the quantised file transformers would refuse to save it
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / ORIGIN).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _facts(file: Path) -> dict[str, str]:
    """Name and licence from the file's own header; reading it also shows whether the file is whole.

    Raises:
        ModelError: it is not.
    """
    reader: Any = plugins.load("gguf:GGUFReader")
    try:
        check_header(file)
        fields = reader(file).fields
        found = {name: str(fields[key].contents()) for name, key in FACTS.items() if key in fields}
    except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError, struct.error) as error:
        raise ModelError(f"{str(file)!r} is no GGUF file, or damaged or cut off ({error}); fetch it again") from None
    return {"file": file.name, "sha256": converted_folder(file).name, **found}


def _check(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    for text in PROBES:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if back.strip() != text:
            raise ModelError(f"{str(file)!r}: its tokenizer does not give texts back: {text!r} becomes {back!r}")
