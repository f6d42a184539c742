"""Load a base model and its tokenizer, whatever kind of name it has (`seqtune.models.location`); safetensors and GGUF only."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from seqtune.errors import ModelError, SeqtuneError
from seqtune.models import gguf, weight_files
from seqtune.models.attention import use_fast_attention
from seqtune.models.location import check_there, gguf_file, local_folder
from seqtune.models.machine import set_up_cpu
from seqtune.sections import ModelConfig

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")
SMALL = 50_000_000  # models with fewer parameters have other defaults: see `seqtune.training.defaults`
# The limit for families that have none of their own, such as BLOOM with ALiBi. It is there for the memory, not for quality.
UNLIMITED_LENGTH = 2048


def _load(loader: Any, config: ModelConfig, what: str, **options: Any) -> Any:
    place = str(_folder(config) or config.name)
    try:
        return loader.from_pretrained(place, revision=config.revision, trust_remote_code=config.runs_code, **options)
    except (MemoryError, SeqtuneError):
        raise
    except Exception as error:  # whatever the readers of other libraries make of files that anybody may have written
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error):
            reason = f"it brings its own code, which runs only if you trust it: --trust-remote-code {shlex.quote(config.name)}"
        elif isinstance(error, SafetensorError):
            reason = f"a file is damaged ({reason})"
        elif "safetensors" in str(error):
            reason += " (seqtune reads safetensors only, because other weight files can run code)"
        raise ModelError(f"the {what} of {config.name!r} cannot be loaded: {reason}") from None


def _folder(config: ModelConfig) -> Path | None:
    """Where a model lies on this machine, a GGUF file's safetensors made if they are not there yet; `None` for a hub id."""
    file = gguf_file(config.name)
    if file is not None:
        return gguf.converted(file)
    check_there(config)
    return local_folder(config)


def _file(config: ModelConfig, name: str) -> Path | None:
    """A file of a model, fetched if it is on the hub; `None` if there is no such file."""
    folder = _folder(config)
    if folder is not None:
        return folder / name if os.path.lexists(folder / name) else None
    kinds = ("gated_repo", "missing_entries", "connection_errors")
    quiet = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    try:
        found = cached_file(config.name, name, revision=config.revision, **quiet)
    except (OSError, ValueError):  # transformers, which asks next, says what is wrong with the name
        return None
    return Path(found) if found else None


def _read_settings(config: ModelConfig) -> None:
    """Look at a model's JSON files before transformers does, which does not say which one is damaged."""
    for name in SETTINGS:
        path = _file(config, name)
        if path is not None:
            weight_files.read_settings(path)


def check_weights(config: ModelConfig) -> Path | None:
    """Look at a model's weight files before any library reads them; whoever made them is not trusted.

    Returns:
        The file to name in an error: the weights or their index; `None` if there is neither, which transformers explains.

    Raises:
        ModelError: a file is damaged, lies elsewhere, is no safetensors file, or holds less than the configuration says.
    """
    if _file(config, "adapter_config.json") is not None:
        raise ModelError(
            f"{config.name!r} holds an adapter of peft, which names its base itself, and what a folder says is not followed; "
            "merge it into its base first (peft: merge_and_unload), or name a run that seqtune made"
        )
    single, index = (_file(config, name) for name in (weight_files.SINGLE, weight_files.INDEX))
    main = single or index
    if main is None:
        return None
    shapes: weight_files.Shapes = {}
    for path in (
        [single] if single else [_file(config, name) or main.with_name(name) for name in weight_files.shard_names(main)]
    ):
        if not path.is_file():
            raise weight_files.damaged(path, "it is not there, but its index names it")
        weight_files.check_place(path, main.parent)
        shapes |= weight_files.shapes_in(path)
    _check_amount(config, shapes, main)
    return main


def _check_amount(config: ModelConfig, shapes: weight_files.Shapes, file: Path) -> None:
    """Refuse weights that are fewer than the configuration wants, before memory is taken for what it wants."""
    settings = load_model_config(config)
    held = sum(math.prod(shape) for shape in shapes.values())
    layers = getattr(settings.get_text_config(), "num_hidden_layers", 0)
    wanted = num_parameters(config) if isinstance(layers, int) and layers <= len(shapes) else math.inf
    if held < wanted and getattr(settings, "quantization_config", None) is None:  # packed weights are fewer
        size = f"{wanted:,} in {layers:,} layers" if wanted < math.inf else f"{layers:,} layers"
        raise ModelError(
            f"{str(file)!r} holds {len(shapes):,} tensors with {held:,} weights, and config.json beside it describes a model "
            f"with {size}; they do not belong together, or a file is incomplete: fetch it again"
        )


def load_model_config(config: ModelConfig) -> Any:
    """The architecture's configuration, without weights.

    Raises:
        ModelError: it cannot be found or read.
    """
    _read_settings(config)
    return _load(AutoConfig, config, "configuration")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, ready for this package's use.

    Raises:
        ModelError: it cannot be loaded, or has no fast (Rust) version.
    """
    _read_settings(config)
    tokenizer = _load(AutoTokenizer, config, "tokenizer")
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {config.name!r} has no tokenizer.json; seqtune needs a fast tokenizer")
    return tokenizer


def load_model(config: ModelConfig, seed: int) -> PreTrainedModel:
    """The model in fp32 on the CPU: pretrained weights, or the same architecture at random.

    Raises:
        ModelError: it cannot be loaded, is no causal LM, or has no safetensors weights.
    """
    set_up_cpu()
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        if config.init == "random":
            torch.manual_seed(seed)
            model = _build(config, dtype=torch.float32)
        else:
            model = _load_weights(config)
    except ValueError as error:
        raise ModelError(f"{config.name!r} is no causal language model: {str(error).splitlines()[0]}") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    if model.config.get_text_config().is_encoder_decoder:
        raise ModelError(f"{config.name!r} is an encoder-decoder; seqtune trains causal (decoder-only) models")
    use_fast_attention(model)
    return model


def _load_weights(config: ModelConfig) -> PreTrainedModel:
    """The pretrained weights, all of them: transformers itself would fill a gap with random numbers and go on.

    Raises:
        ModelError: tensors are missing, left over or of another shape.
    """
    _read_settings(config)
    file = check_weights(config)
    options = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = _load(AutoModelForCausalLM, config, "weights", dtype=torch.float32, **options)
    kinds = {"missing": "missing", "unexpected": "not of this model", "mismatched": "of another shape"}
    wrong = {said: sorted(str(key) for key in found[f"{kind}_keys"]) for kind, said in kinds.items()}
    if any(wrong.values()):
        shown = "; ".join(f"{len(names)} {said} ({', '.join(names[:3])})" for said, names in wrong.items() if names)
        raise ModelError(
            f"the tensors in {str(file)!r} are not those of the model that config.json beside it describes: {shown}. "
            "Put both files back from the same copy, or fetch or train the model again"
        )
    return model


def _build(config: ModelConfig, **options: Any) -> PreTrainedModel:
    """A model as its configuration describes it, with new weights.

    Raises:
        ModelError: the configuration describes none.
        ValueError: it describes no causal language model, says transformers.
    """
    settings = load_model_config(config)
    try:
        return AutoModelForCausalLM.from_config(settings, trust_remote_code=config.runs_code, **options)
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # whatever the families of transformers make of settings that anybody may have written
        raise ModelError(
            f"the configuration of {config.name!r} describes no model ({type(error).__name__}: {error}): its config.json is "
            "damaged, or for another version of transformers; fetch it again"
        ) from None


def load_architecture(config: ModelConfig) -> PreTrainedModel:
    """The model without its weights, on torch's device `meta`: to count, or for those who read the weights themselves.

    Raises:
        ModelError: it cannot be found or read.
    """
    with torch.device("meta"):
        return _build(config)


def num_parameters(config: ModelConfig) -> int:
    """Parameters of the architecture, counted without weights.

    Raises:
        ModelError: it cannot be found or read.
    """
    return sum(p.numel() for p in load_architecture(config).parameters())


def max_length(model_config: Any, config: ModelConfig) -> int:
    """Token limit of prompt + target: the model's positions, lowered by `model.max_length`.

    Raises:
        ModelError: `model.max_length` exceeds what the model can represent.
    """
    limit = getattr(model_config, "max_position_embeddings", None) or getattr(model_config, "n_positions", None)
    if config.max_length and limit and config.max_length > limit:
        raise ModelError(f"model.max_length = {config.max_length} exceeds the model's {limit} positions")
    return config.max_length or limit or UNLIMITED_LENGTH


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, end: int) -> None:
    """Write a standard Hugging Face folder: safetensors, tokenizer, config, greedy generation config with this end token."""
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
