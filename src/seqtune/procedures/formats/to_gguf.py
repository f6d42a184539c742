"""GGUF, the file that llama.cpp reads: weights, settings and tokenizer in one.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; tensors take their names from the map of the
package gguf. What llama.cpp computes in another way than the model, such as another activation, is refused before anything is
written, because its answers would be wrong in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from seqtune import plugins
from seqtune.errors import ConfigError

FILE = "model.gguf"
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "bloom": "bloom",
}
TYPES = {"f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "f32": "ALL_F32"}
# the one activation that llama.cpp has for a family; names of transformers
ACTIVATIONS = {
    **dict.fromkeys(("llama", "mistral", "qwen2"), ("silu",)),
    "gpt2": ("gelu_new", "gelu_pytorch_tanh"),
    "gpt_neox": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),  # the exact one differs by less than fp16 can hold
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
QWEN_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# how a byte-level tokenizer cuts a text before it merges -> llama.cpp's name for it
CUTS = {
    "gpt-2": [BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    "qwen2": [
        {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated", "invert": False},
        {**BYTE_LEVEL, "use_regex": False},
    ],
}
UNLIKELY = -1e9  # score of a piece that no merge makes
SERVED = 2048  # tokens of context that the verification asks llama.cpp for


def check(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model that llama.cpp would compute or tokenize in another way.

    Args:
        config: the model's configuration.
        tokenizer: its tokenizer.

    Raises:
        ConfigError: names what differs.
    """
    text, family = config.get_text_config(), config.model_type
    rope = getattr(text, "rope_parameters", None) or {}
    window = getattr(text, "sliding_window", None)
    activation = getattr(text, "hidden_act", None) or getattr(text, "activation_function", None)
    differs = {
        f"rope_type {rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
        f"an attention window of {window} tokens": bool(window and window < text.max_position_embeddings),
        f"activation {activation!r}": family in ACTIVATIONS and activation not in ACTIVATIONS[family],
        "layer norms in the residual stream": getattr(text, "apply_residual_connection_post_layernorm", False),
        "attention scaled by layer": getattr(text, "scale_attn_by_inverse_layer_idx", False),
    }
    for what, is_so in differs.items():
        if is_so:
            raise ConfigError(f"--to gguf: llama.cpp computes {family!r} without {what}; use --to hf or --to onnx")
    _kind(tokenizer)


def write(source: Path, folder: Path, weights: str, adds_start: bool) -> None:
    """Write `model.gguf`.

    Args:
        source: a Hugging Face folder.
        folder: where to write.
        weights: "f16", "q8_0" or "f32"; norms and biases stay fp32, and rows that 32 does not divide fp16.
        adds_start: llama.cpp puts the start token before a prompt, as the tokenizer does; a chat template brings its own.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    config = model.config.get_text_config()
    writer = gguf.GGUFWriter(folder / FILE, ARCHITECTURES[config.model_type])
    writer.add_name("seqtune")
    writer.add_file_type(gguf.LlamaFileType[TYPES[weights]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_settings(writer, config)
    _write_tokenizer(writer, tokenizer, config.vocab_size, _end(model))
    writer.add_add_bos_token(adds_start and _has_start(tokenizer))
    for name, tensor in _tensors(model):
        kind = _type(name, tensor, weights)
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _end(model: PreTrainedModel) -> int:
    end: Any = model.generation_config.eos_token_id if model.generation_config else None
    assert isinstance(end, int), "an exported folder names its end token"
    return end


def _write_settings(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = getattr(config, "rope_parameters", None) or {}
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    writer.add_context_length(getattr(config, "max_position_embeddings", None) or SERVED)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_vocab_size(config.vocab_size)
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(width)
        writer.add_value_length(width)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
    if config.model_type == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Every weight by llama.cpp's name, in its layout."""
    config = model.config.get_text_config()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH(_number(config.model_type)), config.num_hidden_layers)
    change = LAYOUTS.get(config.model_type, _as_it_is)
    for name, parameter in model.named_parameters():
        found = next(filter(None, (names.get_name(n, (".weight", ".bias")) for n in (name, name.partition(".")[2]))), None)
        assert found is not None, f"{name} has no name in a GGUF file"
        yield found, np.ascontiguousarray(change(name, parameter.detach().numpy(), config))
    if getattr(config, "tie_word_embeddings", False) and config.model_type == "gpt_neox":  # the one that cannot do without
        rows: Any = model.get_input_embeddings()
        yield "output.weight", rows.weight.detach().numpy()


def _number(family: str) -> int:
    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[family])


def _as_it_is(_: str, weight: np.ndarray, __: Any) -> np.ndarray:
    return weight


def _neighbouring_pairs(name: str, weight: np.ndarray, config: Any) -> np.ndarray:
    """llama.cpp turns neighbouring pairs, transformers the two halves of a head: rows move from (2, half) to (half, 2)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _queries_first(name: str, weight: np.ndarray, config: Any) -> np.ndarray:
    """Query, key and value of head after head become all queries, all keys, all values."""
    if "query_key_value" not in name:
        return weight
    return weight.reshape(config.num_attention_heads, 3, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape)


def _turned(name: str, weight: np.ndarray, _: Any) -> np.ndarray:
    """The linear layers of GPT-2 are stored the other way round."""
    return weight.T if weight.ndim == 2 and ".c_" in name else weight


LAYOUTS: Mapping[str, Callable[[str, np.ndarray, Any], np.ndarray]] = {
    "llama": _neighbouring_pairs, "mistral": _neighbouring_pairs, "gpt2": _turned, "gpt_neox": _queries_first,
    "bloom": _queries_first,
}  # fmt: skip


def _type(name: str, tensor: np.ndarray, weights: str) -> Any:
    kinds = gguf.GGMLQuantizationType
    if tensor.ndim == 1 or weights == "f32" or name.startswith("position_embd"):
        return kinds.F32
    return kinds.Q8_0 if weights == "q8_0" and tensor.shape[-1] % 32 == 0 else kinds.F16


def _kind(tokenizer: PreTrainedTokenizerBase) -> str:
    """llama.cpp's name for how a tokenizer cuts texts, "" for pieces in the way of SentencePiece.

    Raises:
        ConfigError: it has none.
    """
    content = _content(tokenizer)
    model, cut = content["model"], content["pre_tokenizer"]
    if model["type"] == "BPE" and model["byte_fallback"] and cut is None:
        return ""
    steps = cut.get("pretokenizers", [cut]) if cut else []
    plain = [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]
    found = next((name for name, known in CUTS.items() if plain == known), None)
    if model["type"] != "BPE" or found is None or model["ignore_merges"]:
        kinds = " + ".join([model["type"], *(step["type"] for step in steps)])
        raise ConfigError(
            f"--to gguf: llama.cpp has no tokenizer like this one ({kinds}); known are those of {', '.join(CUTS)} and Llama 2; "
            "use --to hf or --to onnx"
        )
    return found


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    return json.loads(backend.to_str())


def _write_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, size: int, end: int) -> None:
    content, kind, types = _content(tokenizer), _kind(tokenizer), gguf.TokenType
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    added = tokenizer.added_tokens_decoder
    pieces: Any = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    pieces += [f"[unused {i}]" for i in range(len(pieces), size)]
    kinds = [types.UNUSED if i >= len(tokenizer) else types.NORMAL for i in range(size)]
    for i, token in added.items():
        kinds[i] = types.CONTROL if token.special else types.USER_DEFINED
    writer.add_tokenizer_model("gpt2" if kind else "llama")
    if kind:
        writer.add_tokenizer_pre(kind)
        writer.add_token_merges(merges)
    else:
        scores = {piece.replace(" ", ""): -float(rank) for rank, piece in reversed(list(enumerate(merges, start=1)))}
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(piece, UNLIKELY) for piece in pieces])
        kinds = [types.BYTE if _is_byte(piece) else k for piece, k in zip(pieces, kinds, strict=True)]
        unknown: Any = tokenizer.unk_token_id
        if unknown is not None:
            kinds[unknown] = types.UNKNOWN
            writer.add_unk_token_id(unknown)
        writer.add_add_space_prefix("▁" in json.dumps(content["normalizer"], ensure_ascii=False).partition("Replace")[0])
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(end)
    writer.add_add_eos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _has_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids: Any = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


class Runtime:
    """llama.cpp, through the package xllamacpp, which brings its server as a library.

    Args:
        folder: what `write` has written.
        adds_start: the file itself says so.
    """

    def __init__(self, folder: Path, adds_start: bool):
        del adds_start
        settings = plugins.load("xllamacpp:CommonParams")()
        settings.model.path = str(folder / FILE)
        settings.n_ctx = 0  # the model's own
        settings.n_parallel, settings.warmup, settings.verbosity = 1, False, -1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = torch.get_num_threads()
        self.server = plugins.load("xllamacpp:Server")(settings)

    def answers(self, prompts: Sequence[str], limits: Sequence[int]) -> Iterator[tuple[str, int]]:
        """See `table.Runtime`."""
        for prompt, limit in zip(prompts, limits, strict=True):
            asked = {"prompt": prompt, "max_tokens": limit, "temperature": 0.0, "cache_prompt": False}
            found = self.server.handle_completions(asked)
            yield found["choices"][0]["text"], found["usage"]["prompt_tokens"]
