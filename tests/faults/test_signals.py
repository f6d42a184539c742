"""SIGTERM and SIGHUP: what was done is kept, nothing half-written stays, and the exit code is 128 + the signal's number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import polars
import psutil
import pytest
import yaml

from conftest import pairs, write_csv
from seqtune.chem.pipeline import write_table
from seqtune.cli.app import leave_in_order, run_app
from seqtune.decoding.predictor import Predictor
from seqtune.training import interruption

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def handlers():
    """As the command line sets them; put back afterwards."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    leave_in_order()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_that_are_ignored_stay_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    leave_in_order()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_training_writes_a_checkpoint(llama_folder, tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(interruption, "SAME_SECONDS", -1.0)
    table = write_csv(tmp_path / "pairs.csv", pairs(60))
    command = ["fit", "--data", str(table), "--model", str(llama_folder), "--out", str(tmp_path / "run"), "--set", "train.max_steps=4",
               "--set", "data.split.validation=0", "--set", "decode.max_new_tokens=2"]  # fmt: skip
    from seqtune.training.loop import Trainer

    step = Trainer._step

    def signalled(self, batches):
        step(self, batches)
        if self.state.step == 2:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", signalled)
        assert run_app(command) == 128 + number
    assert "error: interrupted at step 2 of 4; a checkpoint is written" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert run_app([*command, "--resume"]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_answers_to_a_table_are_there_as_a_whole_or_not_at_all(run, tmp_path, monkeypatch, capsys, number):
    table = write_csv(tmp_path / "asked.csv", pairs(60))
    out = tmp_path / "answers.jsonl"
    out.write_text("of before")
    monkeypatch.setattr(Predictor, "answer", lambda *_: signal.raise_signal(number))
    assert run_app(["predict", str(run), "--file", str(table), "--out", str(out)]) == 128 + number
    assert capsys.readouterr().err.endswith("error: interrupted\n")
    assert out.read_text() == "of before"
    assert {p.name for p in tmp_path.iterdir()} == {"run", "asked.csv", "answers.jsonl"}


def test_a_curated_table_is_there_as_a_whole_or_not_at_all(tmp_path):
    def frames():
        yield polars.DataFrame({"smiles": ["C"], "iupac": ["methane"]})
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        write_table(frames(), SimpleNamespace(reads_structures=False), tmp_path / "molecules.csv", Counter())
    assert end.value.code == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("SEQTUNE_CHAOS" not in os.environ, reason="half a minute: make chaos")
def test_a_study_stops_its_children_and_goes_on(llama_folder, tmp_path):
    """As a batch system does it, to the study alone: all have ended soon, with a checkpoint."""
    table = write_csv(tmp_path / "pairs.csv", pairs(200))
    base = {"data": {"path": str(table), "split": {"validation": 0, "test": 0.05}}, "model": {"name": str(llama_folder)},
            "train": {"max_steps": 100_000, "batch_size": 8}}  # fmt: skip
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"name": "s", "out": str(tmp_path / "s"), "base": base, "axes": {"train.clip": [1.0]}}))
    process = subprocess.Popen([sys.executable, "-m", "seqtune", "study", str(file)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(p.stat().st_size for p in tmp_path.glob("*runs/*/log.jsonl")):
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    os.kill(process.pid, signal.SIGTERM)
    signalled = time.monotonic()
    _, said = process.communicate(timeout=120)
    print(f"ended {time.monotonic() - signalled:.1f} s after SIGTERM, load {os.getloadavg()[0]:.1f}")
    assert process.returncode == 143
    assert "stopping: each training writes its checkpoint" in said
    assert not any(child.is_running() for child in children)
    (checkpoints,) = tmp_path.glob("*runs/*/checkpoints")
    assert [p.name[:5] for p in checkpoints.iterdir()] == ["step-"]
    assert not list(Path(tmp_path).rglob(".*.json.*"))
