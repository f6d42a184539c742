"""Products with a model's weights: live in training, laid out for the processor in decoding; with what follows on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from seqtune.models.packed import PackedWeight, can_pack, is_plain, pack


class Product:
    """What one linear layer, or several side by side, give for inputs [N, I]: outputs [N, O].

    Layers that are no plain linear layers (quantised ones, or with an adapter on them) are called as they are.

    Args:
        layers: whose outputs stand side by side, in this order.
        packs: lay the weights out anew where that makes the product faster; they take their room once more.
        trains: weights are read at every call, and get gradients.
    """

    def __init__(self, layers: Sequence[Any], *, packs: bool = False, trains: bool = False):
        self.layers, self.trains = layers, trains
        # weights that stand side by side are kept until the backward pass: not for nothing
        learns = not trains or any(p.requires_grad for layer in layers for p in layer.parameters())
        self.is_plain = learns and all(is_plain(layer) for layer in layers)
        self.packed: PackedWeight | None = None
        if not self.is_plain or trains:
            return
        with torch.no_grad():
            weight, bias = self._weights()
        if packs and can_pack(weight):
            self.packed = pack(weight, bias)
        else:
            self.weight, self.bias = weight.detach(), bias

    def _weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of all layers: weight [O, I] and bias [O]."""
        weights = [layer.weight.T if isinstance(layer, Conv1D) else layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        if len(weights) == 1:
            return weights[0], biases[0]
        return torch.cat(weights), None if biases[0] is None else torch.cat(biases)

    def __call__(
        self, inputs: torch.Tensor, *, plus: torch.Tensor | None = None, times: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The outputs [N, O], with `plus` added to them or multiplied by `times`, each [N, O]."""
        if self.packed is not None:
            return self.packed(inputs, plus=plus, times=times)
        if self.is_plain:
            weight, bias = self._weights() if self.trains else (self.weight, self.bias)
            found = functional.linear(inputs, weight, bias)
        elif len(self.layers) == 1:
            found = self.layers[0](inputs)
        else:
            found = torch.cat([layer(inputs) for layer in self.layers], -1)
        if plus is not None:
            return found + plus
        return found if times is None else found * times
