"""Text metrics: exact match, edit distance, BLEU, chrF, ROUGE, token accuracy.

sacrebleu, rapidfuzz and rouge-score do the counting; nothing here imports torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rapidfuzz
import sacrebleu
from rapidfuzz.distance import Levenshtein
from sacrebleu.metrics import BLEU, CHRF

from seqtune.scoring.metrics.base import Metric, mean_metric

TOKEN = re.compile(r"\w+|[^\w\s]")


def normalize_whitespace(text: str) -> str:
    """Runs of white space become one blank; outer ones go."""
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


def _bleu(name: str, tokenize: str) -> Metric:
    bleu = BLEU(tokenize=tokenize, force=True)
    sentence = BLEU(tokenize=tokenize, force=True, smooth_method="none")

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            score = sentence.corpus_score([prediction], [[reference]])
            rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
        return np.array(rows, dtype=float).reshape(len(rows), 10)

    def value(sums: np.ndarray) -> float:
        counts = sums.round().astype(int)
        order = bleu.max_ngram_order
        return (
            BLEU.compute_bleu(
                correct=counts[2 : 2 + order].tolist(),
                total=counts[2 + order :].tolist(),
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
    return Metric(name, signature, statistics, value)


def _chrf() -> Metric:
    chrf = CHRF()

    def item(prediction: str, reference: str) -> float:
        return chrf.sentence_score(prediction, [reference]).score / 100

    signature = f"mean of sentences|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|scale:0-1|sacrebleu:{sacrebleu.__version__}"
    return mean_metric("chrf", signature, item)


def _rouge(variant: str) -> Metric:
    def item(prediction: str, reference: str) -> float:
        return _rouge_scorer(variant).score(reference, prediction)[variant].fmeasure

    return mean_metric(variant, f"f-measure|mean of items|stemmer:no|rouge-score:{variant}", item)


@functools.cache
def _rouge_scorer(variant: str) -> Any:
    # not at the top: it brings nltk, which brings scikit-learn and pandas, 120 MiB that a training would carry along
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer([variant], use_stemmer=False)


def _mean(name: str, signature: str, item: Callable[[str, str], float], higher: bool = True) -> Metric:
    return mean_metric(name, signature + "|mean of items", item, higher_is_better=higher)


_FUZZ = f"levenshtein/max(len)|unit:character|rapidfuzz:{rapidfuzz.__version__}"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _mean("exact_match", "prediction == reference|case:mixed|space:as is", lambda p, r: float(p == r)),
        _mean(
            "exact_match_normalized",
            "prediction == reference|case:mixed|space:normalized",
            lambda p, r: float(normalize_whitespace(p) == normalize_whitespace(r)),
        ),
        _mean("edit_distance", _FUZZ, edit_distance, False),
        _mean("edit_similarity", "1 - " + _FUZZ, lambda p, r: 1.0 - edit_distance(p, r)),
        _bleu("bleu_char", "char"),
        _bleu("bleu_13a", "13a"),
        _chrf(),
        _rouge("rouge1"),
        _rouge("rouge2"),
        _rouge("rougeL"),
        _mean("token_accuracy", r"same token at the same position / max(tokens)|tok:\w+|[^\w\s]", token_accuracy),
    )
}
