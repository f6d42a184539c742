"""What people and programs write into settings, tables and predictions: a clear error or the right thing, never a traceback."""

from __future__ import annotations

import csv
import json

import pytest

from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.errors import ConfigError, DataError
from seqtune.records import Prediction
from seqtune.report.answer_table import write_answer_table
from seqtune.scoring.evaluate import read_predictions
from seqtune.yaml_files import parse_override, read_yaml_mapping


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 5000, "a: 2024-13-45", "a: !!python/object:os.system x", "a: \udcff", "a: &x [*x, *y]"]
)
def test_yaml_that_cannot_be_read(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_yaml_mapping(file, "config")


@pytest.mark.parametrize("value", ["[" * 5000, "2024-13-45", "!!python/object:os.system x"])
def test_a_value_that_is_no_yaml(value):
    with pytest.raises(ConfigError, match="the value is not YAML"):
        parse_override(f"train.epochs={value}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.seed", -1), ("train.seed", 2**63), ("data.split.seed", -1), ("train.epochs", 1e30), ("train.epochs", float("inf")),
        ("train.learning_rate", float("inf")), ("train.learning_rate", float("nan")), ("train.max_minutes", float("inf")),
    ],
)  # fmt: skip
def test_numbers_that_nothing_can_be_done_with(key, value):
    with pytest.raises(ConfigError, match=f"{key} = "):
        load_config(overrides={key: value})


@pytest.mark.parametrize("score", ["abc", [1], {"a": 1}])
def test_a_score_that_is_no_number(tmp_path, score):
    file = tmp_path / "predictions.jsonl"
    file.write_text(json.dumps({"id": "1", "prediction": "a", "reference": "a", "score": score}) + "\n")
    with pytest.raises(DataError, match="line 1: 'score'"):
        read_predictions(str(file))


def test_a_table_for_spreadsheets_holds_no_formulas(tmp_path):
    texts = ["=1+1", "+1", "-2.5", "@SUM(A1)", "-cmd|' /C calc'!A0", "\tx", "CC=O", "-"]
    rows = [Prediction(str(i), t, None, t, -1.5, (), "ok", {"verdict": t}) for i, t in enumerate(texts)]
    write_answer_table(tmp_path / "a.csv", rows)
    with (tmp_path / "a.csv").open(newline="") as handle:
        read = list(csv.DictReader(handle))
    safe = ["'=1+1", "+1", "-2.5", "'@SUM(A1)", "'-cmd|' /C calc'!A0", "'\tx", "CC=O", "'-"]
    assert [row["prediction"] for row in read] == [row["verdict"] for row in read] == safe
    assert {row["log_probability"] for row in read} == {"-1.5000"}
    write_answer_table(tmp_path / "b.tsv", rows, escape=False)
    with (tmp_path / "b.tsv").open(newline="") as handle:
        assert [row["prediction"] for row in csv.DictReader(handle, delimiter="\t")] == texts


def test_predict_writes_such_a_table(run, tmp_path, monkeypatch):
    monkeypatch.setattr("seqtune.data.templates.Template.answer", lambda *_: "=HYPERLINK(1)")
    for flag, expected in (([], "'=HYPERLINK(1)"), (["--no-escape"], "=HYPERLINK(1)")):
        assert run_app(["predict", str(run), "100", "--out", str(tmp_path / "a.csv"), *flag]) == 0
        assert expected in next(csv.reader((tmp_path / "a.csv").open().readlines()[1:]))
