"""JSON -> cells: an object is a row, and an object in it columns with dotted names."""

from __future__ import annotations

import json
from typing import TextIO

from seqtune.data.cells import NoText
from seqtune.errors import DataError

CHARACTERS = 2**26  # of a file that is one JSON list, which is read as a whole
# NaN and Infinity, which are no JSON, are what Python writes for a missing number. Made once: that costs more than most lines.
DECODER = json.JSONDecoder(parse_constant=lambda _: None)


def on_line(line: str) -> dict[str, object] | str:
    """The object on a line, or what is wrong with it."""
    try:
        record = DECODER.decode(line)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4,300 digits
        return f"not JSON ({error})"
    return record if isinstance(record, dict) else f"a JSON {type(record).__name__}, not an object"


def in_list(name: str, handle: TextIO) -> list[tuple[int, dict[str, object] | str]]:
    """The objects of a file that is one JSON list, numbered from 1; for what is none, what is wrong with it.

    Raises:
        DataError: it is no list, holds no object, or is too large to be read as a whole.
    """
    text = handle.read(CHARACTERS + 1)
    if len(text) > CHARACTERS:
        raise DataError(f"{name!r} is one JSON value of more than {CHARACTERS:,} characters; write it as JSON Lines")
    try:
        records = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        hint = "; if each line is an object of its own, call it .jsonl" if text.lstrip().startswith("{") else ""
        raise DataError(f"{name!r} is not JSON ({error}){hint}") from None
    if not isinstance(records, list) or not any(isinstance(record, dict) for record in records):
        found = f"a JSON {type(records).__name__}" if not isinstance(records, list) else "a list without any object"
        raise DataError(f"{name!r} holds {found}; it needs a list of objects: [{{...}}, {{...}}]")
    return [
        (number, record if isinstance(record, dict) else f"a JSON {type(record).__name__}, not an object")
        for number, record in enumerate(records, start=1)
    ]


def cells_of(record: dict[str, object], prefix: str = "") -> dict[str, str]:
    """A record's cells; a list is JSON, and known as no text.

    Example:
        >>> cells_of({"data": {"src": "a", "n": 1}, "none": None})
        {'data.src': 'a', 'data.n': '1', 'none': ''}
    """
    cells: dict[str, str] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            cells |= cells_of(value, f"{name}.")
        elif isinstance(value, list | dict):
            cells[name] = NoText(json.dumps(value))
        else:
            cells[name] = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    return cells
