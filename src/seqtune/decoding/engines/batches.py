"""Batches for engines that search a whole batch under one limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from seqtune.sections import DecodeConfig
from seqtune.tokens.batching import by_length


def with_one_limit(
    sources: Sequence[np.ndarray], limits: Sequence[int], config: DecodeConfig
) -> Iterator[tuple[list[int], int]]:
    """Indices of inputs that are searched together, and their limit, which they all have.

    A search that may write more finds other beams, so its hypotheses cannot be cut to a smaller limit afterwards. Limits differ
    only where a prompt leaves less room than `decode.max_new_tokens`, so this makes few batches more.

    Args:
        sources: prompt token ids, each [T].
        limits: the most new tokens of each.
        config: beams, and the budget of tokens held at once.

    Example:
        >>> sources = [np.arange(3), np.arange(5), np.arange(4)]
        >>> list(with_one_limit(sources, [8, 2, 8], DecodeConfig()))
        [([0, 2], 8), ([1], 2)]
    """
    for limit in sorted(set(limits), reverse=True):
        members = [i for i, own in enumerate(limits) if own == limit]
        lengths = [(len(sources[i]) + limit) * config.num_beams for i in members]
        for batch in by_length(lengths, config.token_budget):
            yield [members[i] for i in batch], limit
