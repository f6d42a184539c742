"""OpenAI's own Python client, unchanged, against a real server on a loopback port."""

# ruff: noqa: F811 - pytest finds fixtures by the names of parameters
from __future__ import annotations

import json
import re

import httpx
import pytest
import torch
from hosting import hosted, listening, make_run, run_folder, texts_of  # noqa: F401

from seqtune.decoding.predictor import Predictor
from seqtune.records import Example
from seqtune.serving.streaming import Cutter

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def pieces_folder(tmp_path_factory):
    """A run whose tokenizer writes in pieces of words; that of the other one spells in bytes."""
    return make_run(tmp_path_factory.mktemp("pieces") / "pieces", "gpt2")


@pytest.fixture(scope="module")
def url(run_folder, pieces_folder):
    with listening({"names": str(run_folder), "pieces": str(pieces_folder)}) as made:
        yield made


@pytest.fixture(scope="module")
def api(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def predicted(run_folder, text: str, **settings):
    return Predictor.of_run(str(run_folder), settings).predict([Example("1", text, None)])[0]


def test_models(api):
    assert [m.id for m in api.models.list()] == ["names", "pieces"]
    assert api.models.retrieve("names").object == "model"
    with pytest.raises(openai.NotFoundError, match="there is no run 'other'") as caught:
        api.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_completions_are_those_of_predict(api, run_folder):
    texts = texts_of(4, seed=5)
    reply = api.completions.create(model="names", prompt=texts)
    expected = [predicted(run_folder, text) for text in texts]
    assert [c.text for c in reply.choices] == [p.prediction for p in expected]
    assert [c.finish_reason for c in reply.choices] == ["stop" if p.status == "ok" else "length" for p in expected]
    assert reply.usage.completion_tokens == sum(p.hypotheses[0].num_tokens for p in expected)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_several_answers_and_beams(api, run_folder):
    [text] = texts_of(1, seed=6)
    expected = [h.text for h in predicted(run_folder, text, num_beams=3, num_return=3).hypotheses]
    reply = api.chat.completions.create(model="names", messages=[{"role": "user", "content": text}], n=3)
    assert [c.message.content for c in reply.choices] == expected
    reply = api.completions.create(model="names", prompt=text, n=2, best_of=3)
    assert [c.text for c in reply.choices] == expected[:2]
    reply = api.completions.create(model="names", prompt=text, extra_body={"num_beams": 3})
    assert reply.choices[0].text == expected[0]
    with pytest.raises(openai.BadRequestError, match="num_return 3 is more than num_beams 2"):
        api.completions.create(model="names", prompt=text, n=3, extra_body={"num_beams": 2})


@pytest.mark.parametrize(("model", "beams"), [("names", 1), ("pieces", 1), ("pieces", 3)])
def test_streams_add_up_to_the_whole(api, run_folder, pieces_folder, model, beams):
    folder, num_pieces = {"names": run_folder, "pieces": pieces_folder}[model], 0
    for text in texts_of(5, seed=7):
        whole = predicted(folder, text, num_beams=beams)
        with api.completions.create(
            model=model, prompt=text, stream=True, stream_options={"include_usage": True}, extra_body={"num_beams": beams}
        ) as stream:
            events = list(stream)
        assert "".join(c.text for e in events for c in e.choices) == whole.prediction
        assert events[-1].usage.completion_tokens == whole.hypotheses[0].num_tokens
        assert [c.finish_reason for e in events for c in e.choices][-1] == ("stop" if whole.status == "ok" else "length")
        num_pieces = max(num_pieces, sum(bool(c.text) for e in events for c in e.choices))
    assert num_pieces == 1 if beams > 1 else num_pieces > 2
    stream = api.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], stream=True)
    deltas = [e.choices[0].delta for e in stream]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == predicted(folder, text).prediction


@pytest.mark.parametrize("stream", [False, True])
def test_stops_cut(api, run_folder, stream):
    text = next(t for t in texts_of(30, seed=8) if len(predicted(run_folder, t).prediction) > 8)
    whole = predicted(run_folder, text).prediction
    stop = whole[4:7]
    reply = api.completions.create(model="names", prompt=text, stop=[stop, "never there"], stream=stream)
    pieces = [c for e in (reply if stream else [reply]) for c in e.choices]
    assert "".join(c.text for c in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_log_probabilities_are_the_models_own(api, run_folder):
    """Reference: the model's forward, by hand; and the search's own score."""
    [text] = texts_of(1, seed=9)
    whole = predicted(run_folder, text)
    reply = api.completions.create(model="names", prompt=text, logprobs=3)
    noted = reply.choices[0].logprobs
    assert sum(noted.token_logprobs) == pytest.approx(whole.score, abs=1e-3)
    assert all(len(top) <= 3 and max(top.values()) == pytest.approx(own) for top, own in zip(noted.top_logprobs, noted.token_logprobs, strict=True))  # fmt: skip
    predictor = Predictor.of_run(str(run_folder))
    [question] = predictor.questions([Example("1", text, None)])
    with torch.no_grad():
        first = predictor.model(torch.from_numpy(question.ids)[None].long()).logits[0, -1].log_softmax(-1)
    assert noted.token_logprobs[0] == pytest.approx(first.max().item(), abs=1e-3)
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    reply = api.chat.completions.create(model="names", messages=messages, logprobs=True, top_logprobs=2)
    entries = reply.choices[0].logprobs.content
    assert [e.logprob for e in entries] == pytest.approx(noted.token_logprobs, abs=1e-4)
    assert {len(e.top_logprobs) for e in entries} == {2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.7}, "temperature = 0.7: answers are searched for, not drawn at random"),
        ({"top_p": 0.5}, "top_p = 0.5"),
        ({"frequency_penalty": 1.0}, "frequency_penalty"),
        ({"stream": True, "logprobs": 1}, "logprobs come with whole answers"),
        ({"echo": True}, "echo: a run writes the answer"),
        ({"stop": list("abcde")}, "stop may hold 4 texts, and holds 5"),
        ({"extra_body": {"tools": []}}, "tools"),
        ({"prompt": "x" * 9000}, "input 1 cannot be answered: too long"),
        ({"prompt": "x" * 20000}, "input 1 has 20,000 characters"),
    ],
)
def test_what_a_search_cannot_do_is_refused(api, settings, message):
    with pytest.raises(openai.BadRequestError, match=re.escape(message)) as caught:
        api.completions.create(**{"model": "names", "prompt": "abc", **settings})
    assert caught.value.type == "invalid_request_error"


def test_what_changes_nothing_is_accepted(api):
    asked = {"model": "names", "prompt": "abc"}
    found = api.completions.create(**asked, temperature=0, top_p=1, seed=3, user="me", presence_penalty=0)
    assert found.choices == api.completions.create(**asked).choices


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "system", "content": "be brief"}, {"role": "user", "content": "abc"}], "its template is no chat template"),
        ([{"role": "assistant", "content": "abc"}], "the last message is the assistant's"),
        ([{"role": "tool", "content": "abc", "tool_call_id": "1"}], "a message of 'tool'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "runs read text"),
    ],
)
def test_conversations_that_a_run_cannot_read_are_refused(api, messages, message):
    with pytest.raises(openai.BadRequestError, match=message):
        api.chat.completions.create(model="names", messages=messages)


def test_errors_within_a_stream_are_events(url):
    body = {"model": "names", "prompt": "x" * 9000, "stream": True}
    lines = httpx.post(f"{url}/v1/completions", json=body).text.split("\n\n")
    assert json.loads(lines[0].removeprefix("data: "))["error"]["code"] == "context_length_exceeded"


def test_half_a_character_and_half_a_stop_are_held_back():
    cutter = Cutter(["\n\n"])
    grown = ["na\ufffd", "naï", "naïve\n", "naïve\nx", "naïve\nx\n\nmore"]
    assert [cutter.grow(text) for text in grown] == ["na", "ï", "ve", "\nx", ""]
    assert cutter.is_over
    assert Cutter([]).grow("a\ufffd", last=True) == "a\ufffd"
