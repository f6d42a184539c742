"""Kill a verb at its K-th file operation, with SIGKILL, for many K; what is then there must be enough to go on from.

A program of its own: it forks before torch has computed anything, so that no child has to import anything again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch  # noqa: F401 - before the forks
import transformers  # noqa: F401

import seqtune.decoding.predictor
import seqtune.procedures.export
import seqtune.procedures.fit
import seqtune.report.page  # noqa: F401
from seqtune import runs
from seqtune.cli.app import run_app

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "open")


def in_child(command: list[str], folder: Path, kill_at: int | None, count_to: Path | None = None) -> int:
    """The exit code of a verb in a fork; -9 if it was killed at its `kill_at`-th operation that changes `folder`."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal done
        if event not in CHANGES or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        done += 1
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        code = run_app(command)
    if count_to:
        count_to.write_text(str(done))
    os._exit(code)


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def main(table: str, base: str, folder: Path, rounds: int) -> None:
    """Print, for each verb, how many kills there were and how many were gone on from."""
    whole, broken, count = folder / "whole", folder / "broken" / "run", folder / "count"
    settings = ["train.max_steps=4", "train.checkpoint_every=2", "train.validate_every=2", "train.batch_size=8",
                "decode.max_new_tokens=2", "data.split={validation: 0.1, test: 0.1}"]  # fmt: skip
    fit = [
        "fit",
        "--data",
        table,
        "--model",
        base,
        *(flag for text in settings for flag in ("--set", text)),
        "--resume",
        "--out",
    ]
    assert in_child([*fit, str(whole)], whole, None, count) == 0
    verbs = {
        "fit": ([*fit, str(broken)], broken),
        "export": (["export", str(whole), "--out", str(broken)], broken.parent),
        "predict": (["predict", str(whole), "100", "--out", str(broken)], broken.parent),
        "report": (["report", str(whole)], whole),
    }
    results = {}
    for verb, (command, watched) in verbs.items():
        broken.parent.mkdir()
        if verb == "predict":
            command[-1] = f"{broken}.jsonl"
        assert in_child(command, watched, None, count) == 0, verb
        shutil.rmtree(broken.parent)
        moments = int(count.read_text())
        tried = sorted({1 + moment * (moments - 1) // max(1, rounds - 1) for moment in range(rounds)})
        held = 0
        for moment in tried:
            broken.parent.mkdir()
            assert in_child(command, watched, moment) == -signal.SIGKILL, (verb, moment)
            if verb == "export":
                assert not broken.exists() or runs.differences(broken) == {}
                shutil.rmtree(broken, ignore_errors=True)  # it was whole, and is in the way
            again = in_child(command, watched, None)
            same = verb != "fit" or (again == 0 and weights(broken) == weights(whole) and runs.verify(broken) == {})
            left = [str(p) for top in (broken.parent, whole) for p in top.rglob(".*") if p.name != ".seqtune-run"]
            held += again == 0 and same and not left
            if again or not same or left:
                print(f"{verb} killed at {moment} of {moments}: then {again}, same {same}, left {left}", file=sys.stderr)
            shutil.rmtree(broken.parent)
        results[verb] = {"operations": moments, "killed": len(tried), "held": held}
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
