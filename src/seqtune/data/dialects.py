"""How the text of a table is written: its encoding, and what parts its cells. Found out where no setting names it, and said."""

from __future__ import annotations

import codecs
import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import charset_normalizer

SAMPLE = 2**20  # bytes at a file's beginning that are looked at
MANY = 3  # lines with more than ASCII: a single one may be a broken row
LINES = 20  # of them that must have as many cells as the header
SIGNS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
MARKS = {  # the longer before the shorter that it begins with
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
UTF8 = "utf-8-sig"
# Texts in one of these can hardly be told from each other; the most common one is taken, as browsers take it
# (https://encoding.spec.whatwg.org/#names-and-labels)
LATIN = ("cp125", "iso8859", "latin", "mac_", "cp437", "cp85", "cp86", "hp_roman", "cp775", "cp1140")
CYRILLIC_OR_OTHER = ("cp1251", "cp1253", "cp1255", "cp1256", "iso8859_5", "iso8859_6", "iso8859_7", "iso8859_8", "mac_cyrillic",
                     "mac_greek", "cp855", "cp866", "cp862", "cp864")  # fmt: skip
WESTERN = "cp1252"
WIDE = ["utf_16", "utf_16_le", "utf_16_be", "utf_32", "utf_32_le", "utf_32_be", "utf_7"]  # have marks, and no lines in ASCII


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a text file is read.

    Attributes:
        encoding: a name that Python knows.
        delimiter: between cells; `None` for JSON.
        notes: what was found out, for people.
    """

    encoding: str = UTF8
    delimiter: str | None = None
    notes: tuple[str, ...] = ()


PLAIN = Dialect()


def encoding_of(sample: bytes) -> tuple[str, str | None]:
    """The encoding of a text by its beginning, and what to say of it; UTF-8 where nothing speaks against it.

    A table in UTF-8 with a few broken rows stays one: another encoding is looked for only where several lines hold more than
    ASCII and none of them is UTF-8.

    Example:
        >>> encoding_of("größe".encode("cp1252"))[0], encoding_of("größe".encode())[0]
        ('cp1252', 'utf-8-sig')
    """
    mark = next((name for mark, name in MARKS.items() if sample.startswith(mark)), None)
    if mark is not None:
        return mark, None if mark == UTF8 else f"the file is {mark.upper()}, as its first bytes say"
    whole = sample.splitlines()
    if len(sample) >= SAMPLE:  # the last line is cut off, perhaps within a character
        whole = whole[:-1]
    lines = [line for line in whole if not line.isascii()]
    if (len(lines) < MANY and 2 * len(lines) < len(whole)) or not lines or any(map(_is_utf8, lines)):
        return UTF8, None
    found = charset_normalizer.from_bytes(b"\n".join(lines), cp_exclusion=WIDE).best()
    name = found.encoding if found else WESTERN
    if name.startswith(LATIN) and not name.startswith(CYRILLIC_OR_OTHER):
        name = WESTERN
    try:
        b"\n".join(lines).decode(name)
    except UnicodeDecodeError:
        return UTF8, None  # which rejects the rows one by one
    return name, f"the file is not UTF-8 and looks like {name}; data.encoding names another one"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def delimiter_of(lines: Iterator[str], usual: str | None, quote: str) -> tuple[str | None, str | None]:
    """What parts the cells of a table by its first lines, and what to say of it.

    Args:
        lines: of the file.
        usual: of files with this ending; `None` if there is no usual one.
        quote: quote character, "" for none.

    Returns:
        `usual`, if it parts the header or nothing else does, whatever that gives; `None` where nothing does.

    Example:
        >>> delimiter_of(iter(["input;output", "a;b, c"]), ",", '"')
        (';', 'columns are parted by semicolons')
    """
    first = list(itertools.islice(lines, LINES))
    if usual is not None and (not first or usual in first[0]):
        return usual, None
    for sign, name in SIGNS.items():
        widths = {len(cells) for cells in _rows(first, sign, quote)}
        if len(widths) == 1 and widths.pop() > 1:
            return sign, f"columns are parted by {name}"
    return usual, None


def _rows(lines: list[str], sign: str, quote: str) -> list[list[str]]:
    """The rows that are whole in these lines; none if they cannot be read."""
    quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    try:
        rows = [row for row in csv.reader(lines, delimiter=sign, quotechar=quote or None, quoting=quoting) if row]
    except csv.Error:
        return []
    return rows[:-1] if len(lines) == LINES else rows  # the last one may go on
