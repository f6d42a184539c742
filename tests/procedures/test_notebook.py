"""Notebooks and scripts: what a learner takes, what it gives, how it is kept, and what scikit-learn says of it."""

from __future__ import annotations

import inspect

import numpy as np
import pandas
import polars
import pyarrow
import pytest
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.utils import estimator_checks

import seqtune
from conftest import pairs, write_csv
from seqtune import SequenceLearner
from seqtune.config import load_config
from seqtune.errors import ConfigError, RunError
from seqtune.procedures.findings import findings
from seqtune.records import Prediction
from seqtune.report.notebook import Answers, Scores
from seqtune.tokens.preparation import prepare

INPUTS, OUTPUTS = (list(column) for column in zip(*pairs(24), strict=True))
SETTINGS = {"train.batch_size": 8, "decode.max_new_tokens": 12}
# Of scikit-learn's checks these need no rows of numbers. All others feed an estimator numbers, or texts as a matrix [N, 1] of
# mixed kinds, and want them learnt; this one takes texts and refuses numbers by name.
APPLY = (
    "check_estimator_cloneable", "check_estimator_tags_renamed", "check_valid_tag_types", "check_estimator_repr",
    "check_no_attributes_set_in_init", "check_do_not_raise_errors_in_init_or_set_params", "check_mixin_order",
    "check_parameters_default_constructible", "check_get_params_invariance", "check_set_params",
)  # fmt: skip


@pytest.fixture(scope="module")
def fitted(llama_folder):
    return SequenceLearner(str(llama_folder), epochs=1, settings=SETTINGS).fit(INPUTS, OUTPUTS)


@pytest.mark.parametrize("name", APPLY)
def test_it_passes_the_checks_of_scikit_learn_that_apply(name):
    assert getattr(estimator_checks, name)("SequenceLearner", SequenceLearner()) is None  # it raises where it does not pass


def test_scikit_learn_itself_skips_the_checks_of_numbers():
    with pytest.warns(SkipTestWarning, match="Can't test estimator SequenceLearner which requires input"):
        estimator_checks.check_estimator(SequenceLearner())


@pytest.mark.parametrize(
    "column",
    [
        np.array, lambda t: np.array(t, dtype=object), lambda t: pandas.Series(t, dtype="string"), pandas.Series, polars.Series,
        pyarrow.array, lambda t: pyarrow.chunked_array([t[:1], t[1:]]), lambda t: pandas.DataFrame({"n": t}),
        lambda t: polars.DataFrame({"n": t}), lambda t: pyarrow.table({"n": t}), lambda t: pyarrow.record_batch({"n": t}),
    ],
)  # fmt: skip
def test_columns_of_every_library_are_taken(fitted, column):
    assert fitted.predict(column(INPUTS[:3])).tolist() == fitted.predict(INPUTS[:3]).tolist()
    assert fitted.score(column(INPUTS[:3]), fitted.predict(INPUTS[:3])) == 1.0


def test_scores_and_other_hypotheses(fitted):
    sure = fitted.decision_function(INPUTS[:4])
    assert sure.shape == (4,)
    assert sure.tolist() == [p.score for p in fitted.predictions(INPUTS[:4])]
    several = fitted.predict_nbest(INPUTS[:4], 3)
    assert [len(found) for found in several] == [3] * 4
    for found in several:
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True)
    assert fitted.predictor_.decode.num_return == 1  # the learner's own search is as it was
    with pytest.raises(ConfigError, match="num_beams"):
        fitted.predict_nbest(INPUTS[:1], 1000)


def test_a_file_is_answered_a_batch_at_a_time(fitted, tmp_path, monkeypatch):
    table = write_csv(tmp_path / "ask.csv", [(text,) for text in INPUTS], ("input",))
    expected = fitted.predict(INPUTS).tolist()
    sizes = []
    predict = fitted.predictor_.predict
    monkeypatch.setattr(fitted.predictor_, "predict", lambda rows: sizes.append(len(rows)) or predict(rows))
    answers = fitted.predict_file(str(table), batch_size=10)
    assert inspect.isgenerator(answers)
    first = next(answers)
    assert sizes == [10]
    assert [first.prediction, *(p.prediction for p in answers)] == expected
    assert sizes == [10, 10, 4]


def test_a_row_that_cannot_be_asked_is_named(fitted, tmp_path, capsys):
    table = write_csv(tmp_path / "ask.csv", [("101",), *[(text,) for text in INPUTS], ("",)], ("input",))
    assert len(list(fitted.predict_file(str(table)))) == len(INPUTS) + 1
    assert "ask.csv, line 27: column 'input' is empty" in " ".join(capsys.readouterr().err.split())


def test_what_was_learnt_is_saved_and_loaded(fitted, tmp_path):
    fitted.save(str(tmp_path / "kept"))
    back = SequenceLearner.load(str(tmp_path / "kept"))
    assert back.predictions(INPUTS[:5]) == fitted.predictions(INPUTS[:5])
    assert back.history_ == fitted.history_
    assert seqtune.predict(str(tmp_path / "kept"), INPUTS[:5]) == fitted.predictions(INPUTS[:5])
    with pytest.raises(RunError, match="exists and is not empty; choose another folder"):
        fitted.save(str(tmp_path / "kept"))
    assert not hasattr(clone(back), "predictor_")


def test_an_adapter_says_how_it_is_kept(llama_folder, tmp_path):
    pytest.importorskip("peft")
    learner = SequenceLearner(str(llama_folder), epochs=1, settings=SETTINGS | {"adapter.method": "lora"}).fit(INPUTS, OUTPUTS)
    with pytest.raises(ConfigError, match="an adapter is kept as a run; fit with out=FOLDER, and load that"):
        learner.save(str(tmp_path / "kept"))


def test_results_show_themselves(tmp_path, llama_folder):
    answer = Prediction("1", "<b>", "a & b", "x", -0.5, (), "unfinished")
    shown = Answers([answer] * 60)._repr_html_()
    assert "<td>&lt;b&gt;</td><td>x</td><td>a &amp; b</td><td>-0.500</td><td>unfinished (cut off" in shown
    assert "10 more" in shown
    assert "right answer" not in Answers([Prediction("1", "a", None, "b", 0.0, (), "ok")])._repr_html_()
    score = {"value": 0.5, "low": 0.25, "high": 0.75, "signature": "s"}
    assert "<td>exact match</td><td>0.500 (0.250 to 0.750)</td>" in Scores(num_items=4, exact_match=score)._repr_html_()
    compared = {"a": 0.5, "b": 0.25, "difference": 0.25, "p_value": 0.125, "signature": "s"}
    assert "<td>exact match</td><td>0.5000</td><td>0.2500</td>" in Scores(num_items=4, exact_match=compared)._repr_html_()
    config = load_config(
        overrides={"data.path": str(write_csv(tmp_path / "t.csv", [*pairs(40), *pairs(2)])), "model.name": str(llama_folder)}
    )
    assert "<td>note</td><td>2 training rows repeat" in findings(prepare(config))._repr_html_()


@pytest.mark.slow
def test_a_notebook_runs_from_the_data_to_the_answers(tmp_path, llama_folder):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    write_csv(tmp_path / "pairs.csv", pairs(60))
    cells = [
        "import os; os.environ['HF_HUB_OFFLINE'] = '1'\nimport seqtune",
        "settings = {'model.name': "
        + repr(str(llama_folder))
        + ", 'train.max_steps': 2, 'out': 'run', 'decode.max_new_tokens': 6}",
        "seqtune.fit('pairs.csv', settings=settings | {'data.split': {'validation': 0.0, 'test': 0.2}}, quiet=True)",
        "seqtune.predict('run', ['105', '106'])",
        "seqtune.evaluate('run', 'pairs.csv', quiet=True)",
        "seqtune.compare('run', 'run')",
        "seqtune.SequenceLearner.load('run')",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = ["".join(o.get("data", {}).get("text/html", "") for o in cell.outputs) for cell in book.cells]
    assert all("<table>" in html for html in shown[2:6])
    assert "SequenceLearner" in shown[6]
