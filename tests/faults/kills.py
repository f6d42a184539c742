"""Kill a verb at its K-th file operation, with SIGKILL, for many K; what is then there must be enough to go on from.

A program of its own: it forks before torch has computed anything, so that no child has to import anything again. The verbs of
a study run in the study's own process, so that it dies together with them, at any of their file operations.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch  # noqa: F401 - before the forks
import transformers  # noqa: F401
import uvicorn  # noqa: F401
import yaml

import seqtune.chem.commands
import seqtune.decoding.predictor
import seqtune.procedures.export
import seqtune.procedures.fit
import seqtune.report.page
import seqtune.serving.server  # noqa: F401
from seqtune import runs
from seqtune.cli.app import leave_in_order, run_app
from seqtune.errors import RunError
from seqtune.studies.processes import Process

Ask = Callable[[Callable[[], bool]], None]  # takes what tells whether the child is alive

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "open")
SETTINGS = {
    "train": {"max_steps": 4, "checkpoint_every": 2, "validate_every": 2, "batch_size": 8}, "decode": {"max_new_tokens": 2},
    "data": {"split": {"validation": 0.1, "test": 0.1}},
}  # fmt: skip


def call_here(self: Process, arguments: Sequence[str]) -> int:
    if run_app(list(arguments)):
        raise RunError("failed")
    return 1


def in_child(
    command: list[str], folder: Path, kill_at: int | None, count_to: Path | None = None, ask: Ask | None = None
) -> int:
    """The exit code of a verb in a fork; -9 if it was killed at its `kill_at`-th operation that changes `folder`.

    Args:
        command: the verb.
        folder: where operations count.
        kill_at: `None` to let it end.
        count_to: a file for the number of operations.
        ask: what the parent does meanwhile, after which the child is told to end.
    """
    child = os.fork()
    if child:
        if ask:
            ask(lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
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
    leave_in_order()
    tempfile.tempdir = os.environ["TMPDIR"]
    Process.__call__ = call_here  # type: ignore[method-assign]
    with open(os.environ["SAID"], "a") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_app(command)
    if count_to:
        count_to.write_text(str(done))
    os._exit(code)


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb to be killed.

    Attributes:
        command: its command line.
        watched: the folder in which operations count.
        same: whether what is there in the end is what it should be.
        ask: see `in_child`.
        prepare: makes what it goes on from.
    """

    command: list[str]
    watched: Path
    same: Callable[[], bool] = lambda: True
    ask: Ask | None = None
    prepare: Callable[[], None] = lambda: None


def flags(settings: dict, prefix: str = "") -> list[str]:
    """Settings as options."""
    return [flag for section, values in settings.items() for key, value in values.items()
            for flag in ("--set", f"{section}.{key}={json.dumps(value)}")]  # fmt: skip


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def table_job(port: int, folder: Path, is_alive: Callable[[], bool]) -> None:
    """Send a table to a server and fetch the answers, as far as it lives."""
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    rows = b"input\n" + b"".join(b"%d\n" % n for n in range(100, 130))

    def say(path: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(address + path, data, timeout=60) as answer:
            return answer.read()

    while is_alive() and time.monotonic() < end:
        try:
            job = json.loads(say("/v1/jobs?kind=csv", rows))["id"]
            while json.loads(say(f"/v1/jobs/{job}"))["state"] in ("waiting", "answering"):
                time.sleep(0.05)
            (folder / "answers").write_bytes(say(f"/v1/jobs/{job}/answers"))
            return
        except (urllib.error.URLError, ConnectionError, OSError) as error:
            if "refused" not in str(error):
                return  # it was killed
            time.sleep(0.1)


def stop_in_the_middle(whole: Path, broken: Path) -> None:
    """Make the run of a training that was stopped after its first checkpoint."""
    shutil.copytree(whole, broken)
    for name in (runs.MANIFEST, "metrics.json", "predictions.jsonl"):
        (broken / name).unlink()
    shutil.rmtree(broken / "model")
    shutil.rmtree(runs.checkpoints(broken / "checkpoints")[-1])
    settings = (broken / "config.yaml").read_text()
    (broken / "config.yaml").write_text(settings.replace(str(whole), str(broken)))


def verbs_of(table: str, base: str, folder: Path, whole: Path, broken: Path) -> dict[str, Verb]:
    """All verbs that write."""
    fit = ["fit", "--data", table, "--model", base, *flags(SETTINGS), "--resume", "--out", str(broken)]
    file = folder / "study.yaml"
    base_settings = {**SETTINGS, "data": SETTINGS["data"] | {"path": table}, "model": {"name": base}}
    study = {"name": "s", "out": str(broken / "study"), "store": str(broken / "store"), "base": base_settings,
             "axes": {"decode.num_beams": [1, 2]}}  # fmt: skip
    file.write_text(yaml.safe_dump(study))
    molecules = [
        "data",
        "molecules",
        "--file",
        table,
        "--smiles",
        "input",
        "--iupac",
        "output",
        "--preset",
        "none",
        "--no-keys",
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = folder / "answers"

    def trained() -> bool:
        return weights(broken) == weights(whole) and runs.verify(broken) == {}

    return {
        "fit": Verb(fit, broken, trained),
        "resume": Verb(fit, broken, trained, prepare=lambda: stop_in_the_middle(whole, broken)),
        "export": Verb(["export", str(whole), "--out", str(broken)], broken.parent),
        "predict": Verb(["predict", str(whole), "100", "--out", f"{broken}.jsonl"], broken.parent),
        "shards": Verb(
            ["predict", str(whole), "--file", table, "--out", str(broken), "--shard-rows", "9"], broken.parent,
            lambda: sum(p.read_bytes().count(b"\n") for p in broken.glob("part-*")) == 60 and runs.differences(broken) == {},
        ),
        "report": Verb(["report", str(whole)], whole),
        "data": Verb([*molecules, "--out", f"{broken}.csv"], broken.parent, lambda: len(Path(f"{broken}.csv").read_text().split()) > 60),
        "study": Verb(["study", str(file)], broken.parent, lambda: _studied(broken, whole)),
        "serve": Verb(
            ["serve", str(whole), "--port", str(port)], Path(os.environ["TMPDIR"]),
            lambda: answers.read_text().count("\n") == 31 and runs.verify(whole) == {}, partial(table_job, port, folder),
        ),
    }  # fmt: skip


def _studied(folder: Path, whole: Path) -> bool:
    lines = (folder / "study" / "results.csv").read_text().splitlines()
    (run,) = [p for p in (folder / "store").iterdir() if p.is_dir()]
    return len(lines) == 3 and weights(run) == weights(whole) and runs.verify(run) == {}


def main(table: str, base: str, folder: Path, rounds: int, chosen: list[str]) -> None:
    """Print, for each verb, how many kills there were and how many were gone on from."""
    whole, broken, count = folder / "whole", folder / "broken" / "run", folder / "count"
    os.environ["TMPDIR"], os.environ["SAID"] = str(folder / "temporary"), str(folder / "said")
    (folder / "temporary").mkdir()
    assert in_child(["fit", "--data", table, "--model", base, *flags(SETTINGS), "--out", str(whole)], whole, None) == 0
    results = {}
    for name, verb in verbs_of(table, base, folder, whole, broken).items():
        if chosen and name not in chosen:
            continue
        broken.parent.mkdir()
        verb.prepare()
        ended = (0, 128 + signal.SIGTERM) if verb.ask else (0,)
        code = in_child(verb.command, verb.watched, None, count, verb.ask)
        assert code in ended, (name, code, (folder / "said").read_text()[-2000:])
        assert verb.same(), name
        shutil.rmtree(broken.parent)
        moments = int(count.read_text())
        tried = sorted({1 + moment * (moments - 1) // max(1, rounds - 1) for moment in range(rounds)})
        died = held = 0
        for moment in tried:
            broken.parent.mkdir()
            verb.prepare()
            (folder / "answers").unlink(missing_ok=True)
            killed = in_child(verb.command, verb.watched, moment, None, verb.ask)
            if name == "study" and killed == 0:  # its trainings and its tables take turns, so the number of operations varies
                shutil.rmtree(broken.parent)
                continue
            assert killed == -signal.SIGKILL, (name, moment, killed)
            died += 1
            if name == "export":
                assert not broken.exists() or runs.differences(broken) == {}
                shutil.rmtree(broken, ignore_errors=True)  # it was whole, and is in the way
            again = in_child(verb.command, verb.watched, None, None, verb.ask)
            same = again in ended and verb.same()
            left = [str(p) for top in (broken.parent, whole) for p in top.rglob(".*") if not p.name.startswith(".seqtune-")]
            held += same and not left
            if not same or left:
                print(f"{name} killed at {moment} of {moments}: then {again}, same {same}, left {left}", file=sys.stderr)
            shutil.rmtree(broken.parent)
        results[name] = {"operations": moments, "killed": died, "held": held}
        print(name, results[name], file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
