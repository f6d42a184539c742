"""Losses and weights that are no numbers: noticed before they replace good ones, kept for inspection, gone back from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import build_model
from seqtune import runs
from seqtune.errors import RunError
from seqtune.records import Encoded
from seqtune.report.card import _which_weights
from seqtune.sections import TrainConfig
from seqtune.training.checkpoints import outcome_summary
from seqtune.training.loop import Trainer


def trainer(folder: Path, validate=None, **settings) -> Trainer:
    folder.mkdir(exist_ok=True)
    rows = [Encoded(torch.arange(5 + i % 7, 14 + i % 7).numpy().astype("int32"), 2) for i in range(24)]
    config = TrainConfig(**{"batch_size": 4, "epochs": 2, "precision": "fp32", "checkpoint_every": 4} | settings)
    return Trainer(build_model("llama", 300), rows, config, folder, validate)


def spoil(run: Trainer, at: int, times: int = 1) -> list[float]:
    """After step `at`, a weight is not a number, the first `times` that it is reached; returns the rates of all steps."""
    step, left, rates = run._step, [times], []

    def spoiled(batches):
        step(batches)
        rates.append(run.optimizers[0].param_groups[0]["lr"])
        if run.state.step == at and left[0]:
            left[0] -= 1
            next(run.model.parameters()).data.fill_(float("nan"))

    run._step = spoiled
    return rates


@pytest.mark.parametrize("at", [6, 8, 12])  # seen by the next loss; by the checkpoint; at the end
def test_weights_that_are_no_numbers_replace_no_good_ones(tmp_path, at):
    run = trainer(tmp_path, average=0.0)
    spoil(run, at)
    ways = "lower train.learning_rate .*; raise train.warmup, or set train.precision=fp32; or train.on_divergence=rewind"
    with pytest.raises(
        RunError, match=rf"(the loss is nan at step 7|not finite after step {at}); the rows .* Three ways on: {ways}"
    ):
        run.run(quiet=True)
    kept = [p.name for p in runs.checkpoints(tmp_path / "checkpoints")]
    assert kept[-1] == {6: "step-00000004", 8: "step-00000004", 12: "step-00000008"}[at]
    note = json.loads((tmp_path / "diverged.json").read_text())
    step = {6: 7}.get(at, at)
    batches = list(run.plan.steps_from(0, 0, 0))[step - 1].batches
    assert note["step"] == step
    assert [row["row"] for row in note["rows"]] == [int(i) for batch in batches for i in batch]
    assert note["rows"][0]["input_ids"] == run.feed.rows[note["rows"][0]["row"]].input_ids.tolist()


def test_a_validation_does_not_score_them(tmp_path):
    run = trainer(tmp_path, lambda model, count: pytest.fail("scored"), validate_every=3)
    spoil(run, 3)
    with pytest.raises(RunError, match="not finite after step 3"):
        run.run(quiet=True)


@pytest.mark.parametrize("at", [2, 6])  # before the first checkpoint of its own, and after
def test_a_training_goes_back_with_half_the_rate_and_says_so(tmp_path, capsys, at):
    run = trainer(tmp_path, on_divergence="rewind", schedule="constant", warmup=0.0)
    rates = spoil(run, at, times=2)
    outcome = run.run(quiet=True)
    assert (outcome.reason, outcome.state.step, outcome.state.rewinds) == ("finished", 12, 2)
    assert {round(rate / rates[0], 6) for rate in rates} == {1.0, 0.5, 0.25}
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    back = 0 if at == 2 else 4
    said = " ".join(capsys.readouterr().err.split())
    assert f"the loss is nan at step {at + 1}: back to step {back} with the learning rate times 0.5" in said
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rewinds"]) for line in lines if "rewinds" in line] == [(back, 1), (back, 2)]
    assert _which_weights(outcome_summary(outcome)).startswith("The training diverged 2 times and went back each time")


def test_what_diverges_again_and_again_is_given_up(tmp_path):
    run = trainer(tmp_path, on_divergence="rewind")
    spoil(run, 6, times=99)
    with pytest.raises(RunError, match="the loss is nan at step 7"):
        run.run(quiet=True)
    assert run.state.rewinds == 5
