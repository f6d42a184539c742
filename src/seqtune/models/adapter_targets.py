"""Which parts of a model an adapter works on: linear layers by family, or parameters by name."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from seqtune.errors import ConfigError
from seqtune.sections import AdapterConfig


@dataclass(frozen=True, slots=True)
class Layers:
    """The linear layers of a family, as endings of module names.

    Attributes:
        attention: all of the attention.
        feed_forward: all of the feed-forward network.
        keys_and_values: those of the attention that make keys and values.
        last: the last one of the feed-forward network.
    """

    attention: list[str]
    feed_forward: list[str]
    keys_and_values: list[str]
    last: list[str]


FAMILIES = {
    "opt": Layers(["q_proj", "k_proj", "v_proj", "out_proj"], ["fc1", "fc2"], ["k_proj", "v_proj"], ["fc2"]),
    "gpt_neo": Layers(
        ["q_proj", "k_proj", "v_proj", "out_proj"], ["mlp.c_fc", "mlp.c_proj"], ["k_proj", "v_proj"], ["mlp.c_proj"],
    ),
    "gpt2": Layers(["attn.c_attn", "attn.c_proj"], ["mlp.c_fc", "mlp.c_proj"], ["attn.c_attn"], ["mlp.c_proj"]),
    "gpt_neox": Layers(
        ["attention.query_key_value", "attention.dense"], ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
        ["attention.query_key_value"], ["mlp.dense_4h_to_h"],
    ),
    "bloom": Layers(
        ["self_attention.query_key_value", "self_attention.dense"], ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
        ["self_attention.query_key_value"], ["mlp.dense_4h_to_h"],
    ),
    "llama": Layers(
        ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"], ["k_proj", "v_proj"], ["down_proj"],
    ),
}  # fmt: skip


def layers_of(model: PreTrainedModel) -> Layers:
    """The entry of the model's family.

    Raises:
        ConfigError: there is none.
    """
    family = model.config.model_type
    if family not in FAMILIES:
        raise ConfigError(
            f"adapter.targets: the modules of a {family} model are not in the table (known: {', '.join(FAMILIES)}); "
            "list endings of their names, such as ['q_proj', 'v_proj']"
        )
    return FAMILIES[family]


def target_modules(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """Full names of the linear layers that get an adapter.

    Raises:
        ConfigError: an ending matches no linear layer; names the nearest ones.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    found: dict[str, None] = {}
    for ending in _endings(model, config):
        matching = [name for name in linear if name == ending or name.endswith("." + ending)]
        if not matching:
            last_parts = sorted({name.rpartition(".")[2] for name in linear})
            near = difflib.get_close_matches(ending, last_parts, n=3, cutoff=0.3) or last_parts[:8]
            raise ConfigError(f"adapter.targets: {ending!r} matches no linear layer; near names: {', '.join(near)}")
        found.update(dict.fromkeys(matching))
    return list(found)


def _endings(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    if config.method == "ia3":
        layers = layers_of(model)
        return [*layers.keys_and_values, *layers.last]
    if config.method == "bottleneck":
        return layers_of(model).last
    if isinstance(config.targets, list):
        return config.targets
    layers = layers_of(model)
    return layers.attention if config.targets == "attention-only" else [*layers.attention, *layers.feed_forward]


def selected_parameters(model: PreTrainedModel, config: AdapterConfig) -> dict[str, nn.Parameter]:
    """The base's own parameters that `bitfit` or `layers` trains.

    Raises:
        ConfigError: there are none, or a pattern matches nothing.
    """
    parameters = dict(model.named_parameters())
    if config.method == "bitfit":
        biases = {name: p for name, p in parameters.items() if name.endswith("bias")}
        if not biases:
            raise ConfigError(f"adapter.method 'bitfit': a {model.config.model_type} model of this kind has no biases to train")
        return biases
    found: dict[str, nn.Parameter] = {}
    for pattern in config.layers:
        matching = {name: p for name, p in parameters.items() if fnmatch.fnmatchcase(name, pattern)}
        if not matching:
            near = difflib.get_close_matches(pattern, list(parameters), n=3, cutoff=0.2) or list(parameters)[:3]
            raise ConfigError(f"adapter.layers: {pattern!r} matches no parameter; near names: {', '.join(near)}")
        found |= matching
    return found
