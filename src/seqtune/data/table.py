"""Rows as columns: what a table file becomes. An `Example` is made only where a row is asked for.

Rows lie in frames of a few thousand, in memory or in an Arrow file, from which one frame at a time is read. A table that is
dealt, filtered or cut short is a view: the same frames, and the positions of its rows.

| column of a frame | holds |
|---|---|
| `line` | line of the file on which the row ends |
| `field.NAME` | the file's column NAME; null where the row has none |
| `input`, `output`, `context` | what was made of the fields, where they are not the pair as they stand |
| `more` | columns that only some rows have, as a JSON object |
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import polars
import pyarrow
import pyarrow.ipc

from seqtune.records import Example, Turn

Rows = TypeVar("Rows", bound=Sequence[Example])
FRAME_ROWS = 8192
FIELD = "field."
BLANKS = "".join(map(chr, filter(lambda code: chr(code).isspace(), range(0x3001))))  # what `str.strip` takes for blank


class Frames:
    """All rows of a table, a frame at a time.

    Args:
        counts: rows of each frame.
        source: the frames, or the Arrow file that they lie in.
    """

    def __init__(self, counts: Sequence[int], source: list[polars.DataFrame] | Path):
        self.starts = [0, *itertools.accumulate(counts)]
        self._source = source
        # not memory-mapped: pages of a mapped file count as this process's memory until it ends
        self._file = pyarrow.ipc.open_file(pyarrow.OSFile(str(source))) if isinstance(source, Path) else None
        self._last: tuple[int, polars.DataFrame] | None = None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> polars.DataFrame:
        """One frame."""
        if self._file is None:
            assert isinstance(self._source, list)
            return self._source[number]
        if self._last is None or self._last[0] != number:
            self._last = number, polars.DataFrame(self._file.get_batch(number))
        return self._last[1]

    @staticmethod
    def write(frames: Iterator[polars.DataFrame], path: Path) -> list[int]:
        """Put frames into an Arrow file; returns the rows of each."""
        counts: list[int] = []
        with pyarrow.OSFile(str(path), "wb") as sink:
            writer: pyarrow.RecordBatchFileWriter | None = None
            for frame in frames:
                batch = frame.to_arrow(compat_level=polars.CompatLevel.oldest()).combine_chunks().to_batches()[0]
                writer = writer or pyarrow.ipc.new_file(sink, batch.schema)
                writer.write_batch(batch)
                counts.append(len(frame))
            if writer:
                writer.close()
        return counts


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a frame make an `Example`.

    Attributes:
        file: name of the table.
        fields: its columns.
        input: the frame's column with the input.
        output: likewise; a frame without it has no references.
        id: the file's column with row names, `None` for line numbers.
    """

    file: str
    fields: tuple[str, ...]
    input: str = "input"
    output: str = "output"
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Table(Sequence[Example]):
    """Rows of a table file, in its order.

    Attributes:
        frames: all rows of the file.
        columns: how to read them.
        rows: positions of this table's rows among them, ascending, int32 [N]; `None` for all.
        added: further fields: name -> a text for each row of the file.
        key: hash of what the frames were read from; `None` if they are not kept.
    """

    frames: Frames
    columns: Columns
    rows: np.ndarray | None = None
    added: Mapping[str, polars.Series] | None = None
    key: str | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return self.frames.starts[-1] if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    def __getitem__(self, index: int | slice) -> Example | Table:
        """One row, or a view of some."""
        if isinstance(index, slice):
            assert index.step is None or index.step > 0, "the rows of a table ascend"
            return self.take(np.arange(*index.indices(len(self)), dtype=np.int32))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        position = index % len(self) if self.rows is None else int(self.rows[index])
        number = bisect.bisect_right(self.frames.starts, position) - 1
        return next(self._examples(number, np.array([position])))

    def __iter__(self) -> Iterator[Example]:
        """All rows, a frame at a time."""
        for number, positions in self._parts():
            yield from self._examples(number, positions)

    def take(self, positions: np.ndarray) -> Table:
        """A view of the rows at `positions`, which must ascend."""
        rows = positions.astype(np.int32) if self.rows is None else self.rows[positions]
        return replace(self, rows=rows)

    def with_field(self, name: str, texts: Sequence[str]) -> Table:
        """With a further field for each row; this must be a whole table."""
        assert self.rows is None
        return replace(self, added={**(self.added or {}), name: polars.Series(name, texts, polars.String)})

    def batches(self, *names: str) -> Iterator[polars.DataFrame]:
        """The rows in frames of the named columns: `id`, `file`, `line`, `input`, `output`, `context`, `field.NAME`."""
        for number, positions in self._parts():
            yield self._frame(number, positions).with_columns(map(self._column, names)).select(names)

    def _parts(self) -> Iterator[tuple[int, np.ndarray | None]]:
        """Frames that hold rows of this table, with their positions, `None` for all of a frame."""
        starts = self.frames.starts
        if self.rows is None:
            yield from ((number, None) for number in range(len(self.frames)))
            return
        bounds = np.searchsorted(self.rows, starts)
        for number, (start, end) in enumerate(itertools.pairwise(bounds.tolist())):
            if end - start == starts[number + 1] - starts[number]:
                yield number, None
            elif start < end:
                yield number, self.rows[start:end]

    def _frame(self, number: int, positions: np.ndarray | None) -> polars.DataFrame:
        start, end = self.frames.starts[number : number + 2]
        frame = self.frames[number]
        if self.added:
            frame = frame.with_columns(column[start:end].alias(FIELD + name) for name, column in self.added.items())
        return frame if positions is None else frame[positions - start]

    def _column(self, name: str) -> polars.Expr:
        held = self.frames[0].columns
        if name == "id":
            own = polars.col("line").cast(polars.String)
            named = polars.col(FIELD + (self.columns.id or ""))
            return polars.when(named != "").then(named).otherwise(own).alias("id") if self.columns.id else own.alias("id")
        if name == "file":
            return polars.lit(self.columns.file).alias("file")
        if name == "input":
            return polars.col(self.columns.input).alias("input")
        if name == "output" and self.columns.output in held:
            return polars.col(self.columns.output).str.strip_chars(BLANKS).alias("output")
        if name in ("output", "context") and name not in held:
            return polars.lit(None, polars.String).alias(name)
        return polars.col(name)

    def _examples(self, number: int, positions: np.ndarray | None) -> Iterator[Example]:
        frame = self._frame(number, positions)
        names = [*self.columns.fields, *(self.added or {})]
        fields = [frame[FIELD + name].to_list() for name in names]
        more = frame["more"].to_list() if "more" in frame.columns else itertools.repeat(None)
        own = ("id", "input", "output", "line", "context")
        rows = frame.with_columns(map(self._column, own)).select(own).iter_rows()
        for (identity, asked, answer, line, context), further, *cells in zip(rows, more, *fields, strict=False):
            row = {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}
            if further:
                row |= json.loads(further)
            yield Example(identity, asked, answer, row, self.columns.file, line, read_context(context))


def write_context(turns: Sequence[Turn]) -> str | None:
    """Turns as the text of a cell; `None` without any."""
    return json.dumps([[turn.role, turn.content] for turn in turns]) if turns else None


def read_context(cell: str | None) -> tuple[Turn, ...]:
    """The turns that `write_context` wrote."""
    return tuple(Turn(*turn) for turn in json.loads(cell)) if cell else ()


def batches(rows: Sequence[Example], *names: str) -> Iterator[polars.DataFrame]:
    """`Table.batches` of any rows.

    Example:
        >>> next(batches([Example("1", "CCO", "ethanol")], "input", "output")).rows()
        [('CCO', 'ethanol')]
    """
    if isinstance(rows, Table):
        yield from rows.batches(*names)
        return
    for start in range(0, len(rows), FRAME_ROWS):
        part = rows[start : start + FRAME_ROWS]
        columns = {name: [_value(example, name) for example in part] for name in names}
        yield polars.DataFrame(columns, schema={name: polars.Int64 if name == "line" else polars.String for name in names})


def _value(example: Example, name: str) -> object:
    if name.startswith(FIELD):
        return example.fields[name.removeprefix(FIELD)]
    return write_context(example.context) if name == "context" else getattr(example, name)


def texts(rows: Sequence[Example], name: str) -> Iterator[str]:
    """One column of `batches`, a text a row."""
    for frame in batches(rows, name):
        yield from frame[name].to_list()


def take(rows: Rows, positions: np.ndarray) -> Rows:
    """The rows at `positions`, which must ascend."""
    taken: Any = rows.take(positions) if isinstance(rows, Table) else [rows[i] for i in positions.tolist()]
    return taken
