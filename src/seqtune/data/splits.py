"""Split rows into training, validation and test, and report leakage between them.

All choices are the same on every machine. `hash` and `grouped` look at the seed and the row alone, so a row stays in its split
when rows are appended; `random` and `stratified` take exact shares, so rows may move.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import polars

from seqtune.data import kept
from seqtune.data.table import FIELD, Rows, Table, batches, take, texts
from seqtune.errors import DataError
from seqtune.records import Example
from seqtune.sections import DataConfig, SplitConfig

SPLITS = ("train", "validation", "test")


def unit_hash(text: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments.

    Example:
        >>> unit_hash("a", 0, "split") == unit_hash("a", 0, "split")
        True
    """
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def unit_hashes(texts: Iterable[str], seed: int, purpose: str) -> np.ndarray:
    """`unit_hash` of each text, float64 [N]."""
    prefix = f"{purpose}\0{seed}\0".encode()
    digests = bytearray()  # joining a generator would hold every digest as an object
    for text in texts:
        digests += hashlib.blake2b(prefix + text.encode(), digest_size=8).digest()
    return np.frombuffer(digests, ">u8").astype(np.float64) / 2**64


def deal(examples: Sequence[Example], config: SplitConfig) -> np.ndarray:
    """The split of each row, as its place in `SPLITS`, uint8 [N].

    `hash` keeps equal inputs together. `stratified` takes the exact share of each band of input
    lengths (1, 2-3, 4-7, ... characters). `grouped` keeps equal keys together. `column` reads the
    split's name from the key column.

    Raises:
        DataError: nothing is left to train on, or a split name is unknown.
    """
    key = FIELD + (config.key or "")
    assign: dict[str, Callable[[], np.ndarray]] = {
        "hash": lambda: _by_hash(unit_hashes(texts(examples, "input"), config.seed, "split"), config),
        "grouped": lambda: _by_hash(unit_hashes(texts(examples, key), config.seed, "split"), config),
        "random": lambda: _by_rank(np.random.default_rng(config.seed).random(len(examples)), config),
        "stratified": lambda: _stratified(examples, config),
        "column": lambda: _by_name(examples, key, config),
    }
    dealt = assign[config.method]()
    if not (dealt == SPLITS.index("train")).any():
        raise DataError(
            f"no row is left to train on: {len(examples)} rows, validation share {config.validation:g}, "
            f"test share {config.test:g} (data.split); give more rows or smaller shares"
        )
    return dealt


def split_examples(examples: Rows, config: SplitConfig) -> dict[str, Rows]:
    """Split `examples` into `train`, `validation` and `test`, as `deal` does; each keeps the file's order.

    Raises:
        DataError: nothing is left to train on, or a split name is unknown.
    """
    return sides(examples, deal(examples, config))


def sides(examples: Rows, dealt: np.ndarray) -> dict[str, Rows]:
    """The rows of each split."""
    return {name: take(examples, np.flatnonzero(dealt == place).astype(np.int32)) for place, name in enumerate(SPLITS)}


def read_sides(data: DataConfig, read: Callable[[str], Table]) -> dict[str, Table]:
    """The rows of each split; files of their own for validation or test replace that share of the first one.

    Args:
        data: paths, and how rows are dealt.
        read: makes a table of a path.
    """
    split = data.split.model_copy(
        update={
            "validation": 0.0 if data.validation_path else data.split.validation,
            "test": 0.0 if data.test_path else data.split.test,
        }
    )
    table = read(data.path or "")
    dealt = kept.array(table.key and kept.key_of(table.key, split), lambda: deal(table, split))
    tables = sides(table, dealt)
    for side, path in (("validation", data.validation_path), ("test", data.test_path)):
        if path:
            tables[side] = read(path)
    return tables


def _by_hash(shares: np.ndarray, config: SplitConfig) -> np.ndarray:
    return _by_limits(shares, config.test, config.test + config.validation)


def _by_rank(values: np.ndarray, config: SplitConfig) -> np.ndarray:
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    num_test = round(config.test * len(values))
    return _by_limits(ranks, num_test, num_test + round(config.validation * len(values)))


def _by_limits(values: np.ndarray, test: float, held_out: float) -> np.ndarray:
    """The lowest values go to test, the next to validation, the rest is trained on."""
    train, validation, tested = (SPLITS.index(name) for name in ("train", "validation", "test"))
    return np.where(values < test, tested, np.where(values < held_out, validation, train)).astype(np.uint8)


def _stratified(examples: Sequence[Example], config: SplitConfig) -> np.ndarray:
    lengths = np.concatenate([frame["input"].str.len_chars().to_numpy() for frame in batches(examples, "input")])
    bands = np.frexp(lengths.astype(np.float64))[1]  # as `int.bit_length`
    hashes = unit_hashes(texts(examples, "input"), config.seed, "split")
    dealt = np.zeros(len(lengths), np.uint8)
    for band in np.unique(bands):
        inside = np.flatnonzero(bands == band)
        dealt[inside] = _by_rank(hashes[inside], config)
    return dealt


def _by_name(examples: Sequence[Example], key: str, config: SplitConfig) -> np.ndarray:
    known = {"valid": "validation", "val": "validation", "dev": "validation", "training": "train"}
    places: list[int] = []
    for frame in batches(examples, key, "file", "line"):
        for text, file, line in frame.iter_rows():
            name = text.strip().lower()
            split = known.get(name, name)
            if split not in SPLITS:
                raise DataError(
                    f"{file}, line {line}: the split {name!r} in column {config.key!r} is unknown; allowed: {', '.join(SPLITS)}"
                )
            places.append(SPLITS.index(split))
    return np.array(places, np.uint8)


def subset(examples: Rows, num_examples: int | None, seed: int) -> Rows:
    """The `num_examples` rows with the lowest hashes, so a smaller subset is part of every larger one."""
    if num_examples is None or num_examples >= len(examples):
        return examples
    return take(examples, np.sort(hash_order(examples, seed, "subset")[:num_examples]))


def hash_order(examples: Sequence[Example], seed: int, purpose: str) -> np.ndarray:
    """Positions of the rows, sorted by hash, int64 [N]: a shuffle that does not depend on the rows around a row."""
    names = (f"{name}\0{text}" for frame in batches(examples, "id", "input") for name, text in frame.iter_rows())
    return np.argsort(unit_hashes(names, seed, purpose), kind="stable")


def leakage(splits: Mapping[str, Sequence[Example]], key: str | None = None) -> dict[str, dict[str, int]]:
    """Count validation and test rows that share their input, normalised input, output, pair or key with a training row.

    Texts are compared by hashes of 64 bits.

    Example:
        >>> rows = {"train": [Example("1", "a", "x")], "validation": [], "test": [Example("2", "A ", "x")]}
        >>> leakage(rows)["test"]["same_normalized_input"]
        1
    """
    views = {
        "same_input": ("context", "input"),
        "same_normalized_input": ("context", "normalized"),
        "same_output": ("output",),
        "same_pair": ("context", "input", "output"),
    }
    if key:
        views["same_key"] = (FIELD + key,)

    def hashes(rows: Sequence[Example]) -> Iterator[dict[str, np.ndarray]]:
        for frame in batches(rows, *({"context", "input", "output"} | ({FIELD + key} if key else set()))):
            normal = [" ".join(text.split()).casefold() for text in frame["input"].to_list()]
            whole = frame.with_columns(polars.Series("normalized", normal, polars.String))
            yield {name: whole.select(view).hash_rows().to_numpy() for name, view in views.items()}

    held_out = {split: list(hashes(splits[split])) for split in SPLITS[1:]}
    both = [part for parts in held_out.values() for part in parts]
    looked_for = {name: np.unique(np.concatenate([np.zeros(0, np.uint64), *(part[name] for part in both)])) for name in views}
    found = {name: np.zeros(len(values), bool) for name, values in looked_for.items()}
    if both:
        for part in hashes(splits["train"]):
            for name, values in part.items():
                found[name] |= _among(looked_for[name], np.sort(values))
    seen = {name: values[found[name]] for name, values in looked_for.items()}
    return {
        split: {"rows": len(splits[split])}
        | {name: sum(int(_among(part[name], seen[name]).sum()) for part in parts) for name in views}
        for split, parts in held_out.items()
    }


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which of the values are among others, which ascend."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    return ascending[np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)] == values
