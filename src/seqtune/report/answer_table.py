"""Answers as a table that people open: the row's own columns, and beside them the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars

from seqtune import folders
from seqtune.records import Prediction

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # to a spreadsheet: https://owasp.org/www-community/attacks/CSV_Injection
KINDS = (".csv", ".tsv", ".parquet")


def write_answer_table(path: Path, predictions: Iterable[Prediction], *, escape: bool = True) -> None:
    """Write predictions as .csv, .tsv or .parquet: the row's own columns, and beside them the answer.

    Further hypotheses follow as `prediction_2`, `log_probability_2` and so on, then the details. Where the row has a column of
    such a name, ours begins with `seqtune_`. A row that came without columns has its input, and its name if it has one.

    Args:
        path: the file.
        predictions: any number.
        escape: in .csv and .tsv, put an apostrophe before a text that a spreadsheet would compute.
    """
    records = list(predictions)
    names = any(p.id != str(number) for number, p in enumerate(records, start=1))
    rows = [dict(p.fields) or ({"id": p.id} if names else {}) | {"input": p.input} for p in records]
    answers = [_answer(p) | dict(p.details) for p in records]
    _write(path, _beside(rows, list(dict.fromkeys(c for row in rows for c in row)), answers), escape=escape)


def write_shard(
    path: Path, predictions: Sequence[Prediction], columns: Sequence[str], num_return: int, *, escape: bool = True
) -> None:
    """Write a part of many predictions; the columns are those of every part, so that parts can be read as one table.

    Args:
        path: .csv, .tsv or .parquet.
        predictions: in order.
        columns: of the table that they answer; of none, the input stands there.
        num_return: hypotheses of each answer. Those of an answer's details are one column, as JSON.
        escape: as in `write_answer_table`.
    """
    rows = [dict(p.fields) or {"id": p.id, "input": p.input} for p in predictions]
    places: list[tuple[str, ...]] = [("prediction", "status", "log_probability")]
    places += [(f"prediction_{n}", f"log_probability_{n}") for n in range(2, num_return + 1)]
    empty = dict.fromkeys((name for place in places for name in place), "")
    answers = [empty | _answer(p) | {"details": json.dumps(p.details, ensure_ascii=False)} for p in predictions]
    _write(path, _beside(rows, columns or ("id", "input"), answers), escape=escape)


def _answer(p: Prediction) -> dict[str, str]:
    columns = {"prediction": p.prediction, "status": p.status, "log_probability": f"{p.score:.4f}"}
    for number, other in enumerate((h for h in p.hypotheses if h.text != p.prediction), start=2):
        columns |= {f"prediction_{number}": other.text, f"log_probability_{number}": f"{other.score:.4f}"}
    return columns


def _beside(rows: Sequence[dict[str, str]], theirs: Sequence[str], answers: Sequence[dict[str, str]]) -> polars.DataFrame:
    ours = list(dict.fromkeys(column for answer in answers for column in answer))
    cells = {column: [row.get(column, "") for row in rows] for column in theirs}
    cells |= {f"seqtune_{c}" if c in theirs else c: [answer.get(c, "") for answer in answers] for c in ours}
    return polars.DataFrame(cells, schema=dict.fromkeys(cells, polars.String))


def _write(path: Path, table: polars.DataFrame, *, escape: bool) -> None:
    with folders.writing(path) as hidden:
        if path.suffix == ".parquet":
            table.write_parquet(hidden, compression="zstd")
            return
        if escape:
            table = table.select(polars.Series(column.name, [_inert(cell) for cell in column]) for column in table)
        table = table.with_columns(polars.all().replace("", None))  # an empty text would be written as two quotes
        table.write_csv(hidden, separator="\t" if path.suffix == ".tsv" else ",")


def _inert(cell: str) -> str:
    """A cell that a spreadsheet takes for text or a number, not for a formula."""
    return f"'{cell}" if cell.startswith(FORMULAS) and not re.fullmatch(r"[-+][\d.]+", cell) else cell
