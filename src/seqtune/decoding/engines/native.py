"""Our decoding engine: prompts are stored once, beams never move, finished inputs leave and waiting ones enter.

Every family's own forward serves. It reads one "row" an input, whose K query positions are the K beams; keys and values of the
prompt lie in the row's first slots, those of generated tokens in the slots after them, in order of generation and beam. What a
beam may look at is an additive mask over slots: when beams are reordered, only mask rows are exchanged, never keys or values.
Now and then the slots that no beam looks at any more are dropped.

Shapes: B active rows, K beams, S slots, R rows of the cache, H heads, D head width, V vocabulary, N rows that enter.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from seqtune.config import DecodeConfig
from seqtune.decoding.engines.beams import Beams
from seqtune.decoding.engines.packed import packed
from seqtune.models.attention import KeyPositions, has_key_positions
from seqtune.models.soft_prompts import num_virtual_tokens, put_prefix
from seqtune.records import Candidate

ENTER_SHARE = 4  # waiting inputs enter when one in so many rows is free: prompts are read together
LIKE_LENGTH = 0.8  # prompts that are read together are at least this long beside the longest
DROP_EVERY = 16  # steps between looking for slots that no beam needs
PROBE = ([5, 6, 7, 8, 9], [5, 7, 9])  # tokens, modulo the vocabulary; a soft prompt stands before them


class SlotCache:
    """Keys and values of all layers [R, S, H, D]; stands in for transformers' cache in a model's forward.

    Attributes:
        keys: per layer, made on first use.
        values: likewise.
        enter: first row of prompts that are being read, or `None` while generating.
        write_N: flat slots (row * S + slot) that generated tokens go to.
        view: (active rows, used slots).
        prefix: keys and values of a tuned prefix, which take the place of the first slots' [2 * layers, H, P, D].
    """

    is_compileable = False

    def __init__(self, num_rows: int, num_slots: int):
        self.num_rows, self.num_slots = num_rows, num_slots
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.enter: int | None = 0
        self.write_N = torch.empty(0)
        self.view: tuple[int, int] = (0, 0)
        self.prefix: torch.Tensor | None = None

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [B, H, Q, D] and return what attention shall see (the interface that models call)."""
        if layer == len(self.keys):
            size = (self.num_rows, self.num_slots, key.size(1))
            self.keys.append(_zeros((*size, key.size(3)), key))
            self.values.append(_zeros((*size, value.size(3)), value))
        if self.enter is not None:
            if self.prefix is not None:
                key, value = put_prefix(self.prefix, key, value, layer)
            for store, new in ((self.keys[layer], key), (self.values[layer], value)):
                store[self.enter : self.enter + len(new), : new.size(2)] = new.transpose(1, 2)
            return key, value
        rows, slots = self.view
        seen = []
        for store, new in ((self.keys[layer], key), (self.values[layer], value)):
            store.flatten(0, 1).index_copy_(0, self.write_N, new.transpose(1, 2).flatten(0, 1))
            seen.append(store[:rows, :slots].transpose(1, 2))
        return seen[0], seen[1]

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens seen: models ask to number positions, which are always given here."""
        return 0

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        """Keys and offset of an implicit causal mask, used while prompts are read."""
        return query_length, 0

    def get_query_offset(self, layer: int = 0) -> int:
        """Where queries begin, likewise."""
        return 0

    def grow(self, num_slots: int) -> None:
        """Make room for more slots a row."""
        for stores in (self.keys, self.values):
            for layer, store in enumerate(stores):
                stores[layer] = _zeros((self.num_rows, num_slots, *store.shape[2:]), store)
                stores[layer][:, : self.num_slots] = store
        self.num_slots = num_slots

    def move(self, source: int, target: int, slots: int) -> None:
        """Copy a row."""
        for store in (*self.keys, *self.values):
            store[target, :slots] = store[source, :slots]

    def gather(self, index_BS: torch.Tensor) -> None:
        """Bring the named slots of each active row to its front."""
        rows, slots = index_BS.shape
        flat = (index_BS + torch.arange(rows, device=index_BS.device)[:, None] * self.num_slots).flatten()
        for store in (*self.keys, *self.values):
            store[:rows, :slots] = store.flatten(0, 1)[flat].unflatten(0, (rows, slots))


def _zeros(size: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros, because what is masked must still be a number; on CPUs pages come from the system as they are touched."""
    if like.device.type != "cpu":
        return like.new_zeros(size)
    return torch.from_numpy(np.zeros(math.prod(size) * like.element_size(), dtype=np.uint8)).view(like.dtype).view(size)


class Decoder:
    """The rows that are being decoded: cache, mask and beams, kept in step.

    Args:
        model: in evaluation mode.
        num_rows: the most rows at once.
        num_slots: slots a row to begin with; they grow.
        num_beams: beams.
        num_steps: the most new tokens.
        search: (end token, length penalty).
    """

    def __init__(self, model: Any, num_rows: int, num_slots: int, num_beams: int, num_steps: int, search: tuple[int, float]):
        self.model, self.search = model, search
        self.num_rows, self.num_steps, self.num_beams = num_rows, num_steps, num_beams
        self.backbone = getattr(model, model.base_model_prefix)
        self.head = model.get_output_embeddings()
        self.device, self.dtype = model.device, model.dtype
        self.stack = ExitStack()
        self.key_positions = self.stack.enter_context(KeyPositions(self.backbone)) if has_key_positions(model) else None
        self.window = getattr(model.config, "window_size", None)  # GPT-Neo's local layers
        self.cache = SlotCache(num_rows, num_slots)
        self.mask_RKS = torch.full((num_rows, num_beams, num_slots), -math.inf, dtype=self.dtype, device=self.device)
        self.places_RS = torch.zeros(num_rows, num_slots, dtype=torch.long, device=self.device)
        self.prompt_lengths: list[int] = []
        self.used: list[int] = []
        self.names: list[int] = []
        self.beams = Beams.empty([], num_beams, num_steps, self.device)
        self.num_taken = 0

    def enter(self, names: list[int], prompts: list[np.ndarray], limits: list[int]) -> torch.Tensor:
        """Read prompts and take their first token; returns which of the active rows are finished, bool [B]."""
        lengths = [len(p) for p in prompts]
        ids_NT = np.zeros((len(prompts), max(lengths)), dtype=np.int64)
        first = len(self.names)
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            ids_NT[i, :length] = prompt
            self.mask_RKS[first + i] = -math.inf
            self.mask_RKS[first + i, :, :length] = 0.0
        width = ids_NT.shape[1]
        self.places_RS[first : first + len(prompts), :width] = torch.arange(width, device=self.device)
        self.cache.enter = first
        positions_NT = torch.arange(width, device=self.device).expand(len(prompts), -1)
        hidden_NTD = self._forward(torch.from_numpy(ids_NT).to(self.device), positions_NT, None)
        last_N = torch.tensor(lengths, device=self.device) - 1
        hidden_ND = hidden_NTD[torch.arange(len(prompts), device=self.device), last_N]
        new = Beams.empty(limits, self.num_beams, self.num_steps, self.device)
        _, done_N = new.advance(self.head(hidden_ND)[:, None], *self.search)
        self.beams = self.beams.join(new)
        self.names += names
        self.prompt_lengths += lengths
        self.used += lengths
        return torch.cat([done_N.new_zeros(first), done_N])

    def step(self) -> torch.Tensor:
        """Take one token in every row; returns which rows are finished, bool [B]."""
        rows, num_beams = len(self.names), self.num_beams
        if num_beams > 1 and self.num_taken % DROP_EVERY == DROP_EVERY - 1:
            self._drop_dead_slots()
        self.num_taken += 1
        if max(self.used) + num_beams > self.cache.num_slots:
            self._grow()
        free_BK = torch.tensor(self.used, device=self.device)[:, None] + torch.arange(num_beams, device=self.device)
        self.used = [u + num_beams for u in self.used]
        slots = max(self.used)
        place_B1 = (torch.tensor(self.prompt_lengths, device=self.device) + self.beams.steps_B - 1)[:, None]
        self.mask_RKS[:rows].scatter_(2, free_BK[..., None], 0.0)
        self.places_RS[:rows].scatter_(1, free_BK, place_B1.expand(-1, num_beams))
        self.cache.enter = None
        self.cache.view = (rows, slots)
        self.cache.write_N = (free_BK + torch.arange(rows, device=self.device)[:, None] * self.cache.num_slots).flatten()
        mask_BXKS = self._mask(rows, slots, place_B1)
        hidden_BKD = self._forward(self.beams.last_tokens(), place_B1.expand(-1, num_beams), mask_BXKS)
        parents_BK, done_B = self.beams.advance(self.head(hidden_BKD), *self.search)
        if num_beams > 1:
            index_BKS = parents_BK[..., None].expand(-1, -1, slots)
            self.mask_RKS[:rows, :, :slots] = self.mask_RKS[:rows, :, :slots].gather(1, index_BKS)
        return done_B

    def leave(self, finished: Sequence[int]) -> None:
        """Close the gaps that finished rows leave: the last rows move there."""
        gone = set(finished)
        order = list(range(len(self.names)))
        remaining = len(order) - len(gone)
        movers = [row for row in range(remaining, len(order)) if row not in gone]
        for target, source in zip([row for row in sorted(gone) if row < remaining], movers, strict=True):
            self.cache.move(source, target, self.used[source])
            self.mask_RKS[target] = self.mask_RKS[source]
            self.places_RS[target] = self.places_RS[source]
            order[target] = source
        order = order[:remaining]
        self.beams = self.beams.rows(order)
        self.names = [self.names[row] for row in order]
        self.used = [self.used[row] for row in order]
        self.prompt_lengths = [self.prompt_lengths[row] for row in order]

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        where = {} if self.key_positions else {"position_ids": positions}
        if self.key_positions and mask is not None:
            self.key_positions.positions_BS = self.places_RS[: len(ids), : mask.size(-1)]
        return self.backbone(
            input_ids=ids, attention_mask=mask, past_key_values=self.cache, use_cache=True, **where
        ).last_hidden_state

    def _mask(self, rows: int, slots: int, place_B1: torch.Tensor) -> torch.Tensor:
        """What each beam looks at [B, 1, K, S]; with local layers [B, 2, K, S], the second within their window."""
        mask_B1KS = self.mask_RKS[:rows, None, :, :slots]
        if self.window is None:
            return mask_B1KS
        far_B11S = (self.places_RS[:rows, :slots] <= place_B1 - self.window)[:, None, None]
        return torch.cat([mask_B1KS, mask_B1KS.masked_fill(far_B11S, -math.inf)], 1)

    def _grow(self) -> None:
        old, new = self.cache.num_slots, 2 * self.cache.num_slots
        self.cache.grow(new)
        self.mask_RKS = functional.pad(self.mask_RKS, (0, new - old), value=-math.inf)
        self.places_RS = functional.pad(self.places_RS, (0, new - old))

    def _drop_dead_slots(self) -> None:
        rows, slots = len(self.names), max(self.used)
        alive_BS = (self.mask_RKS[:rows, :, :slots] > -math.inf).any(1)
        counts = alive_BS.sum(1).tolist()
        longest = max(counts)
        if longest > slots - self.num_beams:
            return
        index_BS = torch.argsort(alive_BS.to(torch.uint8), dim=1, descending=True, stable=True)[:, :longest]
        self.cache.gather(index_BS)
        self.places_RS[:rows, :longest] = self.places_RS[:rows].gather(1, index_BS)
        wide_BKS = index_BS[:, None].expand(-1, self.num_beams, -1)
        kept_BKS = self.mask_RKS[:rows].gather(2, wide_BKS)
        self.mask_RKS[:rows] = -math.inf
        self.mask_RKS[:rows, :, :longest] = kept_BKS
        self.used = counts


class NativeEngine:
    """Greedy and beam search with shared prompts; see the module's text.

    Args:
        model: one that `fits`.
        end: end token.
        config: the `decode` section.
    """

    def __init__(self, model: PreTrainedModel, end: int, config: DecodeConfig):
        self.model, self.end, self.config = model, end, config

    @torch.inference_mode()
    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """See `Engine.generate`; inputs are answered as they finish."""
        config = self.config
        waiting = deque(sorted(range(len(sources)), key=lambda i: -len(sources[i])))
        # a row holds its prompt, its hypothesis, and what the beams wrote since dead slots were dropped
        num_slots = max(len(s) + limit for s, limit in zip(sources, limits, strict=True)) + config.num_beams * DROP_EVERY
        num_rows = min(max(1, config.token_budget // num_slots), len(sources))
        search = (self.end, config.length_penalty)
        decoder = Decoder(self.model, num_rows, num_slots, config.num_beams, max(limits), search)
        filling = False
        with decoder.stack, packed(self.model):
            while waiting or decoder.names:
                free = num_rows - len(decoder.names)
                filling = bool(waiting) and free > 0 and (filling or not decoder.names or free * ENTER_SHARE >= num_rows)
                if filling:
                    entering = _next_group(waiting, sources, free)
                    done = decoder.enter(entering, [sources[i] for i in entering], [limits[i] for i in entering])
                else:
                    done = decoder.step()
                finished = torch.nonzero(done).flatten().tolist()
                for row in finished:
                    yield decoder.names[row], decoder.beams.candidates(row, config.num_return, config.length_penalty)
                if finished:
                    decoder.leave(finished)


def _next_group(waiting: deque[int], sources: Sequence[np.ndarray], free: int) -> list[int]:
    """The longest waiting inputs of like length, so that reading them together pads little."""
    longest = len(sources[waiting[0]])
    group = [waiting.popleft()]
    while waiting and len(group) < free and len(sources[waiting[0]]) >= LIKE_LENGTH * longest:
        group.append(waiting.popleft())
    return group


_fits: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def fits(model: PreTrainedModel) -> bool:
    """True if decoding two short texts with our cache gives the logits of the model's plain forward."""
    if model not in _fits:
        _fits[model] = _agrees(model)
    return _fits[model]


@torch.inference_mode()
def _agrees(model: Any) -> bool:
    config = model.config.get_text_config()
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    backbone = getattr(model, model.base_model_prefix, None)
    if sliding or backbone is None or model.get_output_embeddings() is None:
        return False
    takes_positions = "position_ids" in inspect.signature(backbone.forward).parameters
    if not (takes_positions or has_key_positions(model)):
        return False
    virtual = config.vocab_size + np.arange(num_virtual_tokens(model))
    prompts = [np.concatenate([virtual, np.array(p) % config.vocab_size]).astype(np.int64) for p in PROBE]
    try:
        decoder = Decoder(model, 2, 16 + len(virtual), 2, 3, (-1, 1.0))
        with decoder.stack:
            decoder.enter([0, 1], prompts, [3, 3])
            second = decoder.beams.last_tokens().tolist()
            decoder.step()
        decoded = decoder.beams
        for row, prompt in enumerate(prompts):
            texts = torch.tensor([[*prompt.tolist(), token] for token in second[row]], device=model.device)
            expected_KV = model(input_ids=texts, use_cache=False).logits[:, -1].float().log_softmax(-1)
            first = model(input_ids=texts[:1, :-1], use_cache=False).logits[0, -1].float().log_softmax(-1)
            total_KV = expected_KV + first[second[row]][:, None]
            best = total_KV.flatten().topk(2).values
            if not torch.allclose(decoded.scores_BK[row], best, rtol=1e-2 if model.dtype != torch.float32 else 1e-4, atol=1e-3):
                return False
    except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, IndexError):
        return False
    return True
