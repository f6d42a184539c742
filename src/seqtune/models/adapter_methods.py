"""How each method of parameter-efficient training is put onto a model: its targets, its layers, what is frozen."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixEncoder,
    PrefixTuningConfig,
    PromptEmbedding,
    PromptEncoder,
    PromptEncoderConfig,
    PromptTuningConfig,
    PromptTuningInit,
    inject_adapter_in_model,
)
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from seqtune.config import SOFT_PROMPTS, AdapterConfig
from seqtune.errors import ConfigError, MissingDependencyError
from seqtune.models import soft_prompts

INJECTED = ("lora", "qlora", "oft", "ia3")
SELECTED = ("bitfit", "layers")
NF4_BLOCK = 64

# family -> (attention, feed-forward, keys and values, last of the feed-forward), as endings of module names
TARGETS: dict[str, tuple[list[str], list[str], list[str], list[str]]] = {
    "opt": (["q_proj", "k_proj", "v_proj", "out_proj"], ["fc1", "fc2"], ["k_proj", "v_proj"], ["fc2"]),
    "gpt_neo": (
        ["q_proj", "k_proj", "v_proj", "out_proj"], ["mlp.c_fc", "mlp.c_proj"], ["k_proj", "v_proj"], ["mlp.c_proj"],
    ),
    "gpt2": (["attn.c_attn", "attn.c_proj"], ["mlp.c_fc", "mlp.c_proj"], ["attn.c_attn"], ["mlp.c_proj"]),
    "gpt_neox": (
        ["attention.query_key_value", "attention.dense"], ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
        ["attention.query_key_value"], ["mlp.dense_4h_to_h"],
    ),
    "bloom": (
        ["self_attention.query_key_value", "self_attention.dense"], ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
        ["self_attention.query_key_value"], ["mlp.dense_4h_to_h"],
    ),
    "llama": (
        ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"], ["k_proj", "v_proj"], ["down_proj"],
    ),
}  # fmt: skip


class Bottleneck(nn.Module):
    """A feed-forward's last layer followed by x + up(gelu(down(x))), Pfeiffer et al. 2021 (https://arxiv.org/abs/2005.00247).

    peft has no such adapter, and the library `adapters` asks for a transformers older than ours.
    """

    def __init__(self, base_layer: nn.Module, width: int, rank: int):
        super().__init__()
        self.base_layer = base_layer
        self.adapter_down, self.adapter_up = nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output [..., D], corrected."""
        out = self.base_layer(x)
        return out + self.adapter_up(functional.gelu(self.adapter_down(out)))


def attach(model: PreTrainedModel, config: AdapterConfig, init_ids: list[int] | None = None) -> None:
    """Make the method's parameters trainable and freeze all others, in place.

    Args:
        model: the base; its family must be in `TARGETS` unless `targets` or `layers` name the modules.
        config: the `adapter` section.
        init_ids: token ids of `init_text`.

    Raises:
        ConfigError: a target or pattern matches nothing, or the method does not fit the model.
        MissingDependencyError: bitsandbytes is missing.
    """
    if config.method == "full":
        return
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if config.method in SOFT_PROMPTS:
        _attach_prompt(model, config, init_ids)
    elif config.method in SELECTED:
        for parameter in selected(model, config).values():
            parameter.requires_grad_(True)
    elif config.method == "bottleneck":
        _attach_bottlenecks(model, config)
    else:
        names = target_modules(model, config)
        if config.method == "qlora":
            _quantise(model, names)
        _inject(model, _peft_config(model, config, names))
    model.adapter_method = config.method  # type: ignore[assignment]
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"adapter.method {config.method!r} leaves nothing to train in this {model.config.model_type} model")


def _family(model: PreTrainedModel) -> tuple[list[str], list[str], list[str], list[str]]:
    family = model.config.model_type
    if family not in TARGETS:
        raise ConfigError(
            f"adapter.targets: the modules of a {family} model are not in the table (known: {', '.join(TARGETS)}); "
            "list endings of their names, such as ['q_proj', 'v_proj']"
        )
    return TARGETS[family]


def target_modules(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    """Full names of the linear layers that get an adapter.

    Raises:
        ConfigError: an ending matches no linear layer; names the nearest ones.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    if config.method == "ia3":
        _, _, keys, last = _family(model)
        endings = [*keys, *last]
    elif isinstance(config.targets, list):
        endings = config.targets
    else:
        attention, feed_forward, _, _ = _family(model)
        endings = attention if config.targets == "attention-only" else [*attention, *feed_forward]
    found: dict[str, None] = {}
    for ending in endings:
        matching = [name for name in linear if name == ending or name.endswith("." + ending)]
        if not matching:
            last_parts = sorted({name.rpartition(".")[2] for name in linear})
            near = difflib.get_close_matches(ending, last_parts, n=3, cutoff=0.3) or last_parts[:8]
            raise ConfigError(f"adapter.targets: {ending!r} matches no linear layer; near names: {', '.join(near)}")
        found.update(dict.fromkeys(matching))
    return list(found)


def selected(model: PreTrainedModel, config: AdapterConfig) -> dict[str, nn.Parameter]:
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


def _peft_config(model: PreTrainedModel, config: AdapterConfig, names: list[str]) -> PeftConfig:
    shared: dict[str, Any] = {"target_modules": names, "task_type": "CAUSAL_LM"}
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in names)
    if config.method == "ia3":
        last = [name for name in names if any(name.endswith("." + ending) for ending in _family(model)[3])]
        return IA3Config(feedforward_modules=last, fan_in_fan_out=transposed, **shared)
    if config.method == "oft":
        return OFTConfig(r=0, oft_block_size=_block_size(model, config, names), module_dropout=config.dropout, **shared)
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        fan_in_fan_out=transposed,
        **shared,
    )


def _block_size(model: PreTrainedModel, config: AdapterConfig, names: list[str]) -> int:
    for name in names:
        module: Any = model.get_submodule(name)
        if isinstance(module, Conv1D):
            raise ConfigError(f"adapter.method 'oft' does not fit {model.config.model_type}: peft has none for Conv1D layers")
        if module.in_features % config.rank:
            raise ConfigError(
                f"adapter.rank = {config.rank}: the block size of oft must divide the input width of every target; "
                f"{name} has {module.in_features}"
            )
    return config.rank


def _inject(model: PreTrainedModel, config: PeftConfig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model)
    model.adapter_config = config  # type: ignore[assignment]


def _attach_prompt(model: PreTrainedModel, config: AdapterConfig, init_ids: list[int] | None) -> None:
    """Put a new soft prompt before the model.

    Args:
        model: changed in place.
        config: method and length.
        init_ids: tokens whose embeddings a tuned prompt begins with, repeated or cut to its length.
    """
    embedding: Any = model.get_input_embeddings()
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    shared = {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": config.num_virtual_tokens,
        "num_transformer_submodules": 1,
        "num_layers": text.num_hidden_layers,
    }
    if config.method == "prefix_tuning":
        peft_config: Any = PrefixTuningConfig(token_dim=heads * width, num_attention_heads=heads, **shared)
        encoder: nn.Module = PrefixEncoder(peft_config)
        nn.init.normal_(encoder.embedding.weight, std=0.02)  # type: ignore[union-attr]
    elif config.method == "p_tuning":
        size = embedding.weight.size(1)
        peft_config = PromptEncoderConfig(token_dim=size, num_attention_heads=heads, encoder_hidden_size=size, **shared)
        encoder = PromptEncoder(peft_config)
    else:
        init = PromptTuningInit.RANDOM if init_ids else PromptTuningInit.SAMPLE_VOCAB
        size = embedding.weight.size(1)
        peft_config = PromptTuningConfig(token_dim=size, num_attention_heads=heads, prompt_tuning_init=init, **shared)
        encoder = PromptEmbedding(peft_config, embedding)
        if init_ids:
            chosen = torch.tensor([init_ids[i % len(init_ids)] for i in range(config.num_virtual_tokens)])
            encoder.embedding.weight = nn.Parameter(embedding.weight[chosen].detach().clone())
    soft_prompts.install(model, soft_prompts.SoftPrompt(peft_config, encoder))


def _attach_bottlenecks(model: PreTrainedModel, config: AdapterConfig) -> None:
    endings = _family(model)[3]
    width = model.config.get_text_config().hidden_size
    names = [name for name, _ in model.named_modules() if any(name.endswith("." + ending) for ending in endings)]
    for name in names:
        parent, _, child = name.rpartition(".")
        layer = model.get_submodule(name)
        setattr(model.get_submodule(parent), child, Bottleneck(layer, width, config.rank).to(model.device))


def _quantise(model: PreTrainedModel, names: list[str]) -> None:
    """Store the target layers' weights in NF4 with double quantisation (https://arxiv.org/abs/2305.14314)."""
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError("bitsandbytes", "quant", "adapter.method 'qlora'")
    bitsandbytes: Any = importlib.import_module("bitsandbytes")

    for name in names:
        layer: Any = model.get_submodule(name)
        weight = layer.weight.data.T if isinstance(layer, Conv1D) else layer.weight.data
        if weight.size(1) % NF4_BLOCK:
            raise ConfigError(
                f"adapter.method 'qlora': NF4 stores weights in blocks of {NF4_BLOCK}; {name} is {weight.size(1)} wide"
            )
        linear: Any = bitsandbytes.nn.Linear4bit(
            weight.size(1), weight.size(0), layer.bias is not None, compute_dtype=torch.float32, quant_type="nf4"
        )
        # else a forward pass without gradients lays the weights out anew, for products that no gradient flows through
        linear.support_avx512bf16_for_cpu = False
        linear.weight = bitsandbytes.nn.Params4bit(
            weight.contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.data, requires_grad=False)
        parent, _, child = name.rpartition(".")
        try:
            setattr(model.get_submodule(parent), child, linear.to(model.device))
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise ConfigError(
                f"adapter.method 'qlora': bitsandbytes {bitsandbytes.__version__} has no 4-bit weights on {model.device.type} "
                f"({error}); use lora, or a GPU"
            ) from None


def trainable(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that training changes."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
