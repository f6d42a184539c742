"""Every value against an independent tool, or against the definition written out by hand."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from seqtune.errors import DataError
from seqtune.records import Prediction
from seqtune.scoring.evaluate import compare, evaluate, read_predictions
from seqtune.scoring.metrics import METRICS
from seqtune.scoring.metrics.base import mean_metric
from seqtune.scoring.metrics.text import edit_distance
from seqtune.scoring.significance import bootstrap_interval, paired_randomization

PREDICTIONS = ["2-methylpropane", "ethanol", "N,N-dimethyl methanamine", "", "benzene ", "cyclohexa-1,3-diene"]
REFERENCES = ["2-methylbutane", "ethanol", "N,N-dimethylmethanamine", "water", "benzene", "cyclohexa-1,4-diene"]


def value(name, predictions=PREDICTIONS, references=REFERENCES):
    metric = METRICS[name]
    return metric.value(metric.statistics(predictions, references).sum(axis=0))


def as_predictions(texts, references=REFERENCES):
    return [
        Prediction(str(i), "x" * (i + 1), r, t, 0.0, (), "ok") for i, (t, r) in enumerate(zip(texts, references, strict=True))
    ]


@pytest.mark.parametrize("tokenize", ["char", "13a"])
def test_bleu_equals_sacrebleus_corpus_score(tokenize):
    theirs = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES], tokenize=tokenize, force=True).score / 100
    assert value(f"bleu_{tokenize}") == pytest.approx(theirs, abs=1e-9)
    assert f"tok:{tokenize}" in METRICS[f"bleu_{tokenize}"].signature
    assert sacrebleu.__version__ in METRICS[f"bleu_{tokenize}"].signature


def test_chrf_equals_sacrebleus_sentence_scores():
    theirs = [sacrebleu.sentence_chrf(p, [r]).score / 100 for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert value("chrf") == pytest.approx(np.mean(theirs))


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL"])
def test_rouge_equals_google_researchs(variant):
    scorer = rouge_scorer.RougeScorer([variant])
    theirs = [scorer.score(r, p)[variant].fmeasure for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert value(variant) == pytest.approx(np.mean(theirs))


def levenshtein(a: str, b: str) -> int:
    """The textbook recurrence."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_is_the_textbooks(a, b):
    expected = levenshtein(a, b) / max(len(a), len(b)) if a or b else 0.0
    assert edit_distance(a, b) == pytest.approx(expected)
    assert value("edit_similarity", [a], [b]) == pytest.approx(1 - expected)


def test_exact_match_raw_and_normalised():
    assert value("exact_match") == pytest.approx(1 / 6)
    assert value("exact_match_normalized") == pytest.approx(2 / 6)


def test_token_accuracy_by_hand():
    # 2 - methylpropane / 2 - methylbutane: 2 of 3; extra tokens count against
    assert value("token_accuracy", ["2-methylpropane"], ["2-methylbutane"]) == pytest.approx(2 / 3)
    assert value("token_accuracy", ["a b c"], ["a"]) == pytest.approx(1 / 3)
    assert value("token_accuracy", [""], [""]) == 1.0


def test_bootstrap_interval_agrees_with_scipy():
    data = np.random.default_rng(1).random(400) < 0.3
    metric = mean_metric("m", "s", lambda p, r: float(p == "1"))
    statistics = np.column_stack([data.astype(float), np.ones(400)])
    low, high = bootstrap_interval(metric.value, statistics)
    theirs = scipy.stats.bootstrap((data.astype(float),), np.mean, method="percentile", n_resamples=5000, random_state=0)
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.01)
    assert bootstrap_interval(metric.value, statistics) == (low, high)


def test_paired_randomisation_equals_the_exact_test():
    """All 2^10 swaps by hand."""
    a = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0], float)
    b = np.array([1, 1, 1, 1, 0, 1, 0, 1, 1, 0], float)
    observed = abs((b - a).sum())
    exact = np.mean([abs(((b - a) * s).sum()) >= observed for s in itertools.product((1, -1), repeat=10)])
    metric = mean_metric("m", "s", lambda p, r: 0.0)
    ones = np.ones(10)
    found = paired_randomization(metric, np.column_stack([a, ones]), np.column_stack([b, ones]))
    assert found.p_value == pytest.approx(exact, abs=0.02)
    assert found.difference == pytest.approx(0.4)


def test_evaluate_reports_everything_with_signatures():
    metrics = evaluate(as_predictions(PREDICTIONS))
    assert metrics["num_items"] == 6
    for name in METRICS:
        score = metrics[name]
        assert score["low"] <= score["value"] + 1e-9
        assert score["value"] <= score["high"] + 1e-9
        assert "n:6" in score["signature"]
        assert "95% bootstrap" in score["signature"]
    assert sum(band["num_items"] for band in metrics["by_input_length"]) == 6
    assert metrics["status"] == {"ok": 6}


def test_compare_finds_differences_and_refuses_other_items():
    worse, better = as_predictions(["x"] * 6), as_predictions(REFERENCES)
    result = compare(worse, better)
    assert result["exact_match"]["difference"] == 1.0
    assert result["exact_match"]["p_value"] < 0.05
    assert compare(worse, worse)["exact_match"]["p_value"] == 1.0
    with pytest.raises(DataError, match="different items"):
        compare(worse, better[:5])
    with pytest.raises(DataError, match="different references"):
        compare(worse, as_predictions(REFERENCES, [*REFERENCES[:5], "other"]))
    with pytest.raises(DataError, match="an id appears twice"):
        compare(worse, [*better[:5], better[0]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no predictions"),
        ("{bad\n", "line 1: not JSON"),
        ("[]\n", "line 1: not a JSON object"),
        ('{"prediction": "a", "reference": null}\n', "line 1: 'reference' is None"),
        ('{"reference": "a"}\n', "line 1: 'prediction' is None"),
    ],
)
def test_bad_prediction_files(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_predictions(path)
    for missing in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(DataError, match="does not exist"):
            read_predictions(missing)


def test_scoring_never_loads_torch():
    code = "import sys, seqtune, seqtune.cli, seqtune.scoring.evaluate, seqtune.data.sources, seqtune.data.splits, seqtune.data.templates; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
