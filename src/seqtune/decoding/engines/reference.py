"""The reference engine: `transformers.generate` with left padding and nothing inherited from the model's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from seqtune.decoding.engines.batches import with_one_limit
from seqtune.models.loss import TargetLoss
from seqtune.records import Candidate, Encoded
from seqtune.sections import DecodeConfig
from seqtune.tokens.batching import collate


class TransformersEngine:
    """Greedy and beam search through transformers.

    A model folder may bring sampling, temperatures or penalties of its own; they are replaced, so that
    the search is what `decode` says and nothing else.
    """

    def __init__(self, model: PreTrainedModel, end: int, config: DecodeConfig):
        self.model = model
        self.end = end
        self.config = config
        self.loss = TargetLoss(model)

    @torch.inference_mode()
    def generate(self, sources: Sequence[np.ndarray], limits: Sequence[int]) -> Iterator[tuple[int, list[Candidate]]]:
        """See `Engine.generate`."""
        for batch, limit in with_one_limit(sources, limits, self.config):
            chosen = [sources[i] for i in batch]
            for index, source, group in zip(batch, chosen, self._search(chosen, limit), strict=True):
                yield index, [Candidate(ids, score) for ids, score in zip(group, self._scores(source, group), strict=True)]

    def _search(self, sources: list[np.ndarray], max_new_tokens: int) -> list[list[list[int]]]:
        longest = max(len(s) for s in sources)
        ids_BT = torch.full((len(sources), longest), self.end, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, source in enumerate(sources):
            ids_BT[row, longest - len(source) :] = torch.from_numpy(source.astype(np.int64))
            mask_BT[row, longest - len(source) :] = 1
        device = self.model.device
        beams = self.config.num_beams
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=beams,
            num_return_sequences=self.config.num_return,
            eos_token_id=self.end,
            pad_token_id=self.end,
            **({"length_penalty": self.config.length_penalty, "early_stopping": False} if beams > 1 else {}),
        )
        self.model.generation_config = settings  # else unset values are taken from the model's folder
        generate: Any = self.model.generate
        out = generate(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), generation_config=settings)
        assert isinstance(out, torch.Tensor)
        hypotheses = [self._until_end(row) for row in out[:, longest:].tolist()]
        width = self.config.num_return
        return [hypotheses[i : i + width] for i in range(0, len(hypotheses), width)]

    def _until_end(self, ids: list[int]) -> list[int]:
        return ids[: ids.index(self.end) + 1] if self.end in ids else ids

    def _scores(self, source: np.ndarray, group: list[list[int]]) -> list[float]:
        """Log-probability of every hypothesis, by reading it once more; `generate` gives it for beams only."""
        rows = [Encoded(np.concatenate([source, np.array(ids, dtype=np.int32)]), len(source)) for ids in group]
        batch = collate(rows, pad_id=0)
        losses_N = self.loss.token_losses(batch.to(self.model.device))
        return [-part.sum().item() for part in losses_N.split([r.num_loss_tokens for r in rows])]
