"""`fit` in several processes: one reads and encodes; where one ends, all do, and any number goes on."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import distributed

import several
from conftest import pairs, write_csv
from seqtune import runs
from seqtune.errors import ConfigError, RunError
from seqtune.sections import TrainConfig
from seqtune.training import processes
from seqtune.training.processes import SHARING, Agreement

KILLED_WITHIN = 60.0  # seconds until the others have ended, on a busy machine; they wait for no timeout


def settings(table: Path, folder: Path, out: Path, **more: object) -> list[str]:
    values = {
        "data.path": table, "model.name": folder, "out": out, "train.batch_size": 6, "train.precision": "fp32",
        "train.optimizer": "adamw", "train.validate_examples": 4, "decode.max_new_tokens": 4, "data.split.test": 0.02, **more,
    }  # fmt: skip
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.slow
def test_one_process_encodes_and_the_others_map_what_it_made(llama_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SEQTUNE_CACHE", str(tmp_path / "cache"))
    table = write_csv(tmp_path / "pairs.csv", pairs(300))
    given = settings(table, llama_folder, tmp_path / "run", **{"train.max_steps": 2})
    script = Path(__file__).with_name("count_encoded.py")
    several.run(3, [str(script), str(tmp_path), *given], tmp_path)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    splits = json.loads((tmp_path / "run" / "data.json").read_text())["splits"]
    assert found[0]["encoded"] >= splits["train"] > 200
    assert found[0]["read"] > 0
    for other in found[1:]:
        assert other == {"read": 0, "encoded": 0, "blocks in memory": 0, "frames in memory": 0}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
@pytest.mark.parametrize("victim", [0, 1])
def test_the_end_of_one_process_ends_the_others_and_another_number_goes_on(llama_folder, tmp_path, parallel, victim):
    table, out = write_csv(tmp_path / "pairs.csv", pairs(150)), tmp_path / "run"
    given = settings(table, llama_folder, out, **{"train.epochs": 5, "train.checkpoint_every": 5, "train.parallel": parallel})
    started = several.start(2, ["-m", "seqtune", "fit", *given], tmp_path)
    deadline = time.monotonic() + 200
    while not (out / "checkpoints").exists() or not runs.checkpoints(out / "checkpoints"):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started), several.ends(started, 1)
        time.sleep(0.05)
    started[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    found = several.ends(started, timeout=KILLED_WITHIN)
    assert time.monotonic() - killed < KILLED_WITHIN
    code, _, said = found[1 - victim]
    assert found[victim][0] == -signal.SIGKILL
    assert code == 1, said
    assert "another process of this training has ended, or is out of reach" in said
    assert "Traceback" not in said
    before = int(runs.checkpoints(out / "checkpoints")[-1].name.removeprefix("step-"))

    width = 3 if victim else 1
    for again in several.ends(several.start(width, ["-m", "seqtune", "fit", *given, "--resume"], tmp_path), timeout=500):
        assert again[0] == 0, again
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] > before
    assert runs.verify(out) == {}


@pytest.mark.slow
def test_a_mistake_is_said_once_and_ends_all(llama_folder, tmp_path):
    table = write_csv(tmp_path / "pairs.csv", pairs(30), ("a", "b"))
    given = settings(table, llama_folder, tmp_path / "run", **{"data.input": "c"})
    found = several.ends(several.start(2, ["-m", "seqtune", "fit", *given], tmp_path), timeout=200)
    assert [code for code, _, _ in found] == [1, 1]
    said = "".join(text for _, _, text in found)
    assert said.count("no column 'c'") == 1, said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", SHARING)
def test_accelerate_is_not_to_share_the_model_out(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(processes, "Accelerator", lambda **_: SimpleNamespace(distributed_type=kind))
    with pytest.raises(ConfigError, match=f"accelerate launch is set to {kind.value}; .* train.parallel=fsdp that shares"):
        processes.make_accelerator(TrainConfig(), tmp_path)


def test_a_process_alone_does_its_work():
    alone = Agreement(1)
    assert alone.in_main(lambda: 3) == 3
    assert alone.everywhere(lambda: 4, first=True) == 4
    with pytest.raises(RunError, match="mine"):
        alone.in_main(lambda: (_ for _ in ()).throw(RunError("mine")))
    with pytest.raises(RuntimeError, match="gloo"), alone.reachable():
        raise RuntimeError("gloo: there is nobody else, so this is no lost process")


def test_only_errors_of_the_connection_speak_of_other_processes(monkeypatch):
    monkeypatch.setattr(distributed, "new_group", lambda **_: object())
    two = Agreement(2)
    with pytest.raises(RuntimeError, match="shapes"), two.reachable():
        raise RuntimeError("shapes differ")
    for error in (
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"),
        distributed.DistBackendError("NCCL"),
    ):
        with pytest.raises(RunError, match="another process of this training has ended"), two.reachable():
            raise error
