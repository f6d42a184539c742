"""The run folder: whose it is, what may be removed from it, and that its files are there as a whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import seqtune
import seqtune.cli
from conftest import pairs, write_csv
from seqtune import folders, runs
from seqtune.cli.app import run_app
from seqtune.config import Config, load_config
from seqtune.data.tasks import Task
from seqtune.errors import RunError
from seqtune.records import Hypothesis, Prediction
from seqtune.report.answer_table import write_answer_table
from seqtune.sections import DecodeConfig

CHECKOUT = Path(seqtune.__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def configuration(**overrides) -> Config:
    return load_config(overrides={key.replace("__", "."): value for key, value in overrides.items()})


def begin(folder: Path, config: Config | None = None, fingerprint: str = "f", **flags) -> bool:
    """Open a run and write what `fit` writes first."""
    config = config or configuration()
    found = runs.open_run(config, folder, fingerprint, **({"resume": False, "overwrite": False} | flags))
    runs.write_text(folder / "config.yaml", config.to_yaml())
    runs.write_json(folder / "data.json", {"fingerprint": fingerprint})
    return found


# whose folder it is


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_a_project_with_a_settings_file_is_no_run(tmp_path, capsys, flags):
    project = tmp_path / "project"
    (project / "model").mkdir(parents=True)
    write_csv(project / "pairs.csv", pairs(120))
    for name in ("thesis.tex", "model/model.safetensors", "README.md"):
        (project / name).write_text("years of work")
    (project / "config.yaml").write_text(f"data: {{path: {project}/pairs.csv}}\n")
    before = contents(project)
    assert run_app(["fit", str(project / "config.yaml"), "--out", str(project), *flags]) == 1
    expected = "is not empty, and it is no run that seqtune made (there is no file .seqtune-run in it); choose another --out"
    assert capsys.readouterr().err.endswith(f"\nerror: {str(project)!r} {expected}\n")
    assert contents(project) == before


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="is a file; choose another --out"):
        runs.check_free(configuration(), tmp_path / "run", resume=False, overwrite=True)


def test_what_may_be_done_with_a_run_that_is_there(tmp_path):
    folder = tmp_path / "run"
    assert not begin(folder)
    with pytest.raises(RunError, match="holds a run already; continue it with --resume, replace it with --overwrite"):
        begin(folder)
    with pytest.raises(RunError, match="--resume continues a run and --overwrite replaces it; give one of them"):
        begin(folder, resume=True, overwrite=True)
    assert begin(folder, resume=True)
    assert not begin(folder, overwrite=True)


def test_a_kill_after_the_first_moment_leaves_a_folder_that_is_free(tmp_path):
    folders.create(tmp_path / "run", runs.RUN)
    (tmp_path / "run" / ".config.yaml.999999999").write_text("data: {pa")
    assert not begin(tmp_path / "run")
    assert sorted(contents(tmp_path / "run")) == [".seqtune-run", "config.yaml", "data.json"]


# what is removed


def test_overwriting_removes_our_files_and_leaves_all_others(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "weights"
    begin(folder)
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").write_text("linked, not copied")
    (folder / "model").symlink_to(elsewhere)
    for name in ("manifest.json", "metrics.json", "checkpoints/step-00000001/state.json", "model-ctranslate2-int8/model.bin", ".model-ctranslate2-int8.lock",
                 "evaluations/0a1b/metrics.json", "evaluations/0a1b/.seqtune-evaluation", "report.html", ".metrics.json.999999999"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ours")
    theirs = ("notes.md", "figures/one.svg", "metrics.json.bak", ".git/HEAD", "models/other", "evaluations/thesis.xlsx",
              "evaluations/0a1b/notes.txt", "seqtune/source.py")  # fmt: skip
    for name in theirs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("theirs")
    assert not runs.open_run(configuration(), folder, "f", resume=False, overwrite=True)
    assert set(contents(folder)) == {".seqtune-run", *theirs}
    assert folders.foreign(folder, runs.RUN) == [
        ".git", "evaluations/0a1b/notes.txt", "evaluations/thesis.xlsx", "figures", "metrics.json.bak", "models", "notes.md", "seqtune/source.py",
    ]  # fmt: skip
    assert (elsewhere / "model.safetensors").exists()


@pytest.mark.parametrize("place", ["data.path", "data.validation_path", "data.test_path", "model.name"])
@pytest.mark.parametrize("link", [False, True])
def test_a_run_that_holds_what_the_new_one_reads_is_not_overwritten(tmp_path, place, link):
    folder = tmp_path / "run"
    begin(folder)
    inside = folder / "model"
    inside.mkdir()
    before = contents(folder)
    named = inside
    if link:
        named = tmp_path / "link"
        named.symlink_to(inside)
    with pytest.raises(RunError, match=f"--overwrite: '{named}' lies in the run folder '{folder}'"):
        begin(folder, load_config(overrides={place: str(named)}), overwrite=True)
    assert contents(folder) == before


def test_a_hub_id_lies_in_no_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(Path())
    assert not begin(Path(), configuration(model__name="owner/model", data__path="hf://datasets/owner/name"), overwrite=True)


def test_settings_in_the_run_folder_are_not_overwritten(tmp_path, table, capsys):
    begin(tmp_path / "run", configuration(data__path=str(table), out=str(tmp_path / "run")))
    before = contents(tmp_path)
    assert run_app(["fit", str(tmp_path / "run" / "config.yaml"), "--overwrite"]) == 1
    assert "config.yaml' lies in the run folder" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", range(4))  # of what is there: manifest, settings, data, checkpoints
def test_a_kill_while_a_run_is_removed_leaves_neither_a_run_nor_a_folder_in_the_way(tmp_path, monkeypatch, number):
    folder = tmp_path / "run"
    begin(folder)
    (folder / "checkpoints" / "step-00000900").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    with monkeypatch.context() as patch:
        left, remove = [number], folders._take_away

        def killed(path):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            remove(path)

        patch.setattr(folders, "_take_away", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(folder, overwrite=True)
    assert runs.is_complete(folder) == (number == 0)
    if number > 1:  # it does not count as begun, so that the old checkpoints are no part of a new training
        assert not begin(folder, configuration(train__epochs=9), resume=True)
        assert not (folder / "checkpoints").exists()
    assert not begin(folder, overwrite=True)


def test_fit_replaces_a_run_and_leaves_notes(llama_folder, table, tmp_path, capsys):
    folder = tmp_path / "run"
    command = [
        "fit", "--data", str(table), "--model", str(llama_folder), "--out", str(folder), "--set", "train.max_steps=1",
        "--set", "data.split={validation: 0, test: 0.05}", "--set", "decode.max_new_tokens=2",
    ]  # fmt: skip
    assert run_app(command) == 0
    assert folders.foreign(folder, runs.RUN) == []
    (folder / "notes.md").write_text("mine")
    (folder / "metrics.json").unlink()
    capsys.readouterr()
    assert run_app([*command, "--overwrite"]) == 0
    assert f"{folder} holds files that seqtune did not write; they stay: notes.md" in capsys.readouterr().err.replace("\n", "")
    assert (folder / "notes.md").read_text() == "mine"
    listed = set(json.loads((folder / "manifest.json").read_text())["files"])
    here = {name for name in contents(folder) if not name.startswith("checkpoints/")}
    assert listed == here - {".seqtune-run", "manifest.json", "notes.md", "report.html"}
    assert "metrics.json" in listed


# whole or not at all


@pytest.mark.parametrize(
    "write",
    [
        lambda path: runs.write_text(path, "new"),
        lambda path: runs.write_json(path, {"new": 1}),
        lambda path: Task("input", "output", "plain", "{output}", "\n").save(path),
    ],
)
def test_a_file_is_written_whole_and_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, write):
    path = tmp_path / "file"
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    events, fsync, replace = [], os.fsync, Path.replace

    def synced(handle):
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}") == str(tmp_path)))
        fsync(handle)

    def replaced(old, new):
        events.append(("rename", path.read_text()))
        return replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write(path)
    assert events == [("sync", False), ("rename", "old"), ("sync", True)]  # the file, its name, the folder
    assert "old" not in path.read_text()


@pytest.mark.parametrize("text", ['{"fingerprint": "f', "", "[1]", "\udcff"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path, text):
    folder = tmp_path / "run"
    begin(folder)
    for name, read in (
        ("data.json", lambda: begin(folder, resume=True)),
        ("vocabulary.json", lambda: runs.read_kept_tokens(folder)),
    ):
        (folder / name).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(
            RunError, match=rf"{name}' is damaged \(.*\); put it back from a copy, or start again with --overwrite"
        ):
            read()


# the manifest


def test_a_manifest_lists_what_was_written_wherever_the_run_lies(tmp_path):
    folder = tmp_path / "checkpoints" / ".hidden" / "run"
    begin(folder)
    runs.write_predictions(folder / "predictions.jsonl", [Prediction("1", "a", "b", "b", 0.0, (), "ok", {})])
    for name in (
        "checkpoints/step-00000001/state.json",
        "model/config.json",
        "model/.cache",
        ".predictions.jsonl.1",
        "notes.md",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    runs.finish(folder)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(files) == {"config.yaml", "data.json", "model/config.json", "predictions.jsonl"}
    digest = subprocess.run(
        ["sha256sum", folder / "predictions.jsonl"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert files["predictions.jsonl"] == {"bytes": (folder / "predictions.jsonl").stat().st_size, "sha256": digest}


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    begin(folder)
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = (f".predictions.jsonl.{dead.pid}", f".config.yaml.{os.getpid()}")
    stays = (f".metrics.json.{os.getppid()}", f".mine.{dead.pid}", ".metrics.json.old", f"metrics.json.{dead.pid}")
    for name in (*gone, *stays):
        (folder / name).write_text("x")
    (folder / f".model-ctranslate2-int8.{dead.pid}").mkdir()
    assert begin(folder, resume=True)
    assert {p.name for p in folder.iterdir()} == {".seqtune-run", "config.yaml", "data.json", *stays}


# what it began with


def test_another_search_for_answers_does_not_keep_a_training_from_going_on(tmp_path):
    folder = tmp_path / "run"
    begin(folder, configuration(decode__num_beams=1, decode__max_new_tokens=5))
    other = configuration(decode__num_beams=4, decode__max_new_tokens=9, decode__engine="native")
    assert begin(folder, other, resume=True)
    with pytest.raises(RunError, match=r"give those, or choose another --out; changed: train.seed: 0 -> 1$"):
        begin(folder, configuration(train__seed=1, decode__num_beams=2), resume=True)
    runs.finish(folder)
    with pytest.raises(RunError, match="changed: decode.num_beams: 4 -> 2"):  # its answers are there already
        begin(
            folder,
            other.model_copy(update={"decode": DecodeConfig(**other.decode.model_dump() | {"num_beams": 2})}),
            resume=True,
        )


def test_validation_is_the_same_however_the_answers_are_searched_for():
    """So `decode` decides nothing about the weights, and a run may be resumed with another `decode`."""
    from seqtune.procedures.validation import Validator

    prepared = SimpleNamespace(examples={"validation": []}, mixture=(), task=None, encoder=SimpleNamespace(tokenizer=None))
    validators = [Validator(prepared, configuration(**c)) for c in ({}, {"decode__max_new_tokens": 3, "decode__num_beams": 2})]
    assert validators[0].decode == validators[1].decode


# where the package comes from


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    """Somebody's repository, with a virtual environment in it that is not committed."""
    folder = tmp_path / "theirs"
    (folder / "lib" / "seqtune").mkdir(parents=True)
    (folder / "lib" / "seqtune" / "runs.py").write_text("")
    (folder / "analysis.py").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", "analysis.py")
    git(folder, "commit", "-q", "-m", "begin")
    return folder


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_git_revision_is_the_packages_own(repository, tmp_path, monkeypatch):
    installed = repository / "lib" / "seqtune" / "runs.py"
    assert runs.git_revision(installed) is None  # a package in a repository that does not hold it
    assert runs.git_revision(tmp_path / "elsewhere" / "runs.py") is None
    git(repository, "add", "--all")
    git(repository, "commit", "-q", "-m", "the package's own checkout")
    assert runs.git_revision(installed) == git(repository, "rev-parse", "HEAD")
    monkeypatch.chdir(repository)
    ours = git(CHECKOUT, "rev-parse", "HEAD") if (CHECKOUT / ".git").exists() else None
    assert runs.environment(0)["git_revision"] == ours


def test_a_table_of_answers_keeps_the_rows_columns_and_all_hypotheses(tmp_path):
    best, second = Hypothesis("x, y", -1.0, 3, True), Hypothesis("z", -2.0, 3, True)
    rows = [
        Prediction(
            "7", "a", None, "x, y", -1.0, (best, second), "ok", {"kind": "new"}, {"name": "a", "status": "open", "": "odd"}
        ),
        Prediction("9", "b", None, "", 0.0, (), "empty", {}, {"name": "b", "status": "shut", "": ""}),
    ]
    write_answer_table(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(newline="") as handle:
        found = list(csv.reader(handle))
    assert found == [
        ["name", "status", "", "prediction", "seqtune_status", "log_probability", "prediction_2", "log_probability_2", "kind"],
        ["a", "open", "odd", "x, y", "ok", "-1.0000", "z", "-2.0000", "new"],
        ["b", "shut", "", "", "empty", "0.0000", "", "", ""],
    ]


@pytest.mark.parametrize(("ids", "columns"), [(("1", "2"), ["input"]), (("one", "two"), ["id", "input"])])
def test_rows_without_columns_get_no_invented_ids(tmp_path, ids, columns):
    rows = [Prediction(i, text, None, "x", -1.0, (), "ok") for i, text in zip(ids, "ab", strict=True)]
    write_answer_table(tmp_path / "t.tsv", rows)
    header, first, _ = [line.split("\t") for line in (tmp_path / "t.tsv").read_text().splitlines()]
    assert header == [*columns, "prediction", "status", "log_probability"]
    assert first[: len(columns)] == [ids[0], "a"][-len(columns) :]
