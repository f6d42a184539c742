"""`/v1/predict` answers what `Predictor.predict` answers, and refuses what it should."""

# ruff: noqa: F811 - pytest finds fixtures by the names of parameters

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hosting import client, hosted, make_run, run_folder, texts_of  # noqa: F401

from seqtune.decoding import verification
from seqtune.decoding.predictor import Predictor
from seqtune.plugins import Verdict
from seqtune.records import Example
from seqtune.serving.limits import Limits
from seqtune.serving.scheduler import Loaded

SEARCHES = [{}, {"num_beams": 3, "num_return": 2}, {"num_beams": 4, "length_penalty": 0.4}, {"max_new_tokens": 5}]


def test_requests_side_by_side_are_answered_as_predict_answers(client, run_folder):
    """Reference: `Predictor.predict` under the same settings, one setting at a time."""
    texts = texts_of(40)
    rng = random.Random(0)
    asked = [(rng.choices(texts, k=rng.choice([1, 1, 2, 7])), SEARCHES[i % len(SEARCHES)]) for i in range(40)]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda a: client.post("/v1/predict", json={"inputs": a[0], **a[1]}), asked))
    for (inputs, settings), reply in zip(asked, replies, strict=True):
        assert reply.status_code == 200, reply.text
        predictor = Predictor.of_run(str(run_folder), settings)
        expected = predictor.predict([Example(str(i), t, None, {"input": t}) for i, t in enumerate(inputs, start=1)])
        found = reply.json()["predictions"]
        for theirs, ours in zip(expected, found, strict=True):
            wanted = theirs.to_dict()
            assert [h["text"] for h in ours["hypotheses"]] == [h["text"] for h in wanted["hypotheses"]]
            assert [h["num_tokens"] for h in ours["hypotheses"]] == [h["num_tokens"] for h in wanted["hypotheses"]]
            assert ours["score"] == pytest.approx(wanted["score"], abs=1e-3)
            assert {k: v for k, v in ours.items() if k not in ("score", "hypotheses")} == {
                k: v for k, v in wanted.items() if k not in ("score", "hypotheses")
            }


def test_one_text_many_texts_and_odd_ones(client):
    one = client.post("/v1/predict", json={"inputs": "abc"}).json()
    assert [p["id"] for p in one["predictions"]] == ["1"]
    assert one["model"] == "names"
    assert one["usage"]["total_tokens"] == one["usage"]["prompt_tokens"] + one["usage"]["completion_tokens"] > 2
    body = b'{"inputs": ["abc", "  ", "half \\ud800 a character", "' + b"x" * 5000 + b'"]}'
    odd = client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    assert [p["status"] for p in odd.json()["predictions"]][1:] == ["empty", "invalid_text", "too_long"]


def test_columns_of_a_template(tmp_path):
    run = make_run(tmp_path / "kinds", template="{kind} {input}:")
    with hosted({"kinds": str(run)}) as client:
        found = client.post("/v1/predict", json={"inputs": [{"input": "abc", "kind": "acid"}]}).json()["predictions"][0]
        row = Example("1", "abc", None, {"input": "abc", "kind": "acid"})
        assert found["prediction"] == Predictor.of_run(str(run)).predict([row])[0].prediction
        assert found["fields"] == {"kind": "acid"}
        refused = client.post("/v1/predict", json={"inputs": "abc"})
    assert refused.status_code == 400
    assert "needs the column 'kind'" in refused.json()["error"]["message"]


def test_a_task_with_a_set_of_answers(tmp_path):
    """Its engine does not search; the probabilities are those of predict, and no hypothesis is left out."""
    run = make_run(tmp_path / "kinds", answers=["acid", "base", "salt and water"])
    texts = texts_of(20, seed=4)
    expected = Predictor.of_run(str(run)).predict([Example(str(i), t, None) for i, t in enumerate(texts, start=1)])
    with hosted({"kinds": str(run)}) as client:
        found = client.post("/v1/predict", json={"inputs": texts}).json()["predictions"]
        chat = {"model": "kinds", "prompt": texts[0], "stream": True}
        assert "data: [DONE]" in client.post("/v1/completions", json=chat).text
    assert [p["prediction"] for p in found] == [p.prediction for p in expected]
    assert [p["details"]["probability"] for p in found] == [p.details["probability"] for p in expected]
    assert {len(p["hypotheses"]) for p in found} == {3}


def test_verification_chooses_and_abstains(client, run_folder, monkeypatch):
    """A verifier that passes hypotheses of even length only."""

    class Even:
        def verify(self, inputs, candidates):
            return [Verdict("verified", True) if len(c) % 2 == 0 else Verdict("odd") for c in candidates]

    monkeypatch.setattr(verification, "make_verifier", lambda task, decode: Even() if decode.verify else None)
    settings = {"num_beams": 4, "verify": True, "abstain": True}
    texts = texts_of(12, seed=3)
    found = client.post("/v1/predict", json={"inputs": texts, **settings}).json()["predictions"]
    expected = Predictor.of_run(str(run_folder), settings).predict([Example(str(i), t, None) for i, t in enumerate(texts)])
    assert [(p["prediction"], p["status"]) for p in found] == [(p.prediction, p.status) for p in expected]
    assert {p["status"] for p in found} <= {"verified", "abstained"}
    assert all(h["verdict"] for p in found for h in p["hypotheses"])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"inputs": []}, 400, "a request may have 1 to 3 inputs, and this one has 0"),
        ({"inputs": ["a"] * 4}, 400, "and this one has 4"),
        ({"inputs": "x" * 101}, 400, "input 1 has 101 characters; an input may have 100"),
        ({"inputs": [{"kind": "x"}]}, 400, "input 1 lacks 'input'; it has: kind"),
        ({"inputs": [7]}, 400, "valid string"),
        ({"input": "a"}, 400, "inputs: Field required"),
        ({"inputs": "a", "num_beems": 2}, 400, "num_beems"),
        ({"inputs": "a", "num_beams": 21}, 400, "num_beams = 21"),
        ({"inputs": "a", "num_return": 3}, 400, "num_return 3 is more than num_beams 1"),
        ({"inputs": "a", "verify": True}, 400, "this task has no verifier"),
        ({"inputs": "a", "model": "nmes"}, 404, "there is no run 'nmes'; did you mean 'names'?; there is: names"),
    ],
)
def test_mistakes_are_explained(limited, body, status, message):
    reply = limited.post("/v1/predict", json=body)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def limited(run_folder):
    with hosted({"names": str(run_folder)}, Limits(inputs=3, characters=100, body=2000)) as made:
        yield made


def test_a_body_that_is_no_json_and_one_that_is_too_large(limited):
    headers = {"content-type": "application/json"}
    assert limited.post("/v1/predict", content=b"{", headers=headers).json()["error"]["message"].endswith("the body is no JSON")
    assert limited.post("/v1/predict", content=b" " * 2001, headers=headers).status_code == 413
    drawn = []

    def endless():
        for _ in range(1000):
            drawn.append(1)
            yield b" " * 500

    refused = limited.post("/v1/predict", content=endless(), headers=headers)
    assert (refused.status_code, refused.json()["error"]["message"]) == (413, "a request may have 2,000 bytes")


def test_the_state_of_the_server_and_its_measures(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "runs": ["names"]}
    client.post("/v1/predict", json={"inputs": "abc"})
    client.get("/no/such/path")
    text = client.get("/metrics").text
    for line in (
        'seqtune_requests_total{route="/v1/predict",status="200"}',
        'seqtune_requests_total{route="unknown",status="404"}',
        'seqtune_tokens_total{kind="completion",run="names"}',
        'seqtune_request_seconds_bucket{le="0.5",route="/v1/predict"}',
        "seqtune_batch_rows_count",
        "seqtune_waiting_inputs 0.0",
        "seqtune_active_inputs 0.0",
    ):
        assert line in text
    assert "/v1/predict" in client.get("/openapi.json").json()["paths"]
    assert client.get("/docs").status_code == 404


def test_a_run_with_int8_weights_is_served_with_them(run_folder):
    """They were asked for, and the model in float32 answered."""
    predictor = Predictor.of_run(str(run_folder), {"engine": "native", "weights": "int8"})
    assert Loaded(predictor).model is predictor.frozen.int8.model
