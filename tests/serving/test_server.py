"""What happens around requests: limits, hang-ups, tokens, other sites, reloads, the end."""

# ruff: noqa: F811 - pytest finds fixtures by the names of parameters
from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from hosting import build_tokenizer, hosted, make_run, process, run_folder, slow_steps, texts_of  # noqa: F401

from seqtune import runs
from seqtune.cli.app import run_app
from seqtune.config import load_config
from seqtune.data.tasks import Task
from seqtune.decoding.predictor import Predictor
from seqtune.errors import ConfigError
from seqtune.models import loading
from seqtune.models.adapters import Adapter
from seqtune.records import Example
from seqtune.serving.limits import Limits
from seqtune.serving.server import Address, _listen, read_token
from seqtune.serving.shelf import named

pytestmark = pytest.mark.slow

SLOW = """
import time
from seqtune.decoding.engines.stream import Stream
step = Stream.step
Stream.step = lambda self: (time.sleep(0.05), step(self))[1]
"""


def waited_for(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_full_queue_says_when_to_come_back(run_folder, monkeypatch):
    slow_steps(monkeypatch)
    with hosted({"names": str(run_folder)}, Limits(queue=6)) as client, ThreadPoolExecutor(4) as pool:
        first = [pool.submit(client.post, "/v1/predict", json={"inputs": texts_of(6, seed=i)}) for i in range(2)]
        scheduler = client.shelf.desk.scheduler
        assert waited_for(lambda: scheduler.num_waiting + scheduler.num_active >= 6)
        many = client.post("/v1/predict", json={"inputs": texts_of(7)})
        assert many.status_code == 429
        assert many.json()["error"]["code"] == "queue_full"
        assert "this request brings 7; the queue holds 6" in many.json()["error"]["message"]
        assert 1 <= int(many.headers["retry-after"]) <= 600
        assert {f.result().status_code for f in first} <= {200, 429}
        assert 200 in {f.result().status_code for f in first}
        assert client.post("/v1/predict", json={"inputs": texts_of(6)}).status_code == 200


def test_a_request_has_its_time_and_no_more(run_folder, monkeypatch):
    slow_steps(monkeypatch, 0.2)
    with hosted({"names": str(run_folder)}, Limits(seconds=0.5)) as client:
        late = client.post("/v1/predict", json={"inputs": texts_of(8), "num_beams": 4})
        assert (late.status_code, late.json()["error"]["message"]) == (504, "there was no answer within 0.5 seconds")
        scheduler = client.shelf.desk.scheduler
        assert waited_for(lambda: scheduler.num_active + scheduler.num_waiting == 0, 2.0), "its rows are free"
        assert "seqtune_cancelled_inputs_total 8.0" in client.get("/metrics").text


def test_one_slow_request_does_not_hold_up_the_others(run_folder, monkeypatch):
    """60 inputs of one request are there first, and more than fit in the rows; one input of another comes after them."""
    slow_steps(monkeypatch, 0.01)
    with hosted({"names": str(run_folder)}) as client, ThreadPoolExecutor(2) as pool:
        client.shelf.find(None).predictor.decode = client.shelf.find(None).predictor.decode.model_copy(
            update={"token_budget": 600}
        )
        long = pool.submit(client.post, "/v1/predict", json={"inputs": texts_of(60), "num_beams": 3})
        scheduler = client.shelf.desk.scheduler
        assert waited_for(lambda: scheduler.num_waiting > 40)
        for settings in ({}, {"num_beams": 3}):
            assert client.post("/v1/predict", json={"inputs": "abc", **settings}).status_code == 200
            assert not long.done()
        assert long.result().status_code == 200


def test_a_token_is_asked_for(run_folder, tmp_path):
    file = tmp_path / "token"
    file.write_text("a-token-of-some-length\n")
    with hosted({"names": str(run_folder)}, token=read_token(file)) as client:
        ask = lambda **headers: client.post("/v1/predict", json={"inputs": "abc"}, headers=headers)  # noqa: E731
        for wrong in (
            {},
            {"Authorization": "Bearer a-token-of-some-lengthX"},
            {"Authorization": "Basic a-token-of-some-length"},
        ):
            refused = ask(**wrong)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["type"] == "authentication_error"
        assert ask(Authorization="Bearer a-token-of-some-length").status_code == 200
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").status_code == client.get("/openapi.json").status_code == 401
        other = client.post("/v1/predict", json={}, headers={"Host": "names.example", "Authorization": "Bearer no"})
        assert other.status_code == 401, "with a token, any name will do"


def test_other_hosts_need_a_token(tmp_path, capsys):
    with pytest.raises(ConfigError, match="--host 0.0.0.0: a server that others can reach needs --token-file FILE"):
        Address("0.0.0.0")
    Address("0.0.0.0", token="x" * 16)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        Address(host)
    (tmp_path / "short").write_text("secret")
    with pytest.raises(ConfigError, match="must hold one word of at least 16 characters") as caught:
        read_token(tmp_path / "short")
    assert "secret" not in str(caught.value)
    assert run_app(["serve", "runs/none", "--token-file", str(tmp_path / "none")]) == 1
    assert "cannot be read: FileNotFoundError" in capsys.readouterr().err


def test_pages_of_other_sites_are_kept_out(run_folder):
    with hosted({"names": str(run_folder)}, origins=["https://ours.example"]) as client:
        ask = lambda **headers: client.post("/v1/predict", json={"inputs": "abc"}, headers=headers)  # noqa: E731
        assert ask(Origin="https://theirs.example").status_code == 403
        assert ask(Host="theirs.example").status_code == 421
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "127.8.8.8"):
            assert ask(Origin=f"http://{host}", Host=host).status_code == 200, host
        assert ask(Origin="null").status_code == 403
        assert ask(Host="localhost.theirs.example").status_code == 421
        allowed = ask(Origin="https://ours.example")
        assert allowed.headers["access-control-allow-origin"] == "https://ours.example"
    with hosted({"names": str(run_folder)}) as client:
        reply = client.post("/v1/predict", json={"inputs": "abc"})
        assert "access-control-allow-origin" not in reply.headers
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_runs_have_names(tmp_path, capsys):
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "b" / "run").mkdir(parents=True)
    with pytest.raises(ConfigError, match="would both be called 'run'; give one another name: other="):
        named([str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")])
    assert list(named([str(tmp_path / "a" / "run"), f"b={tmp_path}/b/run"])) == ["run", "b"]
    assert run_app(["serve", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err


def make_adapter_run(folder, base, seed: int):
    """A run that trained LoRA on a base."""
    torch.manual_seed(seed)
    config = load_config(
        overrides={"model.name": str(base), "adapter.method": "lora", "out": str(folder), "decode.max_new_tokens": 12}
    )
    adapter = Adapter.attach(loading.load_model(config.model, 0), config.adapter)
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    adapter.save(folder / "model")
    adapter.model.config.save_pretrained(folder / "model")
    build_tokenizer("llama").save_pretrained(folder / "model")
    Task.from_config(config).save(folder / "task.yaml")
    (folder / "config.yaml").write_text(config.to_yaml())
    runs.finish(folder)
    return folder


def test_adapters_share_their_base_and_answer_as_they_do_alone(run_folder, tmp_path):
    base = run_folder / "model"
    paths = {f"lora{i}": str(make_adapter_run(tmp_path / f"lora{i}", base, i)) for i in range(2)}
    texts = texts_of(6, seed=2)
    with hosted(paths) as client:
        models = [client.shelf.find(name).predictor.model for name in paths]
        shared = [{p.data_ptr() for n, p in m.named_parameters() if "lora_" not in n} for m in models]
        assert shared[0] == shared[1]
        found = []
        for name in paths:
            reply = client.post("/v1/predict", json={"model": name, "inputs": texts}).json()["predictions"]
            found.append([p["prediction"] for p in reply])
    for name, answers in zip(paths, found, strict=True):
        alone = Predictor.of_run(paths[name]).predict([Example(str(i), t, None) for i, t in enumerate(texts)])
        assert answers == [p.prediction for p in alone]
    assert found[0] != found[1]


def test_a_port_that_is_taken(run_folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run_app(["serve", str(run_folder), "--port", str(port)]) == 1
    assert f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err


def test_without_the_extra_the_verb_says_how_to_get_it(run_folder, monkeypatch, capsys):
    for name in [m for m in sys.modules if m.startswith("seqtune.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert run_app(["serve", str(run_folder)]) == 1
    assert "pip install 'seqtune[serve]'" in capsys.readouterr().err


def test_who_hangs_up_frees_the_rows_and_the_end_loses_nothing(run_folder):
    """Real connections: closed in the middle of an answer, and then the server is told to end in the middle of answers.

    These are finished, others are refused, and the process ends with 0.
    """
    predictor = Predictor.of_run(str(run_folder))
    found = predictor.predict([Example("", text, None) for text in texts_of(20)])
    long = max(found, key=lambda p: p.hypotheses[0].num_tokens).input
    with process({"names": str(run_folder)}, code=SLOW) as (url, server), ThreadPoolExecutor(4) as pool:

        def metric(name: str) -> float:
            lines = httpx.get(f"{url}/metrics").text.splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith(name))

        async def ask(stream: bool) -> None:
            body = {"model": "names", "prompt": [long] * 6, "stream": stream}
            async with httpx.AsyncClient() as client, client.stream("POST", f"{url}/v1/completions", json=body) as reply:
                async for _ in reply.aiter_bytes():
                    pass

        async def hang_up(stream: bool) -> None:
            asking = asyncio.create_task(ask(stream))
            while not asking.done() and not await asyncio.to_thread(metric, "seqtune_active_inputs"):
                await asyncio.sleep(0.02)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

        for stream in (False, True):
            before = metric("seqtune_cancelled_inputs_total")
            for _ in range(5):  # on a busy machine the answer can be there before anybody has hung up
                asyncio.run(hang_up(stream))
                assert waited_for(lambda: metric("seqtune_active_inputs") + metric("seqtune_waiting_inputs") == 0, 15.0)
                if metric("seqtune_cancelled_inputs_total") > before:
                    break
            assert metric("seqtune_cancelled_inputs_total") > before

        asked = [pool.submit(httpx.post, f"{url}/v1/predict", json={"inputs": long}) for _ in range(4)]
        assert waited_for(lambda: metric("seqtune_active_inputs") == 4)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/ready").raise_for_status()
        assert [f.result().status_code for f in asked] == [200] * 4
        assert server.wait(20) == 0


def test_a_new_run_is_taken_up_without_a_lost_request(tmp_path):
    """The folder is replaced while requests come; each is answered by the old weights or by the new ones, in this order."""
    run, other = make_run(tmp_path / "names"), make_run(tmp_path / "other", seed=1)
    text = texts_of(1)[0]
    answers = [Predictor.of_run(str(r)).predict([Example("1", text, None)])[0].prediction for r in (run, other)]
    assert answers[0] != answers[1]
    found, stop = [], threading.Event()
    with process({"names": str(run)}) as (url, server):

        def ask() -> None:
            while not stop.is_set():
                found.append(httpx.post(f"{url}/v1/predict", json={"inputs": text}).json()["predictions"][0]["prediction"])

        asking = threading.Thread(target=ask)
        asking.start()
        assert waited_for(lambda: len(found) > 3)
        (run / runs.MANIFEST).unlink()
        shutil.rmtree(run / "model")
        server.send_signal(signal.SIGHUP)  # not complete: it stays
        time.sleep(0.3)
        shutil.copytree(other / "model", run / "model")
        runs.finish(run)
        server.send_signal(signal.SIGHUP)
        assert waited_for(lambda: found[-1] == answers[1])
        stop.set()
        asking.join()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    switch = found.index(answers[1])
    assert set(found[:switch]) == {answers[0]}
    assert set(found[switch:]) == {answers[1]}


def test_answers_leave_without_delay():
    """asyncio leaves Nagle's algorithm on for sockets that do not say they are TCP; a kept connection then waited 40 ms an answer."""
    listening = _listen(Address(port=0))
    found: asyncio.Queue[int] = asyncio.Queue()

    async def ask() -> int:
        def accepted(_, writer: asyncio.StreamWriter) -> None:
            found.put_nowait(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(accepted, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            writer.close()
            return await found.get()

    assert asyncio.run(ask()) == 1
