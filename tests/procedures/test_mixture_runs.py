"""Trainings on mixtures: interrupted and resumed, packed, and scored task by task."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from seqtune import runs
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.errors import ConfigError, InterruptedRunError, RunError
from seqtune.procedures.fit import fit
from seqtune.procedures.protocol import Protocol, score_tasks
from seqtune.scoring.by_task import TaskScore, cluster_means
from seqtune.studies.naming import ingredients
from seqtune.studies.points import Study, plan
from seqtune.training.loop import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def mixture(tmp_path):
    (tmp_path / "colours.csv").write_text("thing,colour\n" + "".join(f"t{i},{('red', 'blue')[i % 2]}\n" for i in range(60)))
    (tmp_path / "sums.csv").write_text("q,a\n" + "".join(f"{i}+1,{i + 1}\n" for i in range(40)))
    (tmp_path / "words.csv").write_text("q,a\n" + "".join(f"w{i},v{i % 3}\n" for i in range(40)))
    path = tmp_path / "m.yaml"
    path.write_text(
        "tasks:\n"
        "  colours: {path: colours.csv, input: thing, output: colour, answers: [red, blue], cluster: a, templates: ['{thing}?', 'Of {thing}']}\n"
        "  sums: {path: sums.csv, input: q, output: a, cluster: a}\n"
        "  words: {path: words.csv, input: q, output: a, cluster: b}\n"
        "held_out: [b]\nshots: {0: 0.5, 1: 0.5}\n"
    )
    return path


def config(mixture, model, out, **settings):
    values = {"mixture": str(mixture), "model.name": str(model), "out": str(out), "train.max_steps": 8, "train.batch_size": 4}
    return load_config(None, values | {"train.precision": "fp32"} | settings)


def weights(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("batching", ["bucket", "pack"])
def test_an_interrupted_epoch_goes_on_to_the_bit(mixture, llama_folder, tmp_path, monkeypatch, batching):
    settings = {"train.batching": batching}
    fit(config(mixture, llama_folder, tmp_path / "whole", **settings), quiet=True)
    step = Trainer._step

    def interrupted(self, *given):
        step(self, *given)
        if self.state.step == 3:
            signal.raise_signal(signal.SIGINT)

    again = config(mixture, llama_folder, tmp_path / "again", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        with pytest.raises(InterruptedRunError):
            fit(again, quiet=True)
    fit(again, resume=True, quiet=True)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_says_what_it_was_asked_and_what_it_got(mixture, llama_folder, tmp_path):
    run = tmp_path / "run"
    fitted = fit(config(mixture, llama_folder, run), quiet=True)
    shares = {s["task"]: s for s in runs.read_json(run / "data.json")["mixture"]}
    assert shares["words"]["held_out"]
    assert shares["words"]["num_prompts"] == 0
    assert shares["colours"]["asked"] + shares["sums"]["asked"] == pytest.approx(1)
    assert sum(s["num_tokens"] for s in shares.values()) == runs.read_json(run / "data.json")["num_tokens"]
    assert {t["task"] for t in fitted.metrics["tasks"]} == {"colours", "sums"}
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"exact_match/colours", "exact_match/sums"} <= next(
        line["validation"] for line in log if "validation" in line
    ).keys()
    predictions = (run / "predictions.jsonl").read_text()
    assert '"w1' not in predictions
    card = (run / "README.md").read_text()
    assert "| words | held out | 0 |  |" in card
    assert "| sums | " in card
    assert "None" not in card

    found = score_tasks(str(run), Protocol(str(mixture), (0, 2), ("base",), tmp_path / "singles"), tmp_path / "out", quiet=True)
    assert list(found["scores"]) == [str(run), "base", "single task"]
    for label in found["scores"]:
        assert {t["task"]: t["held_out"] for t in found["scores"][label]["2"]["tasks"]} == {
            "colours": False,
            "sums": False,
            "words": True,
        }
    means = {(c["cluster"], c["held_out"]): c for c in found["scores"][str(run)]["0"]["clusters"]}
    assert means["b", True]["num_tasks"] == 1
    assert means["a", False]["num_tasks"] == 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert {(p["details"]["task"], p["details"]["shots"]) for p in lines} == {
        (t, k) for t in ("colours", "sums", "words") for k in "02"
    }
    colours = [p for p in lines if p["details"]["task"] == "colours"]
    assert all(len(p["hypotheses"]) == 2 for p in colours), "answers from a set are scored, not written"
    single = load_config(tmp_path / "singles" / "words" / "config.yaml")
    assert (single.mixture.only, single.train.max_steps) == (["words"], 8)
    with pytest.raises(RunError, match="is a run's folder"):
        score_tasks(str(run), Protocol(str(mixture)), run)
    with pytest.raises(ConfigError, match="metric = 'acc' is none of"):
        score_tasks(str(run), Protocol(str(mixture), settings=(("mixture.tasks.sums.metric", "acc"),)), None, quiet=True)


def test_a_run_is_named_by_the_tables_of_its_mixture(mixture, llama_folder, tmp_path):
    before = ingredients(config(mixture, llama_folder, tmp_path / "x"))
    assert ingredients(config(mixture, llama_folder, tmp_path / "x")) == before
    with (tmp_path / "words.csv").open("a") as handle:
        handle.write("w99,v1\n")
    assert ingredients(config(mixture, llama_folder, tmp_path / "x")) != before


def test_what_a_mixture_reads_is_not_overwritten(mixture, llama_folder, tmp_path):
    run = tmp_path / "run"
    fit(config(mixture, llama_folder, run), quiet=True)
    inside = run / "words.csv"
    inside.write_text((tmp_path / "words.csv").read_text())
    text = mixture.read_text().replace("words.csv", str(inside))
    mixture.write_text(text)
    with pytest.raises(RunError, match="lies in the run folder"):
        fit(config(mixture, llama_folder, run), overwrite=True, quiet=True)


def test_clusters_are_means_of_tasks_whatever_their_size():
    scores = [
        TaskScore("a", "x", True, "exact_match", 0.2, 0, 1, 1000),
        TaskScore("b", "x", True, "exact_match", 0.6, 0, 1, 10),
        TaskScore("c", "x", False, "exact_match", 1.0, 0, 1, 10),
        TaskScore("d", "", True, "exact_match", 0.1, 0, 1, 10),
    ]
    found = {(c["cluster"], c["held_out"]): c for c in cluster_means(scores)}
    assert found["x", True]["value"] == pytest.approx(0.4)
    assert found["all", True]["value"] == pytest.approx(0.3)
    assert 0.2 <= found["x", True]["low"] <= 0.4 <= found["x", True]["high"] <= 0.6
    assert found["x", False]["low"] is None


def test_a_mixture_and_its_settings_are_axes_of_a_study(mixture, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(mixture.read_text().replace("shots: {0: 0.5, 1: 0.5}", "shots: {0: 1.0}"))
    axes = {"mixture": [str(mixture), str(other)], "mixture.temperature": [1, 2]}
    points = plan(Study(name="s", base={"train": {"max_steps": 2}}, axes=axes, out=str(tmp_path / "results")))
    found = {(len(p.config.mixture.shots), p.config.mixture.temperature) for p in points}
    assert found == {(2, 1), (2, 2), (1, 1), (1, 2)}
    assert len({p.run for p in points}) == 4


def test_options_that_a_table_or_a_mixture_does_not_read_are_refused(mixture, llama_folder, capsys):
    for arguments, message in (
        ([str(mixture), "--input", "x"], "--input: a mixture's tasks bring their own"),
        ([str(mixture), "--num-beams", "2"], "`seqtune evaluate RUN MIXTURE` does not use it"),
        (["table.csv", "--shots", "2"], "--shots: it is for a mixture"),
        ([str(mixture), "--against", "base"], "is no run, so it has no base"),
        ([str(mixture), "--set", "mixture.held_out=[x]"], "no task or cluster 'x'"),
    ):
        assert run_app(["evaluate", str(llama_folder), *arguments]) == 1
        assert message in capsys.readouterr().err
