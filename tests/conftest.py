"""Shared fixtures: real architectures built from config at small size, with tokenizers of the real kinds."""

from __future__ import annotations

import csv
import os
import random
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; spinning threads would fight for the cores
os.environ.setdefault("SEQTUNE_CACHE", str(Path(tempfile.gettempdir()) / "seqtune-test-cache"))

SHARED = Path(__file__).resolve().parents[2] / "shared"
FAMILIES = ("opt", "gpt_neo", "gpt2", "gpt_neox", "bloom", "llama")

WORDS = (
    "methane ethane propane butane pentane hexane 2-methylpropane 2,2-dimethylbutane ethanol propan-1-ol "
    "Translate the following SMILES string into an IUPAC name cyclohexane benzene toluene amine chloro bromo "
    "the quick brown fox jumps over the lazy dog naïve café 北京 → ½"
).split()


def byte_level_tokenizer(add_start: bool = False):
    """GPT-2's kind: byte-level BPE; OPT's adds `</s>` in front and has a pad token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "</s>"] if add_start else ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    end = specials[-1]
    if add_start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{end} $A", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
    pad = {"pad_token": "<pad>"} if add_start else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, **pad)


def byte_fallback_tokenizer():
    """Llama's kind: SentencePiece-style BPE with byte fallback and a prefix blank."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=80, show_progress=False)
    text = "▁" + "▁".join(w for w in WORDS if w.isascii())
    trained.train_from_iterator([text] * 3, trainer)
    import json

    learnt = json.loads(trained.to_str())["model"]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    for piece in learnt["vocab"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [tuple(m) for m in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def build_tokenizer(family: str):
    """The kind of tokenizer that a family's public checkpoints carry."""
    return byte_fallback_tokenizer() if family in ("llama", "mistral") else byte_level_tokenizer(add_start=family == "opt")


def build_model(family: str, vocab_size: int, width: int = 32):
    """A family's real architecture, small, with dropout off."""
    import torch
    import transformers as t

    size = {"vocab_size": vocab_size}
    configs: dict[str, Callable] = {
        "opt": lambda: t.OPTConfig(
            hidden_size=width, ffn_dim=2 * width, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16,
            max_position_embeddings=128, dropout=0.0, do_layer_norm_before=False, pad_token_id=0, bos_token_id=1,
            eos_token_id=1, **size),
        "gpt_neo": lambda: t.GPTNeoConfig(
            hidden_size=width, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8,
            max_position_embeddings=128, bos_token_id=0, eos_token_id=0, **size),
        "gpt2": lambda: t.GPT2Config(
            n_embd=width, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0, **size),
        "gpt_neox": lambda: t.GPTNeoXConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=128, bos_token_id=0, eos_token_id=0, **size),
        "bloom": lambda: t.BloomConfig(hidden_size=width, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, **size),
        "llama": lambda: t.LlamaConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, bos_token_id=1, eos_token_id=2, **size),
        "mistral": lambda: t.MistralConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, bos_token_id=1, eos_token_id=2, **size),
        "qwen2": lambda: t.Qwen2Config(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=128, rope_parameters={"rope_type": "default", "rope_theta": 500.0}, bos_token_id=0,
            eos_token_id=0, **size),
    }  # fmt: skip
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(configs[family]())
    with torch.no_grad():  # random small weights make every argmax a near-tie; spread them
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="session", params=FAMILIES)
def family_folder(request, tmp_path_factory) -> Path:
    """A model folder in Hugging Face layout, one per family."""
    folder = tmp_path_factory.mktemp(request.param) / request.param
    tokenizer = build_tokenizer(request.param)
    build_model(request.param, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """One small Llama, for tests that need any model."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tokenizer = build_tokenizer("llama")
    build_model("llama", len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pairs(num_rows: int) -> list[tuple[str, str]]:
    """A learnable task: numbers to words, all inputs different."""
    names = "zero one two three four five six seven eight nine".split()
    return [(str(n), " ".join(names[int(d)] for d in str(n))) for n in range(100, 100 + num_rows)]


@pytest.fixture(scope="session")
def inputs() -> tuple[list[np.ndarray], list[int]]:
    """Prompts of very different lengths in a vocabulary of 300 tokens, and how many tokens each may get."""
    draw = random.Random(1)
    sources = [np.array([draw.randrange(3, 300) for _ in range(draw.choice([3, 9, 10, 60]))]) for _ in range(24)]
    return sources, [draw.choice([1, 5, 12, 30]) for _ in sources]


def write_csv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("input", "output")) -> Path:
    """Write a table."""
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def installed_pack(pack: Path, scratch: Path) -> list[str]:
    """Folders that, on the path, make a pack look installed: its own, and the metadata that pip would write for it."""
    project = tomllib.loads((pack / "pyproject.toml").read_text())["project"]
    metadata = scratch / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [f"[{g}]\n" + "\n".join(f"{k} = {v}" for k, v in e.items()) for g, e in project["entry-points"].items()]
    (metadata / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    return [str(scratch / "site"), str(pack)]


@pytest.fixture
def table(tmp_path) -> Path:
    """120 pairs as CSV."""
    return write_csv(tmp_path / "pairs.csv", pairs(120))
