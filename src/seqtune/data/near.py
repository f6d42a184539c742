"""Held-out rows that nearly repeat a training row: MinHash over character n-grams, in bands.

Sources: Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900; for bands Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, section 3.4. What agrees in a whole band of its signature is a candidate, and is compared by the Jaccard similarity
itself; so nothing is called near that is not, and of what is as similar as `NEAR`, 98% is found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqtune.data.splits import subset
from seqtune.data.table import texts
from seqtune.records import Example

NEAR = 0.8  # Jaccard similarity of two inputs' n-grams
NGRAM = 5
BANDS, ROWS = 8, 4  # 1 - (1 - 0.8^4)^8 = 0.985
MOST_TRAINING, MOST_HELD_OUT, MOST_CANDIDATES = 20_000, 2_000, 20
_GENERATOR = np.random.default_rng(0)
_FACTORS = _GENERATOR.integers(1, 2**64, BANDS * ROWS, np.uint64) | np.uint64(1)  # odd: multiply-shift hashing
_OFFSETS = _GENERATOR.integers(0, 2**64, BANDS * ROWS, np.uint64)
_PLACES = _GENERATOR.integers(1, 2**64, NGRAM, np.uint64) | np.uint64(1)


@dataclass(frozen=True, slots=True)
class Near:
    """Held-out rows with a near training row.

    Attributes:
        count: of them.
        num_rows: held-out rows that were looked at.
        num_training: training rows that they were compared with.
        first: a held-out input and the training input that it nearly repeats.
    """

    count: int
    num_rows: int
    num_training: int
    first: tuple[str, str]


def near_rows(train: Sequence[Example], held_out: Sequence[Example]) -> Near | None:
    """Rows of `held_out` whose input nearly repeats one of `train`; `None` without any.

    Inputs that are equal but for case and blanks do not count here (`splits.leakage` counts them). Of large tables a part is
    looked at, chosen by hash, and so the count is a lower bound.

    Example:
        >>> rows = lambda text: [Example("1", text, "x")]
        >>> near_rows(rows("2-methylpropan-1-ol, dry"), rows("2-methylpropan-1-ol, dry.")).count
        1
    """
    ours, theirs = subset(held_out, MOST_HELD_OUT, 0), subset(train, MOST_TRAINING, 0)
    known = [(text, shingles(text)) for text in map(_normal, texts(theirs, "input"))]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for number, (_, grams) in enumerate(known):
        for key in _bands(grams):
            buckets[key].append(number)
    count, first = 0, None
    for text in map(_normal, texts(ours, "input")):
        grams = shingles(text)
        candidates = dict.fromkeys(number for key in _bands(grams) for number in buckets.get(key, ())[:MOST_CANDIDATES])
        found = next((n for n in candidates if known[n][0] != text and jaccard(grams, known[n][1]) >= NEAR), None)
        if found is not None:
            count, first = count + 1, first or (text, known[found][0])
    return Near(count, len(ours), len(theirs), first) if first else None


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def shingles(text: str) -> np.ndarray:
    """Hashes of the different n-grams of a text, ascending, uint64 [S]; a shorter text is one n-gram."""
    codes = np.frombuffer(text.ljust(NGRAM).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    grams = np.lib.stride_tricks.sliding_window_view(codes * np.uint64(0x9E3779B97F4A7C15), NGRAM)
    return np.unique((grams * _PLACES).sum(axis=1, dtype=np.uint64))


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Similarity of two sets that `shingles` made, in [0, 1]."""
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)


def _bands(grams: np.ndarray) -> list[tuple[int, bytes]]:
    signature = (((grams[:, None] * _FACTORS) + _OFFSETS) >> np.uint64(32)).min(axis=0).reshape(BANDS, ROWS)
    return [(band, values.tobytes()) for band, values in enumerate(signature)]
