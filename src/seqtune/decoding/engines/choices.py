"""Answers from a set: the probability of each, in one pass that reads a prompt once and lets all answers look at its keys.

The answers' tokens form a tree, in which answers that begin alike share what they have in common. After a batch of prompts is
read, one forward goes through all nodes of the tree at once, each of which sees the prompt and the nodes above it.

Shapes: B rows, T prompt tokens, M nodes, A answers, S slots, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from seqtune.config import DecodeConfig
from seqtune.decoding.engines.exactness import fits
from seqtune.decoding.engines.forwards import Forward, Seen, forward_of
from seqtune.decoding.engines.slot_cache import SlotCache
from seqtune.records import Candidate
from seqtune.tokens.batching import by_length

LOGITS = 2**25  # numbers of the output layer held at once


@dataclass(frozen=True, slots=True)
class Tree:
    """The tokens of all answers, common beginnings once. Node 0 is the prompt's last token, which is not among `tokens`.

    Attributes:
        tokens: of nodes 1 to M.
        parents: the node above each of these.
        depths: how far below the prompt each stands, 1 for first tokens.
        edges: for each answer, (node, token that follows it) for all its tokens; their log-probabilities add up to its own.

    Example:
        >>> Tree.of([[7, 8, 2], [7, 9, 2]]).tokens
        [7, 8, 9]
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    edges: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]]) -> Tree:
        """The tree of token ids, each answer with the end token that ends it and nothing before it has."""
        nodes: dict[tuple[int, ...], int] = {(): 0}
        for ids in answers:
            for length in range(1, len(ids)):
                nodes.setdefault(tuple(ids[:length]), len(nodes))
        beginnings = list(nodes)[1:]
        edges = [[(nodes[tuple(ids[:i])], token) for i, token in enumerate(ids)] for ids in answers]
        return cls([b[-1] for b in beginnings], [nodes[b[:-1]] for b in beginnings], [len(b) for b in beginnings], edges)

    def mask(self) -> torch.Tensor:
        """0 where a node looks at a node above it, or at itself, -inf elsewhere [M, M]."""
        mask = torch.full((len(self.tokens), len(self.tokens)), -math.inf)
        for node, parent in enumerate(self.parents, start=1):
            if parent:
                mask[node - 1] = mask[parent - 1]
            mask[node - 1, node - 1] = 0.0
        return mask


class ChoiceEngine:
    """Gives every answer of a set as a hypothesis, the likeliest first.

    Args:
        model: in evaluation mode.
        answers: token ids of each, end token included.
        config: `token_budget`, and `normalize_answers`: rank by log-probability per token.
    """

    def __init__(self, model: PreTrainedModel, answers: Sequence[Sequence[int]], config: DecodeConfig):
        self.model: Any = model
        self.answers, self.config, self.tree = [list(ids) for ids in answers], config, Tree.of(answers)
        edges = [edge for own in self.tree.edges for edge in own]
        self.nodes_E, self.tokens_E = (torch.tensor(part, device=model.device) for part in zip(*edges, strict=True))
        self.owner_E = torch.tensor([a for a, own in enumerate(self.tree.edges) for _ in own], device=model.device)
        self.shares = fits(model)

    @torch.inference_mode()
    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """See `Engine.generate`; the limits do not matter, as no answer is longer than itself."""
        found = self._shared(sources) if self.shares else self._apart(sources)
        for index, scores_A in found:
            yield index, self._ranked(scores_A)

    def _ranked(self, scores_A: list[float]) -> list[Candidate]:
        lengths = [len(ids) if self.config.normalize_answers else 1 for ids in self.answers]
        ranks = [score / length for score, length in zip(scores_A, lengths, strict=True)]
        order = sorted(range(len(ranks)), key=lambda a: -ranks[a])
        return [Candidate(self.answers[a], scores_A[a]) for a in order]

    def _shared(self, sources: Sequence[np.ndarray]) -> Iterator[tuple[int, list[float]]]:
        num_nodes = len(self.tree.tokens)
        with forward_of(self.model) as forward:
            for batch in by_length([len(s) + num_nodes for s in sources], self.config.token_budget):
                scores_BA = self._batch(forward, [sources[i] for i in batch])
                yield from zip(batch, scores_BA.tolist(), strict=True)

    def _batch(self, forward: Forward, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """Log-probabilities of all answers [B, A]."""
        device, num_nodes = self.model.device, len(self.tree.tokens)
        ids_BT = pad_sequence([torch.from_numpy(p).long() for p in prompts], batch_first=True).to(device)
        lengths_B = torch.tensor([len(p) for p in prompts], device=device)
        rows, longest = ids_BT.shape
        cache = SlotCache(rows, longest + num_nodes)
        hidden_BTD = forward.read(ids_BT, cache.reading(first_row=0))
        hidden_BD = hidden_BTD[torch.arange(rows, device=device), lengths_B - 1]
        if not num_nodes:
            return self._scores(forward, hidden_BD[:, None])

        slots_T, nodes_M = torch.arange(longest, device=device), torch.arange(num_nodes, device=device)
        prompt_BT = torch.zeros(rows, longest, device=device).masked_fill_(slots_T >= lengths_B[:, None], -math.inf)
        tree_MM = self.tree.mask().to(device).expand(rows, -1, -1)
        mask_BMS = torch.cat([prompt_BT[:, None].expand(-1, num_nodes, -1), tree_MM], -1).to(self.model.dtype)
        place_BM = lengths_B[:, None] + torch.tensor(self.tree.depths, device=device) - 1
        places_BS = torch.cat([slots_T.expand(rows, -1), place_BM], -1)
        written = cache.generating((longest + nodes_M).expand(rows, -1), longest + num_nodes)
        tokens_BM = torch.tensor(self.tree.tokens, device=device).expand(rows, -1)
        hidden_BMD = forward.write(tokens_BM, Seen(mask_BMS[:, None], places_BS, place_BM), written)
        return self._scores(forward, torch.cat([hidden_BD[:, None], hidden_BMD], 1))

    def _scores(self, forward: Forward, hidden_BMD: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [B, A] from the hidden states of the prompt's end and of all nodes [B, 1 + M, D]."""
        rows, num_nodes, width = hidden_BMD.shape
        at_a_time = max(1, LOGITS // (num_nodes * self.model.config.get_text_config().vocab_size))
        found = []
        for hidden in hidden_BMD.split(at_a_time):
            log_probs = forward.head(hidden.reshape(-1, width)).float().log_softmax(-1).unflatten(0, (-1, num_nodes))
            found.append(log_probs[:, self.nodes_E, self.tokens_E])
        scores_BA = hidden_BMD.new_zeros(rows, len(self.answers), dtype=torch.float32)
        return scores_BA.index_add_(1, self.owner_E, torch.cat(found))

    def _apart(self, sources: Sequence[np.ndarray]) -> Iterator[tuple[int, list[float]]]:
        """The same through the model's own forward, which reads the prompt again for every answer."""
        for index, source in enumerate(sources):
            first, width = len(source) - 1, len(source) + max(map(len, self.answers))
            at_a_time = max(1, LOGITS // (width * self.model.config.get_text_config().vocab_size))
            scores: list[float] = []
            for start in range(0, len(self.answers), at_a_time):
                some = self.answers[start : start + at_a_time]
                texts = [torch.tensor([*source.tolist(), *ids[:-1]]) for ids in some]
                ids_AT = pad_sequence(texts, batch_first=True).to(self.model.device)
                log_probs_ATV = self.model(input_ids=ids_AT, use_cache=False).logits.float().log_softmax(-1)
                scores += [float(log_probs_ATV[a, range(first, first + len(ids)), ids].sum()) for a, ids in enumerate(some)]
            yield index, scores
