"""Learned tokens before every input, as prompt tuning, P-tuning and prefix tuning train them (`seqtune.models.adapters`).

Virtual tokens are ids above the vocabulary that the encoder puts before each source. The embedding knows them, the output layer
does not. So they take positions, are padded, cached and shared by beams like any other token, and no caller needs to know of
them; which is where soft prompts used to break (peft issues 869, 2131, 2821).

In prefix tuning the virtual tokens' keys and values are replaced, layer by layer, before they are stored; what their own hidden
states are is then without consequence, because nothing ever reads them.

Shapes: P virtual tokens, D width, L layers, H key-value heads, W head width.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel


class SoftPrompt(nn.Module):
    """The trainable part.

    Args:
        config: peft's configuration of the method.
        encoder: peft's module, `None` once its output is fixed.
        fixed: that output [P, D], or [P, 2 * L * H * W] for prefixes.
    """

    def __init__(self, config: Any, encoder: nn.Module | None, fixed: torch.Tensor | None = None):
        super().__init__()
        self.config, self.encoder = config, encoder
        self.is_prefix = config.peft_type == "PREFIX_TUNING"
        self.num_tokens = int(config.num_virtual_tokens)
        self.fixed: torch.Tensor | None
        self.register_buffer("fixed", fixed)

    def table(self) -> torch.Tensor:
        """What the virtual tokens stand for: [P, D], or [P, 2 * L * H * W] for prefixes."""
        if self.encoder is None:
            assert self.fixed is not None
            return self.fixed
        device = next(self.encoder.parameters()).device
        return self.encoder(torch.arange(self.num_tokens, device=device)[None])[0]

    def keys_and_values(self) -> torch.Tensor:
        """A prefix as [2 * L, H, P, W], keys and values of the layers in turn, peft's order."""
        heads, layers = self.config.num_attention_heads, self.config.num_layers
        return self.table().view(self.num_tokens, 2 * layers, heads, -1).permute(1, 2, 0, 3)


class _VirtualEmbedding(nn.Module):
    """An embedding that also knows the virtual tokens, at ids from the vocabulary's size up."""

    def __init__(self, embedding: nn.Embedding, prompt: SoftPrompt):
        super().__init__()
        self.embedding, self.prompt = embedding, prompt

    @property
    def weight(self) -> torch.Tensor:
        """The vocabulary's rows."""
        return self.embedding.weight

    @property
    def padding_idx(self) -> int | None:
        """The vocabulary's."""
        return self.embedding.padding_idx

    @property
    def num_embeddings(self) -> int:
        """The vocabulary's size; virtual tokens do not count."""
        return self.embedding.num_embeddings

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        size = self.embedding.num_embeddings
        virtual = ids >= size
        if not virtual.any():
            return self.embedding(ids)
        found = self.embedding(ids.masked_fill(virtual, 0))
        if self.prompt.is_prefix:
            return found
        rows = functional.embedding((ids - size).clamp_min(0), self.prompt.table().to(found.dtype))
        return torch.where(virtual[..., None], rows, found)


class _PassingCache:
    """Stands where a model expects a cache, stores nothing, and puts the prefix in place; for training."""

    is_compileable = False

    def __init__(self, prompt: SoftPrompt):
        self.prefix = prompt.keys_and_values()

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return put_prefix(self.prefix, key, value, layer)

    def get_seq_length(self, layer: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        return query_length, 0

    def get_query_offset(self, layer: int = 0) -> int:
        return 0


def put_prefix(prefix: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace the first P keys and values [B, H, T, W] of a layer."""
    size = prefix.size(2)
    own = prefix[2 * layer : 2 * layer + 2, None].to(key.dtype).expand(-1, key.size(0), -1, -1, -1)
    return torch.cat([own[0], key[:, :, size:]], 2), torch.cat([own[1], value[:, :, size:]], 2)


def install(model: PreTrainedModel, prompt: SoftPrompt) -> None:
    """Let the model's embedding, and for prefixes its caches, know the virtual tokens."""
    embedding: Any = model.get_input_embeddings()
    if isinstance(embedding, _VirtualEmbedding):
        embedding.prompt = prompt
        return
    model.set_input_embeddings(_VirtualEmbedding(embedding, prompt))
    if hasattr(model, "knows_soft_prompts"):
        return
    model.knows_soft_prompts = True  # type: ignore[assignment]
    # where the layers are: an OPT for text generation goes past its own backbone to the decoder in it
    decoder: Any = model.get_decoder()
    plain = decoder.forward

    @functools.wraps(plain)  # callers ask for its signature
    def forward(*arguments: Any, **options: Any) -> Any:
        current = soft_prompt(model)
        if current is not None and current.is_prefix:
            cache = options.get("past_key_values")
            if cache is None:
                options["past_key_values"] = _PassingCache(current)
            else:
                cache.prefix = current.keys_and_values()
        return plain(*arguments, **options)

    decoder.forward = forward


def uninstall(model: PreTrainedModel) -> None:
    """Take the soft prompt away, if there is one."""
    embedding: Any = model.get_input_embeddings()
    if isinstance(embedding, _VirtualEmbedding):
        model.set_input_embeddings(embedding.embedding)


def soft_prompt(model: PreTrainedModel) -> SoftPrompt | None:
    """The model's soft prompt, if it has one."""
    embedding = model.get_input_embeddings()
    return embedding.prompt if isinstance(embedding, _VirtualEmbedding) else None


def num_virtual_tokens(model: PreTrainedModel) -> int:
    """How many ids above the vocabulary stand before each source."""
    prompt = soft_prompt(model)
    return 0 if prompt is None else prompt.num_tokens
