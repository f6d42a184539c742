"""A full disk at any moment: one clear error, nothing half-written; with room again, the same command does the whole work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import pairs, write_csv

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("SEQTUNE_CHAOS", "3"))


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own: a tmpfs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root may mount a tmpfs; tests/faults/test_writing.py makes a disk full without one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing(disk, llama_folder, tmp_path):
    table = write_csv(tmp_path / "pairs.csv", pairs(60))
    command = [sys.executable, "-m", "faults.disks", str(table), str(llama_folder), str(tmp_path), str(ROUNDS)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    print(done.stderr)
    assert done.returncode == 0
    counts = json.loads(done.stdout)
    print(counts)
    assert set(counts) == {"fit", "resume", "export", "predict", "shards", "report", "data", "study"}
    assert all(verb["disks"] == verb["held"] and verb["full"] for verb in counts.values())
