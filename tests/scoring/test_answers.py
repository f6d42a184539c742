"""Scores of answers from a set, against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from seqtune.records import Hypothesis, Prediction
from seqtune.scoring.evaluate import evaluate
from seqtune.scoring.metrics.answers import answer_metrics, calibration_error, probability_statistics

ANSWERS = ["A", "B", "C", "D", "E"]


def rows(seed: int, outside: bool = False) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(seed)
    due = generator.choice(5, 200, p=[0.5, 0.2, 0.1, 0.15, 0.05])
    given = np.where(generator.random(200) < 0.6, due, generator.integers(0, 5, 200))
    texts, references = [ANSWERS[i] for i in given], [ANSWERS[i] for i in due]
    if outside:
        texts[:5] = [""] * 5
        references[10:12] = ["F"] * 2
    return texts, references


def value(name: str, texts: list[str], references: list[str]) -> float:
    metric = answer_metrics(ANSWERS, ordered=True)[name]
    return metric.value(metric.statistics(texts, references).sum(axis=0))


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed):
    texts, references = rows(seed)
    assert value("macro_f1", texts, references) == pytest.approx(reference.f1_score(references, texts, average="macro"))
    assert value("matthews", texts, references) == pytest.approx(reference.matthews_corrcoef(references, texts))
    kappa = reference.cohen_kappa_score(references, texts, labels=ANSWERS, weights="quadratic")
    assert value("quadratic_kappa", texts, references) == pytest.approx(kappa)


def test_what_is_none_of_the_answers_is_a_class_of_its_own():
    texts, references = rows(0, outside=True)
    other = [["other" if t not in ANSWERS else t for t in side] for side in (references, texts)]
    right = [t == r for t, r in zip(texts, references, strict=True)]
    assert sum(right) == sum(t == r and t in ANSWERS for t, r in zip(texts, references, strict=True))
    assert value("macro_f1", texts, references) == pytest.approx(reference.f1_score(*other, average="macro"))
    assert value("matthews", texts, references) == pytest.approx(reference.matthews_corrcoef(*other))
    near = [abs(ANSWERS.index(t) - ANSWERS.index(r)) <= 1 if {t, r} <= {*ANSWERS} else False for t, r in zip(texts, references, strict=True)]  # fmt: skip
    assert value("within_1", texts, references) == pytest.approx(np.mean(near))


def test_one_class_alone_has_no_correlation_rather_than_a_bad_one():
    assert math.isnan(value("matthews", ["A", "B"], ["A", "A"]))
    assert value("matthews", ["A", "A"], ["A", "B"]) == reference.matthews_corrcoef(["A", "B"], ["A", "A"]) == 0
    assert value("macro_f1", ["A", "A"], ["A", "A"]) == 1
    assert math.isnan(value("quadratic_kappa", ["A", "B"], ["A", "A"]))


def predicted(shares_NA: np.ndarray, due: list[int]) -> list[Prediction]:
    found = []
    for number, (shares, reference_) in enumerate(zip(shares_NA, due, strict=True)):
        hypotheses = tuple(
            Hypothesis(ANSWERS[a], math.log(shares[a]) - 3.0, 2, True) for a in np.argsort(-shares)
        )  # answers share the probability with all other texts
        best = hypotheses[0]
        found.append(Prediction(str(number), "?", ANSWERS[reference_], best.text, best.score, hypotheses, "ok"))
    return found


def test_probabilities_are_scored():
    generator = np.random.default_rng(0)
    shares_NA = generator.dirichlet(np.ones(5), 300)
    due = generator.integers(0, 5, 300).tolist()
    predictions = predicted(shares_NA, due)
    found = evaluate(predictions, answers=ANSWERS, ordered=True)
    loss = reference.log_loss([ANSWERS[i] for i in due], shares_NA, labels=ANSWERS)
    assert found["log_loss"]["value"] == pytest.approx(loss)
    sure, right = shares_NA.max(1), shares_NA.argmax(1) == due
    bins = np.minimum((sure * 10).astype(int), 9)
    expected = sum(abs(sure[bins == b].sum() - right[bins == b].sum()) for b in range(10)) / 300
    assert found["calibration_error"]["value"] == pytest.approx(expected)
    assert found["exact_match"]["value"] == pytest.approx(right.mean())
    low, high = found["macro_f1"]["low"], found["macro_f1"]["high"]
    assert low < found["macro_f1"]["value"] < high


def test_a_model_that_knows_how_sure_it_is_has_no_calibration_error():
    sums = probability_statistics(predicted(np.array([[0.5, 0.2, 0.1, 0.1, 0.1]] * 2), [0, 1]))[0].sum(axis=0)
    assert calibration_error(sums) == pytest.approx(0.0)


def test_free_text_has_no_scores_of_classes():
    assert "macro_f1" not in evaluate([Prediction("1", "?", "A", "A", 0.0, (), "ok")])
