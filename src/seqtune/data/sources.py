"""Files -> `Table`: rows are looked at in columns, and suspects one by one, for the reason why they cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import polars

from seqtune.data import kept
from seqtune.data.cells import NoText
from seqtune.data.files import TEXTUAL, Raw, TableFile, open_table, raw_rows
from seqtune.data.layouts import CONVERSATIONS, SAID, Pair, layout_of, needed_columns, pair_of, text_fault
from seqtune.data.table import BLANKS, FIELD, Columns, Table, write_context
from seqtune.errors import DataError, RejectedRowsError, did_you_mean
from seqtune.records import Rejected
from seqtune.sections import DataConfig, Layout

CACHE_BYTES = 2**18  # smaller files are read faster than a cache is looked up
PACKED_BYTES = 2**12  # likewise, of those that unpack to far more
MAX_FAULTS = 1_000_000  # each is kept, with its reason
FORMAT = "4"  # changes with what is made of a row


def _need_column(table: TableFile, column: str, setting: str) -> None:
    if column in table.columns:
        return
    hint = did_you_mean(column, table.columns)
    raise DataError(
        f"{table.name!r} has no column {column!r}, asked for by {setting}{hint}; columns: {', '.join(table.columns[:20])}"
        + "".join(f"; {note}" for note in table.dialect.notes)
    )


def said_of(name: str, config: DataConfig) -> list[str]:
    """What was found out about a table by itself, for people: its encoding, separator and layout.

    Raises:
        DataError: the file cannot be read.
    """
    table = open_table(name, config)
    return [*table.dialect.notes, *filter(None, [SAID.get(layout_of(table.columns, config))])]


def read_examples(name: str, config: DataConfig, *, need_output: bool = True) -> tuple[Table, list[Rejected]]:
    """Read a table of pairs.

    The rows of a large file are kept in the cache, under a hash of its content and of how it is read.

    Args:
        name: path or hf:// address.
        config: columns, delimiter and limits.
        need_output: without it the output column may be missing or empty (prediction).

    Returns:
        Usable rows in file order, and the rejected ones.

    Raises:
        DataError: the file cannot be read, a column is missing, or no row is usable.
    """
    table = open_table(name, config)
    layout = layout_of(table.columns, config)
    for column, setting in needed_columns(layout, config, need_output=need_output):
        _need_column(table, column, setting)
    for setting, column in (("data.id", config.id), ("data.split.key", config.split.key)):
        if column and need_output:
            _need_column(table, column, setting)
    columns = Columns(name, table.columns, id=config.id)
    if layout == "pairs":
        columns = replace(columns, input=FIELD + config.input, output=FIELD + config.output)
    key = None
    is_packed = table.compression is not None or table.kind not in TEXTUAL
    if sum(part.stat().st_size for part in table.parts) >= (PACKED_BYTES if is_packed else CACHE_BYTES):
        settings = (
            config.input,
            config.output,
            table.dialect,
            config.quote,
            config.max_cell_characters,
            table.sheet,
            config.header,
        )
        key = kept.key_of(FORMAT, kept.digest(*table.parts), table.kind, table.compression, layout, need_output, settings)

    def read(faults: list[tuple[int, str]]) -> Iterator[polars.DataFrame]:
        usable = (_usable(raw, layout, config, need_output, faults) for raw in raw_rows(table, config))
        return (frame for frame in usable if len(frame))

    frames, faults = kept.frames(key, read)
    rejected = [Rejected(name, *fault) for fault in faults]
    if not len(frames):
        first = f"; first: line {faults[0][0]}: {faults[0][1]}" if faults else ""
        raise RejectedRowsError(f"{name!r} holds no usable row ({len(faults)} rejected{first})", rejected)
    return Table(frames, columns, key=key and kept.key_of(key, config.id)), rejected


def _usable(raw: Raw, layout: Layout, config: DataConfig, need_output: bool, faults: list[tuple[int, str]]) -> polars.DataFrame:
    """The usable rows as a frame; the others, and what is wrong with them, are added to `faults`."""
    needed = [column for column, _ in needed_columns(layout, config, need_output=need_output)]
    suspects: Iterable[int] = range(len(raw.lines))
    pairs: dict[int, Pair] = {}
    bad: dict[int, str] = {}
    try:
        frame = raw.frame()
        if layout == "pairs":
            odd = _odd(frame, config) | raw.is_nested(needed)
            suspects, bad = np.flatnonzero(odd).tolist(), _without(frame, needed, odd)
    except UnicodeEncodeError:
        frame = None
    for index in suspects:
        row = raw.row(index)
        fault = _unreadable_cell(row, config) or (_nested_cell(row, needed) if layout not in CONVERSATIONS else None)
        pair = fault or pair_of(row, layout, config, need_output=need_output)
        if isinstance(pair, str):
            bad[index] = pair
        else:
            pairs[index] = pair
    faults += sorted([*raw.faults, *((raw.lines[index], reason) for index, reason in bad.items())])
    if len(faults) > MAX_FAULTS:
        raise DataError(f"more than {MAX_FAULTS:,} rows cannot be used; first: line {faults[0][0]}: {faults[0][1]}")
    if frame is None or bad:
        frame = raw.frame([i for i in range(len(raw.lines)) if i not in bad])
    if layout == "pairs":
        return frame
    made = {
        "input": [pair.input for pair in pairs.values()],
        "output": [pair.output for pair in pairs.values()],
        "context": [write_context(pair.context) for pair in pairs.values()],
    }
    return frame.with_columns(polars.Series(column, cells, polars.String) for column, cells in made.items())


def _odd(frame: polars.DataFrame, config: DataConfig) -> np.ndarray:
    """Rows of which a look at the columns says that they may be unusable, bool [N]."""
    fields = polars.col([column for column in frame.columns if column.startswith(FIELD)])
    unreadable = (fields.str.len_chars() > config.max_cell_characters) | fields.str.contains("\0", literal=True)
    odd = polars.any_horizontal(unreadable.fill_null(False))
    if "more" in frame.columns:
        odd |= polars.col("more").is_not_null()
    return frame.select(odd.alias("odd"))["odd"].to_numpy()


def _without(frame: polars.DataFrame, needed: Sequence[str], odd: np.ndarray) -> dict[int, str]:
    """Index -> what is missing, for rows that are not odd and lack a needed text."""
    bad: dict[int, str] = {}
    for column in reversed(needed):  # the first that is missing is named
        cells = frame[FIELD + column]
        blank = (cells.str.strip_chars(BLANKS) == "").fill_null(False).to_numpy() & ~odd
        missing = cells.is_null().to_numpy() & ~odd
        bad |= dict.fromkeys(np.flatnonzero(blank).tolist(), f"column {column!r} is empty")
        bad |= dict.fromkeys(np.flatnonzero(missing).tolist(), f"column {column!r} is missing")
    return bad


def _nested_cell(row: dict[str, str], needed: Sequence[str]) -> str | None:
    found = next((column for column in needed if isinstance(row.get(column), NoText)), None)
    if found is None:
        return None
    shown = row[found] if len(row[found]) <= 40 else row[found][:40] + "..."
    return f"column {found!r} holds a nested value ({shown}), not a text; give its parts columns of their own"


def _unreadable_cell(row: dict[str, str], config: DataConfig) -> str | None:
    for column, cell in row.items():
        if len(cell) > config.max_cell_characters:
            return (
                f"column {column!r} has {len(cell):,} characters, more than data.max_cell_characters "
                f"= {config.max_cell_characters:,} (an unclosed quote?)"
            )
        if fault := text_fault(cell):
            return f"column {column!r} {fault}"
    return None


def check_rejected_share(rejected: Sequence[Rejected], num_rows: int, limit: float) -> None:
    """Stop when too many rows are unusable.

    Raises:
        RejectedRowsError: more than `limit` of `num_rows` were rejected; there may be none of either.
    """
    count = len(rejected)
    if count > limit * num_rows:
        first = rejected[0]
        raise RejectedRowsError(
            f"{count} of {num_rows} rows cannot be used, more than data.max_rejected = {limit:g}; "
            f"first: {first.file}, line {first.line}: {first.reason}. Mend the rows, or allow more with "
            f"--set data.max_rejected={min(1.0, count / num_rows + 0.01):.2f}",
            rejected,
        )
