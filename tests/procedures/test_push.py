"""Folders for the hub: what is in them, that they answer from a hub cache alone, and that nothing leaves unasked."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import HfApi, ModelCard

from conftest import build_model, build_tokenizer, pairs, write_csv
from seqtune import progress
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ModelError, RunError
from seqtune.procedures import push as pushing
from seqtune.procedures.fit import fit
from seqtune.procedures.push import licence, on_hub
from seqtune.records import Example
from seqtune.scoring.evaluate import read_predictions

SECRET = "hf_" + "x" * 34


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    tokenizer = build_tokenizer("llama")
    build_model("llama", len(tokenizer), width=64).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "base" / "README.md").write_text("---\nlanguage: en\nlicense: Apache-2.0\n---\n# Base\n")
    config = load_config(
        overrides={
            "data.path": str(write_csv(folder / "numbers.csv", pairs(100))), "model.name": str(folder / "base"),
            "train.max_steps": 25, "train.batch_size": 16, "train.learning_rate": 0.01, "out": str(folder / "run"),
            "format.template": "Say {input}", "decode.num_beams": 2, "decode.num_return": 2, "decode.max_new_tokens": 12,
            "data.split": {"validation": 0.0, "test": 0.2},
        }
    )  # fmt: skip
    fit(config, quiet=True)
    return folder / "run"


@pytest.fixture
def hub(monkeypatch):
    """The hub's own client, which writes down what it is asked; a call that the real one would not take is a TypeError."""
    asked = []

    class Hub:
        def create_repo(self, *values, **options):
            inspect.signature(HfApi.create_repo).bind(self, *values, **options)
            asked.append(("create", values, options))
            return f"https://huggingface.co/{values[0]}"

        def upload_folder(self, *values, **options):
            inspect.signature(HfApi.upload_folder).bind(self, *values, **options)
            asked.append(("upload", sorted(p.name for p in options["folder_path"].iterdir()), options))

    monkeypatch.setattr(pushing, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return asked


def test_the_folder_says_everything_and_gives_nothing_away(run, tmp_path, capsys):
    assert run_app(["push", str(run), str(tmp_path / "names"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["address"] is None
    folder = tmp_path / "names"
    assert facts["files"] == {p.name: p.stat().st_size for p in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "task.yaml", "decode.yaml", "metrics.json"} <= facts[
        "files"
    ].keys()
    card = ModelCard.load(folder / "README.md")
    metrics = json.loads((run / "metrics.json").read_text())
    front = card.data
    assert (front.pipeline_tag, front.library_name, front.license) == ("text-generation", "transformers", "apache-2.0")
    [exact] = [found for found in front.eval_results or [] if found.metric_type == "exact_match"]
    assert exact.metric_value == metrics["exact_match"]["value"]
    assert f"{metrics['exact_match']['low']:.3f} to {metrics['exact_match']['high']:.3f}" in (exact.metric_name or "")
    assert exact.dataset_revision == json.loads((run / "data.json").read_text())["fingerprint"]
    outcome = json.loads((run / "outcome.json").read_text())
    assert f"## Training\n\n{outcome['step']} of {outcome['total_steps']} planned steps (finished)" in card.content
    for words in ("seqtune predict names", "whose licence is apache-2.0", "## Limits", "`numbers.csv`: 100 rows"):
        assert words in card.content
    texts = [(p.name, p.read_text(encoding="utf-8")) for p in folder.iterdir() if p.suffix != ".safetensors"]
    for name, text in texts:
        assert str(run.parent) not in text, name
    answers = [p.reference or "?" for p in read_predictions(run) if len((p.reference or "").split()) == 3]
    assert answers
    assert not any(answer in text for _, text in texts for answer in answers)


def test_a_model_on_the_hub_answers_from_the_cache_of_a_clean_machine(run, tmp_path):
    """The cache is laid out as the hub's client does it, and there is no network."""
    place = tmp_path / "hub" / "models--me--names"
    assert run_app(["push", str(run), str(tmp_path / "names")]) == 0
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    (tmp_path / "names").rename(place / "snapshots" / ("0" * 40))
    expected = Predictor.of_run(str(run)).predict([Example("1", "105", None)])[0]
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "seqtune", "predict", "me/names", "105", "--json"], capture_output=True, text=True, cwd=home,
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HOME": str(home)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.dumps(expected.prediction) in done.stdout
    assert json.dumps(expected.hypotheses[1].text) in done.stdout  # the run's beams, too


def test_nothing_is_uploaded_without_a_yes(run, hub, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_app(["push", str(run), "me/names"]) == 1  # no terminal, no answer
    said = capsys.readouterr().err
    assert "bytes  model.safetensors" in said
    assert "nothing was uploaded; say yes to the question, or add --yes" in said
    asked = []
    monkeypatch.setattr(progress, "confirmed", lambda question: bool(asked.append(question)))
    assert run_app(["push", str(run), "me/names"]) == 1
    assert "MB) to me/names on the hub (private if it is new)?" in asked[0]
    assert hub == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("public", [False, True])
def test_an_upload_is_private_unless_it_is_asked_to_be_public_and_shows_no_token(
    run, hub, capsys, monkeypatch, tmp_path, public
):
    monkeypatch.chdir(tmp_path)
    assert run_app(["push", str(run), "me/names", "--yes", *(["--public"] if public else [])]) == 0
    (_, names, made), (_, files, options) = hub
    assert (names, made["private"], made["exist_ok"]) == (("me/names",), not public, True)
    assert options["repo_id"] == "me/names"
    assert "model.safetensors" in files
    assert "predictions.jsonl" not in files
    out = capsys.readouterr()
    assert "https://huggingface.co/me/names" in out.out
    assert SECRET not in out.out + out.err


def test_a_hub_that_refuses_is_an_error_with_a_way_out(run, tmp_path, monkeypatch):
    class Hub:
        def create_repo(self, *_, **__):
            raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr(pushing, "HfApi", Hub)
    with pytest.raises(RunError, match=r"'me/names' was not uploaded: no route to the hub \(log in with: hf auth login\)"):
        pushing.upload(tmp_path, "me/names")


@pytest.mark.parametrize("target", ["a//b", "me/my names", "a/b/c", "hf://me/names", "me/-names"])
def test_a_name_that_is_none_is_refused_at_once(run, target, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pushing, "write_merged", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(RunError, match="neither a folder, .* nor a name that the hub knows: write OWNER/NAME"):
        on_hub(target)
    assert run_app(["push", str(run), target]) == 1


def test_folders_and_hub_ids_are_told_apart(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert [on_hub(t) for t in ("names", "./me/names", "runs/names", "~/names", "me/names")] == [None] * 4 + ["me/names"]


def test_a_model_of_the_hub_that_is_not_there_is_refused_at_once(monkeypatch):
    for name in ("me//names", "me/my names"):
        with pytest.raises(ModelError, match="the name is none that the hub knows, OWNER/NAME"):
            Predictor.of_run(name)


def test_a_licence_is_what_the_base_says_or_nothing(run, tmp_path):
    config = load_config(run / "config.yaml")
    assert licence(config) == "apache-2.0"
    named = load_config(overrides={"data.path": "x.csv", "model.name": "builtin:base"})
    assert licence(named) == "mit"
    gone = load_config(overrides={"data.path": "x.csv", "model.name": str(tmp_path / "gone")})
    assert licence(gone) is None
