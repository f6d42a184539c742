"""Conversations and Alpaca's columns become pairs; what is in doubt is a rejected row with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import polars
import pytest

from conftest import write_csv
from seqtune.config import load_config
from seqtune.data.layouts import layout_of
from seqtune.data.sources import read_examples
from seqtune.data.splits import leakage
from seqtune.data.tasks import Task
from seqtune.data.templates import Template
from seqtune.errors import ConfigError, DataError
from seqtune.records import Example, Turn
from seqtune.sections import DataConfig

ONE = [{"role": "user", "content": "CCO"}, {"role": "assistant", "content": " ethanol\n"}]
SEVERAL = [
    {"role": "system", "content": "Name it."}, {"role": "user", "content": "C"}, {"role": "assistant", "content": "methane"},
    {"role": "user", "content": "And CC?"}, {"role": "assistant", "content": "ethane"},
]  # fmt: skip


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chats(*conversations) -> list[dict]:
    return [{"messages": conversation} for conversation in conversations]


def test_a_conversation_is_its_last_question_its_answer_and_what_was_said_before(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", chats(ONE, SEVERAL))
    (one, several), rejected = read_examples(str(path), DataConfig())
    assert not rejected
    assert (one.input, one.output, one.context) == ("CCO", "ethanol", ())
    assert (several.input, several.output) == ("And CC?", "ethane")
    assert several.context == (Turn("system", "Name it."), Turn("user", "C"), Turn("assistant", "methane"))
    assert several.line == 2


def test_sharegpt_is_read_as_its_messages_are(tmp_path):
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    rows = [ONE, SEVERAL, [{"role": "tool", "content": "x"}]]
    for name, make in (
        ("messages", lambda turns: {"messages": turns}),
        (
            "sharegpt",
            lambda turns: {
                "conversations": [{"from": speakers.get(t["role"], t["role"]), "value": t["content"]} for t in turns]
            },
        ),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(make(turns)) + "\n" for turns in rows))
    (ours, bad), (theirs, worse) = (read_examples(str(tmp_path / f"{n}.jsonl"), DataConfig()) for n in ("messages", "sharegpt"))
    assert [(e.input, e.output, e.context) for e in ours] == [(e.input, e.output, e.context) for e in theirs]
    assert len(ours) == 2
    assert [r.reason for r in bad] == [r.reason for r in worse]


def test_parquet_and_csv_hold_the_same_conversations(tmp_path):
    wanted, _ = read_examples(str(write_jsonl(tmp_path / "a.jsonl", chats(ONE, SEVERAL))), DataConfig())
    polars.DataFrame({"messages": [ONE, SEVERAL]}).write_parquet(tmp_path / "a.parquet")
    write_csv(tmp_path / "a.csv", [(json.dumps(ONE),), (json.dumps(SEVERAL),)], ("messages",))
    for name in ("a.parquet", "a.csv"):
        found, _ = read_examples(str(tmp_path / name), DataConfig())
        assert [(e.question, e.output) for e in found] == [(e.question, e.output) for e in wanted]


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        ([], "holds no list of turns"),
        ("text", "column 'messages' is not JSON"),
        ({"role": "user"}, "column 'messages' is missing"),  # an object is columns of its own: messages.role
        ('{"role": "user"}', "holds no list of turns"),
        (ONE[:1], "ends with a user turn, so there is no answer to learn"),
        (SEVERAL[:1], "ends with a system turn"),
        (ONE[1:], "no user turn right before its end"),
        ([*ONE, ONE[1]], "no user turn right before its end"),
        ([SEVERAL[0], ONE[1]], "no user turn right before its end"),
        (["hello", ONE[1]], "turn 1 of the conversation is no object with role and content"),
        (
            [*ONE, {"role": "tool", "content": "4"}, ONE[1]],
            "turn 3 of the conversation has the role 'tool'; known are system, user",
        ),
        ([{"content": "x"}, ONE[1]], "has the role None"),
        ([*ONE, SEVERAL[0], *ONE], "turn 3 of the conversation is a system turn; only the first may be one"),
        ([ONE[0], {**ONE[1], "tool_calls": [{"id": "1"}]}], "turn 2 of the conversation calls a tool"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, ONE[1]],
            "turn 1 of the conversation has a content that is not a text",
        ),
        ([ONE[0], {"role": "assistant", "content": None}], "turn 2 of the conversation has a content that is not a text"),
        ([{"role": "user", "content": "  "}, ONE[1]], "turn 1 of the conversation has no text"),
        ([{"role": "user", "content": "a\0b"}, ONE[1]], "turn 1 of the conversation holds a NUL byte"),
        ([{"role": "user", "content": "a\ud800"}, ONE[1]], "turn 1 of the conversation holds U+D800 alone"),
        ([ONE[0], {**ONE[1], "weight": 0}], "the last answer has weight 0"),
    ],
)
def test_a_conversation_in_doubt_is_rejected_with_its_reason(tmp_path, conversation, reason):
    path = write_jsonl(tmp_path / "a.jsonl", chats(ONE, conversation))
    examples, rejected = read_examples(str(path), DataConfig())
    assert [e.line for e in examples] == [1]
    assert [r.line for r in rejected] == [2]
    assert reason in rejected[0].reason


def test_empty_tool_keys_and_other_keys_do_no_harm(tmp_path):
    turns = [{**ONE[0], "name": "x", "tool_calls": None}, {**ONE[1], "tool_calls": [], "weight": 1}]
    examples, rejected = read_examples(str(write_jsonl(tmp_path / "a.jsonl", chats(turns))), DataConfig())
    assert (len(examples), rejected) == (1, [])


def test_a_question_needs_no_answer_when_predicting(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", chats(SEVERAL[:4], SEVERAL))
    (open_one, closed), rejected = read_examples(str(path), DataConfig(), need_output=False)
    assert not rejected
    assert open_one.question == closed.question
    assert (open_one.output, closed.output) == (None, "ethane")


def test_alpacas_input_goes_below_the_instruction_where_there_is_one(tmp_path):
    rows = [
        {"instruction": "Name it.", "input": "CCO", "output": "ethanol"}, {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "Say ho.", "input": None, "output": "ho"}, {"instruction": "", "input": "CC", "output": "ethane"},
        {"instruction": "Say no.", "input": "", "output": ""},
    ]  # fmt: skip
    examples, rejected = read_examples(str(write_jsonl(tmp_path / "a.jsonl", rows)), DataConfig())
    assert [(e.input, e.output) for e in examples] == [("Name it.\nCCO", "ethanol"), ("Say hi.", "hi"), ("Say ho.", "ho")]
    assert [r.reason for r in rejected] == ["column 'instruction' is empty", "column 'output' is empty"]


def test_columns_show_the_layout_unless_the_settings_name_it():
    alpaca = ("instruction", "input", "output")
    assert layout_of(("messages", "source"), DataConfig()) == "messages"
    assert layout_of(("messages", "input", "output"), DataConfig()) == "pairs"
    assert layout_of(alpaca, DataConfig()) == "alpaca"
    assert layout_of(("input", "output"), DataConfig()) == "pairs"
    assert layout_of(("messages", "q", "a"), DataConfig(input="q", output="a")) == "pairs"
    assert layout_of(alpaca, DataConfig(input="instruction")) == "pairs"
    assert layout_of(alpaca, DataConfig(layout="pairs")) == "pairs"
    assert layout_of(("messages", "input"), DataConfig(layout="messages")) == "messages"


def test_a_template_that_names_instruction_puts_alpacas_columns_together_itself():
    config = load_config(overrides={"format.template": "### {instruction}\n{input}"})
    assert Task.from_config(config).reading(config.data).layout == "pairs"
    assert Task.from_config(load_config()).reading(DataConfig(num_examples=3)) == DataConfig(num_examples=3)


def test_a_named_layout_needs_its_columns(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("a", "b")])
    with pytest.raises(DataError, match=r"has no column 'messages', asked for by data.layout = messages"):
        read_examples(str(path), DataConfig(layout="messages"))
    with pytest.raises(DataError, match="has no column 'instruction'"):
        read_examples(str(path), DataConfig(layout="alpaca"))


def test_a_text_template_shows_no_earlier_turns_and_says_so(tmp_path):
    (one, several), _ = read_examples(str(write_jsonl(tmp_path / "a.jsonl", chats(ONE, SEVERAL))), DataConfig())
    plain = Template.from_config(load_config().format)
    assert plain.render(one).source == "CCO\n"
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: .* only a chat template can show: --set format.template=chat"):
        plain.render(several)


def test_rows_leak_only_if_the_whole_conversation_was_seen():
    earlier, other = (Turn("user", "C"), Turn("assistant", "methane")), (Turn("user", "N"), Turn("assistant", "ammonia"))
    train = [Example("1", "and then?", "x", context=earlier)]
    held_out = [Example("2", "and then?", "x", context=other), Example("3", "And then? ", "x", context=earlier)]
    counts = leakage({"train": train, "validation": [], "test": held_out})["test"]
    assert (counts["same_input"], counts["same_normalized_input"], counts["same_pair"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format.system": "x"}, "format.system belongs to format.template 'chat', not to 'plain'"),
        ({"format.template": "chat", "format.system": " "}, "format.system is blank"),
        ({"format.template": "chat", "format.inversion": 0.5}, "who asks and who answers cannot be swapped in a chat"),
        ({"format.template": "chat", "format.separator": " "}, "a chat template says what stands between turns"),
        ({"format.template": "chats"}, "did you mean 'chat'"),
    ],
)
def test_settings_that_do_not_go_with_a_chat(settings, message):
    with pytest.raises(ConfigError, match=message):
        Template.from_config(load_config(overrides=settings).format)
