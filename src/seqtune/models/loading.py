"""Load a base model and its tokenizer, whatever kind of name it has (`seqtune.models.location`); safetensors and GGUF only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from seqtune.config import ModelConfig
from seqtune.errors import ModelError
from seqtune.models import gguf
from seqtune.models.attention import use_fast_attention
from seqtune.models.location import check_there, gguf_file, location
from seqtune.models.machine import set_up_cpu

SMALL = 50_000_000  # models with fewer parameters have other defaults: see `seqtune.training.defaults`
# The limit for families that have none of their own, such as BLOOM with ALiBi. It is there for the memory, not for quality.
UNLIMITED_LENGTH = 2048


def _load(loader: Any, config: ModelConfig, what: str, **options: Any) -> Any:
    file = gguf_file(config.name)
    if file is not None:
        gguf.converted(file)
    check_there(config)
    try:
        return loader.from_pretrained(
            location(config), revision=config.revision, trust_remote_code=config.trust_remote_code, **options
        )
    except (OSError, ValueError, KeyError, ImportError, HFValidationError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"a file is damaged ({lines[0]})" if isinstance(error, SafetensorError) else lines[0]
        if "trust_remote_code" in str(error):
            reason = "it brings its own code; if you trust it, --set model.trust_remote_code=true"
        elif "safetensors" in str(error):
            reason += " (seqtune reads safetensors only, because other weight files can run code)"
        raise ModelError(f"the {what} of {config.name!r} cannot be loaded: {reason}") from None


def load_model_config(config: ModelConfig) -> Any:
    """The architecture's configuration, without weights.

    Raises:
        ModelError: it cannot be found or read.
    """
    return _load(AutoConfig, config, "configuration")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, ready for this package's use.

    Raises:
        ModelError: it cannot be loaded, or has no fast (Rust) version.
    """
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
            model = AutoModelForCausalLM.from_config(
                load_model_config(config), trust_remote_code=config.trust_remote_code, dtype=torch.float32
            )
        else:
            model = _load(AutoModelForCausalLM, config, "weights", dtype=torch.float32, use_safetensors=True)
    except ValueError as error:
        raise ModelError(f"{config.name!r} is no causal language model: {str(error).splitlines()[0]}") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    if model.config.get_text_config().is_encoder_decoder:
        raise ModelError(f"{config.name!r} is an encoder-decoder; seqtune trains causal (decoder-only) models")
    use_fast_attention(model)
    return model


def load_architecture(config: ModelConfig) -> PreTrainedModel:
    """The model without its weights, on torch's device `meta`: to count, or for those who read the weights themselves.

    Raises:
        ModelError: it cannot be found or read.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_model_config(config), trust_remote_code=config.trust_remote_code)


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
