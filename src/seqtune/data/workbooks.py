"""Workbooks (`.xlsx`) -> rows of text, one after the other.

Read by openpyxl, which never lays out the whole sheet. Calamine is faster and does; a workbook of 1 KB whose only cell is the
last one that a sheet can have ends the process. What openpyxl keeps is the markup, of which there may be so much and no more.
"""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import openpyxl
from openpyxl.cell.cell import ERROR_CODES

from seqtune.data import cells
from seqtune.data.archives import WINDOW, check_expansion
from seqtune.errors import DataError, did_you_mean

CHARACTERS = 2**26  # of all files in a workbook
MARKS = 3_000_000  # in them: angle brackets that open and equals signs, seven of them a cell; each can take 100 bytes of memory
CELLS = 16  # that a sheet may reach over, for each byte of the file
PIECE = 2**20
warnings.filterwarnings("ignore", module="openpyxl")  # what it leaves out is nothing that a table needs


def sheet_of(path: Path, source: Path | IO[bytes], asked: str | None) -> tuple[str, list[str]]:
    """The sheet that is read, and the names of all: the one asked for, else the first that can be seen.

    Raises:
        DataError: it is damaged, holds too much, or has no such sheet.
    """
    with _opened(path, source) as book:
        names = [sheet.title for sheet in book.worksheets]
        if asked is not None and asked not in names:
            raise DataError(
                f"{str(path)!r} has no sheet {asked!r}, asked for by data.sheet{did_you_mean(asked, names)}; sheets: "
                f"{', '.join(names)[:300]}"
            )
        seen = [sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible"]
        if not names:
            raise DataError(f"{str(path)!r} has no sheet with cells")
        return asked or (seen or names)[0], names


def rows(path: Path, source: Path | IO[bytes], sheet: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that hold something, each with its number in the sheet; none is narrower than the first.

    Raises:
        DataError: it is damaged, or holds too much.
    """
    most, given, width = max(WINDOW, CELLS * path.stat().st_size), 0, 0
    with _opened(path, source) as book:
        found = book[sheet]
        found.reset_dimensions()  # what the sheet says about its size may be wrong
        for number, values in enumerate(found.iter_rows(values_only=True), start=1):
            given += len(values) + 1
            if given > most:
                raise DataError(f"{str(path)!r}: the sheet {sheet!r} reaches over more than {most:,} cells; save it as CSV")
            row = ["" if value in ERROR_CODES else cells.cell(value) for value in values]
            while row and not row[-1]:
                row.pop()
            if not row:
                continue
            width = width or len(row)
            yield number, row + [""] * (width - len(row))


@contextlib.contextmanager
def _opened(path: Path, source: Path | IO[bytes]) -> Iterator[Any]:
    try:
        _check_promise(path, source)
        with contextlib.closing(openpyxl.load_workbook(source, read_only=True, data_only=True, keep_links=False)) as book:
            yield book
    except DataError:
        raise
    except zipfile.BadZipFile as error:
        raise DataError(
            f"{str(path)!r} cannot be read as a workbook: {error}; if a program opens it, it has a password "
            "or is of an older kind: save it as .xlsx without one"
        ) from None
    except RecursionError:
        raise DataError(f"{str(path)!r} cannot be read as a workbook: it is nested too deeply") from None
    except Exception as error:  # openpyxl takes what it reads for right, and fails in any way where it is not
        first = str(error).splitlines()[:1]
        raise DataError(f"{str(path)!r} cannot be read as a workbook: {type(error).__name__}: {''.join(first)[:200]}") from None


def _check_promise(path: Path, source: Path | IO[bytes]) -> None:
    marks = 0
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        check_expansion(path, entries)
        size = sum(entry.file_size for entry in entries)
        if size > CHARACTERS:
            raise DataError(
                f"{str(path)!r} unpacks to {size:,} bytes, more than the {CHARACTERS:,} of a workbook; save it as CSV"
            )
        for entry in entries:
            with archive.open(entry) as file:
                while piece := file.read(PIECE):
                    marks += piece.count(b"<") + piece.count(b"=")
    if marks > MARKS:
        raise DataError(f"{str(path)!r} holds more than about {MARKS // 7:,} cells, too many for a workbook; save it as CSV")
