"""Which columns hold the pairs, where nobody says so: the only two that there are, or two with names that people give them.

Likewise which of a data set's splits are trained and measured on.
"""

from __future__ import annotations

from seqtune.config import Config
from seqtune.data.files import open_table
from seqtune.data.layouts import layout_of
from seqtune.data.places import sides_of
from seqtune.data.tasks import Task
from seqtune.sections import DataConfig

USUAL = (
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("source", "target"), ("src", "tgt"),
    ("instruction", "response"), ("query", "response"), ("text", "label"), ("sentence", "label"), ("x", "y"), ("from", "to"),
)  # fmt: skip


def with_columns(config: Config) -> tuple[Config, list[str]]:
    """Put the names of the input and the output column, and of the splits, into a configuration that leaves them open.

    Args:
        config: names a table, or not.

    Returns:
        The configuration, the same one if it names columns or the table has those that it is to have; and what was decided,
        for people.

    Raises:
        DataError: the table cannot be read.

    Example:
        A table with the columns `question` and `answer` and no settings: they are the input and the output.
    """
    config, sides = _with_sides(config)
    named, notes = _with_names(config)
    return named, [*sides, *notes]


def _with_sides(config: Config) -> tuple[Config, list[str]]:
    """With the splits of a data set that has several: what is called train, validation and test is taken for that."""
    found = sides_of(config.data.path) if config.data.path else {}
    if not found:
        return config, []
    keys = {"train": "path", "validation": "validation_path", "test": "test_path"}
    taken = {
        keys[side]: name
        for side, name in found.items()
        if side in keys and not (side != "train" and getattr(config.data, keys[side]))
    }
    if "path" not in taken:
        return config, []  # reading it says what there is
    rest = [side for side in found if side not in keys]
    note = f"splits: {', '.join(side for side in keys if keys[side] in taken)}" + (
        f"; not read: {', '.join(rest)}" if rest else ""
    )
    return config.model_copy(update={"data": config.data.model_copy(update=taken)}), [note]


def _with_names(config: Config) -> tuple[Config, list[str]]:
    data, usual = config.data, DataConfig()
    if not data.path or config.task or config.mixture:
        return config, []
    reading = Task.from_config(config).reading(data)
    columns = list(open_table(data.path, data).columns)
    if layout_of(columns, reading) != "pairs":
        return config, []
    left_open = {key for key in ("input", "output") if getattr(data, key) == getattr(usual, key) and key not in columns}
    if not left_open:
        return config, []
    others = [column for column in columns if column not in (data.id, data.split.key)]
    found = _guess(others, data, left_open)
    if found is None:
        return config, []
    named = config.model_copy(update={"data": data.model_copy(update=dict(zip(("input", "output"), found, strict=True)))})
    known = {name for pair in USUAL for name in pair} & {name.strip().lower() for name in found}
    hint = "" if known else "; if the first line is a row: --set data.header=false"
    return named, [f"columns: {found[0]} -> {found[1]} (--input and --output name others{hint})"]


def _guess(columns: list[str], data: DataConfig, left_open: set[str]) -> tuple[str, str] | None:
    if len(left_open) == 1:
        known = data.input if "output" in left_open else data.output
        rest = [column for column in columns if column != known]
        if len(columns) != 2 or len(rest) != 1:
            return None
        return (known, rest[0]) if "output" in left_open else (rest[0], known)
    lower = {column.strip().lower(): column for column in columns}
    pairs = [(lower[first], lower[second]) for first, second in USUAL if first in lower and second in lower]
    if len(pairs) == 1:
        return pairs[0]
    return (columns[0], columns[1]) if len(columns) == 2 else None
