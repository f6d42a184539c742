"""Arrow files and streams (`.arrow`, `.feather`, shards of saved data sets) -> columns of text; see `cells`.

Before anything is unpacked, each message is asked how much it holds: those of a stream as they come, those of a file as its
table of contents lists them (https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.ipc
from pyarrow import types

from seqtune.data import cells
from seqtune.data.archives import BROKEN, EXPANSION, WINDOW, too_large
from seqtune.errors import DataError

MAGIC = b"ARROW1"
FEATHER_1 = b"FEA1"
END = struct.Struct("<I6s")  # of a file: the length of the table of contents before it, and the magic word
BLOCK = struct.Struct("<qi4xq")  # an entry of it: place, length of the metadata, length of the body
BATCH = 2**28  # bytes that a packed batch may unpack to,
BATCH_EXPANSION = 20  # or so many times its own size
PAIR = struct.Struct("<qq")
CONTINUED = 0xFFFFFFFF  # before the length of a message, in files since 2019
DICTIONARY, RECORDS = 2, 3  # kinds of messages
OLD_COMPRESSION = b"ARROW:experimental_compression"


@contextlib.contextmanager
def opened(path: Path, source: Path | IO[bytes], num_rows: int) -> Iterator[cells.Opened]:
    """A file's schema, and its batches, which are read as they are taken.

    Args:
        path: the file's name, and by its size how much it can hold.
        source: itself, unpacked.
        num_rows: of a batch, at most, where the file leaves the choice.

    Raises:
        DataError: it is damaged, or holds too much.
    """
    try:
        with contextlib.closing(
            pyarrow.OSFile(str(source)) if isinstance(source, Path) else pyarrow.PythonFile(source, "r")
        ) as file:
            start = file.read(len(MAGIC))
            if start.startswith(FEATHER_1):
                raise DataError(f"{str(path)!r} is Feather of version 1, which nothing writes any more; write it again")
            file.seek(0)
            if start == MAGIC:
                found = pyarrow.ipc.open_file(file)
                _check_promise(path, _listed(file))
                schema, batches = found.schema, (found.get_batch(number) for number in range(found.num_record_batches))
            else:
                _check_promise(path, _streamed(file))
                file.seek(0)
                batches = pyarrow.ipc.open_stream(file)
                schema = batches.schema
            for field in schema:
                if not _is_readable(field.type):
                    raise DataError(
                        f"{str(path)!r}: the column {field.name!r} is of the type {str(field.type)[:60]}, which is not read; "
                        "write it as a column of texts, or the table as Parquet"
                    )
            yield schema, batches
    except BROKEN:
        raise
    except (*cells.UNREADABLE, struct.error, IndexError) as error:
        raise DataError(f"{str(path)!r} cannot be read as Arrow: {error}") from None


def _is_readable(kind: pyarrow.DataType) -> bool:
    """Whether it is known how much room values of a type take: of none but texts more can be named than there are."""
    if types.is_dictionary(kind):
        return cells.is_text(kind.value_type)
    if types.is_struct(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        return all(
            _is_readable(kind.field(i).type) and not types.is_dictionary(kind.field(i).type) for i in range(kind.num_fields)
        )
    plain = (
        types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_temporal, types.is_null,
        types.is_binary, types.is_large_binary, cells.is_text,
    )  # fmt: skip
    return any(is_one(kind) for is_one in plain)


def _check_promise(path: Path, messages: Iterable[_Message]) -> None:
    """Look at what each message says that it holds, before any of it is unpacked."""
    most = max(WINDOW, EXPANSION * path.stat().st_size)
    num_bytes = num_values = 0
    for message in messages:
        size, values = message.held()
        num_bytes, num_values = num_bytes + size, num_values + values
        if num_bytes > most or size > max(BATCH, BATCH_EXPANSION * message.size):
            raise too_large(path, "bytes")
        if cells.CELL * num_values > most:
            raise too_large(path, "cells")


def _streamed(stream: pyarrow.NativeFile) -> Iterator[_Message]:
    for message in pyarrow.ipc.MessageReader.open_stream(stream):
        body = memoryview(message.body or b"")
        yield _Message(memoryview(message.metadata), len(body), body.__getitem__)


def _listed(file: pyarrow.NativeFile) -> Iterator[_Message]:
    """The messages of a file whose table of contents Arrow has found whole."""
    size = file.size()
    length, _ = END.unpack(file.read_at(END.size, size - END.size))
    contents = memoryview(file.read_at(length, size - END.size - length))
    root = _Flat(contents, _number(contents, 0, "I"))
    for place, head, body in [*root.entries(2, BLOCK), *root.entries(3, BLOCK)]:
        if place < 0 or head < 0 or body < 0:
            raise ValueError("its table of contents lists places before its beginning")
        metadata = memoryview(file.read_at(min(head, size), place))
        begin = 8 if _number(metadata, 0, "I") == CONTINUED else 4
        yield _Message(
            metadata[begin:], body, lambda part, at=place + head: file.read_at(part.stop - part.start, at + part.start)
        )


@dataclass(frozen=True, slots=True)
class _Message:
    """What is said about a batch, the size of the batch, and how to read of it."""

    metadata: memoryview
    size: int
    read: Callable[[slice], bytes | memoryview]

    def held(self) -> tuple[int, int]:
        """Bytes and values that it unpacks to."""
        message = _Flat(self.metadata, _number(self.metadata, 0, "I"))
        kind, batch = message.value(1, "B"), message.part(2)
        if kind == DICTIONARY and batch:
            batch = batch.part(1)
        if kind not in (DICTIONARY, RECORDS) or batch is None:
            return 0, 0
        nodes, buffers = batch.entries(1, PAIR), batch.entries(2, PAIR)
        if min((number for pair in [*nodes, *buffers] for number in pair), default=0) < 0:
            raise ValueError("a batch says that it holds less than nothing")
        is_packed = batch.part(3) is not None or OLD_COMPRESSION in self.metadata.tobytes()
        num_bytes = sum(self._unpacked(place, size) if is_packed and size else size for place, size in buffers)
        return num_bytes, sum(length for length, _ in nodes) + batch.value(0, "q")

    def _unpacked(self, place: int, size: int) -> int:
        said = _number(memoryview(self.read(slice(place, place + 8))), 0, "q")
        return size if said < 0 else said


def _number(data: memoryview, place: int, kind: str) -> int:
    return struct.unpack_from("<" + kind, data, place)[0]


class _Flat:
    """A table of FlatBuffers (https://flatbuffers.dev/internals): fields by number, absent ones 0 or `None`."""

    def __init__(self, data: memoryview, place: int):
        self.data, self.place = data, place
        self.fields = place - _number(data, place, "i")

    def _at(self, number: int) -> int | None:
        entry = 4 + 2 * number
        if entry >= _number(self.data, self.fields, "H"):
            return None
        offset = _number(self.data, self.fields + entry, "H")
        return self.place + offset if offset else None

    def value(self, number: int, kind: str) -> int:
        """A field that is a number."""
        place = self._at(number)
        return 0 if place is None else _number(self.data, place, kind)

    def part(self, number: int) -> _Flat | None:
        """A field that is a table."""
        place = self._at(number)
        return None if place is None else _Flat(self.data, place + _number(self.data, place, "I"))

    def entries(self, number: int, entry: struct.Struct) -> list[tuple[Any, ...]]:
        """A field that is a list of equal structures."""
        place = self._at(number)
        if place is None:
            return []
        begin = place + _number(self.data, place, "I")
        count = _number(self.data, begin, "I")
        return list(entry.iter_unpack(self.data[begin + 4 : begin + 4 + entry.size * count]))
