"""Natural Instructions: a definition in words, solved examples, and the rows, all in one JSON file.

Format: https://github.com/allenai/natural-instructions (arXiv 2204.07705).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars

from seqtune.data.table import FIELD, FRAME_ROWS, Columns, Frames, Table
from seqtune.errors import DataError

EXAMPLES = "#examples"  # after a file's name: its solved examples instead of its rows


def is_one(content: dict[str, Any]) -> bool:
    """True for a file of this format."""
    return "Definition" in content and isinstance(content.get("Instances"), list)


def bundle(content: dict[str, Any], file: str) -> dict[str, dict[str, Any]]:
    """The keys of a bundle, by the file's name."""
    name = Path(file).stem
    definition = content["Definition"]
    text = (definition if isinstance(definition, str) else " ".join(definition)).strip().replace("{", "{{").replace("}", "}}")
    kinds = content.get("Categories") or [None]
    keys = {
        "about": text[:100],
        "cluster": kinds[0],
        "templates": [f"{text}\n\n{{input}}"],
        "data": {"path": file, "input": "input", "output": "output"},
        "pool": file + EXAMPLES if content.get("Positive Examples") else None,
        "metric": "rougeL",  # the one that its authors report
    }
    return {name: keys}


def rows(name: str) -> Table:
    """A file's rows, or its solved examples; of several right answers the first.

    Raises:
        DataError: the file cannot be read, or an entry has no input or output.
    """
    path, _, part = name.partition("#")
    try:
        content = json.loads(Path(path).read_bytes())
        entries = content["Positive Examples" if part else "Instances"]
        pairs = [(each["input"], each["output"] if isinstance(each["output"], str) else each["output"][0]) for each in entries]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{name!r} cannot be read as a task of Natural Instructions: {type(error).__name__}: {error}") from None
    numbered = [
        (number, *pair) for number, pair in enumerate(pairs, start=1) if all(isinstance(t, str) and t.strip() for t in pair)
    ]
    schema = {"line": polars.Int64, FIELD + "input": polars.String, FIELD + "output": polars.String}
    frames = [polars.DataFrame(numbered[i : i + FRAME_ROWS], schema, orient="row") for i in range(0, len(numbered), FRAME_ROWS)]
    if not frames:
        raise DataError(f"{name!r} holds no row with an input and an output")
    columns = Columns(name, ("input", "output"), FIELD + "input", FIELD + "output")
    return Table(Frames([len(frame) for frame in frames], frames), columns)
