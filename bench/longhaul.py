"""Does memory stay flat? A training of many steps, or a server under load for a while, watched from outside.

    python bench/longhaul.py train --steps 20000
    python bench/longhaul.py serve --minutes 30

Both take a small model made here. Memory is that of the process (resident), sampled every half second; it is flat if its median in
the last fifth is within 2% of that in the fifth after the first. Prints one JSON object; the exit code is 1 where it is not flat, a
request failed that should not, or the process did not end as it should.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from conftest import build_model, build_tokenizer, pairs, write_csv

MIB = 2**20
FLAT = 0.02
CLIENTS = 4


def base_model(folder: Path) -> Path:
    """A Llama of two layers."""
    tokenizer = build_tokenizer("llama")
    build_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fit(table: Path, base: Path, out: Path, steps: int) -> list[str]:
    settings = {"train.max_steps": steps, "train.epochs": 1_000_000, "train.batch_size": 4, "decode.max_new_tokens": 8,
                "train.validate_every": max(1, steps // 20), "train.checkpoint_every": max(1, steps // 20)}  # fmt: skip
    flags = [flag for key, value in settings.items() for flag in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "seqtune", "fit", "--data", str(table), "--model", str(base), "--out", str(out), *flags]


class Watch(threading.Thread):
    """Samples a process's memory."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.process, self.samples, self.began = psutil.Process(pid), [], threading.Event()

    def run(self) -> None:
        while True:
            try:
                if self.began.is_set():
                    self.samples.append(self.process.memory_info().rss / MIB)
            except psutil.NoSuchProcess:
                return
            time.sleep(0.5)

    def found(self) -> dict[str, Any]:
        fifth = len(self.samples) // 5
        if not fifth:
            return {"flat": False, "num_samples": len(self.samples)}
        early, late = (statistics.median(part) for part in (self.samples[fifth : 2 * fifth], self.samples[-fifth:]))
        return {
            "early_mib": round(early, 1), "late_mib": round(late, 1), "peak_mib": round(max(self.samples), 1),
            "growth": round(late / early - 1, 4), "flat": late <= (1 + FLAT) * early, "num_samples": len(self.samples),
        }  # fmt: skip


def train(folder: Path, steps: int) -> dict[str, Any]:
    table, base = write_csv(folder / "pairs.csv", pairs(400)), base_model(folder / "base")
    process = subprocess.Popen(
        fit(table, base, folder / "run", steps), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    watch = Watch(process.pid)
    watch.start()
    log = folder / "run" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 1):
        time.sleep(0.2)
    watch.began.set()
    while process.poll() is None and not (folder / "run" / "model").exists():  # the scores of the end are another kind of work
        time.sleep(0.2)
    watch.began.clear()
    _, said = process.communicate()
    if process.returncode:
        print(said[-2000:], file=sys.stderr)
    return {"what": "train", "steps": steps, "code": process.returncode, "ok": process.returncode == 0, **watch.found()}


def ask(port: int, number: int) -> int:
    """One request of some kind; returns its status."""
    text = str(number % 900 + 100)
    kinds: list[tuple[str, Any]] = [
        ("/v1/predict", {"inputs": [text, text[::-1]], "num_beams": 1 + number % 3}),
        ("/v1/completions", {"model": "run", "prompt": text, "max_tokens": 6}),
        ("/v1/completions", {"model": "run", "prompt": text, "stream": True}),
        ("/v1/predict", {"inputs": text, "num_beams": 99}),  # refused
        ("/v1/jobs?kind=csv", None),
    ]
    path, body = kinds[number % len(kinds)]
    data = json.dumps(body).encode() if body else b"input\n" + b"".join(b"%d\n" % n for n in range(100, 120))
    address = f"http://127.0.0.1:{port}"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address + path, data, {"Content-Type": "application/json"}), timeout=120
        ) as answer:
            said = answer.read()
            if body is None:
                request = urllib.request.Request(f"{address}/v1/jobs/{json.loads(said)['id']}", method="DELETE")
                urllib.request.urlopen(request, timeout=120).close()
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def serve(folder: Path, minutes: float) -> dict[str, Any]:
    table, base = write_csv(folder / "pairs.csv", pairs(400)), base_model(folder / "base")
    subprocess.run(fit(table, base, folder / "run", 20), check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "seqtune", "serve", str(folder / "run"), "--port", str(port), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # it is ready
    watch, statuses, end = Watch(process.pid), Counter(), time.monotonic() + 60 * minutes
    watch.start()
    watch.began.set()

    def load(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            try:
                statuses[ask(port, rng.randrange(10_000))] += 1
            except OSError as error:
                statuses[type(error).__name__] += 1

    clients = [threading.Thread(target=load, args=(seed,)) for seed in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    watch.began.clear()
    process.send_signal(signal.SIGTERM)
    code = process.wait(120)
    ok = 200 in statuses and set(statuses) <= {200, 202, 400, 429} and code in (0, 128 + signal.SIGTERM)
    counts = {str(key): value for key, value in sorted(statuses.items(), key=str)}
    return {"what": "serve", "minutes": minutes, "code": code, "ok": ok, "statuses": counts, **watch.found()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "serve"])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = train(Path(folder), asked.steps) if asked.what == "train" else serve(Path(folder), asked.minutes)
    print(json.dumps(found))
    return 0 if found["ok"] and found["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
