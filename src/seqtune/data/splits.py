"""Split rows into training, validation and test, and report leakage between them.

All choices are the same on every machine. `hash` and `grouped` look at the seed and the row alone, so a row stays in its split
when rows are appended; `random` and `stratified` take exact shares, so rows may move.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from seqtune.config import SplitConfig
from seqtune.errors import DataError
from seqtune.records import Example

SPLITS = ("train", "validation", "test")


def unit_hash(text: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments.

    Example:
        >>> unit_hash("a", 0, "split") == unit_hash("a", 0, "split")
        True
    """
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_examples(examples: Sequence[Example], config: SplitConfig) -> dict[str, list[Example]]:
    """Split `examples` into `train`, `validation` and `test`; each keeps the file's order.

    `hash` keeps equal inputs together. `stratified` takes the exact share of each band of input
    lengths (1, 2-3, 4-7, ... characters). `grouped` keeps equal keys together. `column` reads the
    split's name from the key column.

    Raises:
        DataError: nothing is left to train on, or a split name is unknown.
    """
    assign: dict[str, Callable[[], list[str]]] = {
        "hash": lambda: [_by_hash(e.input, config) for e in examples],
        "grouped": lambda: [_by_hash(e.fields[config.key or ""], config) for e in examples],
        "random": lambda: _by_rank(np.random.default_rng(config.seed).random(len(examples)), config),
        "stratified": lambda: _stratified(examples, config),
        "column": lambda: [_by_name(e, config) for e in examples],
    }
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example, name in zip(examples, assign[config.method](), strict=True):
        splits[name].append(example)
    if not splits["train"]:
        raise DataError(
            f"no row is left to train on: {len(examples)} rows, validation share {config.validation:g}, "
            f"test share {config.test:g} (data.split); give more rows or smaller shares"
        )
    return splits


def _by_hash(key: str, config: SplitConfig) -> str:
    share = unit_hash(key, config.seed, "split")
    if share < config.test:
        return "test"
    return "validation" if share < config.test + config.validation else "train"


def _by_rank(values: np.ndarray, config: SplitConfig) -> list[str]:
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    num_test = round(config.test * len(values))
    num_validation = round(config.validation * len(values))
    return ["test" if rank < num_test else "validation" if rank < num_test + num_validation else "train" for rank in ranks]


def _stratified(examples: Sequence[Example], config: SplitConfig) -> list[str]:
    bands: defaultdict[int, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        bands[len(example.input).bit_length()].append(index)
    names = [""] * len(examples)
    for indices in bands.values():
        hashes = np.array([unit_hash(examples[i].input, config.seed, "split") for i in indices])
        for index, name in zip(indices, _by_rank(hashes, config), strict=True):
            names[index] = name
    return names


def _by_name(example: Example, config: SplitConfig) -> str:
    name = example.fields[config.key or ""].strip().lower()
    split = {"valid": "validation", "val": "validation", "dev": "validation", "training": "train"}.get(name, name)
    if split not in SPLITS:
        raise DataError(
            f"{example.file}, line {example.line}: the split {name!r} in column {config.key!r} is unknown; "
            f"allowed: {', '.join(SPLITS)}"
        )
    return split


def subset(examples: list[Example], num_examples: int | None, seed: int) -> list[Example]:
    """The `num_examples` rows with the lowest hashes, so a smaller subset is part of every larger one."""
    if num_examples is None or num_examples >= len(examples):
        return examples
    keep = sorted(hash_order(examples, seed, "subset")[:num_examples])
    return [examples[i] for i in keep]


def hash_order(examples: Sequence[Example], seed: int, purpose: str) -> list[int]:
    """Positions of the rows, sorted by hash: a shuffle that does not depend on the rows around a row."""
    hashes = [unit_hash(f"{e.id}\0{e.input}", seed, purpose) for e in examples]
    return np.argsort(hashes, kind="stable").tolist()


def leakage(splits: dict[str, list[Example]], key: str | None = None) -> dict[str, dict[str, int]]:
    """Count validation and test rows that share their input, normalised input, output, pair or key with a training row.

    Example:
        >>> rows = {"train": [Example("1", "a", "x")], "validation": [], "test": [Example("2", "A ", "x")]}
        >>> leakage(rows)["test"]["same_normalized_input"]
        1
    """
    views: dict[str, Callable[[Example], object]] = {
        "same_input": lambda e: e.question,
        "same_normalized_input": lambda e: (e.context, " ".join(e.input.split()).casefold()),
        "same_output": lambda e: e.output,
        "same_pair": lambda e: (e.question, e.output),
    }
    if key:
        views["same_key"] = lambda e: e.fields[key]
    seen = {name: {view(e) for e in splits["train"]} for name, view in views.items()}
    return {
        split: {"rows": len(splits[split])}
        | {name: sum(view(e) in seen[name] for e in splits[split]) for name, view in views.items()}
        for split in SPLITS[1:]
    }
