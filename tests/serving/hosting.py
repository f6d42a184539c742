"""Small runs and servers over them."""

from __future__ import annotations

import json
import random
import socket
import string
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from conftest import build_model, build_tokenizer
from seqtune import runs
from seqtune.config import load_config
from seqtune.data.tasks import Task
from seqtune.serving.application import State, build
from seqtune.serving.limits import Limits
from seqtune.serving.measures import Measures
from seqtune.serving.scheduler import Scheduler
from seqtune.serving.served import Desk
from seqtune.serving.shelf import Shelf


def make_run(
    folder: Path,
    family: str = "llama",
    template: str = "Name {input}:",
    seed: int = 0,
    answers: list[str] | None = None,
    **decode,
) -> Path:
    """A complete run without a training: a random model whose answers end at different lengths."""
    import torch

    tokenizer = build_tokenizer(family)
    model = build_model(family, len(tokenizer))
    if seed:
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    make_end_likely(model, tokenizer)
    settings = {
        "out": str(folder),
        "decode": {"max_new_tokens": 24, **decode},
        "format": {"template": template, "answers": answers},
    }
    config = load_config(overrides=settings)
    (folder / "model").mkdir(parents=True)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Task.from_config(config).save(folder / "task.yaml")
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / runs.RUN.marker).touch()
    runs.finish(folder)
    return folder


def make_end_likely(model, tokenizer) -> None:
    """Turn the end token's output row towards the hidden states."""
    import torch

    end = tokenizer.eos_token_id
    texts = [tokenizer(t)["input_ids"] for t in texts_of(20)]
    with torch.no_grad():
        backbone, head = getattr(model, model.base_model_prefix), model.get_output_embeddings()
        hidden = torch.stack([backbone(input_ids=torch.tensor([t])).last_hidden_state[0, -1] for t in texts])
        logits = head(hidden)
        mean = hidden.mean(0)
        head.weight[end] += mean / (hidden @ mean).mean() * (logits.max(1).values - logits[:, end]).mean() * 0.8


def texts_of(number: int, seed: int = 0) -> list[str]:
    """Texts of mixed lengths."""
    rng = random.Random(seed)
    return ["".join(rng.choices(string.ascii_lowercase + " ", k=rng.randrange(2, 40))).strip() + "x" for _ in range(number)]


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("served") / "names")


@contextmanager
def built(paths: dict[str, str], limits: Limits | None = None, **options) -> Iterator[tuple[FastAPI, Shelf]]:
    """An application over runs, and its shelf."""
    limits, measures = limits or Limits(), Measures()
    scheduler = Scheduler(limits.queue, measures)
    desk = Desk(scheduler, measures)
    shelf = Shelf(paths, desk)
    shelf.load()
    scheduler.start()
    try:
        yield build(shelf, limits, measures, State(), **options), shelf
    finally:
        scheduler.close()
        desk.close()


@contextmanager
def hosted(paths: dict[str, str], limits: Limits | None = None, **options) -> Iterator[TestClient]:
    """A client of an application over runs; `client.shelf` is its shelf."""
    with (
        built(paths, limits, **options) as (app, shelf),
        TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client,
    ):
        client.shelf = shelf  # type: ignore[attr-defined]
        yield client


@pytest.fixture(scope="session")
def client(run_folder) -> Iterator[TestClient]:
    with hosted({"names": str(run_folder)}) as made:
        yield made


def slow_steps(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05) -> Callable[[], None]:
    """Make every step of every stream slow, so that requests can be caught at work."""
    import time

    from seqtune.decoding.engines.stream import Stream

    step = Stream.step
    monkeypatch.setattr(Stream, "step", lambda self: (time.sleep(seconds), step(self))[1])
    return monkeypatch.undo


@contextmanager
def listening(paths: dict[str, str], limits: Limits | None = None, **options) -> Iterator[str]:
    """The URL of an application that listens on a loopback port, in a thread of this process."""
    with built(paths, limits, **options) as (app, _), socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@contextmanager
def process(paths: dict[str, str], *flags: str, code: str = "") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`seqtune serve` and its URL.

    Args:
        paths: name -> run.
        flags: more of its flags.
        code: Python that runs in it before.
    """
    arguments = ["serve", *(f"{name}={path}" for name, path in paths.items()), "--port", "0", "--json", *flags]
    program = f"{code}\nimport sys\nfrom seqtune.cli.app import run_app\nimport seqtune.cli\nsys.exit(run_app({arguments!r}))"
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        line = server.stdout.readline()
        assert line, server.stderr.read() if server.stderr else ""
        yield json.loads(line)["url"], server
    finally:
        server.kill()
        server.communicate()
