"""Answers from a set: each gets its probability, and the likeliest is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.likelihood import Asked, Tree, likelihoods
from seqtune.records import Candidate
from seqtune.sections import DecodeConfig


class ChoiceEngine:
    """Gives every answer of a set as a hypothesis, the likeliest first.

    Args:
        frozen: the model.
        answers: token ids of each, end token included.
        config: `token_budget`, and `normalize_answers`: rank by log-probability per token.
    """

    def __init__(self, frozen: FrozenModel, answers: Sequence[Sequence[int]], config: DecodeConfig):
        self.frozen, self.config = frozen, config
        self.answers, self.tree = [list(ids) for ids in answers], Tree.of(answers)

    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """See `Engine.generate`; the limits do not matter, as no answer is longer than itself."""
        asked = [Asked(source, self.tree) for source in sources]
        for index, found in likelihoods(self.frozen, asked, self.config.token_budget):
            yield index, self._ranked([likelihood.log_probability for likelihood in found])

    def _ranked(self, scores_A: Sequence[float]) -> list[Candidate]:
        lengths = [len(ids) if self.config.normalize_answers else 1 for ids in self.answers]
        ranks = [score / length for score, length in zip(scores_A, lengths, strict=True)]
        order = sorted(range(len(ranks)), key=lambda a: -ranks[a])
        return [Candidate(self.answers[a], scores_A[a]) for a in order]
