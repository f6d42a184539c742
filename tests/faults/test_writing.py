"""What is written is there as a whole or not at all, and only one process writes into a folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import pairs, write_csv
from seqtune import folders, runs
from seqtune.cli.app import run_app
from seqtune.errors import RunError
from seqtune.procedures.export import export
from seqtune.report.page import write_report


def dead() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def full_disk(monkeypatch, at: int = 0) -> None:
    """From the n-th file on, nothing can be brought to the disk."""
    left, sync = [at], os.fsync

    def fsync(handle):
        if left[0] <= 0:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_a_full_disk_leaves_no_part_of_a_report_or_an_export(run, tmp_path, monkeypatch, capsys):
    write_report(run)
    before = (run / "report.html").read_bytes()
    with monkeypatch.context() as patch:
        full_disk(patch)
        assert run_app(["report", str(run)]) == 1
    assert "error: the disk is full" in capsys.readouterr().err
    assert (run / "report.html").read_bytes() == before
    for at in range(4):
        with monkeypatch.context() as patch:
            full_disk(patch, at)
            assert run_app(["export", str(run), "--out", str(tmp_path / "out")]) == 1
        assert "error: the disk is full" in capsys.readouterr().err
        assert names(tmp_path) == {"run"}
    export(run, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_what_killed_processes_left_is_swept_when_the_same_thing_is_written_again(run, tmp_path):
    gone = [
        run / f".report.html.{dead()}", tmp_path / f".answers.jsonl.{dead()}", tmp_path / f".answers.jsonl.{os.getpid()}",
        tmp_path / f".old.answers.jsonl.{dead()}",
    ]  # fmt: skip
    stays = [tmp_path / f".other.jsonl.{dead()}", tmp_path / f".answers.jsonl.{os.getppid()}", tmp_path / ".answers.jsonl.old"]
    for path in (*gone, *stays):
        path.write_text("half of")
    write_report(run)
    assert run_app(["predict", str(run), "100", "--out", str(tmp_path / "answers.jsonl")]) == 0
    assert [p for p in gone if p.exists()] == []
    assert [p for p in stays if not p.exists()] == []


def test_leftovers_inside_a_run_are_swept_and_never_in_its_manifest(run):
    left = [
        "checkpoints/.step-00000009.{}",
        "checkpoints/.best-00000009.safetensors.{}",
        ".old.model.{}",
        "evaluations/.0a1b.{}",
    ]
    paths = [run / name.format(dead()) for name in left]
    for path in paths:
        path.mkdir(parents=True)
        (path / "state.json").write_text("{}")
    (run / "model" / ".writing").write_text("half of")
    runs.finish(run)
    assert not [name for name in runs.read_json(run / "manifest.json")["files"] if "/." in name or name.startswith(".")]
    folders.sweep(run, runs.RUN)
    assert [p for p in paths[:3] if p.exists()] == []


def test_a_folder_takes_the_place_of_an_older_one_only_where_that_is_meant(tmp_path):
    path = tmp_path / "folder"
    for number in range(2):
        with folders.writing(path, folders.aside(path)) as hidden:
            hidden.mkdir()
            (hidden / str(number)).touch()
    assert names(path) == {"1"}
    with pytest.raises(OSError, match="not empty"), folders.writing(path) as hidden:
        hidden.mkdir()
    assert names(tmp_path) == {"folder"}
    assert names(path) == {"1"}


HOLDER = """
import sys, time
from pathlib import Path
from seqtune import folders, runs
with folders.held(Path(sys.argv[1]), runs.RUN):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_train_in_one_folder_and_a_crash_frees_it(llama_folder, tmp_path, capsys):
    run = tmp_path / "run"
    table = write_csv(tmp_path / "pairs.csv", pairs(60))
    command = ["fit", "--data", str(table), "--model", str(llama_folder), "--out", str(run), "--set", "train.max_steps=1",
               "--set", "data.split.validation=0", "--set", "decode.max_new_tokens=2"]  # fmt: skip
    folders.create(run, runs.RUN)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert run_app([*command, "--overwrite"]) == 1
        said = capsys.readouterr().err
        assert (
            f"'{run}' is being written by process {holder.pid} on {socket.gethostname()} since {time.strftime('%Y')}-" in said
        )
        assert "wait until it has ended, stop it, or choose another --out" in said
        assert names(run) == {".seqtune-run"}
    finally:
        holder.kill()
        holder.wait()
    assert run_app([*command, "--overwrite"]) == 0
    assert "written by" not in (run / ".seqtune-run").read_text()


def test_where_there_are_no_locks_nothing_is_locked(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(37, "No locks available")

    folders.create(tmp_path / "run", runs.RUN)
    monkeypatch.setattr("fcntl.lockf", none)
    with folders.held(tmp_path / "run", runs.RUN):
        assert folders.HELD not in (tmp_path / "run" / runs.RUN.marker).read_text()


def test_a_holder_that_is_unknown(tmp_path, monkeypatch):
    def taken(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    folders.create(tmp_path / "run", runs.RUN)
    monkeypatch.setattr("fcntl.lockf", taken)
    with pytest.raises(RunError, match="is being written by another process; wait"), folders.held(tmp_path / "run", runs.RUN):
        pass
