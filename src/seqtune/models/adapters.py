"""Training few parameters instead of all: every method is attached, saved, loaded, merged and detached by one `Adapter`.

| class (survey, https://arxiv.org/abs/2303.15647) | methods |
|---|---|
| reparametrised | lora (with rsLoRA, DoRA), qlora, oft |
| additive | ia3, bottleneck, prompt_tuning, p_tuning, prefix_tuning |
| selective | bitfit, layers |

The base keeps its class, with the new parameters inside it. So the loss, batching, the vocabulary and the decoding engines
treat it as they treat any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from seqtune import runs
from seqtune.config import load_config
from seqtune.errors import ConfigError, MissingDependencyError, ModelError
from seqtune.models import loading
from seqtune.models.location import ADAPTER_SETTINGS, base_of, holds_adapter, location
from seqtune.models.vocabulary import trim_embeddings
from seqtune.sections import AdapterConfig, ModelConfig

if TYPE_CHECKING:
    from seqtune.models.adapter_methods import Attachment

WEIGHTS = "adapter_model.safetensors"  # peft's name for it


class Adapter:
    """An adapter on its base; made by `attach`, `load` or `of_run`.

    Attributes:
        model: the base, changed in place.
        config: the `adapter` section.

    Example:
        adapter = Adapter.attach(model, AdapterConfig(method="lora"))
        ...  # train the parameters of `model` that require gradients
        adapter.save(Path("folder"))
        Adapter.load(base, Path("folder")).merge()
    """

    def __init__(self, model: PreTrainedModel, config: AdapterConfig, attachment: Attachment):
        self.model, self.config = model, config
        self._attachment = attachment

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig, init_ids: list[int] | None = None) -> Adapter:
        """Make the method's parameters trainable and freeze all others, in place.

        Args:
            model: the base; its family must be in `adapter_targets.FAMILIES` unless `targets` or `layers` name the modules.
            config: the `adapter` section; its method is not "full".
            init_ids: token ids of `init_text`.

        Raises:
            ConfigError: a target or pattern matches nothing, or the method does not fit the model.
            MissingDependencyError: peft or bitsandbytes is missing.
        """
        assert config.method != "full", "full fine-tuning has no adapter"
        methods = _methods()
        model.requires_grad_(False)
        adapter = cls(model, config, methods.attach(model, config, init_ids))
        if not any(p.requires_grad for p in model.parameters()):
            family = model.config.model_type
            raise ConfigError(f"adapter.method {config.method!r} leaves nothing to train in this {family} model")
        return adapter

    @classmethod
    def load(cls, model: PreTrainedModel, folder: Path) -> Adapter:
        """Attach what `save` wrote to the same base, in place; nothing stays trainable.

        Raises:
            ModelError: the adapter's weights cannot be read, or they do not fit this base.
            RunError: its settings are damaged.
        """
        try:
            tensors = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"the adapter's weights in {str(folder)!r} cannot be read: {error}") from None
        adapter = cls.attach(model, _read_settings(folder))
        own = adapter._attachment.tensors()
        wrong = [name for name in sorted(own | tensors) if _shape(own, name) != _shape(tensors, name)]
        if wrong:
            raise ModelError(f"the adapter in {str(folder)!r} does not fit this base: {', '.join(wrong[:3])}")
        adapter._attachment.fill(tensors)
        model.requires_grad_(False)
        return adapter

    @classmethod
    def of_run(cls, model: PreTrainedModel, run: Path) -> Adapter:
        """Load the adapter of a run onto a base that is in memory already and is to carry others after it.

        Args:
            model: the base, without an adapter.
            run: folder of a run that trained an adapter on it.

        Raises:
            ModelError: the run trained no adapter, or one that changes or replaces what the others need of the base.
        """
        if not holds_adapter(run):
            raise ModelError(f"{str(run)!r} is no run that trained an adapter")
        settings = load_config(run / "config.yaml")
        name = settings.model.name
        if name.startswith("hf://") or location(settings.model) != model.name_or_path:
            raise ModelError(f"the adapter {str(run)!r} was trained on {name!r}, not on {model.name_or_path!r}")
        if runs.read_kept_tokens(run) is not None:
            raise ModelError(f"the adapter {str(run)!r} has a trimmed vocabulary of its own; predict with the run itself")
        if settings.adapter.method == "qlora":
            raise ModelError(f"the adapter {str(run)!r} (qlora) needs its base in 4-bit weights; predict with the run itself")
        return cls.load(model, run / "model")

    @property
    def method(self) -> str:
        """`adapter.method`."""
        return self.config.method

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Write the adapter: in peft's format where peft has the method, so that `PeftModel.from_pretrained` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.detach().cpu().contiguous() for name, t in self._attachment.tensors().items()}
        save_file(tensors, folder / WEIGHTS)
        peft_config = self._attachment.peft_config
        if peft_config is not None:
            peft_config.inference_mode = True
            peft_config.base_model_name_or_path = self.model.name_or_path
            peft_config.save_pretrained(str(folder))
        runs.write_json(folder / ADAPTER_SETTINGS, self.config.model_dump())

    def merge(self) -> None:
        """Fold the adapter into the base's own weights, in place; all of them can be trained again.

        Raises:
            ConfigError: the method adds something that no weight of the base can hold.
        """
        self._attachment.merge()
        self.model.requires_grad_(True)

    def detach(self) -> None:
        """Give the base back as it was before the adapter.

        Two methods cannot: `qlora` replaces the base's weights by 4-bit ones, and `bitfit` and `layers` keep the base's
        values only where the adapter was loaded, because a copy would be a waste of memory in training.
        """
        self._attachment.detach()
        self.model.requires_grad_(True)


def _methods() -> ModuleType:
    """The module that knows the methods, imported when it is needed: peft takes seconds, and most runs train no adapter."""
    try:
        from seqtune.models import adapter_methods
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise MissingDependencyError("peft", None, "an adapter") from None
    return adapter_methods


def _shape(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def _read_settings(folder: Path) -> AdapterConfig:
    return AdapterConfig(**runs.read_json(folder / ADAPTER_SETTINGS))


def load_trained(config: ModelConfig, seed: int) -> tuple[PreTrainedModel, Adapter | None]:
    """A model, and for the run of an adapter its base with the adapter on it.

    Args:
        config: hub id, folder, run folder or `builtin:NAME`.
        seed: for `init: random`.

    Raises:
        ModelError: it cannot be loaded, or the adapter does not fit its base.
    """
    run = Path(config.name).expanduser()
    if not holds_adapter(run):
        return loading.load_model(config, seed), None
    model = base_of_run(run, config.trust_remote_code)
    return model, Adapter.load(model, run / "model")


def load_merged(config: ModelConfig, seed: int) -> PreTrainedModel:
    """`load_trained` with the adapter folded into its base's weights.

    Raises:
        ModelError: it cannot be loaded, or the adapter does not fit its base.
        ConfigError: the adapter cannot be merged.
    """
    model, adapter = load_trained(config, seed)
    if adapter is not None:
        adapter.merge()
    return model


def base_of_run(run: Path, trusted: Sequence[str] = ()) -> PreTrainedModel:
    """What the adapter of a run was trained on, in the vocabulary that it was trained in.

    Args:
        run: its folder.
        trusted: models whose own code may run.

    Raises:
        ModelError: it cannot be loaded, or what the folder names must not be fetched.
    """
    settings = base_of(run, trusted)
    model = load_merged(settings.model, settings.train.seed)
    kept = runs.read_kept_tokens(run)
    if kept is not None:
        trim_embeddings(model, np.array(kept))
    return model
