"""Parquet files -> columns of text, a portion at a time, as long as they hold no more than files of their size can hold.

A text that is stored once may stand in every row, and a row that is stored once may be repeated without end, so a few hundred
bytes can become gigabytes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import polars
import pyarrow
import pyarrow.compute
from pyarrow import parquet

from seqtune.data.archives import BROKEN, EXPANSION, WINDOW, too_large, unpacked
from seqtune.errors import DataError

BUFFER = 2**20  # bytes of a column that are read at once
CELL = 4  # bytes that each counts for
NESTED_ROWS = 256  # with lists in them: what they hold is known only when they are read
UNREADABLE = (
    polars.exceptions.PolarsError, polars.exceptions.PanicException, pyarrow.ArrowException, OSError, ValueError, OverflowError,
)  # fmt: skip


def column_names(path: Path, compression: str | None) -> list[str]:
    """The columns of a file.

    Raises:
        DataError: it is damaged, or holds too much.
    """
    with _opened(path, compression) as file:
        return [str(name) for name in file.schema_arrow.names]


def portions(path: Path, compression: str | None, num_rows: int, num_characters: int) -> Iterator[list[list[str]]]:
    """The cells of each column.

    Args:
        path: the file.
        compression: as for `archives.unpacked`.
        num_rows: of a portion, at most.
        num_characters: likewise; but always a row.

    Raises:
        DataError: it is damaged, or holds too much.
    """
    most, given = max(WINDOW, EXPANSION * path.stat().st_size), 0
    with _opened(path, compression) as file:
        is_nested = any(map(pyarrow.types.is_nested, file.schema_arrow.types))
        for batch in file.iter_batches(NESTED_ROWS if is_nested else num_rows):
            batch.validate(full=True)
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


@contextlib.contextmanager
def _opened(path: Path, compression: str | None) -> Iterator[parquet.ParquetFile]:
    with contextlib.ExitStack() as stack:
        source: Path | IO[bytes] = path
        if compression:  # Parquet needs to seek
            source = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stack.enter_context(unpacked(path, compression)), source)
        try:
            file = parquet.ParquetFile(source, buffer_size=BUFFER)
            _check_promise(path, file.metadata)
            texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
            # what is stored once stays so until it is looked at
            yield parquet.ParquetFile(source, buffer_size=BUFFER, read_dictionary=texts)
        except BROKEN:
            raise
        except UNREADABLE as error:
            raise DataError(f"{str(path)!r} cannot be read as Parquet: {error}") from None


def _is_text(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _check_promise(path: Path, footer: parquet.FileMetaData) -> None:
    """Look at what the footer says, before anything is unpacked."""
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    most = max(WINDOW, EXPANSION * path.stat().st_size)
    if sum(chunk.total_uncompressed_size for chunk in chunks) > most:
        raise too_large(path, "bytes")
    if CELL * sum(chunk.num_values for chunk in chunks) > most:
        raise too_large(path, "cells")


def _text_bytes(batch: pyarrow.RecordBatch) -> np.ndarray:
    """Of the texts in each row, int64 [N]."""
    sizes = np.zeros(len(batch), np.int64)
    for column in batch.columns:
        if isinstance(column, pyarrow.DictionaryArray):
            lengths = pyarrow.compute.call_function("binary_length", [column.dictionary]).take(column.indices)
            sizes += lengths.fill_null(0).to_numpy(zero_copy_only=False)
    return sizes


def _plain(column: pyarrow.Array) -> polars.Series:
    return polars.Series(column.dictionary_decode() if isinstance(column, pyarrow.DictionaryArray) else column)


def _cells(column: polars.Series) -> list[str]:
    return column.fill_null("").to_list() if column.dtype == polars.String else [_cell(value) for value in column.to_list()]


def _cell(value: object) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    return "" if value is None or value != value else str(value)  # noqa: PLR0124 - NaN, a missing number
