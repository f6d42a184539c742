"""Columns that nobody names are found where it is clear which they are, and said."""

from __future__ import annotations

import pytest

from conftest import write_csv
from seqtune.config import load_config
from seqtune.data.columns import with_columns


@pytest.mark.parametrize(
    ("header", "settings", "expected"),
    [
        (("smiles", "iupac"), {}, ("smiles", "iupac")),
        (("id", "Question", "answer"), {}, ("Question", "answer")),
        (("prompt", "completion", "source"), {}, ("prompt", "completion")),
        (("word", "phonemes"), {"data.input": "phonemes"}, ("phonemes", "word")),
        (("key", "a", "b"), {"data.id": "key"}, ("a", "b")),
        (("input", "output", "question", "answer"), {}, None),
        (("a", "b", "c"), {}, None),
        (("question", "answer", "source", "target"), {}, None),  # in doubt
        (("a", "b"), {"data.input": "a", "data.output": "b"}, None),
        (("instruction", "output"), {}, None),  # Alpaca
    ],
)
def test_what_is_clear_is_taken(tmp_path, header, settings, expected):
    table = write_csv(tmp_path / "t.csv", [tuple("x" for _ in header)], header=header)
    config = load_config(overrides={"data.path": str(table), **settings})
    named, notes = with_columns(config)
    if expected is None:
        assert (named, notes) == (config, [])
        return
    assert (named.data.input, named.data.output) == expected
    usual = set(expected) & {"Question", "answer", "prompt", "completion"}
    hint = "" if usual else "; if the first line is a row: --set data.header=false"
    assert notes == [f"columns: {expected[0]} -> {expected[1]} (--input and --output name others{hint})"]
    assert with_columns(named) == (named, [])


def test_a_run_remembers_them(tmp_path, llama_folder, capsys):
    from seqtune.cli.app import run_app
    from seqtune.data.tasks import Task

    table = write_csv(tmp_path / "t.csv", [(f"word {n}", f"answer {n}") for n in range(40)], header=("question", "answer"))
    run = tmp_path / "run"
    asked = ["fit", "--data", str(table), "--model", str(llama_folder), "--out", str(run)]
    more = ["train.max_steps=1", "decode.max_new_tokens=2", "data.split.validation=0"]
    assert run_app([*asked, *(word for text in more for word in ("--set", text))]) == 0
    assert "columns: question -> answer" in capsys.readouterr().err
    assert (Task.load(run / "task.yaml").input, load_config(run / "config.yaml").data.output) == ("question", "answer")
    assert run_app(["evaluate", str(run), str(table), "--out", str(tmp_path / "again")]) == 0
