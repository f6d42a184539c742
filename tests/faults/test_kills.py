"""SIGKILL at any file operation of every verb that writes: the same command then does the whole work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import pairs, write_csv

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("SEQTUNE_CHAOS", "2"))


def test_a_kill_at_any_file_operation_loses_nothing(llama_folder, tmp_path):
    table = write_csv(tmp_path / "pairs.csv", pairs(60))
    command = [
        sys.executable,
        str(Path(__file__).with_name("kills.py")),
        str(table),
        str(llama_folder),
        str(tmp_path),
        str(ROUNDS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stderr)
    assert done.returncode == 0
    counts = json.loads(done.stdout)
    print(counts)
    assert set(counts) == {"fit", "resume", "export", "predict", "shards", "report", "data", "study", "serve"}
    assert all(verb["killed"] == verb["held"] > 1 for verb in counts.values())
