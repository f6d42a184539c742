"""A model that is decoded with: what it needs laid out for that, made once.

Shapes are those of `seqtune.decoding.engines.forwards`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel

from seqtune.decoding.engines.forwards import Described, Forward, Own
from seqtune.decoding.engines.graphs import Graphed
from seqtune.decoding.engines.weights import quantized
from seqtune.models.blocks import Blocks, blocks_of
from seqtune.models.packed import packed


class FrozenModel:
    """A model that stays as it is while this lives, so that `Blocks` lays its weights out for the processor once.

    Whoever changes the model (training goes on, an adapter comes or goes) makes a new one. A pickle has the model alone.

    Args:
        model: is switched to evaluation.

    Example:
        frozen = FrozenModel(model)
        with frozen.forward() as forward:
            stream = Stream(model, forward, end, DecodeConfig())
    """

    def __init__(self, model: PreTrainedModel):
        self.model: Any = model.eval()

    @cached_property
    def _blocks(self) -> Blocks | None:
        return blocks_of(self.model)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    @cached_property
    def int8(self) -> FrozenModel:
        """A copy with int8 weights, by which this one is not run any more."""
        self.forget()
        return FrozenModel(quantized(self.model))

    def forget(self) -> None:
        """Give back what is laid out; it is laid out anew when it is asked for."""
        self.__dict__.pop("_blocks", None)

    @contextmanager
    def forward(self, *, decodes: bool = True) -> Iterator[Forward]:
        """The way to run the model; for a family's own forward, weights are laid out for as long as this lasts.

        Args:
            decodes: `write` is called step by step by a `Decoder`, which on a GPU is done by graphs.
        """
        if self._blocks is not None:
            described = Described(self._blocks)
            yield Graphed(described) if decodes and self.model.device.type == "cuda" else described
            return
        with packed(self.model):
            yield Own(self.model)
