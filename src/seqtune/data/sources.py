"""Tables -> rows: CSV, TSV, JSONL and Parquet, plain or compressed, local or `hf://`.

Text tables are read line by line with the standard library, because a bad row must be named by its line and must not stop the
others. Parquet is read as a whole with polars.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import polars
import zstandard
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from seqtune.config import DataConfig
from seqtune.data.layouts import layout_of, needed_columns, pair_of, text_fault
from seqtune.errors import DataError, did_you_mean, near_path
from seqtune.records import Example, Rejected

DELIMITERS = {".csv": ",", ".tsv": "\t"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
GUESSES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table file whose kind and columns are known."""

    name: str
    path: Path
    kind: str
    compression: str | None
    columns: tuple[str, ...]


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


def open_table(name: str, config: DataConfig) -> Table:
    """Find out what a file is and which columns it has.

    Raises:
        DataError: the file is missing, empty, of an unknown kind, broken, or lacks a header.
    """
    path = resolve(name)
    kind, compression = _kind_of(path.name)
    if kind not in KINDS:
        raise DataError(
            f"{name!r}: the ending {kind or '(none)'!r} is unknown; allowed: {', '.join(KINDS)}, each also with .gz or .zst"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{name!r} is empty (0 bytes); it needs a header line and at least one row")
    table = Table(name, path, kind, compression, ())
    try:
        columns = _columns(table, config)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise _broken_archive(table, 0, error) from None
    if len(set(columns)) < len(columns):
        double = next(c for c in columns if columns.count(c) > 1)
        raise DataError(f"{name!r}: the column {double!r} appears twice in the header; rename one")
    return Table(name, path, kind, compression, tuple(columns))


def _broken_archive(table: Table, line: int, error: Exception) -> DataError:
    return DataError(
        f"{table.name!r}: the {table.compression} data is broken or cut off after line {line} ({error}); "
        "fetch or compress the file again"
    )


def _bytes(table: Table) -> io.BufferedReader:
    if table.compression == "gzip":
        return io.BufferedReader(gzip.open(table.path, "rb"))  # type: ignore[arg-type]
    if table.compression == "zstd":
        return io.BufferedReader(zstandard.open(table.path, "rb"))  # type: ignore[arg-type]
    return table.path.open("rb")


def _text(table: Table) -> io.TextIOWrapper:
    # surrogateescape keeps a bad byte inside its cell, so that one row is rejected and not the file
    return io.TextIOWrapper(_bytes(table), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _reader(table: Table, handle: io.TextIOWrapper, config: DataConfig) -> Iterator[list[str]]:
    csv.field_size_limit(sys.maxsize)
    return csv.reader(
        handle,
        delimiter=config.delimiter or DELIMITERS[table.kind],
        quotechar=config.quote or None,
        quoting=csv.QUOTE_MINIMAL if config.quote else csv.QUOTE_NONE,
        strict=True,
    )


def _columns(table: Table, config: DataConfig) -> list[str]:
    if table.kind == ".parquet":
        with _reading_parquet(table):
            return list(polars.read_parquet_schema(_parquet(table)))
    with _text(table) as handle:
        if handle.buffer.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):  # type: ignore[attr-defined]
            raise DataError(f"{table.name!r} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW")
        if table.kind == ".jsonl":
            first = next((line for line in handle if line.strip()), None)
            if first is None:
                raise DataError(f"{table.name!r} holds no rows; it needs one JSON object per line")
            record = _json_object(first)
            if isinstance(record, str):
                raise DataError(f"{table.name!r}, line 1: {record}; each line must be one JSON object")
            return [str(key) for key in record]
        try:
            header = next(iter(_reader(table, handle, config)), None)
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


def _rows(table: Table, config: DataConfig) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield (line, row as column -> text) or (line, what is wrong with that line)."""
    line = 0
    try:
        if table.kind == ".parquet":
            for line, row in enumerate(_parquet_rows(table), start=1):
                yield line, row
        elif table.kind == ".jsonl":
            with _text(table) as handle:
                for line, text in enumerate(handle, start=1):
                    if text.strip():
                        record = _json_object(text)
                        yield line, record if isinstance(record, str) else _as_text(record)
        else:
            for line, row in _delimited_rows(table, config):
                yield line, row
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise _broken_archive(table, line, error) from None


def _as_text(record: dict[str, object]) -> dict[str, str]:
    return {
        str(key): value if isinstance(value, str) else "" if value is None else json.dumps(value)
        for key, value in record.items()
    }


def _parquet(table: Table) -> Path | io.BytesIO:
    """Parquet needs to seek, so a compressed file is unpacked in memory."""
    if table.compression is None:
        return table.path
    with _bytes(table) as handle:
        return io.BytesIO(handle.read())


@contextlib.contextmanager
def _reading_parquet(table: Table) -> Iterator[None]:
    try:
        yield
    except (polars.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{table.name!r} cannot be read as Parquet: {error}") from None


def _parquet_rows(table: Table) -> Iterator[dict[str, str]]:
    with _reading_parquet(table):
        frame = polars.read_parquet(_parquet(table))
    for record in frame.iter_rows(named=True):
        yield {key: _cell(value) for key, value in record.items()}


def _cell(value: object) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    return "" if value is None or value != value else str(value)  # noqa: PLR0124 - NaN, a missing number


def _delimited_rows(table: Table, config: DataConfig) -> Iterator[tuple[int, dict[str, str] | str]]:
    with _text(table) as handle:
        reader = _reader(table, handle, config)
        next(reader)
        try:
            for cells in reader:
                line: int = reader.line_num  # type: ignore[attr-defined]
                if not cells:
                    continue
                if len(cells) != len(table.columns):
                    yield line, f"{len(cells)} cells where the header has {len(table.columns)}"
                else:
                    yield line, dict(zip(table.columns, cells, strict=True))
        except csv.Error as error:
            line = reader.line_num  # type: ignore[attr-defined]
            raise DataError(f"{table.name!r}, line {line}: {error}; {_QUOTE_HINT}") from None


def _need_column(table: Table, column: str, setting: str) -> None:
    if column in table.columns:
        return
    hint = did_you_mean(column, table.columns)
    if len(table.columns) == 1 and table.kind in DELIMITERS:
        found = [name for sign, name in GUESSES.items() if sign in table.columns[0]]
        sign = next((sign for sign in GUESSES if sign in table.columns[0]), None)
        if sign:
            hint = f"; the header looks {found[0]}-separated: --set data.delimiter='{sign}'"
    raise DataError(
        f"{table.name!r} has no column {column!r}, asked for by {setting}{hint}; columns: {', '.join(table.columns[:20])}"
    )


def read_examples(name: str, config: DataConfig, *, need_output: bool = True) -> tuple[list[Example], list[Rejected]]:
    """Read a table of pairs.

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
    examples: list[Example] = []
    rejected: list[Rejected] = []
    for line, row in _rows(table, config):
        pair = (
            row
            if isinstance(row, str)
            else _unreadable_cell(row, config) or pair_of(row, layout, config, need_output=need_output)
        )
        if isinstance(pair, str):
            rejected.append(Rejected(name, line, pair))
            continue
        assert isinstance(row, dict)
        identity = row.get(config.id, "") if config.id else ""
        examples.append(Example(identity or str(line), pair.input, pair.output, row, name, line, pair.context))
    if not examples:
        first = f"; first: line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
        raise DataError(f"{name!r} holds no usable row ({len(rejected)} rejected{first})")
    return examples, rejected


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


def check_rejected_share(num_rejected: int, num_rows: int, limit: float, first: Rejected) -> None:
    """Stop when too many rows are unusable.

    Raises:
        DataError: more than `limit` of `num_rows` were rejected.
    """
    if num_rejected > limit * num_rows:
        raise DataError(
            f"{num_rejected} of {num_rows} rows cannot be used, more than data.max_rejected = {limit:g}; "
            f"first: {first.file}, line {first.line}: {first.reason}. Mend the rows, or allow more with "
            f"--set data.max_rejected={min(1.0, num_rejected / num_rows + 0.01):.2f}"
        )
