"""Training few parameters instead of all: attach, save, load, merge; every method through one set of functions.

| class (survey, https://arxiv.org/abs/2303.15647) | methods |
|---|---|
| reparametrised | lora (with rsLoRA, DoRA), qlora, oft |
| additive | ia3, bottleneck, prompt_tuning, p_tuning, prefix_tuning |
| selective | bitfit, layers |

The added layers are peft's, injected into the model, which keeps its class: so the loss, batching, vocabulary and decoding
engines serve it as they serve any model.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import json
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
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
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from seqtune import models, runs, soft_prompts
from seqtune.config import SOFT_PROMPTS, AdapterConfig, load_config
from seqtune.errors import ConfigError, MissingDependencyError, ModelError
from seqtune.models import OWN_SETTINGS
from seqtune.vocab import trim_embeddings

INJECTED = ("lora", "qlora", "oft", "ia3")
SELECTED = ("bitfit", "layers")
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names in peft's files
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
        for parameter in _selected(model, config).values():
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


def _selected(model: PreTrainedModel, config: AdapterConfig) -> dict[str, nn.Parameter]:
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


def save(model: PreTrainedModel, config: AdapterConfig, folder: Path) -> None:
    """Write the adapter: peft's own format where peft has one, so that `PeftModel.from_pretrained` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    prompt = soft_prompts.soft_prompt(model)
    peft_config: Any = None
    if prompt is not None:
        tensors = {"prompt_embeddings": prompt.table().detach()}
        peft_config = prompt.config
    elif config.method in INJECTED:
        peft_config = model.adapter_config
        tensors = {PREFIX + n: t for n, t in get_peft_model_state_dict(_with_config(model), adapter_name="default").items()}
    else:
        tensors = trainable(model)
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    if peft_config is not None:
        peft_config.inference_mode = True
        peft_config.base_model_name_or_path = model.name_or_path
        peft_config.save_pretrained(str(folder))
    (folder / OWN_SETTINGS).write_text(json.dumps(config.model_dump(), indent=2) + "\n")


def _with_config(model: PreTrainedModel) -> PreTrainedModel:
    model.peft_config = {"default": model.adapter_config}  # type: ignore[assignment]
    return model


def load_run(run: Path, *, merged: bool) -> PreTrainedModel:
    """The base of an adapter's run, with the adapter on it.

    Args:
        run: its folder.
        merged: fold the adapter into the base's weights.

    Raises:
        ModelError: the base cannot be loaded, or the adapter does not fit it.
        ConfigError: the adapter cannot be merged.
    """
    model = base_of_run(run)
    adapter = load(model, run / "model")
    if merged:
        merge(model, adapter)
    return model


def base_of_run(run: Path) -> PreTrainedModel:
    """What the adapter of a run was trained on, in the vocabulary that it was trained in."""
    settings = load_config(run / "config.yaml")
    name = Path(settings.model.name)
    on_adapter = (name / "model" / OWN_SETTINGS).exists()
    model = load_run(name, merged=True) if on_adapter else models.load_model(settings.model, settings.train.seed)
    kept = runs.read_kept_tokens(run)
    if kept is not None:
        trim_embeddings(model, np.array(kept))
    return model


def load(model: PreTrainedModel, folder: Path) -> AdapterConfig:
    """Attach what `save` wrote to the same base, in place; nothing stays trainable.

    Raises:
        ModelError: the adapter does not fit this base.
    """
    config = AdapterConfig(**json.loads((folder / OWN_SETTINGS).read_text()))
    tensors = load_file(folder / WEIGHTS)
    if config.method in SOFT_PROMPTS:
        peft_config = PeftConfig.from_pretrained(str(folder))
        soft_prompts.install(model, soft_prompts.SoftPrompt(peft_config, None, tensors["prompt_embeddings"]))
        model.adapter_method = config.method  # type: ignore[assignment]
        return config
    if config.method in SELECTED:
        model.untrained = {n: p.detach().clone() for n, p in _selected(model, config).items()}  # type: ignore[assignment]
    attach(model, config)
    if config.method in INJECTED:
        own_names = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        outcome = set_peft_model_state_dict(_with_config(model), own_names, adapter_name="default")
        unexpected = outcome.unexpected_keys
    else:
        own = trainable(model)
        unexpected = sorted(set(tensors) ^ set(own))
        if not unexpected:
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(tensors[name])
    if unexpected:
        raise ModelError(f"the adapter in {str(folder)!r} does not fit this base: {', '.join(unexpected[:3])}")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return config


def switch(model: PreTrainedModel, run: Path) -> None:
    """Take the adapter off a base, if it has one, and put another run's on; the base stays where it is.

    Args:
        model: the base.
        run: a run that trained an adapter on it.

    Raises:
        ModelError: the run trained no adapter, or one on another base.
    """
    if not (run / "model" / OWN_SETTINGS).exists():
        raise ModelError(f"{str(run)!r} is no run that trained an adapter")
    settings = load_config(run / "config.yaml")
    if models.location(settings.model) != model.name_or_path:
        raise ModelError(f"the adapter {str(run)!r} was trained on {settings.model.name!r}, not on {model.name_or_path!r}")
    if runs.read_kept_tokens(run) is not None:
        raise ModelError(f"the adapter {str(run)!r} has a trimmed vocabulary of its own; predict with the run itself")
    detach(model)
    load(model, run / "model")


def detach(model: PreTrainedModel) -> None:
    """Take the adapter off, unmerged, in place."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, BaseTunerLayer | Bottleneck)]
    for name, module in layers:
        parent, _, child = name.rpartition(".")
        layer: Any = module
        setattr(
            model.get_submodule(parent), child, layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.base_layer
        )
    soft_prompts.uninstall(model)
    originals: Any = getattr(model, "untrained", {})
    with torch.no_grad():
        for name, value in originals.items():
            model.get_parameter(name).copy_(value)
    for name in ("untrained", "adapter_method", "adapter_config", "peft_config"):
        if hasattr(model, name):
            delattr(model, name)


def merge(model: PreTrainedModel, config: AdapterConfig) -> None:
    """Fold the adapter into the base's own weights, in place.

    Raises:
        ConfigError: the method adds something that no weight of the base can hold.
    """
    if config.method in SOFT_PROMPTS or config.method == "bottleneck":
        raise ConfigError(
            f"adapter.method {config.method!r} cannot be merged: the base has no weights that could hold it; "
            "the run folder's model/ is the adapter itself"
        )
    for parent, child, layer in list(_tuner_layers(model)):
        if config.method == "qlora":
            raise ConfigError("adapter.method 'qlora' cannot be merged into 4-bit weights; train with lora to export")
        layer.merge(safe_merge=True)
        setattr(parent, child, layer.get_base_layer())
    for name in ("untrained", "adapter_method", "adapter_config", "peft_config"):
        if hasattr(model, name):
            delattr(model, name)


def _tuner_layers(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            yield model.get_submodule(parent), child, module
