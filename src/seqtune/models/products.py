"""Products with a model's weights, as decoding needs them: laid out for the processor, with what follows in the same pass."""

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
    """

    def __init__(self, layers: Sequence[Any], *, packs: bool):
        self.layers = layers
        self.is_plain = all(is_plain(layer) for layer in layers)
        self.packed: PackedWeight | None = None
        if not self.is_plain:
            return
        weights = [layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach() for layer in layers]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        biases = [layer.bias for layer in layers]
        bias = biases[0] if len(biases) == 1 or biases[0] is None else torch.cat([b.detach() for b in biases])
        if packs and can_pack(weight):
            self.packed = pack(weight, bias)
        else:
            self.weight, self.bias = weight, bias

    def __call__(
        self, inputs: torch.Tensor, *, plus: torch.Tensor | None = None, times: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The outputs [N, O], with `plus` added to them or multiplied by `times`, each [N, O]."""
        if self.packed is not None:
            return self.packed(inputs, plus=plus, times=times)
        if self.is_plain:
            found = functional.linear(inputs, self.weight, self.bias)
        elif len(self.layers) == 1:
            found = self.layers[0](inputs)
        else:
            found = torch.cat([layer(inputs) for layer in self.layers], -1)
        if plus is not None:
            return found + plus
        return found if times is None else found * times
