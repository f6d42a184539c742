"""The vocabulary that a model is trained in, as one value: the tokenizer, and where its ids come from in the base's.

A base's vocabulary may gain pieces of the training texts (`adapt`), then lose the tokens that the task does not use (`trim`).
Each step returns a new value, and `apply` changes a model's rows to match. So within one value, an id has one meaning.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seqtune.models.vocabulary.adapt import add_pieces, add_tokens, extend_embeddings
from seqtune.models.vocabulary.trim import trim_embeddings, trim_tokenizer


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer and the number of embedding rows that belong to it.

    Attributes:
        tokenizer: a fast tokenizer.
        size: rows of the embedding.
        added: ids that the base did not have -> the base's ids that spelt them, in the numbering before trimming.
        kept: the id before trimming of each id, ascending, int64 [size]; `None` while the vocabulary is whole.

    Example:
        vocabulary = Vocabulary(tokenizer, 50_257).with_pieces(texts, 1024).trimmed(used_ids, texts)
        vocabulary.apply(model)
    """

    tokenizer: PreTrainedTokenizerBase
    size: int
    added: Mapping[int, list[int]] = field(default_factory=dict)
    kept: np.ndarray | None = None

    def with_pieces(self, texts: Sequence[str], num_pieces: int) -> Vocabulary:
        """With up to `num_pieces` frequent pieces of `texts` as tokens of their own.

        Raises:
            ModelError: the tokenizer does not give texts back once pieces are added.
        """
        return self._grown(lambda tokenizer: add_pieces(tokenizer, texts, num_pieces))

    def with_tokens(self, pieces: Sequence[str]) -> Vocabulary:
        """With pieces that `with_pieces` found before, on the same texts."""
        return self._grown(lambda tokenizer: add_tokens(tokenizer, pieces))

    @property
    def pieces(self) -> list[str]:
        """The pieces that were added."""
        return [str(self.tokenizer.convert_ids_to_tokens(token)) for token in self.added]

    def _grown(self, add: Callable[[PreTrainedTokenizerBase], dict[int, list[int]]]) -> Vocabulary:
        assert self.kept is None, "pieces are added before tokens are dropped"
        tokenizer = copy.deepcopy(self.tokenizer)
        added = add(tokenizer)
        return dataclasses.replace(self, tokenizer=tokenizer, size=max([self.size, *(i + 1 for i in added)]), added=added)

    def trimmed(self, used: Iterable[int], texts: Sequence[str]) -> Vocabulary:
        """With the `used` ids only, and what any other text can be spelt with.

        Args:
            used: ids that the task's rows hold.
            texts: some of the task's texts, on which both tokenizers are compared.

        Raises:
            VocabularyError: this kind of tokenizer cannot be trimmed.
        """
        trimmed = trim_tokenizer(self.tokenizer, used, texts)
        return dataclasses.replace(self, tokenizer=trimmed.tokenizer, size=len(trimmed.kept), kept=trimmed.kept)

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that `texts` take."""
        return sum(map(len, self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]))

    def apply(self, model: PreTrainedModel) -> None:
        """Give the base model the rows of this vocabulary, in place; logits of tokens that it had and keeps do not change."""
        extend_embeddings(model, self.added)
        if self.kept is not None:
            trim_embeddings(model, self.kept)
