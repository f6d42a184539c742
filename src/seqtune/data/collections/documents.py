"""The YAML and JSON documents of a file, a folder or a tar archive. Nothing in them is executed."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seqtune.data.archives import unpacked
from seqtune.yaml_files import UNREADABLE, read_yaml

ENDINGS = (".yaml", ".yml", ".json")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
MOST_BYTES = 2**28  # of a document


@dataclass(frozen=True, slots=True)
class Code:
    """What a tag asks Python to make; it is not made."""

    tag: str


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML in which tags of mappings (`!Template`) are ignored, and others (`!function`) become `Code`."""


def _tagged(loader: Any, suffix: str, node: yaml.Node) -> Any:
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else Code(f"!{suffix}")


_Loader.add_multi_constructor("!", _tagged)


def documents(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and content of each document, in the order of their names; a `ValueError` for one that cannot be read."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix in ENDINGS and p.is_file()):
            yield str(file.relative_to(path)), load(file.name, file.read_bytes())
    elif path.name.endswith(ARCHIVES):
        with (
            unpacked(path, None if path.suffix == ".tar" else "gzip") as plain,
            tarfile.open(fileobj=plain, mode="r|") as archive,
        ):
            yield from sorted(_members(archive), key=lambda document: document[0])
    else:
        yield path.name, load(path.name, path.read_bytes())


def is_json_object(path: Path) -> bool:
    """True for a JSON file that holds an object, as a collection's do; a table in JSON is a list."""
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(2**10).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, Any]]:
    """Read in the order in which they come, for a packed archive cannot be read in another."""
    for member in archive:
        content = archive.extractfile(member) if member.isfile() and member.name.endswith(ENDINGS) else None
        if content:
            yield member.name, load(member.name, content.read(MOST_BYTES))


def load(name: str, content: bytes) -> Any:
    """A document's content, or the `ValueError` that says why it has none."""
    try:
        if name.endswith(".json"):
            return json.loads(content)
        return read_yaml(content.decode(), _Loader)  # type: ignore[arg-type]
    except UNREADABLE as error:
        return ValueError(f"it cannot be read: {' '.join(str(error).split())[:200]}")
