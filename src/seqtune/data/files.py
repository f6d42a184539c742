"""Table files and their rows: text, JSON, workbooks, Parquet and Arrow, plain or packed; what opens one is told by its ending.

Text is cut into cells by the standard library, so every row has its line and a bad one does not stop the others. No file is
trusted: what is held at once is bounded, however long its lines, rows and cells are.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import numpy as np
import polars

from seqtune import plugins
from seqtune.data import arrow, objects, parquet
from seqtune.data.archives import BROKEN, ZIP, files_in, seekable, unpacked
from seqtune.data.cells import NoText, flat_names, portions
from seqtune.data.dialects import PLAIN, SAMPLE, Dialect, delimiter_of, encoding_of
from seqtune.data.layouts import text_fault
from seqtune.data.places import KINDS, PACKED, files_of, kind_of
from seqtune.data.table import FIELD, FRAME_ROWS
from seqtune.errors import DataError
from seqtune.sections import DataConfig

T = TypeVar("T")
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": None}
COLUMNAR: dict[str, Any] = {".parquet": parquet, ".arrow": arrow}
WORKBOOK = ".xlsx"
TEXTUAL = (*DELIMITERS, ".jsonl", ".json")
OTHER_SHEETS = (".xls", ".xlsb", ".ods", ".numbers")
MAX_COLUMNS = 10_000
ROW_CHARACTERS = 2**24  # of a row, or twice the longest cell that is allowed
FRAME_CHARACTERS = 2**24  # of the rows that are held at once,
FRAME_CELLS = 2**22  # and their cells


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table whose kind and columns are known, and how its text is written.

    Attributes:
        name: as it was asked for.
        path: of the file, or of the part of it that is read.
        kind: one of `KINDS`, less aliases.
        compression: a value of `PACKED`.
        member: the file in a zip.
        sheet: the sheet of a workbook.
        columns: of the first part.
        dialect: how text is written.
        parts: the files that make up the table.
    """

    name: str
    path: Path
    kind: str
    compression: str | None
    member: str = ""
    sheet: str = ""
    columns: tuple[str, ...] = ()
    dialect: Dialect = PLAIN
    parts: tuple[Path, ...] = ()

    def open(self) -> BinaryIO:
        """The content, unpacked."""
        return unpacked(self.path, self.compression, self.member)

    def seekable(self) -> AbstractContextManager[Path | IO[bytes]]:
        """Likewise, for what is not read from front to end."""
        return seekable(self.path, self.compression, self.member)


def open_table(name: str, config: DataConfig) -> TableFile:
    """Find out what a file is and which columns it has.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, broken, or lacks a header.
    """
    parts = files_of(name)
    table = _opened(name, parts[0], config)
    columns = table.columns
    if len(columns) > MAX_COLUMNS:
        raise DataError(f"{name!r} has {len(columns):,} columns, more than {MAX_COLUMNS:,}; keep those that are needed")
    for column in columns:
        if fault := text_fault(column):
            raise DataError(f"{name!r}: the column name {column[:80]!r} {fault}; rename it")
    if len(set(columns)) < len(columns):
        double = next(c for c in columns if columns.count(c) > 1)
        raise DataError(f"{name!r}: the column {double!r} appears twice in the header; rename one")
    return replace(table, parts=parts)


def _opened(name: str, path: Path, config: DataConfig) -> TableFile:
    """One file of a table."""
    kind, compression = kind_of(path.name)
    member = ""
    if path.stat().st_size == 0:
        raise DataError(f"{name!r} is empty (0 bytes); it needs a header line and at least one row")
    if compression == ZIP:
        member = _only_table(name, files_in(path))
        kind, _ = kind_of(member)
    if kind not in TEXTUAL and kind not in COLUMNAR and kind != WORKBOOK:
        also = "; save the sheet as .xlsx or .csv" if kind in OTHER_SHEETS else ""
        raise DataError(
            f"{name!r}: the ending {kind or '(none)'!r} is unknown{also}; allowed: {', '.join(KINDS)}, each also with "
            f"{', '.join(PACKED)}"
        )
    table = TableFile(name, path, kind, compression, member)
    try:
        table = replace(table, dialect=_dialect(table, config))
        if kind == WORKBOOK:
            table = _with_sheet(table, config)
        return replace(table, columns=tuple(_columns(table, config)))
    except (*BROKEN, UnicodeError) as error:
        raise _broken(table, 0, error) from None


def _only_table(name: str, names: Sequence[str]) -> str:
    """The file of a zip that is a table, if it is the only one."""
    tables = [each for each in names if kind_of(each)[0] in KINDS and kind_of(each)[1] is None]
    if len(tables) != 1:
        found = f"holds {len(tables)} tables: {', '.join(tables[:10])}" if tables else f"holds no table ({', '.join(KINDS)})"
        raise DataError(f"{name!r} {found}; pack exactly one, or unpack it and name the file")
    return tables[0]


def _with_sheet(table: TableFile, config: DataConfig) -> TableFile:
    with table.seekable() as source:
        sheet, names = plugins.load("seqtune.data.workbooks:sheet_of", repr(table.name))(table.path, source, config.sheet)
    note = f"sheet {sheet!r} of {', '.join(map(repr, names))[:200]}; data.sheet names another one"
    notes = (note,) if len(names) > 1 and config.sheet is None else ()
    return replace(table, sheet=sheet, dialect=replace(table.dialect, notes=notes))


def _broken(table: TableFile, line: int, error: Exception) -> DataError:
    if isinstance(error, UnicodeError):  # of encodings whose characters take several bytes
        return DataError(
            f"{table.name!r}: the text cannot be read after line {line} ({error}); it is cut off, or in another encoding that "
            "data.encoding can name"
        )
    return DataError(
        f"{table.name!r}: the {table.compression} data is broken or cut off after line {line} ({error}); "
        "fetch or compress the file again"
    )


def _dialect(table: TableFile, config: DataConfig) -> Dialect:
    """What the settings name, and for the rest what the file's beginning shows."""
    if table.kind not in TEXTUAL:
        return PLAIN
    encoding, said = config.encoding, None
    if encoding is None:
        with table.open() as source:
            encoding, said = encoding_of(source.read(SAMPLE))
    read = replace(table, dialect=Dialect(encoding))
    delimiter, parted = config.delimiter, None
    if table.kind in DELIMITERS and delimiter is None:
        with _text(read) as handle:
            delimiter, parted = delimiter_of(_lines(read, handle, config, _Place()), DELIMITERS[table.kind], config.quote)
        if delimiter is None:
            raise DataError(
                f"{table.name!r}: nothing parts its lines into columns; give it a header and separators, or name the "
                "separator with --set data.delimiter=..."
            )
    return Dialect(encoding, delimiter, tuple(filter(None, (said, parted))))


def _text(table: TableFile) -> io.TextIOWrapper:
    # surrogateescape keeps a bad byte inside its cell, so that one row is rejected and not the file
    return io.TextIOWrapper(table.open(), encoding=table.dialect.encoding, errors="surrogateescape", newline="")


@dataclass(slots=True)
class _Place:
    """How far a file is read: the last line, all characters, and those up to the end of the last row."""

    line: int = 0
    characters: int = 0
    row: int = 0


def _lines(table: TableFile, handle: io.TextIOWrapper, config: DataConfig, place: _Place) -> Iterator[str]:
    """The lines of a text, as long as no row takes too many characters."""
    most = max(ROW_CHARACTERS, 2 * config.max_cell_characters)
    while text := handle.readline(most + 1):
        place.line += 1
        place.characters += len(text)
        if place.characters - place.row > most:
            raise DataError(
                f"{table.name!r}, line {place.line}: the row has {place.characters - place.row:,} characters, more than "
                f"{most:,} (an unclosed quote?); {_QUOTE_HINT}"
            )
        yield text


def _portions(rows: Iterable[T], place: _Place, num_columns: int) -> Iterator[list[T]]:
    """As many rows as make a frame; fewer, if they are long."""
    most, portion, begin = max(1, min(FRAME_ROWS, FRAME_CELLS // max(1, num_columns))), [], place.characters
    for row in rows:
        portion.append(row)
        place.row = place.characters
        if len(portion) == most or place.characters - begin > FRAME_CHARACTERS:
            yield portion
            portion, begin = [], place.characters
    if portion:
        yield portion


def _reader(table: TableFile, lines: Iterator[str], config: DataConfig) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)  # the row's own limit comes first
    return csv.reader(
        lines,
        delimiter=table.dialect.delimiter or ",",
        quotechar=config.quote or None,
        quoting=csv.QUOTE_MINIMAL if config.quote else csv.QUOTE_NONE,
        strict=True,
    )


def _columns(table: TableFile, config: DataConfig) -> list[str]:
    if table.kind in COLUMNAR:
        with table.seekable() as source, COLUMNAR[table.kind].opened(table.path, source, 1) as (schema, _):
            return flat_names(schema)
    if table.kind not in (".jsonl", ".json"):
        with contextlib.closing(_cut(table, config, _Place())) as rows:
            header = next((cells for _, cells in rows), None)
        if not header:
            raise DataError(f"{table.name!r} has no header line; the first line must name the columns")
        if not config.header:
            return ["input", "output"] if len(header) == 2 else [str(place + 1) for place in range(len(header))]
        return [name or f"column {place}" for place, name in enumerate(header, start=1)] if table.kind == WORKBOOK else header
    with _text(table) as handle:
        lines = _lines(table, handle, config, _Place())
        if table.kind == ".jsonl":
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                raise DataError(f"{table.name!r} holds no rows; it needs one JSON object per line")
            record = objects.on_line(first)
            if isinstance(record, str):
                raise DataError(f"{table.name!r}, line 1: {record}; each line must be one JSON object")
            return list(objects.cells_of(record))
        records = objects.in_list(table.name, handle)
        return list(objects.cells_of(next(record for _, record in records if isinstance(record, dict))))


_QUOTE_HINT = "if quote characters are plain text in this file, --set data.quote=''"


@dataclass(slots=True)
class Raw:
    """Some rows of a file, not yet looked at.

    Attributes:
        names: the file's columns.
        lines: line on which each row ends.
        columns: for each of the names the cells, `None` where a row lacks the column.
        more: columns that only some rows have, as JSON objects; empty if the file cannot have any.
        faults: lines that hold no row, and why.
    """

    names: tuple[str, ...]
    lines: list[int] = field(default_factory=list)
    columns: Sequence[Sequence[str | None]] = ()
    more: list[str | None] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def row(self, index: int) -> dict[str, str]:
        """A row as column -> text."""
        cells = zip(self.names, (column[index] for column in self.columns), strict=True)
        own = {name: cell for name, cell in cells if cell is not None}
        more = self.more[index] if self.more else None
        return own | json.loads(more) if more else own

    def is_nested(self, columns: Sequence[str]) -> np.ndarray:
        """Rows with something else than a text in one of these columns, bool [N]."""
        found = np.zeros(len(self.lines), bool)
        for name, cells in zip(self.names, self.columns, strict=True):
            if name in columns:
                found |= np.fromiter((type(cell) is NoText for cell in cells), bool, len(found))
        return found

    def frame(self, rows: Sequence[int] | None = None) -> polars.DataFrame:
        """All rows, or some, as columns; a text that is no UTF-8 raises `UnicodeEncodeError`."""
        named: dict[str, Sequence[object]] = {"line": self.lines}
        named |= {FIELD + name: column for name, column in zip(self.names, self.columns, strict=True)}
        if self.more:
            named["more"] = self.more
        if rows is not None:
            named = {name: [column[i] for i in rows] for name, column in named.items()}
        return polars.DataFrame(named, schema={name: polars.String if name != "line" else polars.Int64 for name in named})


def raw_rows(table: TableFile, config: DataConfig) -> Iterator[Raw]:
    """The rows of a file, a few thousand at a time."""
    read = {".jsonl": _json_rows, ".json": _json_rows, **dict.fromkeys(COLUMNAR, _columnar_rows)}.get(table.kind, _cut_rows)
    before = 0  # lines of the files that were read
    for path in table.parts:
        part, place = table if path == table.path else _opened(table.name, path, config), _Place()
        if part.columns != table.columns:
            raise DataError(
                f"{table.name!r} lies in files of different columns: {table.path.name!r} has {', '.join(table.columns)[:200]}, "
                f"{path.name!r} {', '.join(part.columns)[:200]}"
            )
        try:
            for raw in read(part, config, place):
                raw.lines = [before + line for line in raw.lines] if before else raw.lines
                raw.faults = [(before + line, reason) for line, reason in raw.faults]
                yield raw
        except (*BROKEN, UnicodeError) as error:
            raise _broken(part, place.line, error) from None
        before += place.line


def _json_records(
    table: TableFile, handle: io.TextIOWrapper, config: DataConfig, place: _Place
) -> Iterator[tuple[int, dict[str, object] | str]]:
    """The objects of a file with their numbers, lines for JSON Lines; for what is none, what is wrong with it."""
    if table.kind == ".json":
        yield from objects.in_list(table.name, handle)
        return
    for number, text in enumerate(_lines(table, handle, config, place), start=1):
        if text.strip():
            yield number, objects.on_line(text)


def _json_rows(table: TableFile, config: DataConfig, place: _Place) -> Iterator[Raw]:
    names = set(table.columns)
    with _text(table) as handle:
        for chunk in _portions(_json_records(table, handle, config, place), place, len(names)):
            whole = [(number, objects.cells_of(record)) for number, record in chunk if isinstance(record, dict)]
            raw = Raw(table.columns, [number for number, _ in whole])
            raw.columns = [[record.get(name) for _, record in whole] for name in table.columns]
            further = [{k: v for k, v in record.items() if k not in names} for _, record in whole]
            raw.more = [json.dumps(each) if each else None for each in further]
            raw.faults = [(number, record) for number, record in chunk if isinstance(record, str)]
            yield raw


def _columnar_rows(table: TableFile, config: DataConfig, place: _Place) -> Iterator[Raw]:
    num_rows = max(1, min(FRAME_ROWS, FRAME_CELLS // max(1, len(table.columns))))
    with table.seekable() as source, COLUMNAR[table.kind].opened(table.path, source, num_rows) as (_, batches):
        for columns in portions(batches, table.path, num_rows, FRAME_CHARACTERS):
            lines = list(range(place.line + 1, place.line + len(columns[0]) + 1))
            place.line += len(lines)
            yield Raw(table.columns, lines, columns)


def _cut_rows(table: TableFile, config: DataConfig, place: _Place) -> Iterator[Raw]:
    """The rows of what is read row by row, less the header."""
    width = len(table.columns)
    with contextlib.closing(_cut(table, config, place)) as rows:
        if config.header:
            next(rows)
            place.row = place.characters
        for chunk in _portions(rows, place, width):
            whole = [(number, cells) for number, cells in chunk if len(cells) == width]
            raw = Raw(table.columns, [number for number, _ in whole])
            raw.columns = list(zip(*(cells for _, cells in whole), strict=True)) or [()] * width
            if len(whole) < len(chunk):
                odd = [(number, len(cells)) for number, cells in chunk if cells and len(cells) != width]
                raw.faults = [(number, f"{found} cells where the header has {width}") for number, found in odd]
            yield raw


def _cut(table: TableFile, config: DataConfig, place: _Place) -> Generator[tuple[int, list[str]]]:
    """All rows as cells, each with the line that it ends on."""
    return _sheet_rows(table, place) if table.kind == WORKBOOK else _text_rows(table, config, place)


def _text_rows(table: TableFile, config: DataConfig, place: _Place) -> Generator[tuple[int, list[str]]]:
    with _text(table) as handle:
        try:
            for cells in _reader(table, _lines(table, handle, config, place), config):
                yield place.line, cells
        except csv.Error as error:
            raise DataError(f"{table.name!r}, line {place.line}: {error}; {_QUOTE_HINT}") from None


def _sheet_rows(table: TableFile, place: _Place) -> Generator[tuple[int, list[str]]]:
    with table.seekable() as source:
        for number, cells in plugins.load("seqtune.data.workbooks:rows")(table.path, source, table.sheet):
            place.line = number
            place.characters += sum(map(len, cells))
            yield number, cells
