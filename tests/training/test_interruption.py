"""Signals: the first ends a training in order, in all its processes; the second at once."""

from __future__ import annotations

import json
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

import several
from conftest import build_model
from seqtune import runs
from seqtune.records import Encoded
from seqtune.sections import TrainConfig
from seqtune.training import interruption
from seqtune.training.interruption import Interrupted, Interruption
from seqtune.training.loop import Trainer
from seqtune.training.processes import Agreement

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def every_signal_counts(monkeypatch):
    """However soon it follows another one."""
    monkeypatch.setattr(interruption, "SAME_SECONDS", -1.0)


def trainer(folder: Path, validate=None, **settings) -> Trainer:
    folder.mkdir(exist_ok=True)
    rows = [Encoded(torch.arange(5 + i % 7, 14 + i % 7).numpy().astype("int32"), 2) for i in range(24)]
    config = TrainConfig(**{"batch_size": 4, "epochs": 2, "precision": "fp32"} | settings)
    return Trainer(build_model("llama", 300), rows, config, folder, validate)


def signalled(run: Trainer, at: int, *numbers: int) -> Trainer:
    """Send signals to this process during a step."""
    step = run._step

    def with_signals(batches):
        step(batches)
        if run.state.step == at:
            for number in numbers:
                signal.raise_signal(number)

    run._step = with_signals
    return run


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_writes_a_checkpoint_from_which_training_goes_on(tmp_path, number):
    whole = trainer(tmp_path / "whole")
    whole.run(quiet=True)
    before = signal.getsignal(number)
    outcome = signalled(trainer(tmp_path / "run"), 5, number).run(quiet=True)
    assert (outcome.reason, outcome.state.step) == ("interrupted", 5)
    assert signal.getsignal(number) is before
    second = trainer(tmp_path / "run")
    assert second.restore()
    assert second.state.step == 5
    assert second.run(quiet=True).reason == "finished"
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_signal_during_the_last_step_is_not_lost(tmp_path):
    """Else it would be forgotten, and the evaluation after the training would begin."""
    assert signalled(trainer(tmp_path), 12, signal.SIGINT).run(quiet=True).reason == "interrupted"


def test_the_second_signal_stops_at_once_but_not_the_same_one_passed_on(tmp_path, monkeypatch):
    """torchrun and `timeout` pass on what the terminal has sent already, milliseconds later."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signalled(trainer(tmp_path), 5, signal.SIGINT, signal.SIGINT).run(quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(interruption, "SAME_SECONDS", 0.5)
    started = time.monotonic()
    outcome = signalled(trainer(tmp_path), 5, signal.SIGINT, signal.SIGINT, signal.SIGTERM).run(quiet=True)
    assert outcome.reason == "interrupted"
    assert time.monotonic() - started > 0.5  # so long the same signal may still come


def test_a_signal_that_the_process_ignores_stays_ignored(tmp_path, monkeypatch):
    """`nohup` starts a process in that way."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signalled(trainer(tmp_path), 5, signal.SIGHUP).run(quiet=True).reason == "finished"
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_signal_leaves_a_validation_which_is_made_up_for_after_resuming(tmp_path):
    """Slurm and Kubernetes kill half a minute after the signal, and a validation may take longer than that."""

    def run(folder: Path, interrupt_at: int) -> list[int]:
        def validate(model, count):
            calls.append(current.state.step)
            if current.state.step == interrupt_at and len(calls) == 1:
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("the validation went on")
            return {"exact_match": float(current.state.step), "num_items": 1.0}

        calls: list[int] = []
        for _ in range(2):
            current = trainer(folder, validate, validate_every=4)
            current.restore()
            if current.run(quiet=True).reason == "finished":
                break
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert current.state.best_step == 12
        return [line["step"] for line in lines if "validation" in line]

    assert run(tmp_path / "whole", 0) == [4, 8, 12]
    assert run(tmp_path / "broken", 4) == [4, 8, 12]


def test_a_signal_raises_only_in_work_that_can_be_left():
    with Interruption() as noted:
        with pytest.raises(Interrupted), noted.leaving():
            signal.raise_signal(signal.SIGINT)
        assert noted.noted
        with pytest.raises(Interrupted), noted.leaving():
            pytest.fail("this began although a signal had come")


def test_processes_wait_for_the_main_one_as_long_as_it_takes(monkeypatch):
    """Not for NCCL's ten minutes, which a validation or a checkpoint of the main process may take."""
    asked = []
    monkeypatch.setattr(distributed, "new_group", lambda **options: asked.append(options))
    Agreement(num_processes=1)
    assert asked == []
    Agreement(num_processes=2)
    assert asked[0]["backend"] == "gloo"
    assert asked[0]["timeout"] >= timedelta(days=1)


WORKER = """
import os, sys, time
from pathlib import Path
import torch
from accelerate.state import AcceleratorState
from conftest import build_model
from seqtune.sections import TrainConfig
from seqtune.records import Encoded
from seqtune.training.loop import Trainer

rows = [Encoded(torch.arange(5 + i % 7, 14 + i % 7).numpy().astype("int32"), 2) for i in range(24)]
parallel = sys.argv[1]
for port in sys.argv[2:]:
    os.environ["MASTER_PORT"] = port
    folder = Path()
    config = TrainConfig(batch_size=4, epochs=500, precision="fp32", parallel=parallel)
    run = Trainer(build_model("llama", 300), rows, config, folder)
    found, step = run.restore(), run._step
    Path(f"ready{run.accelerator.process_index}.{found}").touch()
    def slow(batches):
        time.sleep(0.02)
        step(batches)
    run._step = slow
    outcome = run.run(quiet=True)
    weights = 0.0 if parallel == "fsdp" else float(sum(p.detach().double().sum() for p in run.model.parameters()))
    print(outcome.reason, outcome.state.step, weights, flush=True)
    AcceleratorState._reset_state(reset_partial_state=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_end_together_whenever_the_signals_come(tmp_path, parallel):
    """Ctrl-C 0.3 seconds apart, then, resumed, SIGTERM to one of the two alone: same step, same weights, a checkpoint."""
    processes = several.start(2, ["-c", WORKER, parallel, several.free_port(), several.free_port()], tmp_path)

    def wait_for_training(resumed: bool) -> None:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob(f"ready*.{resumed}"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)

    wait_for_training(resumed=False)
    processes[0].send_signal(signal.SIGINT)
    time.sleep(0.3)
    processes[1].send_signal(signal.SIGINT)
    wait_for_training(resumed=True)
    processes[1].send_signal(signal.SIGTERM)
    found = several.ends(processes, timeout=60)
    assert [code for code, _, _ in found] == [0, 0], found
    ends = [out.splitlines() for _, out, _ in found]
    assert ends[0] == ends[1]
    assert [end.split()[0] for end in ends[0]] == ["interrupted"] * 2
    first, second = (int(end.split()[1]) for end in ends[0])
    assert 0 < first < second
    latest = runs.latest_checkpoint(tmp_path / "checkpoints")
    assert latest is not None
    assert latest.name == f"step-{second:08d}"
