"""What a run is called, what it shares with others, and where its scores lie: from settings and contents alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from toy import without_validation

from conftest import pairs, write_csv
from seqtune import studies
from seqtune.config import Config, load_config
from seqtune.runs import weight_settings
from seqtune.sections import ModelConfig, TrainConfig
from seqtune.studies import naming
from seqtune.studies.points import Length, chains, evaluation_folder


@pytest.fixture
def folder(tmp_path):
    write_csv(tmp_path / "pairs.csv", pairs(60))
    return tmp_path


def only_run(study: studies.Study) -> Path:
    (run,) = {point.run for point in studies.plan(study)}
    return run


@pytest.fixture
def own_base(folder, llama_folder):
    """A base that a test may change."""
    return Path(shutil.copytree(llama_folder, folder / "base"))


def test_a_run_is_named_by_its_base_and_by_seqtune(folder, own_base, monkeypatch):
    study = without_validation(folder, own_base, axes={"train.epochs": [1]})
    names = [only_run(study)]
    assert only_run(study) == names[0]
    weights = own_base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    names.append(only_run(study))
    config = json.loads((own_base / "config.json").read_text())
    (own_base / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    names.append(only_run(study))
    (own_base / "README.md").write_text("not a part of the model")
    assert only_run(study) == names[-1]
    monkeypatch.setattr(naming.metadata, "version", lambda _: "99.0")
    names.append(only_run(study))
    # a default that no configuration shows
    shutil.copytree(naming.PACKAGE, folder / "package", ignore=lambda _, names: [n for n in names if n == "assets"])
    monkeypatch.setattr(naming, "PACKAGE", folder / "package")
    assert only_run(study) == names[-1]
    defaults = folder / "package" / "training" / "defaults.py"
    text = defaults.read_text()
    assert "AVERAGE = 0.15" in text
    defaults.write_text(text.replace("AVERAGE = 0.15", "AVERAGE = 0.25"))
    names.append(only_run(study))
    assert len(set(names)) == 5


def test_bases_that_are_embedded_or_adapters_count_with_all_that_they_rest_on(folder, own_base):
    builtin = naming._base(ModelConfig(name="builtin:base"))
    assert any(line.startswith("model.safetensors ") for line in builtin)
    assert naming._base(ModelConfig(name="someone/on-the-hub")) == naming._base(ModelConfig(name="./absent")) == []
    run = folder / "adapted"
    (run / "model").mkdir(parents=True)
    for name in ("config.json", "adapter.json", "adapter_model.safetensors"):
        (run / "model" / name).write_text("{}")
    (run / "config.yaml").write_text(Config(model=ModelConfig(name=str(own_base))).to_yaml())
    before = naming._base(ModelConfig(name=str(run)))
    (own_base / "model.safetensors").write_bytes(b"other weights")
    assert naming._base(ModelConfig(name=str(run))) != before


def test_a_file_that_has_not_changed_is_read_once(tmp_path, monkeypatch):
    path, reads = tmp_path / "weights", []
    path.write_text("a")
    digest = naming.hashlib.file_digest
    monkeypatch.setattr(naming.hashlib, "file_digest", lambda *given: reads.append(1) or digest(*given))
    first = naming.file_digest(path)
    assert naming.file_digest(path) == first
    assert len(reads) == 1
    path.write_text("b")
    os.utime(path, ns=(1, 1))
    assert naming.file_digest(path) != first


def test_how_answers_are_searched_for_decides_no_weights():
    def settings(**changes):
        return weight_settings(load_config(overrides=changes))

    assert settings(**{"decode.num_beams": 5, "decode.num_return": 3, "decode.max_new_tokens": 9}) == settings()
    assert settings(**{"train.clip": 0.5}) != settings()


@pytest.mark.parametrize(
    ("train", "length"),
    [
        ({}, ("epochs", None)), ({"epochs": 2}, ("epochs", 2)), ({"target_tokens": 9}, ("target_tokens", 9)),
        ({"epochs": 2, "max_steps": 5}, ("steps", 5)), ({"max_steps": 5}, ("steps", 5)),
    ],
)  # fmt: skip
def test_a_length_has_the_unit_of_what_ends_the_training(train, length):
    assert Length.of(TrainConfig(**train)) == Length(*length)


def test_lengths_in_different_units_share_no_beginning(folder, llama_folder):
    budgets = [{"kind": "epochs", "value": 2}, {"kind": "steps", "value": 5}, {"kind": "steps", "value": 7}]
    study = without_validation(folder, llama_folder, axes={"decode.num_beams": [1]}, budget=budgets)
    points = studies.plan(study)
    assert sorted([p.values["budget"] for p in chain] for chain in chains(points)) == [["2 epochs"], ["5 steps", "7 steps"]]
    assert studies.shared_prefixes(points) == ["2 trainings that differ in length alone are 1, scored along the way"]
    # with a limit of steps the epochs are a setting like any other
    study = without_validation(folder, llama_folder, axes={"train.epochs": [1, 2], "train.max_steps": [5, 7]})
    assert sorted(len(chain) for chain in chains(studies.plan(study))) == [2, 2]


def test_where_scores_lie_follows_from_settings_alone(folder, llama_folder):
    study = without_validation(folder, llama_folder, axes={"decode.num_beams": [1, 2]})
    points = studies.plan(study)
    before = [point.evaluation for point in points]
    assert before == [evaluation_folder(p.run, p.config.decode) for p in points]
    assert len(set(before)) == 2
    points[0].run.mkdir(parents=True)  # begun by another study, which decodes with two beams
    (points[0].run / "config.yaml").write_text(points[1].config.to_yaml())
    assert [point.evaluation for point in studies.plan(study)] == before
