"""Verbs that write onto a disk of some size too small for what they write, from hardly any room to hardly too little.

A program of its own, for it forks like `kills.py`. It mounts a tmpfs, which takes the rights of root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from faults import kills
from faults.kills import SETTINGS, flags, in_child, weights
from seqtune import runs

ROOM = 64 * 2**20


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def taken(disk: Path) -> int:
    facts = os.statvfs(disk)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def emptied(disk: Path) -> None:
    for path in disk.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def main(table: str, base: str, folder: Path, rounds: int, chosen: list[str]) -> None:
    """Print, for each verb, on how many disks it was tried and on how many nothing was lost, and nothing half-written stayed."""
    disk, whole, said = folder / "disk", folder / "whole", folder / "said"
    os.environ["TMPDIR"], os.environ["SAID"] = str(disk), str(said)
    assert in_child(["fit", "--data", table, "--model", base, *flags(SETTINGS), "--out", str(whole)], folder, None) == 0
    (disk / "filler").write_bytes(bytes(4096))  # for a tmpfs of no bytes has no limit
    verbs = {
        name: verb for name, verb in kills.verbs_of(table, base, folder, whole, disk / "at" / "run").items() if name != "serve"
    }
    page = disk / "at" / "whole"  # a report is written into the run itself
    results = {}
    for name, verb in verbs.items():
        if chosen and name not in chosen:
            continue
        command = ["report", str(page)] if name == "report" else verb.command
        counts, need = {"disks": 0, "full": 0, "held": 0}, 0
        resize(disk, ROOM)
        for attempt in range(rounds + 1):
            (disk / "at").mkdir()
            if name == "report":
                shutil.copytree(whole, page)
            verb.prepare()
            before = taken(disk)
            if attempt:  # from hardly any room to hardly too little
                resize(disk, before + need * (attempt - 1) // rounds)
            said.write_text("")
            code = in_child(command, disk, None)
            if not attempt:
                assert code == 0, (name, said.read_text()[-1000:])
                need = taken(disk) - before
                emptied(disk)
                continue
            text = said.read_text()
            clean = code == 0 or (code == 1 and "error: the disk is full" in text and "Traceback" not in text)
            left = [str(p) for p in disk.rglob(".*") if not p.name.startswith(".seqtune-")]
            resize(disk, ROOM)
            if name == "export" and code == 0:
                shutil.rmtree(disk / "at" / "run")
            again = in_child(command, disk, None)
            held = (
                clean
                and not left
                and again == 0
                and (verb.same() if name != "fit" else weights(disk / "at" / "run") == weights(whole))
            )
            if not held:
                print(f"{name}, {attempt} of {rounds}: {code}, then {again}, left {left}: {text[-400:]}", file=sys.stderr)
            if name == "fit" and again == 0:
                assert runs.verify(disk / "at" / "run") == {}
            counts = {"disks": counts["disks"] + 1, "full": counts["full"] + (code == 1), "held": counts["held"] + held}
            emptied(disk)
        results[name] = counts
        print(name, counts, file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
