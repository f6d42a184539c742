"""Soft prompts: learned tokens before every input, as prompt tuning, P-tuning and prefix tuning train them.

The learned tokens are called virtual. Their ids follow the vocabulary, and the encoder puts them before each source. The
model's embedding has a row for each of them, the output layer has none. So they take positions, are padded, are cached and are
shared by beams like any other token, and decoding needs no special case for them. (Special cases are where soft prompts break
elsewhere: peft issues 869, 2131, 2821.)

Prefix tuning learns keys and values instead of embeddings. The virtual tokens then pass through the model as well, but in each
layer their own keys and values are replaced by the learned ones before anything is stored or attended to.

Shapes: P virtual tokens, D width, L layers, H key-value heads, W head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from seqtune.models.attention import by_head


class SoftPrompt(nn.Module):
    """The trainable part.

    Args:
        config: peft's configuration of the method.
        encoder: peft's module, which computes the table of virtual tokens from its parameters.
    """

    def __init__(self, config: Any, encoder: nn.Module):
        super().__init__()
        self.config = config
        self.encoder: nn.Module | None = encoder
        self.is_prefix = config.peft_type == "PREFIX_TUNING"
        self.num_tokens = int(config.num_virtual_tokens)
        self.fixed: torch.Tensor | None
        self.register_buffer("fixed", None)

    def table(self) -> torch.Tensor:
        """What the virtual tokens stand for: [P, D], or [P, 2 * L * H * W] for a prefix."""
        if self.encoder is None:
            assert self.fixed is not None
            return self.fixed
        device = next(self.encoder.parameters()).device
        return self.encoder(torch.arange(self.num_tokens, device=device)[None])[0]

    def fix(self, table: torch.Tensor) -> None:
        """Take a trained table; the encoder is no longer needed then."""
        self.fixed, self.encoder = table.to(self.table().device), None

    def keys_and_values(self) -> torch.Tensor:
        """A prefix as [2 * L, H, P, W]: the first layer's keys, its values, the second layer's keys and so on, as in peft."""
        heads, layers = self.config.num_attention_heads, self.config.num_layers
        return self.table().view(self.num_tokens, 2 * layers, heads, -1).permute(1, 2, 0, 3)

    def give_prefix(self, _: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Runs before the decoder's forward: puts the prefix into its cache; without a cache, as in training, passes one."""
        cache = options.get("past_key_values")
        if cache is None:
            return args, {**options, "past_key_values": _PrefixCache(self.keys_and_values())}
        assert hasattr(cache, "prefix"), f"{type(cache).__name__} would leave the prefix out"
        cache.prefix = self.keys_and_values()
        return args, options


class _VirtualEmbedding(nn.Module):
    """An embedding that also has rows for the virtual tokens, whose ids begin at the vocabulary's size."""

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
        if not ids.is_cuda and not virtual.any():  # on a GPU one would wait for the answer, which a graph cannot
            return self.embedding(ids)
        found = self.embedding(ids.masked_fill(virtual, 0))
        if self.prompt.is_prefix:
            return found
        rows = functional.embedding((ids - size).clamp_min(0), self.prompt.table().to(found.dtype))
        return torch.where(virtual[..., None], rows, found)


class PassingCache:
    """What models ask of a cache that does not say where their tokens stand: positions are always given with them."""

    is_compileable = False

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens seen."""
        return 0

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        """Keys and offset of an implicit causal mask."""
        return query_length, 0

    def get_query_offset(self, layer: int = 0) -> int:
        """Where queries begin."""
        return 0


class _PrefixCache(PassingCache):
    """Stands where a model expects a cache and stores nothing: it only puts the prefix in place. Used in training."""

    def __init__(self, prefix: torch.Tensor):
        self.prefix = prefix

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return put_prefix(self.prefix, key, value, layer)


class InPassing:
    """Keys and values of a pass after which there is no other, as in training."""

    prefix: torch.Tensor | None = None

    def put(self, layer: int, new_BQ2GW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `seqtune.models.blocks` calls it; nothing is stored."""
        own = by_head(new_BQ2GW)
        return own if self.prefix is None else put_prefix(self.prefix, *own, layer)


def put_prefix(prefix: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys and values [B, H, T, W] of a layer with the learned ones in the first P places."""
    size = prefix.size(2)
    own = prefix[2 * layer : 2 * layer + 2, None].to(key.dtype).expand(-1, key.size(0), -1, -1, -1)
    return torch.cat([own[0], key[:, :, size:]], 2), torch.cat([own[1], value[:, :, size:]], 2)


def put_on(model: PreTrainedModel, prompt: SoftPrompt) -> Callable[[], None]:
    """Give a model rows for the virtual tokens, and for a prefix a hook that puts it into every layer.

    Returns:
        A function that takes the prompt off again.
    """
    embedding: Any = model.get_input_embeddings()
    assert not isinstance(embedding, _VirtualEmbedding), "a model has one soft prompt at a time"
    model.set_input_embeddings(_VirtualEmbedding(embedding, prompt.to(embedding.weight.device)))
    if not prompt.is_prefix:
        return lambda: model.set_input_embeddings(embedding)
    # the module that runs the layers: an OPT for text generation calls the decoder inside its backbone, not the backbone
    decoder: Any = model.get_decoder()
    hook = decoder.register_forward_pre_hook(prompt.give_prefix, with_kwargs=True)

    def take_off() -> None:
        model.set_input_embeddings(embedding)
        hook.remove()

    return take_off


def soft_prompt(model: PreTrainedModel) -> SoftPrompt | None:
    """The model's soft prompt, if it has one."""
    embedding = model.get_input_embeddings()
    return embedding.prompt if isinstance(embedding, _VirtualEmbedding) else None


def num_virtual_tokens(model: PreTrainedModel) -> int:
    """How many virtual tokens stand before each source."""
    prompt = soft_prompt(model)
    return 0 if prompt is None else prompt.num_tokens
