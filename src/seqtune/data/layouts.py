"""How a table's rows hold their pairs: in two columns, as conversations, or as Alpaca's instructions.

| layout | columns | input | output |
|---|---|---|---|
| `pairs` | `data.input`, `data.output` | the one | the other |
| `messages` | `messages`: a list of {role, content} | the last user turn | the assistant turn after it, the last of all |
| `sharegpt` | `conversations`: a list of {from, value}, from `human`, `gpt` or `system` | as in `messages` | as in `messages` |
| `alpaca` | `instruction`, `input` (may be empty), `output` | the instruction, the input in a line below | `output` |

The turns of a conversation before the input are its context. A conversation in which it is in doubt what the answer is, or that
holds more than text, is refused with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqtune.records import Turn, lone_surrogate
from seqtune.sections import DataConfig, Layout

ROLES = ("system", "user", "assistant")
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}  # of ShareGPT
CONVERSATIONS = {"messages": "messages", "sharegpt": "conversations"}  # layout -> the column that holds a row's turns
TOOL_KEYS = ("tool_calls", "tool_call_id", "function_call")
SAID = {
    "messages": "columns: messages (conversations; loss on the last assistant turn, the turns before it are read only)",
    "sharegpt": "columns: conversations (ShareGPT; loss on the last assistant turn, the turns before it are read only)",
    "alpaca": "columns: instruction, input and output (Alpaca; the input goes below the instruction)",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """What a row asks, and the answer, `None` where there is none."""

    input: str
    output: str | None
    context: tuple[Turn, ...] = ()


def layout_of(columns: Sequence[str], config: DataConfig) -> Layout:
    """The layout that the settings name, or, with `auto`, the one that a table's columns show.

    Columns that the settings name come first: only without them a table is taken for conversations or for Alpaca.

    Example:
        >>> layout_of(["messages", "source"], DataConfig())
        'messages'
    """
    if config.layout != "auto":
        return config.layout
    defaults = DataConfig()
    if (config.input, config.output) != (defaults.input, defaults.output):
        return "pairs"
    held = [layout for layout, column in CONVERSATIONS.items() if column in columns]
    if held and config.input not in columns:
        return held[0]  # type: ignore[return-value]
    return "alpaca" if "instruction" in columns else "pairs"


def needed_columns(layout: Layout, config: DataConfig, *, need_output: bool) -> list[tuple[str, str]]:
    """Columns without which a table cannot be read, each with the setting that asks for it."""
    if layout in CONVERSATIONS:
        return [(CONVERSATIONS[layout], f"data.layout = {layout}")]
    source = ("instruction", "data.layout = alpaca") if layout == "alpaca" else (config.input, "data.input")
    output = "output" if layout == "alpaca" else config.output
    return [source, (output, "data.output")] if need_output else [source]


def pair_of(row: Mapping[str, str], layout: Layout, config: DataConfig, *, need_output: bool) -> Pair | str:
    """The pair that a row holds, or why it holds none.

    Args:
        row: column -> text; a `messages` cell is JSON.
        layout: of the table.
        config: names the columns of `pairs`.
        need_output: without it the answer may be missing (prediction).
    """
    for column, _ in needed_columns(layout, config, need_output=need_output):
        if column not in row:
            return f"column {column!r} is missing"
        if not row[column].strip():
            return f"column {column!r} is empty"
    if layout in CONVERSATIONS:
        return _conversation(row[CONVERSATIONS[layout]], layout, need_output=need_output)
    if layout == "alpaca":
        parts = [row["instruction"].strip(), row.get("input", "").strip()]
        return Pair("\n".join(filter(None, parts)), row.get("output"))
    return Pair(row[config.input], row.get(config.output))


def _conversation(cell: str, layout: Layout, *, need_output: bool) -> Pair | str:
    try:
        records = json.loads(cell)
    except (ValueError, RecursionError) as error:
        return f"column {CONVERSATIONS[layout]!r} is not JSON ({error})"
    if not isinstance(records, list) or not records:
        return f"column {CONVERSATIONS[layout]!r} holds no list of turns"
    if layout == "sharegpt":
        records = [_as_message(record) for record in records]
    for number, record in enumerate(records):
        if reason := _reason_to_refuse(record, number):
            return f"turn {number + 1} of the conversation {reason}"
    *context, question = [Turn(record["role"], record["content"].strip()) for record in records]
    answer = None
    if question.role == "assistant":
        if records[-1].get("weight") == 0:
            return "the last answer has weight 0, so there is nothing to learn from the conversation"
        answer, question = question.content, context.pop() if context else Turn("", "")
    elif need_output:
        return f"the conversation ends with a {question.role} turn, so there is no answer to learn"
    if question.role != "user":
        return "the conversation has no user turn right before its end, so it is in doubt what is asked"
    return Pair(question.content, answer, tuple(context))


def _as_message(record: Any) -> Any:
    """A turn of ShareGPT with the keys of a message."""
    if not isinstance(record, dict):
        return record
    speaker = record.get("from")
    return {**record, "role": SPEAKERS.get(str(speaker), speaker), "content": record.get("value")}


def _reason_to_refuse(record: Any, number: int) -> str | None:
    if not isinstance(record, dict):
        return "is no object with role and content"
    role, content = record.get("role"), record.get("content")
    if role not in ROLES:
        return f"has the role {role!r}; known are {', '.join(ROLES)}"
    if role == "system" and number:
        return "is a system turn; only the first may be one"
    if any(record.get(key) for key in TOOL_KEYS):
        return "calls a tool; only conversations of plain text can be trained on"
    if not isinstance(content, str):
        return "has a content that is not a text; only conversations of plain text can be trained on"
    return text_fault(content) or (None if content.strip() else "has no text")


def text_fault(text: str) -> str | None:
    """What makes a text unreadable, as a predicate; `None` for an ordinary one."""
    if "\0" in text:
        return "holds a NUL byte"
    lone = lone_surrogate(text)
    if lone and "U+DC80" <= lone <= "U+DCFF":
        return f"is not valid UTF-8 (byte 0x{lone[-2:].lower()})"
    return f"holds {lone} alone, half of a surrogate pair, which is no character" if lone else None
