"""What each method of parameter-efficient training puts onto a model, and how it is read, merged and taken off again.

The only module that imports peft, which takes seconds: `seqtune.models.adapters` imports it when the first adapter is needed.
"""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from importlib.util import find_spec
from typing import Any

import torch
from peft import (
    IA3Config,
    IA3Model,
    LoraConfig,
    LoraModel,
    OFTConfig,
    OFTModel,
    PeftConfig,
    PrefixEncoder,
    PrefixTuningConfig,
    PromptEmbedding,
    PromptEncoder,
    PromptEncoderConfig,
    PromptTuningConfig,
    PromptTuningInit,
)
from peft.utils import get_peft_model_state_dict
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from seqtune.errors import ConfigError, MissingDependencyError
from seqtune.models import soft_prompts
from seqtune.models.adapter_targets import layers_of, selected_parameters, target_modules
from seqtune.sections import SOFT_PROMPTS, AdapterConfig

SELECTED = ("bitfit", "layers")
TUNERS: dict[str, Any] = {"lora": LoraModel, "qlora": LoraModel, "oft": OFTModel, "ia3": IA3Model}
PREFIX = "base_model.model."  # of the names in peft's files
NF4_BLOCK = 64


class Attachment(ABC):
    """What a method put onto a model.

    Attributes:
        peft_config: what peft needs to read the adapter's folder; `None` for a method that peft does not have.
    """

    peft_config: PeftConfig | None = None

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's weights by the names that its file gives them."""

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take weights from a file; names and shapes are those of `tensors`."""
        with torch.no_grad():
            for name, own in self.tensors().items():
                own.copy_(tensors[name])

    @abstractmethod
    def merge(self) -> None:
        """Fold the adapter into the base's own weights.

        Raises:
            ConfigError: no weight of the base can hold it.
        """

    @abstractmethod
    def detach(self) -> None:
        """Give the base back as it was."""


def attach(model: PreTrainedModel, config: AdapterConfig, init_ids: list[int] | None) -> Attachment:
    """Put a method's new parameters onto a model whose own are frozen; see `seqtune.models.adapters.Adapter.attach`."""
    if config.method in SOFT_PROMPTS:
        return TunedPrompt(model, config, init_ids)
    if config.method in SELECTED:
        return SelectedParameters(model, config)
    if config.method == "bottleneck":
        return Bottlenecks(model, config)
    return TunedLayers(model, config)


class TunedLayers(Attachment):
    """LoRA, QLoRA, OFT and IA3: peft's layers around linear layers of the base."""

    def __init__(self, model: PreTrainedModel, config: AdapterConfig):
        self.model, self.in_4_bits = model, config.method == "qlora"
        names = target_modules(model, config)
        peft_config = _layers_config(model, config, names)
        if self.in_4_bits:
            _quantise(model, names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.tuner = TUNERS[config.method](model, peft_config, adapter_name="default")
        self.peft_config = peft_config

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Attachment.tensors`."""
        own = get_peft_model_state_dict(self.model, adapter_name="default", save_embedding_layers=False)
        return {PREFIX + name: tensor for name, tensor in own.items()}

    def merge(self) -> None:
        """See `Attachment.merge`."""
        if self.in_4_bits:
            raise ConfigError("adapter.method 'qlora' cannot be merged into 4-bit weights; train with lora to export")
        self.tuner.merge_and_unload(safe_merge=True)

    def detach(self) -> None:
        """See `Attachment.detach`."""
        assert not self.in_4_bits, "the base's own weights are gone"
        self.tuner.unload()


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


class Bottlenecks(Attachment):
    """A `Bottleneck` around the last layer of every feed-forward network."""

    def __init__(self, model: PreTrainedModel, config: AdapterConfig):
        self.model, self.names = model, target_modules(model, config)
        width = model.config.get_text_config().hidden_size
        for name in self.names:
            model.set_submodule(name, Bottleneck(model.get_submodule(name), width, config.rank).to(model.device))

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Attachment.tensors`."""
        return {name: p for name, p in self.model.named_parameters() if ".adapter_down." in name or ".adapter_up." in name}

    def merge(self) -> None:
        """See `Attachment.merge`."""
        raise _unmergeable("bottleneck")

    def detach(self) -> None:
        """See `Attachment.detach`."""
        for name in self.names:
            added: Any = self.model.get_submodule(name)
            self.model.set_submodule(name, added.base_layer)


class SelectedParameters(Attachment):
    """BitFit and `layers`: parameters of the base itself, trained while the others are frozen."""

    def __init__(self, model: PreTrainedModel, config: AdapterConfig):
        self.model = model
        chosen = selected_parameters(model, config)
        self.names = list(chosen)
        self.originals: dict[str, torch.Tensor] | None = None
        for parameter in chosen.values():
            parameter.requires_grad_(True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Attachment.tensors`."""
        return {name: self.model.get_parameter(name) for name in self.names}

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `Attachment.fill`; the base's own values are kept for `detach`."""
        self.originals = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
        super().fill(tensors)

    def merge(self) -> None:
        """See `Attachment.merge`; the base holds the trained values already."""

    def detach(self) -> None:
        """See `Attachment.detach`."""
        assert self.originals is not None, "training keeps no copy of the values that it changes"
        super().fill(self.originals)


class TunedPrompt(Attachment):
    """Prompt tuning, P-tuning and prefix tuning: a soft prompt before every input."""

    def __init__(self, model: PreTrainedModel, config: AdapterConfig, init_ids: list[int] | None):
        self.method, self.prompt = config.method, _new_prompt(model, config, init_ids)
        self.peft_config = self.prompt.config
        self.take_off = soft_prompts.put_on(model, self.prompt)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See `Attachment.tensors`."""
        return {"prompt_embeddings": self.prompt.table()}

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        """See `Attachment.fill`."""
        self.prompt.fix(tensors["prompt_embeddings"])

    def merge(self) -> None:
        """See `Attachment.merge`."""
        raise _unmergeable(self.method)

    def detach(self) -> None:
        """See `Attachment.detach`."""
        self.take_off()


def _unmergeable(method: str) -> ConfigError:
    return ConfigError(
        f"adapter.method {method!r} cannot be merged: the base has no weights that could hold it; "
        "the run folder's model/ is the adapter itself"
    )


def _layers_config(model: PreTrainedModel, config: AdapterConfig, names: list[str]) -> PeftConfig:
    shared: dict[str, Any] = {"target_modules": names, "task_type": "CAUSAL_LM"}
    transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in names)
    if config.method == "ia3":
        last = [name for name in names if any(name.endswith("." + ending) for ending in layers_of(model).last)]
        return IA3Config(feedforward_modules=last, fan_in_fan_out=transposed, **shared)
    if config.method == "oft":
        _check_block_size(model, config, names)
        return OFTConfig(r=0, oft_block_size=config.rank, module_dropout=config.dropout, **shared)
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        fan_in_fan_out=transposed,
        **shared,
    )


def _check_block_size(model: PreTrainedModel, config: AdapterConfig, names: list[str]) -> None:
    for name in names:
        module: Any = model.get_submodule(name)
        if isinstance(module, Conv1D):
            raise ConfigError(f"adapter.method 'oft' does not fit {model.config.model_type}: peft has none for Conv1D layers")
        if module.in_features % config.rank:
            raise ConfigError(
                f"adapter.rank = {config.rank}: the block size of oft must divide the input width of every target; "
                f"{name} has {module.in_features}"
            )


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
        # without this, a forward pass that needs no gradients packs the weights in a way that no gradient can flow through
        linear.support_avx512bf16_for_cpu = False
        linear.weight = bitsandbytes.nn.Params4bit(
            weight.contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.data, requires_grad=False)
        try:
            model.set_submodule(name, linear.to(model.device))
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise ConfigError(
                f"adapter.method 'qlora': bitsandbytes {bitsandbytes.__version__} has no 4-bit weights on {model.device.type} "
                f"({error}); use lora, or a GPU"
            ) from None


def _new_prompt(model: PreTrainedModel, config: AdapterConfig, init_ids: list[int] | None) -> soft_prompts.SoftPrompt:
    """A soft prompt to begin training with; a tuned prompt begins with the embeddings of `init_ids`, repeated or cut."""
    embedding: Any = model.get_input_embeddings()
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = embedding.weight.size(1)
    shared = {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": config.num_virtual_tokens,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": text.num_hidden_layers,
    }
    if config.method == "prefix_tuning":
        peft_config: Any = PrefixTuningConfig(token_dim=heads * width, **shared)
        encoder: nn.Module = PrefixEncoder(peft_config)
        nn.init.normal_(encoder.embedding.weight, std=0.02)  # type: ignore[union-attr]
    elif config.method == "p_tuning":
        peft_config = PromptEncoderConfig(token_dim=size, encoder_hidden_size=size, **shared)
        encoder = PromptEncoder(peft_config)
    else:
        init = PromptTuningInit.RANDOM if init_ids else PromptTuningInit.SAMPLE_VOCAB
        peft_config = PromptTuningConfig(token_dim=size, prompt_tuning_init=init, **shared)
        encoder = PromptEmbedding(peft_config, embedding)
        if init_ids:
            chosen = torch.tensor([init_ids[i % len(init_ids)] for i in range(config.num_virtual_tokens)])
            encoder.embedding.weight = nn.Parameter(embedding.weight[chosen].detach().clone())
    return soft_prompts.SoftPrompt(peft_config, encoder)
