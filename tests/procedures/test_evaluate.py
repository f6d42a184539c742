"""From a run to scores: what `fit` scored is what `predict` and `evaluate` answer; nothing decoded is thrown away."""

from __future__ import annotations

import csv
import io
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch

from conftest import pairs, write_csv
from seqtune import plugins
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.decoding.predictor import Predictor, decode_settings
from seqtune.errors import ConfigError, DataError, MissingDependencyError
from seqtune.plugins import TaskPlugin
from seqtune.procedures import evaluate as procedure
from seqtune.procedures.evaluate import Questions, answer_and_score, evaluate
from seqtune.procedures.export import Order, export
from seqtune.procedures.fit import fit
from seqtune.records import Example
from seqtune.scoring.evaluate import read_predictions
from seqtune.sections import DataConfig

HEADER = ("number", "kind", "words")


@pytest.fixture(scope="module")
def run(tmp_path_factory, llama_folder) -> Path:
    """A run of two beams whose template reads a second column."""
    folder = tmp_path_factory.mktemp("evaluate")
    rows = [(text, "odd" if int(text) % 2 else "even", words) for text, words in pairs(120)]
    config = load_config(
        overrides={
            "data.path": str(write_csv(folder / "pairs.csv", rows, HEADER)), "data.input": "number", "data.output": "words",
            "data.split.test": 0.2, "format.template": "{kind} {input}", "model.name": str(llama_folder),
            "train.max_steps": 3, "train.batch_size": 16, "decode.num_beams": 2, "decode.num_return": 2,
            "decode.max_new_tokens": 6, "out": str(folder / "run"),
        }
    )  # fmt: skip
    fit(config, quiet=True)
    return folder / "run"


def test_a_run_answers_as_it_was_scored(run):
    stored = read_predictions(run)
    predictor = Predictor.of_run(str(run))
    assert predictor.decode.num_beams == 2
    again = predictor.predict([Example(p.id, p.input, p.reference, p.fields) for p in stored])
    assert again == stored


def test_fit_scores_with_the_weights_that_decode_asks_for(run, tmp_path, monkeypatch):
    used = []

    def answer(predictor, *arguments, **options):
        used.append(predictor.model.dtype)
        return answer_and_score(predictor, *arguments, **options)

    monkeypatch.setattr("seqtune.procedures.fit.answer_and_score", answer)
    config = load_config(run / "config.yaml", {"decode.weights": "bfloat16", "out": str(tmp_path / "run")})
    fit(config, quiet=True)
    assert used == [torch.bfloat16]
    predictor = Predictor.of_run(str(tmp_path / "run"))
    stored = read_predictions(tmp_path / "run")
    assert predictor.predict([Example(p.id, p.input, p.reference, p.fields) for p in stored]) == stored


def test_what_the_command_line_says_wins_over_the_runs_own_settings(run):
    assert decode_settings(str(run), {"num_beams": 5}).num_beams == 5
    assert decode_settings(str(run), {"num_beams": 5}).max_new_tokens == 6
    assert decode_settings(str(run), {"num_beams": 1}).num_return == 1
    with pytest.raises(ConfigError, match="num_return 2 is more than num_beams 1"):
        decode_settings(str(run), {"num_beams": 1, "num_return": 2})
    with pytest.raises(ConfigError, match=r"decode.num_beam: unknown key; did you mean 'num_beams'"):
        decode_settings(str(run), {"num_beam": 1})


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_a_setting_that_a_verb_does_not_use_is_refused(verb, run, capsys):
    assert run_app([verb, str(run), "x", "--set", "train.epochs=3"]) == 1
    error = capsys.readouterr().err
    assert f"--set train.epochs: `seqtune {verb}` does not use it" in error
    assert "decode.*" in error


def test_predictions_keep_the_columns_that_the_template_needs(run, tmp_path):
    for prediction in read_predictions(run):
        assert prediction.fields == {"kind": "odd" if int(prediction.input) % 2 else "even"}
    facts = export(run, tmp_path / "exported", Order(num_verified=5))
    assert facts["num_different"] == 0


def test_answers_stand_beside_the_tables_own_columns(run, tmp_path, capsys):
    rows = [("101", "odd", "x, y"), ("", "even", ""), ("102", "even", "z")]
    table = write_csv(tmp_path / "ask.csv", rows, ("number", "kind", "note"))
    assert run_app(["predict", str(run), "--file", str(table), "--out", str(tmp_path / "out.csv"), "--num-return", "2"]) == 0
    assert f"2 answers: {tmp_path / 'out.csv'}\n" in capsys.readouterr().err
    with (tmp_path / "out.csv").open(newline="") as handle:
        found = list(csv.DictReader(handle))
    assert [(r["number"], r["kind"], r["note"]) for r in found] == [rows[0], rows[2]]
    assert {"prediction", "prediction_2", "log_probability_2", "status"} <= found[0].keys()
    assert "id" not in found[0]


def test_a_text_alone_is_refused_where_the_template_needs_a_column(run, capsys, tmp_path):
    assert run_app(["predict", str(run), "101"]) == 1
    error = capsys.readouterr().err
    assert "needs the column 'kind' beside the input" in error
    assert "--file" in error
    table = write_csv(tmp_path / "ask.csv", [("101", "odd"), ("102", "even")], ("number", "kind"))
    assert run_app(["predict", str(run), "--file", str(table)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4  # two answers each
    table = write_csv(tmp_path / "ask.csv", [("101",)], ("number",))
    assert run_app(["predict", str(run), "--file", str(table)]) == 1
    assert "the template uses {kind}, which is no column" in capsys.readouterr().err


def test_a_runs_own_test_rows_can_be_asked_again_another_way(run, tmp_path):
    greedy = evaluate(str(run), Questions(str(run), decode={"num_beams": 1}), tmp_path, quiet=True)
    stored, again = read_predictions(run), read_predictions(tmp_path)
    assert [(p.id, p.input, p.reference, p.fields) for p in again] == [(p.id, p.input, p.reference, p.fields) for p in stored]
    assert greedy["num_items"] == len(stored)
    assert {len(p.hypotheses) for p in again} == {1}


def test_nothing_that_is_read_or_scored_is_replaced(run, tmp_path, capsys):
    before = (run / "metrics.json").read_bytes()
    assert run_app(["evaluate", str(run), str(run), "--out", str(run)]) == 1
    assert "is a run's folder, and its own scores lie in it; choose another --out" in capsys.readouterr().err
    assert (run / "metrics.json").read_bytes() == before
    foreign = tmp_path / "metrics.json"
    foreign.write_text("of another tool")
    assert run_app(["evaluate", str(run), str(run), "--out", str(tmp_path)]) == 1
    assert "holds metrics.json, and no .seqtune-evaluation that would say that seqtune wrote it" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    assert foreign.read_text() == "of another tool"
    foreign.unlink()
    for _ in range(2):  # its own it replaces, also beside files of others
        (tmp_path / "notes.txt").write_text("mine")
        assert run_app(["evaluate", str(run), str(run), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"
    capsys.readouterr()
    table = write_csv(tmp_path / "ask.csv", [("101", "odd")], ("number", "kind"))
    assert run_app(["predict", str(run), "--file", str(table), "--out", str(table)]) == 1
    assert "is the table that is read; name another file" in capsys.readouterr().err


def test_a_predictor_of_a_plain_task_can_be_pickled(llama_folder):
    """As scikit-learn's tools do with a fitted estimator."""
    predictor = Predictor.of_run(str(llama_folder), {"max_new_tokens": 3})
    again = pickle.loads(pickle.dumps(predictor))
    assert again.predict([Example("1", "12", None)]) == predictor.predict([Example("1", "12", None)])


def test_a_number_of_examples_is_a_nested_sample_and_not_the_first_rows(run, tmp_path):
    table = write_csv(tmp_path / "more.csv", [(str(i), "odd", "x") for i in range(40)], HEADER)

    def asked(count: int) -> list[str]:
        settings = DataConfig(num_examples=count)
        evaluate(str(run), Questions(str(table), settings=settings, decode={"num_beams": 1}), tmp_path / str(count), quiet=True)
        return [p.input for p in read_predictions(tmp_path / str(count))]

    few, more = asked(4), asked(8)
    assert set(few) < set(more)
    assert few != [str(i) for i in range(4)]


class Broken:
    """Metrics that fail once they are asked."""

    primary = "broken"
    against_reference = ()

    @property
    def signatures(self) -> dict[str, str]:
        return {"broken": "v1"}

    def judge(self, *_: object) -> None:
        raise DataError("the pack's metrics failed")


def test_answers_are_on_disk_before_they_are_scored(run, tmp_path, monkeypatch):
    pack = TaskPlugin("number", "words", metrics="broken")
    monkeypatch.setattr(plugins, "find", lambda kind, name: Broken if kind == "metrics" else pack)
    with pytest.raises(DataError, match="the pack's metrics failed"):
        evaluate(str(run), Questions(str(run), task="any", baselines=False), tmp_path, quiet=True)
    assert [p.input for p in read_predictions(tmp_path)] == [p.input for p in read_predictions(run)]


def test_a_missing_package_shows_before_the_work(run, llama_folder, tmp_path, monkeypatch):
    def find(kind: str, name: str) -> object:
        if kind == "tasks":
            return TaskPlugin("number", "words", metrics="any")
        raise MissingDependencyError("rdkit", "chem", "structures")

    monkeypatch.setattr(plugins, "find", find)
    monkeypatch.setattr(Predictor, "predict", lambda *_: pytest.fail("decoded before it was looked for"))
    monkeypatch.setattr("seqtune.procedures.fit._train", lambda *_, **__: pytest.fail("trained before it was looked for"))
    with pytest.raises(MissingDependencyError, match="rdkit"):
        evaluate(str(run), Questions(str(run), task="any"), tmp_path, quiet=True)
    overrides = {
        "task": "any",
        "data.path": str(run.parent / "pairs.csv"),
        "model.name": str(llama_folder),
        "out": str(tmp_path / "new"),
    }
    with pytest.raises(MissingDependencyError, match="rdkit"):
        fit(load_config(overrides=overrides), quiet=True)
    assert not (tmp_path / "new").exists()


def test_a_plain_task_does_not_read_the_training_table(run, tmp_path, monkeypatch):
    monkeypatch.setattr(procedure, "training_rows", lambda _: pytest.fail("nothing needs it"))
    assert evaluate(str(run), Questions(str(run)), quiet=True)["num_items"] == len(read_predictions(run))


def test_a_byte_that_is_no_text_costs_one_answer(llama_folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"12\n\xff3\n45\n"), encoding="utf-8"))
    assert run_app(["predict", str(llama_folder), "--max-new-tokens", "3", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["status"] == "invalid_text" for r in records] == [False, True, False]
    assert records[1]["prediction"] == ""
