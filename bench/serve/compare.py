"""A run behind `seqtune serve`, behind LitServe with `generate`, and behind `transformers serve`: who answers how much, how soon.

    pip install litserve && python bench/serve/compare.py demo/run --seconds 8 > serve.json

The servers live side by side and are asked in turn, cell by cell, so that a slow minute of the machine strikes all of them. Inputs
are the run's own test rows: its shortest quarter, or all lengths. Prints JSON, and the table to standard error. Loopback only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CLIENTS = (1, 4, 16, 64)
SHARE = 0.7  # of what a server reaches with 16 clients


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def commands(run: Path, port: int) -> dict[str, list[str]]:
    """The servers: a name that begins with the kind of requests -> command."""
    peer = [sys.executable, str(HERE / "litserve_peer.py"), str(run), "--port", str(port)]
    return {
        "seqtune": [sys.executable, "-m", "seqtune", "serve", str(run), "--port", str(port), "--queue", "4096"],
        "litserve, 1 beam": [*peer, "--beams", "1"],
        "litserve, 5 beams": [*peer, "--beams", "5"],
        "transformers serve": [
            str(Path(sys.executable).with_name("transformers")), "serve", str((run / "model").resolve()), "--port", str(port),
            "--continuous-batching",
        ],
    }  # fmt: skip


@contextlib.contextmanager
def running(run: Path, name: str, log: Path) -> Iterator[tuple[int, int]]:
    """A server's port and process, once it listens."""
    port = free_port()
    with log.open("w") as said:
        process = subprocess.Popen(commands(run, port)[name], stdout=said, stderr=said, start_new_session=True)
    try:
        end = time.monotonic() + 180
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.5)
        else:
            raise SystemExit(f"{name} did not start: {log.read_text()[-2000:]}")
        yield port, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            subprocess.run(["kill", "--", f"-{process.pid}"], check=False)
        process.wait(60)


def load(port: int, pid: int, kind: str, inputs: Path, beams: int, seconds: float, model: str, **how: float) -> dict[str, Any]:
    """One measurement of `load.py`."""
    command = [sys.executable, str(HERE / "load.py"), f"http://127.0.0.1:{port}", "--kind", kind, "--inputs", str(inputs),
               "--beams", str(beams), "--seconds", str(seconds), "--pid", str(pid), "--model", model]  # fmt: skip
    command += [part for key, value in how.items() for part in (f"--{key}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr[-500:]}


def inputs_of(run: Path, folder: Path) -> dict[str, Path]:
    """Files of inputs, a line each."""
    texts = [json.loads(line)["input"] for line in (run / "predictions.jsonl").read_text().splitlines()]
    texts = [text for text in sorted(texts, key=len) if "\n" not in text]
    found = {"short": texts[: len(texts) // 4], "mixed": random.Random(0).sample(texts, len(texts))}
    for name, some in found.items():
        (folder / name).write_text("\n".join(some))
    return {name: folder / name for name in found}


def cells(
    options: argparse.Namespace, servers: dict[str, tuple[int, int]], inputs: dict[str, Path]
) -> Iterator[dict[str, Any]]:
    """All measurements, those that are compared behind one another."""
    model = str((options.run / "model").resolve())
    for beams in (1, 5):
        asked = {"seqtune": "seqtune", f"litserve, {beams} beam{'s' if beams > 1 else ''}": "litserve"}
        if beams == 1 and "transformers serve" in servers:
            asked["transformers serve"] = "openai"
        for name, kind in asked.items():  # its first answers are slower
            load(*servers[name], kind, inputs["short"], beams, 2, model, clients=4)
        for lengths, file in inputs.items():
            for clients in CLIENTS:
                for name, kind in asked.items():
                    found = load(*servers[name], kind, file, beams, options.seconds, model, clients=clients)
                    yield {"server": name, "lengths": lengths, **found}
        reached = load(*servers["seqtune"], "seqtune", inputs["mixed"], beams, options.seconds, model, clients=16)["per_second"]
        found = load(*servers["seqtune"], "seqtune", inputs["mixed"], beams, 3 * options.seconds, model, rate=SHARE * reached)
        yield {"server": "seqtune", "lengths": "mixed", **found, "share": SHARE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--without", action="append", default=[], help="a server that is not here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        names = [name for name in commands(options.run, 0) if name not in options.without]
        servers = {name: stack.enter_context(running(options.run, name, folder / f"{name}.log")) for name in names}
        rows = []
        for row in cells(options, servers, inputs_of(options.run, folder)):
            rows.append(row)
            shown = [
                row.get(key)
                for key in ("server", "lengths", "beams", "clients", "rate", "per_second", "p50_ms", "p95_ms", "p99_ms")
            ]
            print(
                "| " + " | ".join(map(str, shown)) + f" | {row.get('statuses') or row.get('failed')} |",
                file=sys.stderr,
                flush=True,
            )
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
