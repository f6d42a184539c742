"""Every value against an independent tool, or against the definition written out by hand."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import zipfile
from typing import ClassVar

import numpy as np
import pytest
import sacrebleu
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer, tokenizers

from seqtune import runs
from seqtune.cli.app import run_app
from seqtune.errors import DataError
from seqtune.plugins import Judgement
from seqtune.records import Hypothesis, Prediction
from seqtune.scoring.evaluate import compare, evaluate, read_predictions
from seqtune.scoring.metrics import METRICS
from seqtune.scoring.metrics.base import mean_metric
from seqtune.scoring.metrics.text import edit_distance, words
from seqtune.scoring.significance import bootstrap_interval, mean_score, paired_randomization

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
    ours, references = [*PREDICTIONS, "the cat sat on a mat"], [*REFERENCES, "the cat sat on the mat"]
    theirs = sacrebleu.corpus_bleu(ours, [references], tokenize=tokenize, force=True).score / 100
    assert 0 < value(f"bleu_{tokenize}", ours, references) == pytest.approx(theirs, abs=1e-9)
    assert f"tok:{tokenize}" in METRICS[f"bleu_{tokenize}"].signature
    assert sacrebleu.__version__ in METRICS[f"bleu_{tokenize}"].signature


def test_chrf_equals_sacrebleus_sentence_scores():
    theirs = [sacrebleu.sentence_chrf(p, [r]).score / 100 for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert value("chrf") == pytest.approx(np.mean(theirs))


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL"])
def test_rouge_equals_google_researchs(variant):
    """On ASCII text, over the references that hold an n-gram at all: "ethanol", "water" and "benzene" hold no bigram."""
    scorer = rouge_scorer.RougeScorer([variant])
    counted = [(p, r) for p, r in zip(PREDICTIONS, REFERENCES, strict=True) if variant != "rouge2" or not r.isalpha()]
    theirs = [scorer.score(r, p)[variant].fmeasure for p, r in counted]
    assert value(variant) == pytest.approx(np.mean(theirs))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=30))
def test_words_are_rouge_scores_own_tokens_on_ascii(text):
    assert words(text) == tokenizers.DefaultTokenizer().tokenize(text)


def test_rouge_reads_every_script():
    """Two of three words by hand; a vowel sign belongs to its word."""
    assert words("हिन्दी, ÉCOLE_2") == ["हिन्दी", "école", "2"]
    assert value("rouge1", ["кошка спит дома"], ["кошка спала дома"]) == pytest.approx(2 / 3)
    assert value("rougeL", ["дома кошка спала"], ["кошка спала дома"]) == pytest.approx(2 / 3)
    assert value("rouge2", ["кошка спит дома"], ["кошка спала дома"]) == 0.0
    assert "letters, digits and marks of any script" in METRICS["rouge1"].signature


PERFECT_UNDEFINED = {
    "one word": (["ethanol", "water"], {"bleu_13a", "rouge2"}),
    "three characters": (["CCO", "C"], {"bleu_char", "bleu_13a", "rouge2"}),
    "Cyrillic": (["бензол", "вода"], {"bleu_13a", "rouge2"}),
    "symbols": (["+++ ==", "(-) [=]"], {"rouge1", "rouge2", "rougeL"}),
    "sentences": (["the cat sat on the mat", "a dog"], set()),
}


@pytest.mark.parametrize(("texts", "undefined"), PERFECT_UNDEFINED.values(), ids=PERFECT_UNDEFINED)
def test_a_perfect_prediction_scores_1_or_the_metric_is_undefined_with_a_reason(texts, undefined):
    perfect = as_predictions(texts, texts)
    metrics, compared = evaluate(perfect), compare(perfect, perfect)
    for name in set(METRICS) - undefined:
        perfect_value = pytest.approx(0.0 if name == "edit_distance" else 1.0)
        assert metrics[name]["value"] == compared[name]["a"] == perfect_value, name
    assert metrics.get("undefined", {}) == compared.get("undefined", {}) == {n: METRICS[n].undefined for n in undefined}
    assert all(METRICS[n].undefined for n in undefined)
    assert not undefined & (metrics.keys() | compared.keys())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=9), min_size=1, max_size=3))
def test_no_metric_scores_a_perfect_prediction_below_1(texts):
    for name in METRICS:
        found = value(name, texts, texts)
        assert np.isnan(found) or found == pytest.approx(0.0 if name == "edit_distance" else 1.0), name


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text("ab .é", max_size=9), st.text("ab .é", max_size=9)), min_size=1, max_size=3))
def test_whether_a_metric_is_defined_depends_on_the_references_alone(items):
    ours, references = [list(side) for side in zip(*items, strict=True)]
    for name in METRICS:
        assert np.isnan(value(name, ours, references)) == np.isnan(value(name, references, references)), name


def test_an_item_that_a_metric_cannot_judge_is_left_out():
    """One reference of three holds a bigram; the bootstrap meets resamples without it."""
    ours = ["a wrong word", "the cat", "!!"]
    metrics = evaluate(as_predictions(ours, ["ethanol", "the dog ran", "?"]))
    assert "|n:1|" in metrics["rouge2"]["signature"]
    assert "|n:2|" in metrics["rouge1"]["signature"]
    assert metrics["rouge1"]["value"] == pytest.approx((0 + 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)) / 2)
    assert metrics["rouge1"]["low"] <= metrics["rouge1"]["value"] <= metrics["rouge1"]["high"]
    assert not metrics["undefined"].keys() & {"rouge1", "rouge2"}


class HalfJudged:
    """A task's metrics: one counts for no item, one only for the first."""

    primary = "judged"
    signatures: ClassVar = {"judged": "first item", "never": "no item"}
    against_reference = ("judged",)

    def judge(self, inputs, predictions, references):
        first = [float(predictions[0] == references[0]), *[None] * (len(inputs) - 1)]
        strata = {"place": ["first", *["later"] * (len(inputs) - 1)]}
        return Judgement({"judged": first, "never": [None] * len(inputs)}, {}, strata)

    def baselines(self, inputs, training):
        return {"nothing": [""] * len(inputs)}


def test_score_and_compare_say_what_is_undefined(tmp_path, capsys):
    path = tmp_path / "predictions.jsonl"
    runs.write_predictions(path, as_predictions(["ethanol", "water"], ["ethanol", "water"]))
    for command in (["score", str(path)], ["compare", str(path), str(path)]):
        assert run_app(command) == 0
        printed = capsys.readouterr().out
        assert "bleu_13a: undefined, no reference has 4 tokens (tok:13a)" in printed
        assert "rouge2: undefined, no reference has 2 words" in printed
        assert "exact_match" in printed


def test_what_no_item_counts_for_is_undefined_in_a_tasks_scores_too():
    verified = [
        dataclasses.replace(p, details={"verdict": p.status}, hypotheses=(Hypothesis(p.prediction, 0.0, 1, True),))
        for p in as_predictions(["a", "b", "c"], ["a", "b", "x"])
    ]
    metrics = evaluate(verified, HalfJudged(), [])
    assert (metrics["judged"]["value"], metrics["undefined"]["never"]) == (1.0, "no item counts")
    assert "never" not in metrics
    assert "|n:1|" in metrics["judged"]["signature"]
    first, later = metrics["strata"]["place"]
    assert first["judged"]["value"] == 1.0
    assert "judged" not in later
    assert later["exact_match"]["value"] == 0.5
    report = metrics["verification"]
    assert report["judged"].keys() == {"top1", "returned", "rest"}  # no answer is verified, so precision is of none
    assert report["judged"]["top1"]["value"] == 1.0
    json.dumps(metrics, allow_nan=False)


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


@pytest.mark.parametrize(("successes", "items"), [(0, 1), (0, 40), (40, 40), (1, 3), (17, 40), (999, 1000)])
def test_a_proportion_gets_wilsons_interval(successes, items):
    references = ["yes"] * items
    metrics = evaluate(as_predictions(["yes"] * successes + ["n"] * (items - successes), references))
    theirs = scipy.stats.binomtest(successes, items).proportion_ci(0.95, method="wilson")
    for score in (metrics["exact_match"], metrics["exact_match_normalized"]):
        assert score["value"] == successes / items
        assert (score["low"], score["high"]) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        assert score["low"] < score["high"]
        assert score["signature"].endswith(f"|n:{items}|ci:95% Wilson")
    if len(metrics["by_input_length"]) > 1:
        assert "95% Wilson" in metrics["by_input_length"][0]["exact_match"]["signature"]


def test_a_mean_of_other_values_keeps_the_bootstrap():
    score = mean_score([0.5, 1.0, 0.0, None], "s")
    assert score.signature == "s|mean of items|n:3|ci:95% bootstrap 1000, seed 0"
    assert mean_score([True, None, False], "s").signature == "s|mean of items|n:2|ci:95% Wilson"
    assert mean_score([None], "s") is None


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
    assert metrics["undefined"] == {"bleu_13a": "no reference has 4 tokens (tok:13a)"}
    for name in METRICS.keys() - metrics["undefined"].keys():
        score = metrics[name]
        assert score["low"] <= score["value"] + 1e-9
        assert score["value"] <= score["high"] + 1e-9
        assert f"|n:{3 if name == 'rouge2' else 6}|" in score["signature"]
        assert f"ci:95% {'Wilson' if name.startswith('exact') else 'bootstrap 1000, seed 0'}" in score["signature"]
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
        ('{"reference": "a", "prediction": "\\ud800"}\n', r"line 1: a text holds U\+D800 alone, half of a surrogate pair"),
        ('{"reference": "a", "prediction": ' + "1" * 5000 + "}\n", "line 1: not JSON .*4300"),
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


def test_tables_and_zips_of_predictions_score_like_the_file(tmp_path, capsys):
    pairs = [("a b", "a b"), ("c", "d"), ("x, y", "x, y")]
    lines = "".join(json.dumps({"prediction": p, "reference": r}) + "\n" for p, r in pairs)
    (tmp_path / "p.jsonl").write_text(lines)
    (tmp_path / "p.csv").write_bytes('\ufeffprediction,right\r\na b,a b\r\nc,d\r\n"x, y","x, y"\r\n'.encode())
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("runs/one/predictions.jsonl", lines)
        archive.writestr("runs/two/predictions.jsonl", lines)
        archive.writestr("README.md", "no predictions")
    results = []
    for arguments in (["p.jsonl"], ["p.csv", "--output", "right"], ["p.zip"]):
        assert run_app(["score", str(tmp_path / arguments[0]), *arguments[1:], "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    file, table, archive = results
    assert file["exact_match"]["value"] == 2 / 3
    assert table == file
    assert archive == {"runs/one": file, "runs/two": file}
    assert run_app(["score", str(tmp_path / "p.zip")]) == 0
    assert "3 predictions of runs/two" in capsys.readouterr().out
    assert run_app(["score", str(tmp_path / "q.zip")]) == 1
    assert capsys.readouterr().err == f"error: '{tmp_path}/q.zip' does not exist; did you mean '{tmp_path}/p.zip'?\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "p.csv",
            b"prediction,right\na,b\n",
            "no column 'reference'; scoring needs .* --output names; columns: prediction, right",
        ),
        ("p.csv", b"prediction,reference\na\n", "line 2: 'reference' is None"),
        ("p.txt", b"a b\n", r"line 1: not JSON .*; a predictions file has one JSON object a line, or is a \.csv or \.tsv"),
        ("p.zip", b"no zip", "cannot be read as a zip: File is not a zip file"),
        ("p.zip", b"PK\x05\x06" + bytes(18), "holds no predictions.jsonl, which `seqtune study FILE --export"),
    ],
)
def test_what_cannot_be_scored_says_why(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert run_app(["score", str(tmp_path / name)]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_what_is_no_plain_answer_is_explained(tmp_path, capsys):
    record = {"prediction": "a", "reference": "b"}
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(record | {"status": s}) + "\n" for s in ("ok", "unfinished", "empty")))
    assert run_app(["score", str(tmp_path / "p.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "1 of 3 unfinished (cut off before the model ended its answer: train it longer, or allow more with " in out
    assert "1 of 3 empty (the input was empty, so nothing was asked)" in out


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    """What `str.splitlines` takes for a line's end and JSON does not escape."""
    text = "a\u2028b\u2029c\x85d"
    written = [Prediction("1", text, text, text, 0.0, (Hypothesis(text, -1.0, 3, True),), "ok", {"note": text})] * 2
    path = tmp_path / "predictions.jsonl"
    runs.write_predictions(path, written)
    assert text in path.read_text(encoding="utf-8")
    assert read_predictions(path) == written


def test_scoring_never_loads_torch():
    code = "import sys, seqtune, seqtune.cli, seqtune.scoring.evaluate, seqtune.data.sources, seqtune.data.splits, seqtune.data.templates; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
