"""From a configuration to rows: pure steps, nothing held out is lost, and a resumed run notices every table."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import build_model, build_tokenizer, pairs, write_csv
from seqtune.config import load_config
from seqtune.errors import DataError, RunError
from seqtune.procedures import check
from seqtune.procedures.findings import findings
from seqtune.procedures.fit import fit
from seqtune.records import Encoded, Rejected
from seqtune.scoring.evaluate import read_predictions
from seqtune.tokens import preparation
from seqtune.tokens.preparation import prepare


def config_for(folder, rows, model, **more):
    table = write_csv(folder / "pairs.csv", rows)
    return load_config(overrides={"data.path": str(table), "model.name": str(model), "out": str(folder / "run"), **more})


def test_the_steps_of_a_vocabulary_leave_earlier_values_alone(tmp_path):
    """Pieces, then trimming: rows encoded anew by the final encoder are the prepared ones, so an id has one meaning."""
    base = tmp_path / "gpt2"
    tokenizer = build_tokenizer("gpt2")
    build_model("gpt2", len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = [(f"C=CC=C{i}", f"{i}-xylene-oxidanyl") for i in range(80)]
    prepared = prepare(config_for(tmp_path, rows, base, **{"model.adapt_vocabulary": 8}))
    vocabulary = prepared.vocabulary
    assert len(vocabulary.added) > 0
    assert vocabulary.kept is not None
    assert vocabulary.size == len(vocabulary.kept) == prepared.encoder.vocab_size < len(tokenizer) + 8
    anew = prepared.encoder.encode(prepared.prompts)
    for row, again in zip(prepared.encoded, anew, strict=True):
        assert isinstance(again, Encoded)
        np.testing.assert_array_equal(row.input_ids, again.input_ids)
    model = build_model("gpt2", len(tokenizer))
    prepared.vocabulary.apply(model)
    assert model.config.vocab_size == vocabulary.size


def test_a_sorted_table_is_judged_by_rows_from_all_of_it(tmp_path, monkeypatch, llama_folder):
    monkeypatch.setattr(preparation, "NUM_COUNTED", 10)
    config = config_for(tmp_path, [(f"{i:03d}", "x") for i in range(100)], llama_folder)
    examples = prepare(config).examples["train"]
    inputs = preparation._texts(examples, 10)[::2]
    assert len(inputs) <= 10
    assert max(inputs) > "085"
    assert preparation._texts(examples, len(examples)) == [t for e in examples for t in (e.input, e.output)]


def test_test_rows_that_are_too_long_stay_and_count_as_wrong(tmp_path, llama_folder):
    rows = [*pairs(60), *((f"{i} " * 80, "long") for i in range(20, 30))]
    more = {
        "model.max_length": 100,
        "data.split.test": 0.5,
        "data.max_rejected": 1.0,
        "train.max_steps": 1,
        "decode.max_new_tokens": 4,
    }
    config = config_for(tmp_path, rows, llama_folder, **more)
    dealt = preparation.read_splits(config, [])
    too_long = {e.id for e in dealt["test"] if e.output == "long"}
    assert too_long
    prepared = prepare(config)
    assert {e.id for e in prepared.examples["test"]} == {e.id for e in dealt["test"]}
    found = [f.text for f in findings(prepared) if "cannot be answered and count as wrong" in f.text]
    assert found
    assert found[-1].startswith(f"{len(too_long)} test rows")
    fitted = fit(config, quiet=True)
    assert fitted.metrics is not None
    assert fitted.metrics["num_items"] == len(dealt["test"])
    assert {p.id for p in read_predictions(fitted.folder) if p.status == "too_long"} == too_long
    assert fitted.metrics["status"]["too_long"] == len(too_long)


def test_resume_notices_another_validation_table(tmp_path, llama_folder, monkeypatch):
    held_out = write_csv(tmp_path / "held.csv", pairs(130)[100:])
    more = {"data.validation_path": str(held_out), "train.max_steps": 1, "data.split.test": 0.0, "train.batch_size": 16}
    config = config_for(tmp_path, pairs(60), llama_folder, **more)
    monkeypatch.setattr("seqtune.runs.finish", lambda *_: None)  # begun, not complete
    fit(config, quiet=True)
    write_csv(held_out, pairs(140)[120:])
    with pytest.raises(RunError, match="--resume needs the data that the run began with"):
        fit(config, resume=True, quiet=True)


def test_a_table_that_is_mostly_broken_says_so_first(tmp_path, llama_folder):
    """It once ended in "no row is left to train on: 1 rows", which named neither the file nor the rows."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n{"input": "a"\n{"input": 5\n')
    config = load_config(overrides={"data.path": str(path), "model.name": str(llama_folder)})
    with pytest.raises(DataError, match=r"^2 of 3 rows cannot be used.*; first: .*t\.jsonl, line 2: not JSON \("):
        prepare(config)


def test_reasons_keep_their_digits_and_are_counted_together(tmp_path):
    reasons = ["column 'a' is not valid UTF-8 (byte 0xfc)"] * 2 + [
        "3 cells where the header has 2",
        "5 cells where the header has 2",
    ]
    counted = preparation._by_reason([Rejected("t.csv", 1, reason) for reason in reasons])
    assert counted == {"column 'a' is not valid UTF-8 (byte 0xfc)": 2, "3 cells where the header has 2": 2}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_check_shows_characters_of_several_tokens_whole(tmp_path, family):
    tokenizer = build_tokenizer(family)
    build_model(family, len(tokenizer)).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    prepared = prepare(
        config_for(tmp_path, [("三月 1", "مرحبا 😀")] * 9, tmp_path / "m", **{"data.split": {"test": 0, "validation": 0}})
    )
    pieces = check.tokens(prepared.encoded[0], prepared.encoder)
    read, written = ("".join(text for text, loss in pieces if loss is side) for side in (False, True))
    assert "\ufffd" not in read + written
    assert "三月 1" in read
    assert "مرحبا 😀" in written
