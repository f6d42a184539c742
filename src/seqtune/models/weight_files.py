"""The files of a model's folder, looked at before any other library opens them: whoever made them is not trusted.

Only safetensors are read, from inside the folder, and only if the headers agree with the files and with the model's settings.
Format: https://huggingface.co/docs/safetensors/index#format. Torch is not needed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqtune.errors import ModelError
from seqtune.yaml_files import read_json_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64,
        "I64": 64, "F64": 64, "C64": 64, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4,
        "F6_E2M3": 6, "F6_E3M2": 6}  # fmt: skip
LARGEST_HEADER = 2**24  # bytes; the format allows 100 MB, and models of a billion parameters have some 30 KB
HUB_CODE = re.compile(r"[^/\s]+/[^/\s]+")
Shapes = dict[str, tuple[int, ...]]


def damaged(path: Path, reason: str) -> ModelError:
    """The error for a model's file that is not what it should be."""
    return ModelError(
        f"{str(path)!r} is damaged ({reason}); put it back from a copy, or fetch or train the model again "
        "(of a finished run, `seqtune verify RUN` checks every file)"
    )


def read_settings(path: Path) -> dict[str, Any]:
    """One of a model's JSON files.

    Raises:
        ModelError: it is damaged, or asks for code from the hub.
    """
    content = read_json_object(path, damaged)
    for key, value in _entries(content):
        # transformers takes such a value for the name of a kernel, which it fetches and runs
        if key.endswith(("attn_implementation", "experts_implementation")) and HUB_CODE.match(str(value)):
            raise ModelError(
                f"{str(path)!r} asks for the code {value!r} from the hub ({key}); what a folder says is no permission"
            )
    return content


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    parts = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in parts:
        yield str(key), value
        yield from _entries(value)


def shard_names(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        ModelError: the index is damaged, or names something other than safetensors files beside it.
    """
    places = read_settings(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise damaged(index, "no weight_map")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name or "\\" in name:
            raise ModelError(f"{str(index)!r} names {name!r}, which is no file beside it; seqtune does not follow it")
        if not name.endswith(".safetensors"):
            raise ModelError(
                f"{str(index)!r} names {name!r}; seqtune reads safetensors only, because other weight files can run code"
            )
    return names


def check_place(path: Path, folder: Path) -> None:
    """Refuse a link that leads out of a model's folder; in the hub's cache, out of the repository's part of it.

    Raises:
        ModelError: it does.
    """
    home = folder.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    if not path.resolve().is_relative_to(home):
        raise ModelError(f"{str(path)!r} is a link out of its folder, to {str(path.resolve())!r}; put the file itself there")


def shapes_in(path: Path) -> Shapes:
    """Name and shape of every tensor in a safetensors file, after its header has been checked against the file.

    Raises:
        ModelError: it is damaged.
    """
    size = os.path.getsize(path)
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            raise damaged(path, f"it has {size:,} bytes, and a header of {length:,} is announced")
        text = handle.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        found = {name: (tuple(map(int, entry["shape"])), entry) for name, entry in header.items()}
        spans = sorted((*map(int, entry["data_offsets"]), _bytes(shape, entry["dtype"])) for shape, entry in found.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"its header cannot be read: {type(error).__name__} {error}") from None
    reached = 0
    for begin, end, needed in spans:
        if begin != reached or end - begin != needed:
            raise damaged(path, f"a tensor of {needed:,} bytes is said to lie at {begin:,} to {end:,}")
        reached = end
    if reached != size - 8 - length:
        raise damaged(path, f"{reached:,} bytes of tensors are announced, and {size - 8 - length:,} are there")
    return {name: shape for name, (shape, _) in found.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name appears twice")
    return content


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return math.prod(shape) * BITS[dtype] // 8
