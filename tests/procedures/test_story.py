"""What `fit` tells: what it does, how good the result is and against what, five answers, and what can be done next."""

from __future__ import annotations

import re

import pytest

from conftest import pairs, write_csv
from seqtune.cli.app import answer_text, run_app
from seqtune.config import load_config
from seqtune.data.tasks import Task
from seqtune.procedures.story import ending
from seqtune.records import Prediction
from seqtune.runs import write_json, write_predictions
from seqtune.scoring.evaluate import evaluate


def test_the_sentence_says_what_the_score_is_to_be_compared_with(tmp_path):
    """Three baselines by hand: 2 of 8 references are their input, 4 of 8 are the most frequent training output."""
    table = write_csv(tmp_path / "t.csv", [("a", "no")] * 3 + [("b", "yes")])
    overrides = {"data.path": str(table), "data.split": {"test": 0, "validation": 0}, "model.init": "random"}
    config = load_config(overrides=overrides)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    Task.from_config(config).save(tmp_path / "task.yaml")
    references = ["no"] * 4 + ["c", "d", "e", "f"]
    inputs = ["x"] * 4 + [" c ", "d", "x", "x"]
    rows = [
        Prediction(str(i), text, right, "no", -1.0, (), "ok")
        for i, (text, right) in enumerate(zip(inputs, references, strict=True))
    ]
    write_predictions(tmp_path / "predictions.jsonl", rows)
    write_json(tmp_path / "metrics.json", evaluate(rows))
    found = ending(tmp_path)
    assert found is not None
    assert found.baselines == {"copying the input": 0.25, "always the most frequent answer": 0.5}
    assert found.sentence.startswith(
        "50.0% of 8 held-out answers are exactly right (95% interval 21.5% to 78.5%), edit similarity "
    )
    assert found.sentence.endswith("; copying the input: 25.0%, always the most frequent answer: 50.0%.")
    assert len({p.id for p in found.samples}) == 5
    table.unlink()
    gone = config.model_copy(update={"model": config.model.model_copy(update={"init": "pretrained", "name": "./gone"})})
    (tmp_path / "config.yaml").write_text(gone.to_yaml())
    again = ending(tmp_path)
    assert again is not None
    assert again.baselines == {"copying the input": 0.25}


@pytest.mark.parametrize(
    ("prediction", "reference", "line"),
    [
        ("1999-05-03", "1999-05-03", "  right  in  ->  1999-05-03"),
        ("1999-05-03", "1999-03-05", "  WRONG  in  ->  1999-0[-5-]{+3+}-0[-3-]{+5+}"),
        ("[red]", "[red]x", "  WRONG  in  ->  [red]{+x+}"),
        ("", "a", "  WRONG  in  ->  {+a+}"),
    ],
)
def test_an_answer_shows_where_it_differs(prediction, reference, line):
    shown = answer_text(Prediction("1", "in", reference, prediction, 0.0, (), "ok"), plain=True)
    assert shown.plain == line
    assert "[-" not in answer_text(Prediction("1", "in", reference, prediction, 0.0, (), "ok"), plain=False).plain


def test_fit_tells_its_story(llama_folder, tmp_path, capsys):
    rows = [*pairs(90), ("", "nothing"), (pairs(90)[-1][0], "something else")]
    table = write_csv(tmp_path / "t.csv", rows)
    flags = ["--set", "train.max_steps=2", "--set", "train.max_minutes=9", "--set", "data.split.test=0.3"]
    run = tmp_path / "run"
    assert run_app(["fit", "--data", str(table), "--model", str(llama_folder), "--out", str(run), *flags]) == 0
    out, err = capsys.readouterr()
    first, second, *_ = err.splitlines()
    assert first.startswith(f"fine-tuning {llama_folder} on {table} (")
    assert first.endswith(" kB), input -> output")
    assert second.startswith("92 rows: ")
    assert second.endswith(" test, 1 rejected")
    assert "warning: 1 of 92 rows cannot be used; first: " in err
    assert "stops after 9 minutes, or after 2 steps of 2,048 tokens, if they take less" in err
    assert "exact match 0.000, edit similarity 0." in err
    assert "held-out answers are exactly right (95% interval" in out
    assert "the base model (" in out
    assert "5 held-out rows, drawn by hash:" in out
    assert f"report with every wrong answer: {run}/report.html" in out
    assert (run / "report.html").exists()
    assert f"  seqtune predict {run} TEXT\n  seqtune serve {run}\n" in out
    assert f"  seqtune fit {run}/config.yaml --model {run} --out {run}-longer\n" in out
    assert "rouge" not in out
    again = ["fit", str(run / "config.yaml"), "--resume", "--verbose"]
    assert run_app(again) == 0
    assert "rouge1" in capsys.readouterr().out


def test_fit_says_how_long_it_will_take_once_it_knows(llama_folder, tmp_path, capsys):
    """Measured, not guessed: by two steps with no validation between; where the time is given, the plan says it beforehand."""
    table = write_csv(tmp_path / "t.csv", pairs(90))
    begin = ["fit", "--data", str(table), "--model", str(llama_folder)]
    assert run_app([*begin, "--out", str(tmp_path / "run"), "--set", "train.max_steps=40"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "by the speed of" in line]
    assert len(lines) == 1
    said = r"0:\d\d for the other \d\d steps, by the speed of the last 2; validations come on top"
    assert re.fullmatch(said, lines[0])
    limits = ["--set", "train.max_steps=5", "--set", "train.max_minutes=9"]
    assert run_app([*begin, "--out", str(tmp_path / "timed"), *limits]) == 0
    assert "by the speed of" not in capsys.readouterr().err
