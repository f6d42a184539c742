"""Greedy and beam search over log-probabilities, without a model: which hypotheses go on, which are complete.

The rules are those of transformers' beam search with `early_stopping=False` (v5, `GenerationMixin._beam_search`), so the
outcome is the same; here every row has its own length, so rows can begin and end at any step.

Shapes: B rows, K beams, C candidates a row, T steps, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch.nn import functional

from seqtune.records import Candidate


@dataclass(slots=True)
class Beams:
    """The search's state, one row an input.

    Attributes:
        steps_B: tokens generated so far.
        limits_B: the most tokens.
        scores_BK: log-probability of each running hypothesis, best first.
        tokens_BTK: the running hypotheses' token at each step.
        parents_BTK: and the beam of the step before that it continues.
        complete_BK: length-penalised scores of the best complete hypotheses, -inf where there is none yet.
        ends_BK3: (number of tokens, parent beam, last token) of those.
    """

    steps_B: torch.Tensor
    limits_B: torch.Tensor
    scores_BK: torch.Tensor
    tokens_BTK: torch.Tensor
    parents_BTK: torch.Tensor
    complete_BK: torch.Tensor
    ends_BK3: torch.Tensor

    @classmethod
    def empty(cls, limits: list[int], num_beams: int, num_steps: int, device: torch.device) -> Beams:
        """Rows before their first token."""
        rows, integers = len(limits), {"dtype": torch.long, "device": device}
        return cls(
            torch.zeros(rows, **integers),
            torch.tensor(limits, **integers),
            torch.zeros(rows, num_beams, device=device),
            torch.zeros(rows, num_steps, num_beams, **integers),
            torch.zeros(rows, num_steps, num_beams, **integers),
            torch.full((rows, num_beams), -math.inf, device=device),
            torch.zeros(rows, num_beams, 3, **integers),
        )

    def rows(self, index: list[int]) -> Beams:
        """The named rows, in that order."""
        return Beams(*(getattr(self, f.name)[index] for f in fields(self)))

    def join(self, other: Beams) -> Beams:
        """These rows, then the other's."""
        return Beams(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    @property
    def num_beams(self) -> int:
        """Hypotheses a row."""
        return self.scores_BK.size(1)

    @property
    def num_steps(self) -> int:
        """Tokens that there is room for."""
        return self.tokens_BTK.size(1)

    def with_steps(self, num_steps: int) -> Beams:
        """The same with room for another number of tokens, none of which is written yet where there is less."""
        more = (0, 0, 0, num_steps - self.num_steps)
        return replace(
            self, tokens_BTK=functional.pad(self.tokens_BTK, more), parents_BTK=functional.pad(self.parents_BTK, more)
        )

    def last_tokens(self) -> torch.Tensor:
        """The token that each running hypothesis ends with [B, K]."""
        return self.tokens_BTK[torch.arange(len(self.steps_B), device=self.steps_B.device), self.steps_B - 1]

    def advance(self, logits_BKV: torch.Tensor, end: int, length_penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one token.

        Args:
            logits_BKV: for each running hypothesis; K is 1 on a row's first step, when there is only the prompt.
            end: end token.
            length_penalty: complete hypotheses rank by log-probability / number of tokens ** this.

        Returns:
            The beam that each running hypothesis continues [B, K], and which rows are finished, bool [B].
        """
        num_beams = self.num_beams
        if num_beams == 1:
            return self._advance_alone(logits_BKV, end)
        scores_BC, tokens_BC, parents_BC = self._candidates(logits_BKV)
        length_B1 = self.steps_B[:, None] + 1
        ended_BC = (tokens_BC == end) | (length_B1 >= self.limits_B[:, None])

        running_BC = scores_BC.masked_fill(ended_BC, -math.inf)
        scores_BK, chosen_BK = running_BC.topk(num_beams)
        parents_BK = parents_BC.gather(1, chosen_BK)
        at = torch.arange(len(self.steps_B), device=self.steps_B.device)
        self.tokens_BTK[at, self.steps_B] = tokens_BC.gather(1, chosen_BK)
        self.parents_BTK[at, self.steps_B] = parents_BK
        self.scores_BK = scores_BK
        self.steps_B = self.steps_B + 1

        # candidates beyond the first K only stand in for those that ended
        penalty_B1 = length_B1.to(scores_BC.dtype) ** length_penalty
        finished_BK = (scores_BC[:, :num_beams] / penalty_B1).masked_fill(~ended_BC[:, :num_beams], -math.inf)
        ends_BK3 = torch.stack([length_B1.expand_as(finished_BK), parents_BC[:, :num_beams], tokens_BC[:, :num_beams]], -1)
        self.complete_BK, best_BK = torch.cat([self.complete_BK, finished_BK], 1).topk(num_beams)
        self.ends_BK3 = torch.cat([self.ends_BK3, ends_BK3], 1).gather(1, best_BK[..., None].expand(-1, -1, 3))
        can_improve_B = scores_BK[:, 0] / penalty_B1[:, 0] > self.complete_BK[:, -1]
        return parents_BK, ~can_improve_B | (self.steps_B >= self.limits_B)

    def _advance_alone(self, logits_B1V: torch.Tensor, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for one hypothesis a row, which is complete when it ends."""
        top_B1, tokens_B1 = logits_B1V[:, 0].float().log_softmax(-1).max(-1, keepdim=True)
        self.scores_BK = self.scores_BK + top_B1
        self.tokens_BTK.scatter_(1, self.steps_B[:, None, None], tokens_B1[..., None])
        self.steps_B = self.steps_B + 1
        ended_B = (tokens_B1[:, 0] == end) | (self.steps_B >= self.limits_B)
        return torch.zeros_like(tokens_B1), ended_B

    def _candidates(self, logits_BKV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best continuations of a row, best first: scores, tokens and parent beams, each [B, C]."""
        num_parents = logits_BKV.size(1)
        log_probs_BKV = logits_BKV.float().log_softmax(-1)  # on CPUs far quicker than logsumexp alone
        # 2 K, so that K are left even if every beam's best is the end token
        count = min(2 * self.num_beams, logits_BKV.size(-1))
        top_BKC, tokens_BKC = log_probs_BKV.topk(count)
        scores_BKC = top_BKC + self.scores_BK[:, :num_parents, None]
        if num_parents == 1:
            return scores_BKC[:, 0], tokens_BKC[:, 0], torch.zeros_like(tokens_BKC[:, 0])
        scores_BC, index_BC = scores_BKC.flatten(1).topk(2 * self.num_beams)
        return scores_BC, tokens_BKC.flatten(1).gather(1, index_BC), index_BC // count

    def candidates(self, row: int, num_return: int, length_penalty: float) -> list[Candidate]:
        """A finished row's complete hypotheses, best first."""
        if self.num_beams == 1:
            ids = self.tokens_BTK[row, : self.steps_B[row], 0].tolist()
            return [Candidate(ids, self.scores_BK[row, 0].item())]
        tokens, parents = self.tokens_BTK[row].tolist(), self.parents_BTK[row].tolist()
        found = []
        for score, (length, last, token) in zip(self.complete_BK[row].tolist(), self.ends_BK3[row].tolist(), strict=True):
            ids, beam = [token], last
            for step in range(length - 2, -1, -1):
                ids.append(tokens[step][beam])
                beam = parents[step][beam]
            found.append(Candidate(ids[::-1], score * length**length_penalty))
        return found[:num_return]
