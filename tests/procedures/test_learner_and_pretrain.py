"""The scikit-learn face, pretraining, the embedded base and the demonstration's data."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import polars
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

import seqtune
from conftest import pairs, write_csv
from seqtune import SequenceLearner
from seqtune.errors import DataError, MissingDependencyError, RunError
from seqtune.models.loading import load_model, load_tokenizer
from seqtune.models.location import builtin_path
from seqtune.procedures.pretrain import (
    Shape,
    bits_per_byte,
    pretrain,
    read_documents,
    rows_of,
    split_documents,
    train_tokenizer,
)
from seqtune.sections import ModelConfig, TrainConfig
from seqtune.training.loop import Trainer

INPUTS, OUTPUTS = map(list, zip(*pairs(40), strict=True))


def learner(folder, **settings):
    return SequenceLearner(str(folder), settings={"train.batch_size": 8, "decode.max_new_tokens": 16}, **settings)


def test_learner_fits_predicts_scores(llama_folder):
    model = learner(llama_folder, epochs=1)
    with pytest.raises(NotFittedError):
        model.predict(["1"])
    assert model.fit(INPUTS, OUTPUTS) is model
    predictions = model.predict(INPUTS[:5])
    assert predictions.shape == (5,)
    assert model.score(INPUTS[:5], OUTPUTS[:5]) == np.mean([p == o for p, o in zip(predictions, OUTPUTS, strict=False)])


def test_learner_clones_and_searches(llama_folder):
    model = learner(llama_folder, epochs=1, learning_rate=1e-3)
    copy = clone(model).set_params(epochs=2)
    assert copy.get_params()["epochs"] == 2
    assert model.get_params()["epochs"] == 1
    search = GridSearchCV(model, {"seed": [0, 1]}, cv=2).fit(INPUTS[:12], OUTPUTS[:12])
    assert len(search.cv_results_["mean_test_score"]) == 2
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()


def test_learner_names_bad_input(llama_folder):
    with pytest.raises(DataError, match="40 inputs but 39 outputs"):
        learner(llama_folder).fit(INPUTS, OUTPUTS[:-1])
    with pytest.raises(DataError, match=r"inputs\[1\] is a int; every entry must be a text"):
        learner(llama_folder).fit(["a", 3], ["b", "c"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("CCO", r"inputs is a single text, 'CCO'; give a list of texts: \['CCO'\]"),
        (polars.DataFrame({"a": ["x"], "b": ["y"]}), "inputs is a frame without a column 'input'; .* columns: a, b"),
        (polars.DataFrame({"input": [1]}), r"inputs\[0\] is a int; every entry must be a text"),
    ],
)
def test_learner_says_what_inputs_are_meant(llama_folder, inputs, message):
    with pytest.raises(DataError, match=message):
        learner(llama_folder).fit(inputs, ["ethanol"])


def test_learner_takes_a_column_or_the_columns_of_a_template(llama_folder):
    frame = polars.DataFrame({"smiles": INPUTS})
    plain = learner(llama_folder, epochs=1).fit(frame, polars.Series(OUTPUTS))
    expected = plain.predict(INPUTS[:3]).tolist()
    assert plain.predict(frame[:3]).tolist() == plain.predict(np.array(INPUTS[:3])[:, None]).tolist() == expected
    several = polars.DataFrame({"input": INPUTS, "kind": ["a", "b"] * 20})
    model = learner(llama_folder, epochs=1, template="{kind}: {input}").fit(several, OUTPUTS)
    assert [p.fields for p in model.predictions(several[:2])] == [{"kind": "a"}, {"kind": "b"}]


def test_a_fitted_learner_can_be_kept_in_every_way(llama_folder, tmp_path):
    model = learner(llama_folder, epochs=1, num_beams=2, max_minutes=5, out=str(tmp_path / "run")).fit(INPUTS, OUTPUTS)
    assert model.history_[-1]["step"] == 5
    expected = model.predictions(INPUTS[:3])
    joblib.dump(model, tmp_path / "model.joblib")
    copies = [
        pickle.loads(pickle.dumps(model)),
        joblib.load(tmp_path / "model.joblib"),
        SequenceLearner.load(str(tmp_path / "run")),
    ]
    for copy in copies:
        assert copy.predictions(INPUTS[:3]) == expected
        assert copy.history_ == model.history_
    with pytest.raises(NotFittedError):
        clone(model).predict(INPUTS[:1])


def test_verbs_are_functions_too(llama_folder, tmp_path):
    table = write_csv(tmp_path / "t.csv", pairs(60))
    settings = {
        "model.name": str(llama_folder), "train.max_steps": 2, "out": str(tmp_path / "run"), "data.split.test": 0.3,
        "decode.max_new_tokens": 6,
    }  # fmt: skip
    fitted = seqtune.fit(str(table), settings=settings, quiet=True)
    assert fitted.metrics is not None
    found = seqtune.predict(str(fitted.folder), ["12", "13"], num_beams=2, num_return=2)
    assert [len(p.hypotheses) for p in found] == [2, 2]
    assert seqtune.evaluate(str(fitted.folder), str(fitted.folder), quiet=True) == fitted.metrics
    assert seqtune.compare(str(fitted.folder), str(fitted.folder))["exact_match"]["p_value"] == 1.0
    assert (Path(seqtune.__file__).parent / "py.typed").exists()


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    words = "the quick brown fox jumps over a lazy dog while seven wizards box".split()
    generator = np.random.default_rng(0)
    path.write_text("\n\n".join(" ".join(generator.choice(words, 30)) + "." for _ in range(600)))
    return path


def test_pretrain_beats_random_and_writes_a_usable_base(corpus, tmp_path, llama_folder):
    shape = Shape(vocab_size=300, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, row_length=64)
    out = tmp_path / "base"
    facts = pretrain([corpus], out, shape, TrainConfig(epochs=2, token_budget=1024))
    assert facts["bits_per_byte"] < 0.7 * facts["bits_per_byte_random_init"]
    assert json.loads((out / "pretraining.json").read_text())["num_parameters"] == facts["num_parameters"]
    model, tokenizer = load_model(ModelConfig(name=str(out)), 0), load_tokenizer(ModelConfig(name=str(out)))
    assert model.config.vocab_size == len(tokenizer) == 300
    assert not (out / "work").exists()
    for resume in (False, True):
        with pytest.raises(RunError, match="exists, and there is no unfinished pretraining in it; choose another --out"):
            pretrain([corpus], out, shape, TrainConfig(), resume=resume)


SMALL = Shape(vocab_size=300, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, row_length=64)


@pytest.fixture
def interrupted(corpus, tmp_path, monkeypatch) -> Path:
    """A folder in which pretraining was stopped after 4 steps."""
    take_step = Trainer._step

    def step(self, number):
        take_step(self, number)
        if self.state.step == 4:
            self.interruption.note(2)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        with pytest.raises(RunError, match="interrupted at step 4; the same command with --resume goes on"):
            pretrain([corpus], tmp_path / "base", SMALL, BRIEF)
    return tmp_path / "base"


BRIEF = TrainConfig(max_steps=8, token_budget=1024, precision="fp32")


def test_resumed_pretraining_is_uninterrupted_to_the_bit_and_leaves_a_plain_base(corpus, tmp_path, interrupted):
    with pytest.raises(RunError, match="holds a pretraining already; go on with --resume, or choose another --out"):
        pretrain([corpus], interrupted, SMALL, BRIEF)
    (interrupted / "work" / "notes.md").write_text("mine")
    pretrain([corpus], interrupted, SMALL, BRIEF, resume=True)
    pretrain([corpus], tmp_path / "whole", SMALL, BRIEF)
    assert (interrupted / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert [p.name for p in (interrupted / "work").iterdir()] == ["notes.md"]
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "pretraining.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_pretraining_goes_on_with_what_it_began_with(corpus, interrupted):
    before = {p: p.read_bytes() for p in interrupted.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match="changed: num_layers: 1 -> 2; max_steps: 8 -> 9"):
        pretrain([corpus], interrupted, replace(SMALL, num_layers=2), BRIEF.model_copy(update={"max_steps": 9}), resume=True)
    corpus.write_text(corpus.read_text().replace("fox", "cat"))
    with pytest.raises(RunError, match="--resume needs the corpus that the pretraining began with"):
        pretrain([corpus], interrupted, SMALL, BRIEF, resume=True)
    assert {p: p.read_bytes() for p in interrupted.rglob("*") if p.is_file()} == before


def test_a_folder_that_is_called_work_is_no_pretraining(corpus, tmp_path):
    project = tmp_path / "project"
    (project / "work").mkdir(parents=True)
    (project / "work" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="there is no unfinished pretraining in it"):
        pretrain([corpus], project, SMALL, BRIEF, resume=True)
    assert [str(p.relative_to(project)) for p in project.rglob("*")] == ["work", "work/thesis.tex"]


def test_some_text_is_held_out_of_every_corpus():
    """1% of 100 paragraphs is none with a chance of e**-1."""
    for start in range(20):
        documents = [f"paragraph {start} {i}" for i in range(100)]
        training, held_out = split_documents(documents)
        assert held_out
        assert sorted(training + held_out) == sorted(documents)
    many = [f"paragraph {i}" for i in range(20_000)]
    assert len(split_documents(many)[1]) == pytest.approx(200, abs=50)  # 3.5 standard deviations


def test_bits_per_byte_by_hand(corpus, llama_folder):
    """A model with equal logits spends log2(vocabulary) bits on every token."""
    tokenizer = train_tokenizer(read_documents([corpus]), 300)
    documents = ["the quick fox", "naïve ½"]
    rows = list(rows_of(documents, tokenizer, 64))
    model = load_model(ModelConfig(name=str(llama_folder)), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    num_tokens = sum(len(r.input_ids) for r in rows) - len(rows)
    expected = num_tokens * math.log2(model.config.vocab_size) / 20
    assert bits_per_byte(model, rows, 20) == pytest.approx(expected, rel=1e-5)


def test_rows_hold_the_whole_stream(corpus):
    documents = read_documents([corpus])
    tokenizer = train_tokenizer(documents, 300)
    rows = list(rows_of(documents, tokenizer, 64))
    stream = np.concatenate([r.input_ids for r in rows]).tolist()
    expected = [i for ids in tokenizer(documents)["input_ids"] for i in [*ids, tokenizer.eos_token_id]]
    assert stream == expected
    assert {len(r.input_ids) for r in rows[:-1]} == {64}


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("one\n\ntwo")
    with pytest.raises(DataError, match="holds 2 different paragraphs"):
        read_documents([tmp_path / "t.txt"])


def test_embedded_base_is_small_safe_and_complete():
    folder = builtin_path("base")
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 8_000_000
    assert not [p for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pkl", ".py")]
    source = ModelConfig()
    model, tokenizer = load_model(source, 0), load_tokenizer(source)
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 4e6
    text = "2,3-bis(oxidanyl)benzoic acid; naïve 北京 ½ \t C[C@@H](N)C(=O)O"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    card = (folder / "README.md").read_text()
    facts = json.loads((folder / "pretraining.json").read_text())
    assert f"{facts['bits_per_byte']:.3f}" in card
    assert "WordNet" in card


def test_embedded_base_knows_english():
    """Bits per byte on a sentence that is not in its corpus, against the same shape at random."""
    source = ModelConfig()
    tokenizer = load_tokenizer(source)
    text = "The committee agreed that the old bridge should be repaired before the winter began."
    rows = list(rows_of([text], tokenizer, 256))
    trained = bits_per_byte(load_model(source, 0), rows, len(text))
    untrained = bits_per_byte(load_model(ModelConfig(init="random"), 0), rows, len(text))
    assert trained < 0.75 * untrained


def test_chemicals_table_is_clean():
    pytest.importorskip("chemicals")
    from seqtune.chem.sources import chemicals_table

    frame, counts = chemicals_table(40, 50)
    assert counts["records"] > 70_000
    assert frame.height == counts["kept"] > 40_000
    assert frame["smiles"].is_unique().all()
    assert frame["iupac"].is_unique().all()
    assert frame["smiles"].str.len_chars().max() <= 40
    assert frame["iupac"].str.len_chars().max() <= 50
    assert (frame["skeleton"].str.len_chars() == 14).all()
    water = frame.filter(frame["smiles"] == "CCO")
    assert water["iupac"].to_list() == ["ethanol"]


def test_missing_extra_names_the_remedy(monkeypatch):
    import importlib.util

    from seqtune.chem.sources import chemicals_table

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'seqtune\[chem\]'"):
        chemicals_table()


def test_demo_runs_from_table_to_verdicts(tmp_path, monkeypatch, capsys):
    """The real verb on a handful of molecules for a few steps; the full one is `make demo`."""
    pytest.importorskip("chemicals")
    import polars

    import seqtune.cli  # noqa: F401 - registers the verbs
    from seqtune.cli.app import run_app
    from seqtune.procedures import demo

    monkeypatch.setattr(demo, "MAX_SMILES", 9)
    monkeypatch.setattr(demo, "NUM_BASE_ROWS", 5)
    monkeypatch.setattr(demo, "MAX_NAME", 15)
    out = tmp_path / "demo"
    assert run_app(["demo", "--out", str(out), "--minutes", "0.03"]) == 0
    text = capsys.readouterr().out
    assert "base model (5 of them)" in text
    assert f"every wrong answer: {out / 'run' / 'report.html'}" in text
    assert "Wrong answers" in (out / "run" / "report.html").read_text()
    assert text.count("right  ") + text.count("WRONG") == 10
    assert text.count("reference:") == text.count("WRONG")
    table = polars.read_csv(out / "molecules.csv")
    skeleton = dict(zip(table["cid"].cast(str), table["skeleton"], strict=True))
    tested = {skeleton[json.loads(x)["id"]] for x in (out / "run" / "predictions.jsonl").read_text().splitlines()}
    data = json.loads((out / "run" / "data.json").read_text())
    assert data["leakage"]["test"]["same_key"] == 0
    assert len(tested) > 5
    assert run_app(["demo", "--out", str(out)]) == 1
    assert "holds a demonstration already; replace it with --overwrite" in capsys.readouterr().err
    (out / "notes.md").write_text("mine")

    def fit(config, *, overwrite, report):
        raise RunError(f"{config.out}, overwrite {overwrite}")

    monkeypatch.setattr(demo, "fit", fit)
    assert run_app(["demo", "--out", str(out), "--overwrite"]) == 1
    assert f"{out / 'run'}, overwrite True" in capsys.readouterr().err
    assert (out / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("place", [".", "run"])
def test_a_demonstration_replaces_nobody_elses_folder(tmp_path, monkeypatch, capsys, place):
    """With a table of the demonstration's name in it, or with a folder that is called `run`."""
    from seqtune import folders
    from seqtune.cli.app import run_app
    from seqtune.procedures import demo

    if place == "run":
        folders.create(tmp_path, demo.DEMO)
    (tmp_path / "run").mkdir()
    names = ("molecules.csv", "thesis.tex", "run/config.yaml", "run/results.txt")
    for name in names if place == "." else names[2:]:
        (tmp_path / name).write_text("years of work")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.chdir(tmp_path)
    assert run_app(["demo", "--out", ".", "--overwrite"]) == 1
    kind = "run" if place == "run" else "demonstration"
    assert f"error: '{place}' is not empty, and it is no {kind} that seqtune made" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
