"""Parquet files -> columns of text; see `cells`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow
from pyarrow import parquet

from seqtune.data import cells
from seqtune.data.archives import BROKEN, EXPANSION, WINDOW, too_large
from seqtune.errors import DataError

BUFFER = 2**20  # bytes of a column that are read at once


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
        file = parquet.ParquetFile(source, buffer_size=BUFFER)
        _check_promise(path, file.metadata)
        texts = [field.name for field in file.schema_arrow if cells.is_text(field.type)]
        # what is stored once stays so until it is looked at
        file = parquet.ParquetFile(source, buffer_size=BUFFER, read_dictionary=texts)
        is_nested = any(map(pyarrow.types.is_nested, file.schema_arrow.types))
        yield file.schema_arrow, file.iter_batches(cells.NESTED_ROWS if is_nested else num_rows)
    except BROKEN:
        raise
    except cells.UNREADABLE as error:
        raise DataError(f"{str(path)!r} cannot be read as Parquet: {error}") from None


def _check_promise(path: Path, footer: parquet.FileMetaData) -> None:
    """Look at what the footer says, before anything is unpacked."""
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    most = max(WINDOW, EXPANSION * path.stat().st_size)
    if sum(chunk.total_uncompressed_size for chunk in chunks) > most:
        raise too_large(path, "bytes")
    if cells.CELL * sum(chunk.num_values for chunk in chunks) > most:
        raise too_large(path, "cells")
