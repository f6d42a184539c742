"""Arrow batches -> columns of text, a portion at a time, as long as they hold no more than files of their size can hold.

A text that is stored once may stand in every row, so a few hundred bytes can become gigabytes.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars
import pyarrow
import pyarrow.compute
from pyarrow import types

from seqtune.data.archives import EXPANSION, WINDOW, too_large

CELL = 4  # bytes that each counts for
MISSING = ("NAType", "NaTType")  # how pandas calls what is missing; neither is equal to anything, nor different
NESTED_ROWS = 256  # with lists in them: what they hold is known only when they are read
Opened = tuple[pyarrow.Schema, Iterable[pyarrow.RecordBatch]]  # what the readers of columnar files give
UNREADABLE = (
    polars.exceptions.PolarsError, polars.exceptions.PanicException, pyarrow.ArrowException, OSError, ValueError, OverflowError,
)  # fmt: skip


class NoText(str):
    """A cell that holds a list, an object or bytes, as JSON."""

    __slots__ = ()


def cell(value: object) -> str:
    """A value as the text of a cell.

    Example:
        >>> cell(1.5), cell(None), cell(["a"]), cell(datetime.datetime(2024, 2, 1))
        ('1.5', '', '["a"]', '2024-02-01')
    """
    if value is None or type(value).__name__ in MISSING:
        return ""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | dict):
        return NoText(json.dumps(value, default=str))
    if isinstance(value, bytes):
        return NoText(json.dumps({"bytes": len(value)}))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()  # how a sheet keeps a date
    return "" if value != value else str(value)  # noqa: PLR0124 - NaN, a missing number


def flat_names(schema: pyarrow.Schema) -> list[str]:
    """Names of the columns of `flat`."""
    return [str(name) for name in flat(schema.empty_table()).column_names]


def flat(table: pyarrow.Table) -> pyarrow.Table:
    """With a column for each part of an object, named as in `data.src`."""
    while any(map(types.is_struct, table.schema.types)):
        table = table.flatten()
    return table


def portions(
    batches: Iterable[pyarrow.RecordBatch], path: Path, num_rows: int, num_characters: int
) -> Iterator[list[list[str]]]:
    """The cells of each column.

    Args:
        batches: of the file, their texts perhaps dictionaries.
        path: the file.
        num_rows: of a portion, at most.
        num_characters: likewise; but always a row.

    Raises:
        DataError: it holds too much.
    """
    most, given = max(WINDOW, EXPANSION * path.stat().st_size), 0
    for whole in batches:
        whole.validate(full=True)
        given += sum(map(_hidden_bytes, whole.columns))
        if given > most:
            raise too_large(path, "characters")
        is_nested = any(map(types.is_nested, whole.schema.types))
        for batch in flat(pyarrow.Table.from_batches([whole])).to_batches(NESTED_ROWS if is_nested else num_rows):
            ends = _text_bytes(batch).cumsum()
            start = 0
            while start < len(batch):
                held = int(ends[start - 1]) if start else 0
                end = max(start + 1, int(np.searchsorted(ends, held + num_characters, side="right")))
                given += int(ends[end - 1]) - held
                if given > most:
                    raise too_large(path, "characters")
                yield [_cells(_plain(column[start:end])) for column in batch.columns]
                start = end


def is_text(kind: pyarrow.DataType) -> bool:
    """True for texts."""
    return any(is_one(kind) for is_one in (types.is_string, types.is_large_string, types.is_string_view))


def _text_bytes(batch: pyarrow.RecordBatch) -> np.ndarray:
    """Of the texts in each row, int64 [N]."""
    sizes = np.zeros(len(batch), np.int64)
    for column in batch.columns:
        if isinstance(column, pyarrow.DictionaryArray) and is_text(column.type.value_type):
            places = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
            sizes += np.append(_lengths(column.dictionary), 0)[places]  # what has no text at all has the place 0 too
        elif is_text(column.type):
            sizes += _lengths(column)
    return sizes


def _lengths(texts: pyarrow.Array) -> np.ndarray:
    """Bytes of each text, int64 [N]; what stands for a missing one may count."""
    if types.is_string_view(texts.type):  # its views begin with them
        views = np.frombuffer(texts.buffers()[1] or b"", np.int32).reshape(-1, 4)
        return views[texts.offset : texts.offset + len(texts), 0].astype(np.int64)
    lengths = pyarrow.compute.call_function("binary_length", [texts])
    return lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _hidden_bytes(column: pyarrow.Array) -> int:
    """Of texts that are named from within lists, objects and dictionaries, which the rows do not show."""
    if isinstance(column, pyarrow.DictionaryArray):
        return _all_bytes(column.dictionary) if types.is_string_view(column.type.value_type) else 0
    return _all_bytes(column) if types.is_nested(column.type) else 0


def _all_bytes(column: pyarrow.Array) -> int:
    if types.is_struct(column.type):
        return sum(_all_bytes(column.field(place)) for place in range(column.type.num_fields))
    if types.is_nested(column.type):  # lists, and maps, which are lists of pairs
        return _all_bytes(column.values)
    return int(_lengths(column).sum()) if is_text(column.type) else 0


def _plain(column: pyarrow.Array) -> polars.Series:
    if isinstance(column, pyarrow.DictionaryArray):
        texts = column.dictionary.cast(pyarrow.large_string()) if is_text(column.type.value_type) else column.dictionary
        column = pyarrow.DictionaryArray.from_arrays(column.indices, texts).dictionary_decode()
    return polars.Series(column)


def _cells(column: polars.Series) -> list[str]:
    return column.fill_null("").to_list() if column.dtype == polars.String else [cell(value) for value in column.to_list()]
