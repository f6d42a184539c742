"""Tasks with a set of answers, from the table to the scores."""

from __future__ import annotations

import json

import pytest

from conftest import write_csv
from seqtune.cli.app import run_app
from seqtune.config import Config, load_config
from seqtune.data.tasks import Task
from seqtune.errors import ConfigError
from seqtune.procedures.findings import findings
from seqtune.procedures.fit import fit
from seqtune.runs import read_json
from seqtune.scoring.evaluate import read_predictions
from seqtune.tokens.preparation import prepare

CLASSES = ["low", "middle", "high"]


def rows(number: int) -> list[tuple[str, str]]:
    return [(str(n), CLASSES[min(2, n % 10 // 4)]) for n in range(100, 100 + number)]


def settings(folder, model, **changes) -> Config:
    table = folder / "pairs.csv"
    if not table.exists():
        write_csv(table, rows(200))
    overrides = {
        "data.path": str(table), "model.name": str(model), "out": str(folder / "run"), "train.max_steps": 40,
        "train.batch_size": 16, "data.split": {"validation": 0.1, "test": 0.2}, "format.answers": CLASSES,
        "format.ordered": True,
    }  # fmt: skip
    return load_config(overrides=overrides | changes)


@pytest.fixture(scope="module")
def finished(llama_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    fit(settings(folder, llama_folder), quiet=True)
    return folder / "run"


def test_a_run_scores_classes_and_keeps_what_it_chose_among(finished, capsys):
    metrics = read_json(finished / "metrics.json")
    assert {"macro_f1", "matthews", "quadratic_kappa", "within_1", "calibration_error", "log_loss"} <= {*metrics}
    assert Task.load(finished / "task.yaml").answers == tuple(CLASSES)
    for prediction in read_predictions(finished):
        assert sorted(h.text for h in prediction.hypotheses) == sorted(CLASSES)
        assert 1 / 3 <= float(prediction.details["probability"]) <= 1
    # the same scores from the file alone, with the run's task; without it the answers are free text
    assert run_app(["score", str(finished / "predictions.jsonl"), "--task", str(finished / "task.yaml"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["quadratic_kappa"] == metrics["quadratic_kappa"]
    assert run_app(["score", str(finished / "predictions.jsonl"), "--json"]) == 0
    assert "macro_f1" not in json.loads(capsys.readouterr().out)


def test_predict_gives_one_of_the_answers(finished, capsys):
    assert run_app(["predict", str(finished), "155", "never seen", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(p["prediction"] in CLASSES and p["status"] == "ok" for p in found)
    assert run_app(["predict", str(finished), "155", "--engine", "ctranslate2"]) == 1
    assert "format.answers needs 'native'" in capsys.readouterr().err


def test_answers_can_be_those_of_the_training_rows(tmp_path, llama_folder):
    prepared = prepare(settings(tmp_path, llama_folder, **{"format.answers": "training", "format.ordered": False}))
    assert prepared.task.answers == ("high", "low", "middle")
    assert any("answers: the likeliest of 3 ('high', 'low', 'middle')" in note for note in prepared.notes)


def test_few_outputs_are_said_to_be_a_set(tmp_path, llama_folder):
    prepared = prepare(settings(tmp_path, llama_folder, **{"format.answers": None, "format.ordered": False}))
    assert any("3 different values ('high', 'low', 'middle'): with --set format.answers=training" in n for n in prepared.notes)


def test_too_many_outputs_are_no_set(tmp_path, llama_folder, monkeypatch):
    monkeypatch.setattr("seqtune.tokens.preparation.MOST_ANSWERS", 2)
    with pytest.raises(ConfigError, match="training rows have 3 different outputs; a set of answers has 2 to 2"):
        prepare(settings(tmp_path, llama_folder, **{"format.answers": "training", "format.ordered": False}))


def test_check_names_references_from_outside(tmp_path, llama_folder):
    config = settings(tmp_path, llama_folder, **{"format.answers": CLASSES[:2], "format.ordered": False})
    found = [f.text for f in findings(prepare(config))]
    assert any(
        "test rows have an output that is none of the answers, and count as wrong; first: line" in text for text in found
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format.answers": ["one"]}, "two or more different texts, none of them blank"),
        ({"format.answers": ["a", "a "]}, "two or more different texts, none of them blank"),
        ({"format.answers": ["a", " "]}, "two or more different texts, none of them blank"),
        ({"format.answers": "training", "format.ordered": True}, "format.ordered needs format.answers as a list"),
        ({"format.answers": ["a", "b"], "decode.engine": "vllm"}, "format.answers needs 'native' or 'auto'"),
        ({"format.answers": ["a", "b"], "decode.engine": "mine:own"}, "format.answers needs 'native' or 'auto'"),
    ],
)
def test_settings_that_make_no_set_are_refused(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(overrides=changes)
