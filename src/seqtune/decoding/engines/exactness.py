"""Whether the native engine decodes what a model's own forward gives: asked of the model itself, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedModel

from seqtune.decoding.engines.decoder import Decoder
from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.models.families import local_window
from seqtune.models.loss import TargetLoss
from seqtune.models.soft_prompts import num_virtual_tokens
from seqtune.sections import DecodeConfig

PROBE = ([5, 6, 7, 8, 9], [5, 7, 9])  # tokens, modulo the vocabulary; a soft prompt stands before them
NARROW = 3  # tokens of a sliding window while probing, fewer than the texts have

_fits: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def fits(frozen: FrozenModel) -> bool:
    """True if decoding two short texts with our cache gives the logits of the model's plain forward."""
    model = frozen.model
    if model not in _fits:
        try:
            _fits[model] = _is_served(model) and _agrees(frozen)
        except torch.OutOfMemoryError:  # a RuntimeError too, and no answer
            raise
        except (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError, IndexError):
            _fits[model] = False  # a forward that does not take what ours passes
        if not _fits[model]:
            frozen.forget()
    return _fits[model]


def _is_served(model: PreTrainedModel) -> bool:
    """What short texts would not show: masks that differ between layers, logits that are capped or scaled."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    backbone = getattr(model, model.base_model_prefix, None)
    return backbone is not None and all(kind == "full_attention" for kind in kinds) and TargetLoss(model).backbone_is_exact


@torch.inference_mode()
def _agrees(frozen: FrozenModel) -> bool:
    model = frozen.model
    virtual = model.config.vocab_size + np.arange(num_virtual_tokens(model))
    prompts = [np.concatenate([virtual, np.array(p) % model.config.vocab_size]).astype(np.int64) for p in PROBE]
    rtol = 1e-4 if model.dtype == torch.float32 else 1e-2
    with _narrow_window(model.config), frozen.forward() as forward:
        if not forward.takes_our_masks:
            return False
        decoder = Decoder(model, forward, -1, DecodeConfig(num_beams=2), num_rows=2, num_slots=16 + len(virtual))
        decoder.enter([0, 1], prompts, [3, 3])
        first_BK = decoder.rows.beams.last_tokens().tolist()
        decoder.step()
        expected = [_two_step_scores(model, prompt, first_K) for prompt, first_K in zip(prompts, first_BK, strict=True)]
    return torch.allclose(decoder.rows.beams.scores_BK, torch.stack(expected), rtol=rtol, atol=1e-3)


def _two_step_scores(model: Any, prompt: np.ndarray, first_K: list[int]) -> torch.Tensor:
    """The two best log-probabilities of two tokens after a prompt whose first one is among `first_K` [2]."""
    texts = torch.tensor([[*prompt.tolist(), token] for token in first_K], device=model.device)
    next_KV = model(input_ids=texts, use_cache=False).logits[:, -1].float().log_softmax(-1)
    first_V = model(input_ids=texts[:1, :-1], use_cache=False).logits[0, -1].float().log_softmax(-1)
    return (next_KV + first_V[first_K][:, None]).flatten().topk(2).values


@contextmanager
def _narrow_window(config: Any) -> Iterator[None]:
    """Make a sliding window of all layers so narrow that short texts show whether ours is the model's."""
    window = local_window(config)
    if window is None or not window.in_all_layers:
        yield
        return
    text = config.get_text_config()
    text.sliding_window = NARROW
    try:
        yield
    finally:
        text.sliding_window = window.size
