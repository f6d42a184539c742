"""Checkpoints: complete or absent, at every moment; what is wrong with one is said."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import build_model
from seqtune import runs
from seqtune.errors import RunError
from seqtune.records import Encoded
from seqtune.sections import TrainConfig
from seqtune.training import checkpoints
from seqtune.training.checkpoints import TrainState
from seqtune.training.loop import Trainer
from seqtune.training.optim import WeightAverage


class Killed(BaseException):
    """Stands for a kill: nothing after it runs."""


def rows() -> list[Encoded]:
    return [Encoded(torch.arange(5 + i % 7, 14 + i % 7).numpy().astype("int32"), 2) for i in range(24)]


def trainer(folder: Path, **settings) -> Trainer:
    config = TrainConfig(**{"batch_size": 4, "epochs": 2, "precision": "fp32", "schedule": "constant"} | settings)
    return Trainer(build_model("llama", 300), rows(), config, folder)


def module(value: float) -> nn.Linear:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    return layer


def save(folder: Path, value: float, state: TrainState) -> None:
    layer = module(value)
    checkpoints.save(folder, checkpoints.parts(layer, [torch.optim.AdamW(layer.parameters())], None, keep=True), state)


def test_a_kill_at_any_moment_of_a_second_save_at_a_step_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Every call that changes a folder is a moment to be killed at; what is then found must load, as the old or the new one."""
    moment, kills = 0, 0
    while True:
        folder = tmp_path / str(moment)
        save(folder, 1.0, TrainState(step=7, seconds=1.0))
        left = [moment]

        def counted(act, left=left):
            def wrapped(*arguments, **options):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return act(*arguments, **options)

            return wrapped

        with monkeypatch.context() as patch:
            for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (shutil, "rmtree"), (os, "fsync")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                save(folder, 2.0, TrainState(step=7, seconds=2.0))
                finished = True
            except Killed:
                finished, kills = False, kills + 1
        found = runs.latest_checkpoint(folder)
        assert found is not None, f"killed at moment {moment}, nothing was left"
        layer = module(0.0)
        state = checkpoints.load(found, layer, [torch.optim.AdamW(layer.parameters())], None, 10)
        assert (state.step, state.seconds, float(layer.weight[0, 0].detach())) in ((7, 1.0, 1.0), (7, 2.0, 2.0))
        save(folder, 3.0, TrainState(step=7, seconds=3.0))  # the training that was resumed from it
        assert [p.name for p in folder.iterdir()] == ["step-00000007"]
        if finished:
            break
        moment += 1
    assert kills >= 8


def test_everything_is_on_the_disk_before_a_checkpoint_gets_its_name(tmp_path, monkeypatch):
    """Power may fail right after: by then the files, and the folder that lists them, must have been written through."""
    done: list[int | str] = []  # what was written through, by inode, and renames
    sync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.fstat(handle).st_ino), sync(handle)))
    monkeypatch.setattr(Path, "rename", lambda self, target: (done.append("rename"), rename(self, target)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("replace"), os.replace(self, target)))

    def names() -> list[str]:
        known = {path.stat().st_ino: path.name for path in (tmp_path, *tmp_path.rglob("*"))}
        return [entry if isinstance(entry, str) else known[entry] for entry in done]

    average = WeightAverage(module(1.0).parameters(), 0.5)
    checkpoints.save(tmp_path, checkpoints.parts(module(1.0), [], average, keep=True), TrainState(step=3))
    found = names()
    files = {"model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json", "manifest.json"}
    last = next(i for i in reversed(range(len(found))) if found[i] in files)
    assert {name for name in found[: last + 1] if "." in str(name)} >= files
    assert found[last + 1 :] == ["step-00000003", "rename", tmp_path.name]
    done.clear()
    checkpoints.save_weights(module(1.0), tmp_path / "best-00000003.safetensors")
    assert names() == ["best-00000003.safetensors", "replace", tmp_path.name]


def test_a_file_system_that_cannot_write_through_folders_gets_checkpoints(tmp_path, monkeypatch):
    """As some network file systems answer."""
    sync = os.fsync

    def files_only(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    checkpoints.save(tmp_path, checkpoints.parts(module(1.0), [], None, keep=True), TrainState(step=3))
    checkpoints.save_weights(module(1.0), tmp_path / "best-00000003.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best-00000003.safetensors", "step-00000003"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "average.safetensors", "state.json"])
@pytest.mark.parametrize("size", [0, 30])
def test_a_torn_file_is_named(tmp_path, name, size):
    trainer(tmp_path, average=0.2).run(quiet=True)
    found = runs.latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    torn = found / name
    torn.write_bytes(torn.read_bytes()[:size])
    with pytest.raises(RunError, match=f"{name}' is damaged .*start again with --overwrite or another --out"):
        trainer(tmp_path, average=0.2).restore()


def test_a_checkpoint_without_a_place_in_its_epoch_is_refused(tmp_path):
    trainer(tmp_path).run(quiet=True)
    found = runs.latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    state = json.loads((found / "state.json").read_text())
    del state["epoch_step"]
    (found / "state.json").write_text(json.dumps(state))
    (found / "manifest.json").unlink()  # else it is noticed that the file is not the one that was written
    with pytest.raises(RunError, match=r"does not fit this model and optimizer \('epoch_step'\)"):
        trainer(tmp_path).restore()


def test_torn_best_weights_are_named(tmp_path):
    run = trainer(tmp_path)
    run.validate = lambda model, count: {"exact_match": 0.5, "num_items": 1.0}
    run.run(quiet=True)
    (best,) = (tmp_path / "checkpoints").glob("best-*")
    best.write_bytes(best.read_bytes()[:100])
    with pytest.raises(RunError, match=rf"{best.name}' is damaged"):
        run.load_best()


def test_a_checkpoint_beyond_the_plan_is_refused(tmp_path):
    trainer(tmp_path).run(quiet=True)
    with pytest.raises(RunError, match=r"step-00000012' is of step 12, but this training has 5 steps; train longer"):
        trainer(tmp_path, max_steps=5).restore()
    assert trainer(tmp_path, max_steps=12).restore()


def test_a_checkpoint_that_another_process_does_not_have_is_refused(tmp_path, monkeypatch):
    """On machines without a shared disk the others would start anew, and the weights would fall apart."""
    trainer(tmp_path).run(quiet=True)
    run = trainer(tmp_path)
    monkeypatch.setattr(run.agreement, "largest", lambda *values: [1.0])  # what this process is told by the others
    with pytest.raises(RunError, match="step-00000012' is not there for every process; put the run folder on a disk that all"):
        run.restore()
    shutil.rmtree(tmp_path / "checkpoints")
    run = trainer(tmp_path)
    monkeypatch.setattr(run.agreement, "from_main", lambda value: "step-00000012")
    with pytest.raises(RunError, match="is not there for every process"):
        run.restore()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_mean_of_the_weights_is_resumed_to_the_bit(tmp_path, optimizer):
    settings = {"optimizer": optimizer, "average": 0.3, "checkpoint_every": 5}
    (tmp_path / "whole").mkdir()
    whole = trainer(tmp_path / "whole", **settings)
    whole.run(quiet=True)
    (tmp_path / "parts").mkdir()
    first = trainer(tmp_path / "parts", **settings)
    step = first._step

    def killed(batches):
        if first.state.step == 8:
            raise Killed
        step(batches)

    first._step = killed
    with pytest.raises(Killed):
        first.run(quiet=True)
    second = trainer(tmp_path / "parts", **settings)
    assert second.restore()
    assert (second.state.step, second.average.num_steps) == (5, 5)
    second.run(quiet=True)
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name
