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

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from seqtune import runs
from seqtune.config import SOFT_PROMPTS, AdapterConfig, load_config
from seqtune.errors import ConfigError, ModelError
from seqtune.models import loading, soft_prompts
from seqtune.models.adapter_methods import INJECTED, SELECTED, Bottleneck, attach, selected, trainable
from seqtune.models.loading import OWN_SETTINGS
from seqtune.models.vocabulary import trim_embeddings

__all__ = ["attach", "detach", "load", "load_run", "merge", "save", "switch", "trainable"]

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the names in peft's files


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
    model = load_run(name, merged=True) if on_adapter else loading.load_model(settings.model, settings.train.seed)
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
        model.untrained = {n: p.detach().clone() for n, p in selected(model, config).items()}  # type: ignore[assignment]
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
    if loading.location(settings.model) != model.name_or_path:
        raise ModelError(f"the adapter {str(run)!r} was trained on {settings.model.name!r}, not on {model.name_or_path!r}")
    if runs.read_kept_tokens(run) is not None:
        raise ModelError(f"the adapter {str(run)!r} has a trimmed vocabulary of its own; predict with the run itself")
    detach(model)
    load(model, run / "model")


def detach(model: PreTrainedModel) -> None:
    """Take the adapter off, unmerged, in place."""
    _take_off(model)
    soft_prompts.uninstall(model)
    originals: Any = getattr(model, "untrained", {})
    with torch.no_grad():
        for name, value in originals.items():
            model.get_parameter(name).copy_(value)
    _forget(model)


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
    if config.method == "qlora":
        raise ConfigError("adapter.method 'qlora' cannot be merged into 4-bit weights; train with lora to export")
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
    _take_off(model)
    _forget(model)


def _take_off(model: PreTrainedModel) -> None:
    """Put the base's layers back in the place of the added ones."""
    added = [(name, m) for name, m in model.named_modules() if isinstance(m, BaseTunerLayer | Bottleneck)]
    for name, module in added:
        parent, _, child = name.rpartition(".")
        layer: Any = module
        setattr(model.get_submodule(parent), child, layer.base_layer)


def _forget(model: PreTrainedModel) -> None:
    """Drop what `attach` and `load` noted on the model."""
    for name in ("untrained", "adapter_method", "adapter_config", "peft_config"):
        if hasattr(model, name):
            delattr(model, name)
