"""What need not be made again: kept in the cache folder, under a hash of everything that decides it.

A cache is a convenience: where it cannot be written, things are made and not kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars

from seqtune import folders
from seqtune.data.table import Frames, Table
from seqtune.runs import fingerprint

Value = TypeVar("Value")
FACTS, ROWS = "facts.json", "rows.arrow"


def key_of(*parts: object) -> str:
    """A name for what is decided by `parts`, whose `repr` must say it all.

    Example:
        >>> key_of("rows", 1) == key_of("rows", 1), key_of("rows", 1) == key_of("rows", "1")
        (True, False)
    """
    return fingerprint(repr(part).encode("utf-8", "surrogatepass") for part in parts)


def rows_key(table: Table) -> tuple[str | None, str | None]:
    """What names a table's rows: what its frames were read from, and which of them are its own."""
    return table.key, None if table.rows is None else fingerprint([table.rows.tobytes()])


def digest(*paths: Path) -> str:
    """Hash of the content of files, one behind the other."""
    found = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as handle:
            hashlib.file_digest(handle, lambda: found)
    return found.hexdigest()


def fact(key: str | None, make: Callable[[], Value]) -> Value:
    """A value that JSON can hold, made once; without a key it is made and not kept."""
    if key is None:
        return make()
    path = folders.cache("facts") / f"{key}.json"
    if path.exists():
        return json.loads(path.read_text())
    value = make()
    _write(path, lambda hidden: hidden.write_text(json.dumps(value)))
    return value


def array(key: str | None, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array, made once; without a key it is made and not kept."""
    if key is None:
        return make()
    path = folders.cache("facts") / f"{key}.npy"
    if path.exists():
        return np.load(path)
    value = make()

    def save(hidden: Path) -> None:
        with hidden.open("wb") as handle:
            np.save(handle, value)

    _write(path, save)
    return value


def frames(
    key: str | None, make: Callable[[list[tuple[int, str]]], Iterator[polars.DataFrame]]
) -> tuple[Frames, list[tuple[int, str]]]:
    """The rows of a file, read once, and the lines that hold none.

    Args:
        key: `None` to keep them in memory.
        make: yields the frames, none of them empty, and adds to the list that it is given: line, what is wrong with it.
    """
    faults: list[tuple[int, str]] = []
    if key is None:
        found = list(make(faults))
        return Frames([len(frame) for frame in found], found), faults

    def save(hidden: Path) -> None:
        hidden.mkdir()
        counts = Frames.write(make(faults), hidden / ROWS)
        (hidden / FACTS).write_text(json.dumps({"counts": counts, "faults": faults}))

    kept = folder("rows", key, save)
    if kept is None:
        return frames(None, make)
    facts = json.loads((kept / FACTS).read_text())
    return Frames(facts["counts"], kept / ROWS if facts["counts"] else []), [(line, reason) for line, reason in facts["faults"]]


def folder(kind: str, key: str, save: Callable[[Path], object]) -> Path | None:
    """A folder of files, written once by `save`, which must make it; `None` where that cannot be done."""
    path = folders.cache(kind) / key
    return path if path.exists() or _write(path, save) else None


def _write(path: Path, save: Callable[[Path], object]) -> bool:
    """Write a file or folder that is there as a whole or not at all; false if it is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with folders.writing(path) as hidden:
            save(hidden)
    except OSError:
        return path.exists()  # another process may have been quicker
    return True
