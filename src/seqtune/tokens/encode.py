"""Prompt -> Encoded: the only code that decides which tokens carry loss.

Source and target are tokenised apart, so no token can straddle the boundary, and the prompt that is
decoded from at prediction time is token for token the one that was trained on. Anything in doubt raises.
In a chat, `seqtune.tokens.chat` tokenises both, and the prompt is that of the training rows there too.

A worked row with a byte-level tokenizer, `loss_on="target"`:

    source "ab|"  target "xyz"   ->  ids  [bos a b | x y z eos]     loss on  [x y z eos]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from seqtune.config import Config
from seqtune.data.templates import Template
from seqtune.errors import ConfigError, ModelError, SupervisionError, TooLongError
from seqtune.models import loading
from seqtune.models.vocabulary import Vocabulary
from seqtune.records import Encoded, Prompt
from seqtune.sections import SOFT_PROMPTS
from seqtune.tokens.chat import ChatTemplate, make_markers_special


class Encoder:
    """Encodes prompts for one model.

    Args:
        tokenizer: a Hugging Face tokenizer with an end-of-sequence token, or with a chat template for chats.
        max_length: token limit of source + target + end.
        vocab_size: number of rows of the model's embedding.
        loss_on: "target" or "all".
        num_virtual: tokens of a soft prompt, numbered after the vocabulary, that stand before every source.
        roles: for chats, `Template.roles`: those of the shortest conversation, up to its first answer.

    Attributes:
        end: the token that ends a target: the end-of-sequence token, or what the chat template puts after an answer.

    Raises:
        ModelError: the tokenizer has no end token, knows more ids than the model, or its chat template cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        vocab_size: int,
        loss_on: str = "target",
        num_virtual: int = 0,
        roles: tuple[str, ...] | None = None,
    ):
        self.chat = None if roles is None else ChatTemplate(tokenizer, roles)
        end: Any = self.chat.end if self.chat else tokenizer.eos_token_id
        if end is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so a model could never learn to stop")
        if end >= vocab_size:
            raise ModelError(f"end token id {end} is beyond the model's {vocab_size} embeddings")
        assert loss_on in ("target", "all")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.loss_on = loss_on
        self.end = int(end)
        # virtual tokens first, then what the tokenizer puts before a text; a chat template brings its own start
        self.start = [*range(vocab_size, vocab_size + num_virtual), *([] if self.chat else self._start_ids())]
        self.num_virtual = num_virtual

    def _start_ids(self) -> list[int]:
        """What the tokenizer puts before a text (BOS for Llama and OPT, nothing for GPT-2)."""
        with_special = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        at = next((i for i in range(len(with_special)) if with_special[i : i + len(bare)] == bare), 0)
        return list(with_special[:at])

    def with_vocabulary(self, vocabulary: Vocabulary) -> Encoder:
        """The same limits in another vocabulary.

        Raises:
            ModelError: pieces that were added to it swallow a marker of the chat template.
        """
        roles = self.chat.roles if self.chat else None
        other = Encoder(vocabulary.tokenizer, self.max_length, vocabulary.size, self.loss_on, self.num_virtual, roles)
        if self.chat and other.chat and self.chat.markers != other.chat.markers:
            raise ModelError("model.adapt_vocabulary: the added pieces swallow markers of the chat template; set it to 0")
        return other

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids without special tokens; text such as `</s>` in the data stays plain text."""
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        # what that call does, without the masks and offsets that it builds
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_sources(self, prompts: list[Prompt]) -> list[np.ndarray | SupervisionError]:
        """Encode what a model reads when predicting, int32 arrays [T]; a source that cannot be read yields the error."""
        sources = self.chat.sources(prompts) if self.chat else self.ids([p.source for p in prompts])
        return [self._source(ids, p.source) for ids, p in zip(sources, prompts, strict=True)]

    def prompt_text(self, prompt: Prompt) -> str:
        """What a model reads when predicting, as text: for other programs, which tokenize it themselves.

        Raises:
            SupervisionError: the chat template refuses the conversation.
        """
        return self.chat.text(prompt) if self.chat else prompt.source

    def answer_text(self, written: str) -> str:
        """The answer in a text that another program wrote; the counterpart of `decode`."""
        return self.chat.answer(written) if self.chat else written

    def _source(self, ids: list[int] | SupervisionError, text: str) -> np.ndarray | SupervisionError:
        if isinstance(ids, SupervisionError):
            return ids
        ids = self.start + ids
        if not ids:
            return SupervisionError("the input is empty and the tokenizer has no start token")
        if len(ids) >= self.max_length:
            return TooLongError(
                f"the input takes {len(ids)} tokens and leaves no room to answer: the limit is "
                f"{self.max_length} (model.max_length): {text[:60]!r}"
            )
        return np.array(ids, dtype=np.int32)

    def encode(self, prompts: list[Prompt]) -> list[Encoded | SupervisionError]:
        """Encode rows for training; a row that is in doubt yields the error instead."""
        if self.chat:
            rows: list[Any] = list(self.chat.rows(prompts))
        else:
            ids = self.ids([p.source for p in prompts]), self.ids([p.target or "" for p in prompts])
            rows = list(zip(*ids, strict=True))
        written = iter(self._decoded([row[1] for row in rows if not isinstance(row, SupervisionError)]))
        return [
            row if isinstance(row, SupervisionError) else self._row(p, row[0], row[1], next(written))
            for p, row in zip(prompts, rows, strict=True)
        ]

    def _row(self, prompt: Prompt, source: list[int], target: list[int], written: str) -> Encoded | SupervisionError:
        if not prompt.target or not target:
            return SupervisionError("the target has no tokens, so there is nothing to learn")
        if self.end in target:
            return SupervisionError("the target holds the end-of-sequence token inside; what follows it would be lost")
        source = self.start + source
        ids = [*source, *target, self.end]
        if len(ids) > self.max_length:
            return TooLongError(
                f"{len(source)} source + {len(target)} target + 1 end tokens exceed the limit of "
                f"{self.max_length} (model.max_length); the target would be cut"
            )
        highest = max(ids[self.num_virtual :])
        if highest >= self.vocab_size:
            return SupervisionError(f"token id {highest} is beyond the model's {self.vocab_size} embeddings")
        if written.strip() != prompt.target.strip():
            return SupervisionError(
                f"the target does not survive this tokenizer: {prompt.target[:60]!r} comes back as {written[:60]!r}"
            )
        # the first token has nothing before it to be predicted from
        loss_start = max(1, len(source) if self.loss_on == "target" else len(self.start))
        if loss_start >= len(ids):
            return SupervisionError("no token would carry loss")
        return Encoded(np.array(ids, dtype=np.int32), loss_start)

    def answers(self, texts: Sequence[str], template: Template) -> list[list[int]]:
        """Token ids of given answers, each in the template's target and with the end token.

        Raises:
            ConfigError: the target holds other columns of a row, or an answer cannot be encoded, or not apart from another.
        """
        if template.target_columns:
            raise ConfigError(
                f"format.answers needs a target that is the same for every row; {template.target!r} names other columns"
            )
        prompts = [Prompt("?", template.target.format(output=text), context=template.opening or ()) for text in texts]
        rows = self.encode(prompts)
        for text, row in zip(texts, rows, strict=True):
            if isinstance(row, SupervisionError):
                raise ConfigError(f"format.answers: {text!r} cannot be an answer: {row}")
        return [row.input_ids[row.loss_start :].tolist() for row in rows if isinstance(row, Encoded)]

    def decode(self, ids: list[int]) -> str:
        """Text of target ids, special tokens left out, spaces untouched; in a chat the answer alone."""
        return self._decoded([ids])[0]

    def _decoded(self, rows: list[list[int]]) -> list[str]:
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            texts = [str(self.tokenizer.decode(r, skip_special_tokens=True, clean_up_tokenization_spaces=False)) for r in rows]
        else:
            texts = backend.decode_batch(rows, skip_special_tokens=True)
        return [self.chat.answer(text) for text in texts] if self.chat else texts


def make_encoder(config: Config) -> Encoder:
    """The encoder for a configuration, without loading weights."""
    architecture = loading.load_model_config(config.model)
    tokenizer = loading.load_tokenizer(config.model)
    limit = loading.max_length(architecture, config.model)
    virtual = config.adapter.num_virtual_tokens if config.adapter.method in SOFT_PROMPTS else 0
    roles = Template.from_config(config.format).roles
    if roles:
        make_markers_special(tokenizer, roles)
    return Encoder(tokenizer, limit, architecture.get_text_config().vocab_size, config.train.loss_on, virtual, roles)
