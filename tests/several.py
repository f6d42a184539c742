"""Starts a script in several processes that know of one another, as torchrun does, but each to be watched and signalled."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> str:
    """One that nothing else is likely to take meanwhile: systems hand out ports from 32768 on, and Ray those from 10002 to 19999."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)


def start(width: int, command: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """`python COMMAND...` in `folder`, `width` times."""
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(width), "LOCAL_WORLD_SIZE": str(width),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *command], text=True, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(width)
    ]  # fmt: skip


def ends(processes: list[subprocess.Popen[str]], timeout: float) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; none of them outlives this."""
    try:
        found = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def run(width: int, command: list[str], folder: Path, timeout: float = 600) -> list[str]:
    """`start`, and all of them must end well; returns what each printed."""
    found = ends(start(width, command, folder), timeout)
    assert [code for code, _, _ in found] == [0] * width, found
    return [out for _, out, _ in found]
