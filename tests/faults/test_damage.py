"""Damaged files: a correct result, or one clear error that names a file; nothing lost, nothing silent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from conftest import build_model, pairs, write_csv
from seqtune import runs
from seqtune.cli.app import run_app
from seqtune.errors import RunError
from seqtune.records import Encoded
from seqtune.sections import TrainConfig
from seqtune.training import checkpoints
from seqtune.training.loop import Trainer

ROUNDS = int(os.environ.get("SEQTUNE_CHAOS", "0"))  # `make chaos` sets it


def truncate(content: bytes, place: float) -> bytes:
    return content[: int(place * len(content))]


def flip(content: bytes, place: float) -> bytes:
    at = int(place * len(content))
    return content[:at] + bytes([content[at] ^ 0x41]) + content[at + 1 :] if content else b"A"


def empty(content: bytes, place: float) -> bytes:
    return b""


def replace(content: bytes, place: float) -> bytes:
    return os.urandom(64)


DAMAGES = (truncate, flip, empty, replace)


def verbs(run: Path, scratch: Path) -> dict[str, list[str]]:
    return {
        "predict": ["predict", str(run), "100", "--json"],
        "fit": ["fit", str(run / "config.yaml"), "--resume"],
        "report": ["report", str(run)],
        "export": ["export", str(run), "--out", str(scratch / "out"), "--verify", "1"],
        "evaluate": ["evaluate", str(run), str(run)],
        "score": ["score", str(run / "predictions.jsonl")],
    }


def promise(run: Path, verb: str, scratch: Path, capsys) -> bool:
    """Run a verb; true if it did its work. Anything but a code and, for 1, an error in one piece, is a broken promise."""
    code = run_app(verbs(run, scratch)[verb])
    shutil.rmtree(scratch / "out", ignore_errors=True)
    said = capsys.readouterr().err
    assert code in (0, 1)
    assert "Traceback" not in said
    assert code == 0 or "error: " in said
    return code == 0


def files_of(run: Path) -> list[str]:
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file() and p.name != ".seqtune-run")


def test_every_damage_to_every_file_is_seen_and_none_is_a_traceback(full, tmp_path, capsys):
    """Each file of a run, in one of the ways (all in the long form), and a verb that goes round; `predict` after a flip."""
    names, chosen = files_of(full), list(verbs(full, tmp_path))
    every = [(name, damage) for i, name in enumerate(names) for damage in (DAMAGES if ROUNDS else DAMAGES[i % 4 :: 4])]
    for number, (name, damage) in enumerate(every):
        for extra in range(max(1, ROUNDS // 10)):
            run = Path(shutil.copytree(full, tmp_path / "run"))
            file = run / name
            content = file.read_bytes()
            file.write_bytes(damage(content, ((number * 7 + extra * 13) % 19 + 0.5) / 19))
            # the best weights are of no more use, and the checkpoint holds them too; the page can be made again
            if file.read_bytes() != content and "best-" not in name and name != "report.html":
                assert run_app(["verify", str(run)]) == 1, (name, damage.__name__)
            capsys.readouterr()
            promise(run, chosen[(number + extra) % len(chosen)], tmp_path, capsys)
            if name.startswith("model/") and damage is flip:
                assert run_app(verbs(run, tmp_path)["predict"]) in (0, 1)
                said = capsys.readouterr().err
                assert "error: " in said or f"warning: {file}: its content is not" in said
            shutil.rmtree(run)


def test_a_whole_run_is_as_it_was_written(run, capsys):
    assert run_app(["verify", str(run)]) == 0
    assert "every file is as it was written" in capsys.readouterr().out
    assert run_app(["report", str(run)]) == 0  # the page is made anew
    assert run_app(["verify", str(run)]) == 0
    capsys.readouterr()
    assert run_app(["predict", str(run), "100"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_verify_names_what_differs(run, capsys):
    (run / "metrics.json").write_text("{}")
    (run / "task.yaml").unlink()
    (run / "model" / "extra.json").write_text("{}")
    found = json.loads((run / "manifest.json").read_text())["files"]["metrics.json"]["bytes"]
    weights = run / "checkpoints" / "step-00000002" / "model.safetensors"
    weights.write_bytes(flip(weights.read_bytes(), 0.9))
    assert run_app(["verify", str(run), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["differences"] == {
        "metrics.json": f"it has 2 bytes instead of {found:,}",
        "task.yaml": "it is missing",
        "model/extra.json": "nobody wrote it down",
        "checkpoints/step-00000002/model.safetensors": "its content is not what was written",
    }
    (run / "manifest.json").unlink()
    assert run_app(["verify", str(run)]) == 1
    assert "is no finished run: there is no manifest.json in it" in capsys.readouterr().err


def test_no_byte_of_a_manifest_can_change_unseen(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    runs.write_manifest(tmp_path, [tmp_path / "a.json"])
    file = tmp_path / "manifest.json"
    whole = file.read_bytes()
    assert runs.differences(tmp_path) == {}
    for at in range(len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]):
            file.write_bytes(damaged)
            try:
                seen = runs.differences(tmp_path)
            except RunError:
                continue
            assert seen or damaged.rstrip() == whole.rstrip(), (at, damaged)


def test_a_manifest_leads_nowhere_else(run):
    for name in ("../other", "/etc/passwd"):
        (run / "manifest.json").write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": ""}}}))
        with pytest.raises(RunError, match="manifest.json' is damaged"):
            runs.differences(run)


# checkpoints


def trainer(folder: Path, **settings) -> Trainer:
    rows = [Encoded(torch.arange(5 + i % 7, 14 + i % 7).numpy().astype("int32"), 2) for i in range(24)]
    config = TrainConfig(**{"batch_size": 4, "epochs": 2, "precision": "fp32", "checkpoint_every": 4} | settings)
    folder.mkdir(exist_ok=True)
    return Trainer(build_model("llama", 300), rows, config, folder, validate)


def validate(model, count):
    return {"exact_match": float(sum(p.sum() for p in model.parameters())), "num_items": 1.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Stopped after the third of its checkpoints, and the weights that it ends with."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    whole = trainer(folder, validate_every=3)
    whole.run(quiet=True)
    whole.load_best()
    return folder, {name: p.detach().clone() for name, p in whole.model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", truncate),
        ("optimizer.safetensors", flip),
        ("average.safetensors", empty),
        ("state.json", flip),
        ("best.safetensors", flip),
        ("manifest.json", replace),
    ],
)
def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(trained, tmp_path, capsys, name, damage):
    original, expected = trained
    folder = Path(shutil.copytree(original, tmp_path / "run"))
    newest, before = reversed(runs.checkpoints(folder / "checkpoints"))
    assert (newest.name, before.name) == ("step-00000012", "step-00000008")
    for best in (folder / "checkpoints").glob("best-*"):
        best.unlink()  # the checkpoints hold it too
    file = newest / name
    file.write_bytes(damage(file.read_bytes(), 0.99))
    again = trainer(folder, validate_every=3)
    assert again.restore()
    assert again.state.step == 8
    said = capsys.readouterr().err
    assert f"{file}' is damaged (" in said
    assert "going on from the checkpoint before it, step-00000008" in said
    again.run(quiet=True)
    again.load_best()
    for key, value in again.model.named_parameters():
        assert torch.equal(value, expected[key])
    assert [p.name for p in runs.checkpoints(folder / "checkpoints")] == ["step-00000008", "step-00000012"]


def test_where_all_checkpoints_are_torn_the_newest_is_named(trained, tmp_path):
    folder = Path(shutil.copytree(trained[0], tmp_path / "run"))
    for checkpoint in runs.checkpoints(folder / "checkpoints"):
        (checkpoint / "state.json").write_text("{}")
    with pytest.raises(RunError, match=r"step-00000012/state.json' is damaged \(.*start again with --overwrite or another"):
        trainer(folder).restore()


def test_a_checkpoint_of_another_shape_is_refused_and_not_spread_over_the_weights(tmp_path):
    """`copy_` would fill a whole tensor with a single number."""
    layer, file = torch.nn.Linear(3, 3), tmp_path / "one.safetensors"
    checkpoints.save_weights(torch.nn.Linear(3, 1), file)
    with pytest.raises(RunError, match="does not fit this model .such as bias, weight."):
        checkpoints.load_weights(layer, file)


def test_a_fit_that_goes_on_from_an_older_checkpoint_says_so_and_ends_the_same(llama_folder, tmp_path, capsys):
    table = write_csv(tmp_path / "pairs.csv", pairs(60))
    command = ["fit", "--data", str(table), "--model", str(llama_folder), "--set", "train.max_steps=4", "--set", "train.checkpoint_every=2",
               "--set", "data.split.validation=0", "--set", "decode.max_new_tokens=2", "--out"]  # fmt: skip
    assert run_app([*command, str(tmp_path / "whole")]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    run = tmp_path / "run"
    (run / "manifest.json").unlink()
    torn = run / "checkpoints" / "step-00000004" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-9])
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("/whole", "/run"))
    capsys.readouterr()
    assert run_app([*command, str(run), "--resume"]) == 0
    assert "going on from the checkpoint before it, step-00000002" in capsys.readouterr().err
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]
