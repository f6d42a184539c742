"""Add the task's frequent strings to a base's vocabulary as tokens of their own.

A base trained on English needs many tokens for `=CC=C` or `oxidanyl`. So frequent pieces of the training texts are added to its
tokenizer. The embedding of a new token starts as the mean of the embeddings of the tokens that spelled it before. Rows become
shorter: training and decoding are faster, and there are fewer tokens to get wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from seqtune.errors import ModelError

MIN_FREQUENCY = 5
NUM_PROBES = 200


def frequent_pieces(texts: Sequence[str], num_pieces: int) -> list[str]:
    """The first `num_pieces` merges of byte-pair encoding over whole texts; digits are never merged.

    Example:
        >>> frequent_pieces(["abab", "ab1"] * 5, 1)
        ['ab']
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    alphabet = len({character for text in texts for character in text})
    trainer = trainers.BpeTrainer(vocab_size=alphabet + num_pieces, min_frequency=MIN_FREQUENCY, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    ordered = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return [piece for piece, _ in ordered if len(piece) > 1][:num_pieces]


def add_pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], num_pieces: int) -> dict[int, list[int]]:
    """Add the frequent pieces of `texts` to a tokenizer, in place.

    Returns:
        New token id -> the ids that spelled it before.

    Raises:
        ModelError: with the new tokens, a text does not come back from the tokenizer as it went in. SentencePiece's kind of
            tokenizer does this, because it marks the beginnings of words.
    """
    added = add_tokens(tokenizer, frequent_pieces(texts, num_pieces))
    for text in texts[:NUM_PROBES] if added else ():
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip() != text.strip():
            raise ModelError(
                f"model.adapt_vocabulary does not work with this tokenizer: {text[:60]!r} comes back changed; it needs a "
                "byte-level one (GPT-2's kind); --set model.adapt_vocabulary=0"
            )
    return added


def add_tokens(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> dict[int, list[int]]:
    """Add those of the `pieces` that take several tokens to a tokenizer, in place.

    Returns:
        New token id -> the ids that spelled it before.
    """
    known = tokenizer.get_vocab()
    new = [piece for piece in pieces if piece not in known]
    parts = tokenizer(new, add_special_tokens=False, split_special_tokens=True)["input_ids"] if new else []
    pieces_with_parts = [(p, ids) for p, ids in zip(new, parts, strict=True) if len(ids) > 1]
    added: list[str | AddedToken] = [AddedToken(p, normalized=False) for p, _ in pieces_with_parts]
    tokenizer.add_tokens(added)
    return {int(tokenizer.convert_tokens_to_ids(p)): ids for p, ids in pieces_with_parts}  # type: ignore[arg-type]


@torch.no_grad()
def extend_embeddings(model: PreTrainedModel, new_tokens: Mapping[int, list[int]]) -> None:
    """Give every new token a row, the mean of its parts' rows, in the embedding, and in the output layer if it has its own."""
    if not new_tokens:
        return
    size = max(model.config.vocab_size, max(new_tokens) + 1)
    model.resize_token_embeddings(size, mean_resizing=False)
    both: tuple[Any, Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    for weight in {id(layer.weight): layer.weight for layer in both}.values():
        for token, parts in new_tokens.items():
            weight[token] = weight[parts].mean(dim=0)
