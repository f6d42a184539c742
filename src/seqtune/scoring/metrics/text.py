"""Text metrics: exact match, edit distance, BLEU, chrF, ROUGE, token accuracy.

sacrebleu, rapidfuzz and rouge-score do the counting. An item that a metric cannot say anything about is left out, and a metric
for which no item is left is undefined: neither is scored 0.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import rapidfuzz
import sacrebleu
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU, CHRF

from seqtune.scoring.metrics.base import Metric, mean_metric

TOKEN = re.compile(r"\w+|[^\w\s]")


def normalize_whitespace(text: str) -> str:
    """One blank for every run of white space; outer white space is removed."""
    return " ".join(text.split())


def edit_distance(prediction: str, reference: str) -> float:
    """Levenshtein distance / length of the longer text, in [0, 1]; two empty texts are at distance 0.

    Example:
        >>> edit_distance("kitten", "sitting")
        0.42857142857142855
    """
    return Levenshtein.normalized_distance(prediction, reference)


def token_accuracy(prediction: str, reference: str) -> float:
    """Share of positions with the same token (words and single symbols), out of the longer text's positions.

    Example:
        >>> token_accuracy("2-methylpropane", "2-methylbutane")
        0.6666666666666666
    """
    ours, theirs = TOKEN.findall(prediction), TOKEN.findall(reference)
    longest = max(len(ours), len(theirs))
    return sum(a == b for a, b in zip(ours, theirs, strict=False)) / longest if longest else 1.0


def words(text: str) -> list[str]:
    """Runs of letters, digits and combining marks of any script, in lower case.

    On ASCII text these are the tokens of rouge-score's own tokenizer, which drops every other letter.

    Example:
        >>> words("2-Метилпропан, O'Neil")
        ['2', 'метилпропан', 'o', 'neil']
    """
    return ["".join(run) for inside, run in itertools.groupby(text.lower(), _in_word) if inside]


@functools.cache
def _in_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _bleu(name: str, tokenize: str) -> Metric:
    bleu = BLEU(tokenize=tokenize, force=True)
    sentence = BLEU(tokenize=tokenize, force=True, smooth_method="none")
    order = bleu.max_ngram_order

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            score = sentence.corpus_score([prediction], [[reference]])
            longest_ngrams = max(0, score.ref_len - order + 1)  # of the reference
            rows.append([score.sys_len, score.ref_len, longest_ngrams, *score.counts, *score.totals])
        return np.array(rows, dtype=float).reshape(len(rows), 3 + 2 * order)

    def value(sums: np.ndarray) -> float:
        counts = sums.round().astype(int)
        if not counts[2]:
            return math.nan
        return (
            BLEU.compute_bleu(
                correct=counts[3 : 3 + order].tolist(),
                total=counts[3 + order :].tolist(),
                sys_len=int(counts[0]),
                ref_len=int(counts[1]),
                smooth_method=bleu.smooth_method,
                smooth_value=bleu.smooth_value,
                effective_order=False,
                max_ngram_order=order,
            ).score
            / 100
        )

    signature = f"nrefs:1|case:mixed|eff:no|tok:{tokenize}|smooth:exp|scale:0-1|sacrebleu:{sacrebleu.__version__}"
    return Metric(name, signature, statistics, value, f"no reference has {order} tokens (tok:{tokenize})")


def _chrf() -> Metric:
    chrf = CHRF()

    def item(prediction: str, reference: str) -> float | None:
        return chrf.sentence_score(prediction, [reference]).score / 100 if reference.strip() else None

    signature = f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|scale:0-1|sacrebleu:{sacrebleu.__version__}"
    return mean_metric("chrf", f"{signature}|left out: items with an empty reference", item, "every reference is empty")


def _rouge(variant: str, num_words: int = 1) -> Metric:
    def item(prediction: str, reference: str) -> float | None:
        if len(words(reference)) < num_words:
            return None
        return _rouge_scorer(variant).score(reference, prediction)[variant].fmeasure

    needed = "a word" if num_words == 1 else f"{num_words} words"
    signature = (
        f"f-measure|stemmer:no|case:lower|tok:letters, digits and marks of any script|rouge-score:{version('rouge-score')}"
        f"|left out: items whose reference lacks {needed}"
    )
    return mean_metric(variant, signature, item, f"no reference has {needed}")


@functools.cache
def _rouge_scorer(variant: str) -> Any:
    # not at the top: it brings nltk, which brings scikit-learn and pandas, 120 MiB that a training would carry along
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer([variant], tokenizer=_Words())


class _Words:
    """`words` in the shape that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


_FUZZ = f"levenshtein/max(len)|unit:character|rapidfuzz:{rapidfuzz.__version__}"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        mean_metric("exact_match", "prediction == reference|case:mixed|space:as is", lambda p, r: float(p == r)),
        mean_metric(
            "exact_match_normalized",
            "prediction == reference|case:mixed|space:normalized",
            lambda p, r: float(normalize_whitespace(p) == normalize_whitespace(r)),
        ),
        mean_metric("edit_distance", _FUZZ, edit_distance),
        mean_metric("edit_similarity", "1 - " + _FUZZ, lambda p, r: 1.0 - edit_distance(p, r)),
        _bleu("bleu_char", "char"),
        _bleu("bleu_13a", "13a"),
        _chrf(),
        _rouge("rouge1"),
        _rouge("rouge2", num_words=2),
        _rouge("rougeL"),
        mean_metric("token_accuracy", r"same token at the same position / max(tokens)|tok:\w+|[^\w\s]", token_accuracy),
    )
}
