"""Table files and their lines: CSV, TSV, text, JSON, JSONL and Parquet, plain or compressed, local or `hf://`.

Text is cut into cells by the standard library, so every row has its line and a bad one does not stop the others. No file is
trusted: what is held at once is bounded, however long its lines, rows and cells are.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import polars
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from seqtune.data import parquet
from seqtune.data.archives import BROKEN, COMPRESSIONS, unpacked
from seqtune.data.dialects import PLAIN, SAMPLE, Dialect, delimiter_of, encoding_of
from seqtune.data.layouts import text_fault
from seqtune.data.table import FIELD, FRAME_ROWS
from seqtune.errors import DataError, near_path
from seqtune.sections import DataConfig

T = TypeVar("T")
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": None}
KINDS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
MAX_COLUMNS = 10_000
ROW_CHARACTERS = 2**24  # of a row, or twice the longest cell that is allowed
FRAME_CHARACTERS = 2**24  # of the rows that are held at once,
FRAME_CELLS = 2**22  # and their cells
JSON_CHARACTERS = 2**26  # of a file that is one JSON list, which is read as a whole


@dataclass(frozen=True, slots=True)
class TableFile:
    """A table file whose kind and columns are known, and how its text is written."""

    name: str
    path: Path
    kind: str
    compression: str | None
    columns: tuple[str, ...] = ()
    dialect: Dialect = PLAIN


def resolve(name: str) -> Path:
    """Turn a path or an `hf://datasets/OWNER/NAME[/FILE]` address into a local path.

    Raises:
        DataError: there is no such file, or the hub cannot be reached or lists several tables.
    """
    if name.startswith("hf://"):
        return _from_hub(name)
    path = Path(name)
    if path.is_dir():
        raise DataError(f"{name!r} is a folder; name a table file in it ({', '.join(KINDS)})")
    if not path.exists():
        raise DataError(f"{name!r} does not exist{near_path(path)}")
    return path


def _from_hub(name: str) -> Path:
    parts = name.removeprefix("hf://").removeprefix("datasets/").split("/")
    if len(parts) < 2:
        raise DataError(f"{name!r}: write hf://datasets/OWNER/NAME or hf://datasets/OWNER/NAME/FILE")
    repository, _, revision = "/".join(parts[:2]).partition("@")
    file = "/".join(parts[2:])
    try:
        if not file:
            listing = huggingface_hub.list_repo_files(repository, repo_type="dataset", revision=revision or None)
            tables = [f for f in listing if _kind_of(f)[0] in KINDS]
            if len(tables) != 1:
                raise DataError(f"{name!r} holds {len(tables)} tables; name one: {', '.join(tables[:10])}")
            file = tables[0]
        local = huggingface_hub.hf_hub_download(repository, file, repo_type="dataset", revision=revision or None)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{name!r} cannot be fetched from the hub: {first_line}") from None
    return Path(local)


def _kind_of(name: str) -> tuple[str, str | None]:
    path = Path(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    kind = Path(path.stem).suffix if compression else path.suffix
    return (".jsonl" if kind == ".ndjson" else kind), compression


def open_table(name: str, config: DataConfig) -> TableFile:
    """Find out what a file is and which columns it has.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, broken, or lacks a header.
    """
    path = resolve(name)
    kind, compression = _kind_of(path.name)
    if kind not in KINDS:
        raise DataError(
            f"{name!r}: the ending {kind or '(none)'!r} is unknown; allowed: {', '.join(KINDS)}, each also with "
            f"{', '.join(COMPRESSIONS)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{name!r} is empty (0 bytes); it needs a header line and at least one row")
    table = TableFile(name, path, kind, compression)
    try:
        table = replace(table, dialect=_dialect(table, config))
        columns = _columns(table, config)
    except BROKEN as error:
        raise _broken_archive(table, 0, error) from None
    if len(columns) > MAX_COLUMNS:
        raise DataError(f"{name!r} has {len(columns):,} columns, more than {MAX_COLUMNS:,}; keep those that are needed")
    for column in columns:
        if fault := text_fault(column):
            raise DataError(f"{name!r}: the column name {column[:80]!r} {fault}; rename it")
    if len(set(columns)) < len(columns):
        double = next(c for c in columns if columns.count(c) > 1)
        raise DataError(f"{name!r}: the column {double!r} appears twice in the header; rename one")
    return replace(table, columns=tuple(columns))


def _broken_archive(table: TableFile, line: int, error: Exception) -> DataError:
    return DataError(
        f"{table.name!r}: the {table.compression} data is broken or cut off after line {line} ({error}); "
        "fetch or compress the file again"
    )


def _dialect(table: TableFile, config: DataConfig) -> Dialect:
    """What the settings name, and for the rest what the file's beginning shows."""
    if table.kind == ".parquet":
        return PLAIN
    encoding, said = config.encoding, None
    if encoding is None:
        with unpacked(table.path, table.compression) as source:
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
    source = unpacked(table.path, table.compression)
    return io.TextIOWrapper(source, encoding=table.dialect.encoding, errors="surrogateescape", newline="")


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
    if table.kind == ".parquet":
        return parquet.column_names(table.path, table.compression)
    with _text(table) as handle:
        lines = _lines(table, handle, config, _Place())
        if table.kind == ".jsonl":
            first = next((line for line in lines if line.strip()), None)
            if first is None:
                raise DataError(f"{table.name!r} holds no rows; it needs one JSON object per line")
            record = _json_object(first)
            if isinstance(record, str):
                raise DataError(f"{table.name!r}, line 1: {record}; each line must be one JSON object")
            return list(_as_text(record))
        if table.kind == ".json":
            return list(_as_text(next(record for _, record in _json_list(table, handle) if isinstance(record, dict))))
        try:
            header = next(iter(_reader(table, lines, config)), None)
        except csv.Error as error:
            raise DataError(f"{table.name!r}, line 1: {error}; {_QUOTE_HINT}") from None
    if not header:
        raise DataError(f"{table.name!r} has no header line; the first line must name the columns")
    return header


_QUOTE_HINT = "if quote characters are plain text in this file, --set data.quote=''"


def _json_object(line: str) -> dict[str, object] | str:
    """The object on a line, or what is wrong with it."""
    try:
        # NaN and Infinity, which are no JSON, are what Python writes for a missing number
        record = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4,300 digits
        return f"not JSON ({error})"
    return record if isinstance(record, dict) else f"a JSON {type(record).__name__}, not an object"


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
        return own | (json.loads(self.more[index] or "{}") if self.more else {})

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
    read = {".parquet": _parquet_rows, ".jsonl": _json_rows, ".json": _json_rows}.get(table.kind, _delimited_rows)
    place = _Place()
    try:
        yield from read(table, config, place)
    except BROKEN as error:
        raise _broken_archive(table, place.line, error) from None


def _json_list(table: TableFile, handle: io.TextIOWrapper) -> list[tuple[int, dict[str, object] | str]]:
    """The objects of a file that is one JSON list, numbered from 1; for what is none, what is wrong with it.

    Raises:
        DataError: it is no list, holds no object, or is too large to be read as a whole.
    """
    text = handle.read(JSON_CHARACTERS + 1)
    if len(text) > JSON_CHARACTERS:
        raise DataError(f"{table.name!r} is one JSON value of more than {JSON_CHARACTERS:,} characters; write it as JSON Lines")
    try:
        records = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        hint = "; if each line is an object of its own, call it .jsonl" if text.lstrip().startswith("{") else ""
        raise DataError(f"{table.name!r} is not JSON ({error}){hint}") from None
    if not isinstance(records, list) or not any(isinstance(record, dict) for record in records):
        found = f"a JSON {type(records).__name__}" if not isinstance(records, list) else "a list without any object"
        raise DataError(f"{table.name!r} holds {found}; it needs a list of objects: [{{...}}, {{...}}]")
    return [
        (number, record if isinstance(record, dict) else f"a JSON {type(record).__name__}, not an object")
        for number, record in enumerate(records, start=1)
    ]


def _json_records(
    table: TableFile, handle: io.TextIOWrapper, config: DataConfig, place: _Place
) -> Iterator[tuple[int, dict[str, object] | str]]:
    """The objects of a file with their numbers, lines for JSON Lines; for what is none, what is wrong with it."""
    if table.kind == ".json":
        yield from _json_list(table, handle)
        return
    for number, text in enumerate(_lines(table, handle, config, place), start=1):
        if text.strip():
            yield number, _json_object(text)


def _json_rows(table: TableFile, config: DataConfig, place: _Place) -> Iterator[Raw]:
    names = set(table.columns)
    with _text(table) as handle:
        for chunk in _portions(_json_records(table, handle, config, place), place, len(names)):
            whole = [(number, _as_text(record)) for number, record in chunk if isinstance(record, dict)]
            raw = Raw(table.columns, [number for number, _ in whole])
            raw.columns = [[record.get(name) for _, record in whole] for name in table.columns]
            further = [{k: v for k, v in record.items() if k not in names} for _, record in whole]
            raw.more = [json.dumps(each) if each else None for each in further]
            raw.faults = [(number, record) for number, record in chunk if isinstance(record, str)]
            yield raw


def _as_text(record: dict[str, object], prefix: str = "") -> dict[str, str]:
    """A record's cells; objects in it are columns with dotted names, and lists JSON."""
    cells: dict[str, str] = {}
    for key, value in record.items():
        if isinstance(value, dict) and value:
            cells |= _as_text(value, f"{prefix}{key}.")
        else:
            cells[f"{prefix}{key}"] = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return cells


def _parquet_rows(table: TableFile, config: DataConfig, place: _Place) -> Iterator[Raw]:
    num_rows = max(1, min(FRAME_ROWS, FRAME_CELLS // max(1, len(table.columns))))
    for columns in parquet.portions(table.path, table.compression, num_rows, FRAME_CHARACTERS):
        lines = list(range(place.line + 1, place.line + len(columns[0]) + 1))
        place.line += len(lines)
        yield Raw(table.columns, lines, columns)


def _delimited_rows(table: TableFile, config: DataConfig, place: _Place) -> Iterator[Raw]:
    width = len(table.columns)
    with _text(table) as handle:
        reader: Any = _reader(table, _lines(table, handle, config, place), config)
        try:
            next(reader)
            place.row = place.characters
            for chunk in _portions(((place.line, cells) for cells in reader), place, width):
                whole = [(number, cells) for number, cells in chunk if len(cells) == width]
                raw = Raw(table.columns, [number for number, _ in whole])
                raw.columns = list(zip(*(cells for _, cells in whole), strict=True)) or [()] * width
                if len(whole) < len(chunk):
                    odd = [(number, len(cells)) for number, cells in chunk if cells and len(cells) != width]
                    raw.faults = [(number, f"{found} cells where the header has {width}") for number, found in odd]
                yield raw
        except csv.Error as error:
            raise DataError(f"{table.name!r}, line {place.line}: {error}; {_QUOTE_HINT}") from None
