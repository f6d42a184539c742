"""How likely given texts are after given contexts; what contexts have in common is read once.

Many questions are asked after the same examples, and many answers are weighed after the same question. Contexts that begin
alike are grouped: their common beginning is read in one row, whose keys and values are copied to the rows of the questions. A
second forward goes through what is left of each context and through all its continuations at once, as a tree, in which those
that begin alike share their tokens; each token sees the context and the tokens above it.

Shapes: B rows, P tokens of the beginning, Q tokens after it, S = P + Q slots, M nodes of trees, E edges, D width, V
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from seqtune.decoding.engines.exactness import fits
from seqtune.decoding.engines.forwards import Forward, Seen
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.slot_cache import SlotCache

LOGITS = 2**25  # numbers of the output layer held at once
WORTH_SHARING = 32  # tokens that contexts have in common
LIKE_FIRST = 0.9  # of what the first two of a group share, all of it must
BATCH_COSTS = 32  # tokens that could be read in the time that another batch takes beside its tokens


@dataclass(frozen=True, slots=True)
class Tree:
    """The tokens of all continuations, common beginnings once. Node 0 is the context's last token, which is not among `tokens`.

    Attributes:
        tokens: of nodes 1 to M.
        parents: the node above each of these.
        depths: how far below the context each stands, 1 for first tokens.
        edges: for each continuation, (node, token that follows it) for all its tokens.

    Example:
        >>> Tree.of([[7, 8, 2], [7, 9, 2]]).tokens
        [7, 8, 9]
    """

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    edges: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, continuations: Sequence[Sequence[int]]) -> Tree:
        """The tree of token ids."""
        nodes: dict[tuple[int, ...], int] = {(): 0}
        for ids in continuations:
            for length in range(1, len(ids)):
                nodes.setdefault(tuple(ids[:length]), len(nodes))
        beginnings = list(nodes)[1:]
        edges = [[(nodes[tuple(ids[:i])], token) for i, token in enumerate(ids)] for ids in continuations]
        return cls([b[-1] for b in beginnings], [nodes[b[:-1]] for b in beginnings], [len(b) for b in beginnings], edges)

    def sees(self) -> np.ndarray:
        """Which nodes each node looks at: those above it, and itself; bool [M, M]."""
        seen = np.eye(len(self.tokens), dtype=bool)
        for node, parent in enumerate(self.parents, start=1):
            if parent:
                seen[node - 1] |= seen[parent - 1]
        return seen


@dataclass(frozen=True, slots=True)
class Asked:
    """A context, and what may follow it.

    Attributes:
        context: token ids [T], at least one.
        tree: of the continuations.
    """

    context: np.ndarray
    tree: Tree


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of one continuation.

    Attributes:
        log_probability: of all its tokens, natural logarithm.
        is_greedy: each of them is the likeliest at its place.
    """

    log_probability: float
    is_greedy: bool


@torch.inference_mode()
def likelihoods(frozen: FrozenModel, asked: Sequence[Asked], token_budget: int) -> Iterator[tuple[int, list[Likelihood]]]:
    """The likelihood of every continuation of every context, in an order that suits.

    Args:
        frozen: the model.
        asked: contexts and continuations; each context and continuation together must fit the model.
        token_budget: tokens held at once.

    Yields:
        Index in `asked`, and one likelihood a continuation.
    """
    if not fits(frozen):
        yield from _one_by_one(frozen.model, asked)
        return
    with frozen.forward(decodes=False) as forward:
        reader = _Reader(frozen.model, forward, token_budget)
        alone = []
        for shared, members in groups([a.context for a in asked]):
            if shared:
                yield from reader.after_common(asked, members, shared)
            else:
                alone += members
        for batch in cheapest_batches([len(asked[i].context) + len(asked[i].tree.tokens) for i in alone], 0, token_budget):
            yield from reader.after_own(asked, [alone[i] for i in batch])


def groups(contexts: Sequence[np.ndarray]) -> list[tuple[int, list[int]]]:
    """Contexts that begin alike: how many tokens they share (0 for one by itself), and which they are.

    At least one token of each is not shared, as something must be left to predict from.
    """
    order = sorted(range(len(contexts)), key=lambda i: contexts[i].tolist())
    found: list[tuple[int, list[int]]] = []
    start = 0
    while start < len(order):
        first, shared, end = contexts[order[start]], 0, start + 1
        while end < len(order):
            common = min(_common(first, contexts[order[end]]), len(first) - 1)
            if common < (LIKE_FIRST * shared if shared else WORTH_SHARING):
                break
            shared = min(common, shared) if shared else common
            end += 1
        found.append((shared, order[start:end]))
        start = end
    return found


def cheapest_batches(lengths: Sequence[int], shared: int, token_budget: int) -> list[np.ndarray]:
    """Rows of like lengths together, so that the fewest tokens are read, padding and what a batch costs by itself included.

    Args:
        lengths: tokens of each row that are read.
        shared: tokens before those that lie in the cache.
        token_budget: of a batch, both counted; a longer row is a batch of its own.

    Returns:
        Indices of each batch, the longest rows first.
    """
    order = np.argsort(np.asarray(lengths, dtype=int), kind="stable")
    ascending = [lengths[i] for i in order]
    least, starts = [0], [0]  # the cost of the first n rows, and where the last of their batches starts
    for end, longest in enumerate(ascending, start=1):
        first = max(0, end - max(1, token_budget // (shared + longest)))
        costs = [least[start] + (end - start) * longest + BATCH_COSTS for start in range(first, end)]
        least.append(min(costs))
        starts.append(first + costs.index(least[-1]))
    found, end = [], len(order)
    while end:
        found.append(order[starts[end] : end])
        end = starts[end]
    return found


def _common(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length


class _Reader:
    """Two forwards a batch: the beginnings of its contexts, then the rest of each with its continuations."""

    def __init__(self, model: Any, forward: Forward, token_budget: int):
        self.model, self.forward, self.token_budget = model, forward, token_budget

    def after_common(
        self, asked: Sequence[Asked], members: Sequence[int], shared: int
    ) -> Iterator[tuple[int, list[Likelihood]]]:
        """Contexts that share their first tokens."""
        rests = [len(asked[i].context) - shared + len(asked[i].tree.tokens) for i in members]
        cut = cheapest_batches(rests, shared, self.token_budget)
        cache = SlotCache(max(map(len, cut)), shared + max(rests))
        self._begin([asked[members[0]].context[:shared]], cache)
        cache.spread(shared)
        for batch in cut:
            rows = [asked[members[i]] for i in batch]
            yield from zip((members[i] for i in batch), self._rest(rows, [shared] * len(rows), cache), strict=True)

    def after_own(self, asked: Sequence[Asked], batch: Sequence[int]) -> Iterator[tuple[int, list[Likelihood]]]:
        """Contexts that share nothing: of each, all but the last token is read first."""
        rows = [asked[i] for i in batch]
        begun = [len(row.context) - 1 for row in rows]
        cache = SlotCache(len(rows), max(begun) + 1 + max(len(row.tree.tokens) for row in rows))
        if max(begun):
            self._begin([row.context[: max(1, length)] for row, length in zip(rows, begun, strict=True)], cache)
        yield from zip(batch, self._rest(rows, begun, cache), strict=True)

    def _begin(self, contexts: Sequence[np.ndarray], cache: SlotCache) -> None:
        """Read the beginnings of the first rows, for their keys and values alone."""
        nothing = torch.empty(0, dtype=torch.long, device=self.model.device)
        self.forward.read(self._ids(contexts), cache.reading(first_row=0), nothing)

    def _ids(self, rows: Sequence[np.ndarray]) -> torch.Tensor:
        """Padded token ids [B, T]."""
        return pad_sequence([torch.from_numpy(row).long() for row in rows], batch_first=True).to(self.model.device)

    def _rest(self, rows: Sequence[Asked], begun: Sequence[int], cache: SlotCache) -> list[list[Likelihood]]:
        """What is left of each row's context, and its tree, after `begun` tokens that lie in the cache's first slots."""
        device, longest = self.model.device, max(begun)
        rests = [np.concatenate([row.context[b:], row.tree.tokens]) for row, b in zip(rows, begun, strict=True)]
        width = max(map(len, rests))
        sees_BQS = np.zeros((len(rows), width, longest + width), dtype=bool)
        places_BS = np.zeros((len(rows), longest + width), dtype=int)
        places_BS[:, :longest] = np.arange(longest)
        sees_BQS[:, :, longest:] = np.eye(width, dtype=bool)  # padding sees itself, so that nothing is undefined
        for number, (row, b) in enumerate(zip(rows, begun, strict=True)):
            left, nodes = len(row.context) - b, len(row.tree.tokens)
            end = longest + left
            sees_BQS[number, : left + nodes, :b] = True
            sees_BQS[number, :left, longest:end] = np.tri(left, dtype=bool)
            sees_BQS[number, left : left + nodes, longest:end] = True
            sees_BQS[number, left : left + nodes, end : end + nodes] = row.tree.sees()
            places_BS[number, longest:end] = np.arange(b, len(row.context))
            places_BS[number, end : end + nodes] = len(row.context) - 1 + np.array(row.tree.depths, dtype=int)
        places = torch.from_numpy(places_BS).to(device)
        mask_B1QS = torch.zeros(sees_BQS.shape, dtype=self.model.dtype, device=device)
        mask_B1QS = mask_B1QS.masked_fill_(torch.from_numpy(~sees_BQS).to(device), -math.inf)[:, None]
        slots_BQ = torch.arange(longest, longest + width, device=device).expand(len(rows), -1)
        edges = [  # number of the node among all tokens of the rows, token that follows it
            (number * width + len(row.context) - b - 1 + node, token)
            for number, (row, b) in enumerate(zip(rows, begun, strict=True))
            for continuation in row.tree.edges
            for node, token in continuation
        ]
        node_E, token_E = torch.tensor(edges, device=device).T
        wanted_M, at_E = node_E.unique(return_inverse=True)
        seen = Seen(mask_B1QS, places, places[:, longest:])
        hidden_MD = self.forward.write(self._ids(rests), seen, cache.generating(slots_BQ, longest + width), wanted_M)
        scores_E, greedy_E = self._weigh(hidden_MD, at_E, token_E)
        scores, greedy = iter(scores_E.tolist()), iter(greedy_E.tolist())
        return [[_of(ids, scores, greedy) for ids in row.tree.edges] for row in rows]

    def _weigh(self, hidden_MD: torch.Tensor, at_E: torch.Tensor, token_E: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The log-probability of each edge's token at its node [E], and whether it is the likeliest there [E]."""
        scores_E = torch.empty(len(at_E), device=at_E.device)
        greedy_E = torch.empty_like(at_E, dtype=torch.bool)
        at_a_time = max(1, LOGITS // self.model.config.get_text_config().vocab_size)
        for first, hidden in zip(range(0, len(hidden_MD), at_a_time), hidden_MD.split(at_a_time), strict=True):
            log_probs = self.forward.head(hidden).float().log_softmax(-1)
            here_E = (at_E >= first) & (at_E < first + len(hidden))
            at, tokens = at_E[here_E] - first, token_E[here_E]
            scores_E[here_E], greedy_E[here_E] = log_probs[at, tokens], log_probs.argmax(-1)[at] == tokens
        return scores_E, greedy_E


def _of(edges: Sequence[Any], scores: Iterator[float], greedy: Iterator[bool]) -> Likelihood:
    """One continuation's likelihood from those of its tokens, which come next."""
    tokens = [(next(scores), next(greedy)) for _ in edges]
    return Likelihood(sum(score for score, _ in tokens), all(is_greedy for _, is_greedy in tokens))


def _one_by_one(model: Any, asked: Sequence[Asked]) -> Iterator[tuple[int, list[Likelihood]]]:
    """The same through the model's own forward, which reads the context again for every continuation."""
    for index, row in enumerate(asked):
        found = []
        for edges in row.tree.edges:
            ids = [*row.context.tolist(), *(token for _, token in edges[:-1])]
            logits_NV = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -len(edges) :]
            tokens_N = torch.tensor([token for _, token in edges], device=model.device)
            scores_N = logits_NV.float().log_softmax(-1).gather(1, tokens_N[:, None])[:, 0]
            found.append(_of(edges, iter(scores_N.tolist()), iter((logits_NV.argmax(-1) == tokens_N).tolist())))
        yield index, found
