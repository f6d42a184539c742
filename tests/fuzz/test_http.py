"""Requests made from our own OpenAPI description, fitting and not: each is answered, or refused in the one shape for that.

Short here; `make fuzz MINUTES=60` goes on with other numbers for so long.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz.test_fuzz import MINUTES, PIECES, edit, edited

schemathesis = pytest.importorskip("schemathesis")
hosting = pytest.importorskip("serving.hosting")

EXAMPLES = 8
SECONDS = 20.0  # for a request, of which the longest have 256 inputs
STATUSES = {200, 202, 400, 401, 403, 404, 405, 409, 413, 415, 421, 422, 429}
BODIES = {
    "/v1/predict": {"inputs": ["a", {"input": "b"}], "num_beams": 2, "num_return": 2, "verify": False},
    "/v1/completions": {"model": "names", "prompt": ["a", "b"], "n": 2, "logprobs": 2, "stop": ["x"], "temperature": 0},
    "/v1/chat/completions": {
        "model": "names",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "stream": True,
    },
    "/v1/jobs?kind=jsonl": {"input": "a"},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    run = hosting.make_run(tmp_path_factory.mktemp("served") / "names", max_new_tokens=4)
    with hosting.hosted({"names": str(run)}) as client:
        yield client


def kept(response: Any) -> str:
    """Look at an answer; returns its status."""
    assert response.status_code in STATUSES, (response.status_code, response.text[:300])
    if response.status_code >= 400 and response.request.method != "HEAD":
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    return str(response.status_code)


def rounds(test: Any, strategy: Any) -> Counter[str]:
    """Try a strategy's examples, always the same ones, and others until time is over; returns how often each status came."""
    counts: Counter[str] = Counter()

    def look(number: int, examples: int) -> None:
        @seed(number)
        @settings(
            max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )  # fmt: skip
        @given(strategy)
        def promise(example: Any) -> None:
            started = time.monotonic()
            counts[test(example)] += 1
            assert time.monotonic() - started < SECONDS

        promise()

    look(0, EXAMPLES)
    end, number = time.monotonic() + 60 * MINUTES, 0
    while time.monotonic() < end:
        number += 1
        look(number, 50)
    return counts


def test_requests_made_from_our_description(client):
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 8
    for operation in operations:
        modes = schemathesis.GenerationMode
        strategy = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in (modes.POSITIVE, modes.NEGATIVE)))

        def ask(case: Any) -> str:
            asked = case.as_transport_kwargs(base_url="http://localhost")
            asked = {
                key: asked[key] for key in ("method", "url", "params", "headers", "json", "data", "cookies") if asked.get(key)
            }
            data = asked.pop("data", None)
            content = {"content": data.encode() if isinstance(data, str) else data} if data else {}
            return kept(client.request(**asked, **content))

        counts = rounds(ask, strategy)
        print(f"\n{operation.method.upper()} {operation.path}: {counts.total():,} requests, {dict(sorted(counts.items()))}")


@pytest.mark.parametrize("path", BODIES)
def test_damaged_bodies(client, path):
    body = json.dumps(BODIES[path]).encode()
    headers = {"Content-Type": "application/json"}

    def ask(edits: list) -> str:
        response = client.post(path, content=edited(body, edits), headers=headers)
        status = kept(response)
        if status == "202":
            kept(client.delete(f"/v1/jobs/{response.json()['id']}"))
        return status

    counts = rounds(ask, st.lists(edit, min_size=1, max_size=4))
    assert counts
    assert not [status for status in counts if status.startswith("5")]
    print(f"\n{path}: {counts.total():,} damaged bodies, {dict(sorted(counts.items()))}")


@pytest.mark.parametrize("piece", PIECES[:20])
def test_odd_paths_and_queries(client, piece):
    text = quote(piece, safe="")
    for path in (f"/{text}", f"/v1/jobs/{text}", f"/v1/jobs?kind={text}", f"/v1/jobs/x/answers?kind={text}"):
        assert kept(client.get(path))[0] in "1234"  # no 5xx
