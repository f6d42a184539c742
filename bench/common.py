"""What all benchmarks share: shapes, data, the machine, and its measured matrix-product ceiling."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers as t

from seqtune.chem.sources import chemicals_table
from seqtune.models.loading import load_model, load_tokenizer
from seqtune.sections import ModelConfig


def _smollm2(ids: dict[str, int], vocab_size: int) -> Any:
    """SmolLM2-135M: many thin layers, three query heads for each head of keys."""
    return t.LlamaConfig(
        **ids, vocab_size=vocab_size, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )  # fmt: skip


# vocabulary sizes are those of the public checkpoints; tokens are those of builtin:base, the tokenizer at hand
SHAPES: dict[str, Any] = {
    "opt-125m": lambda ids: t.OPTConfig(**ids, vocab_size=50272),
    # as a run's model is: no rows that the tokenizer does not know, which CTranslate2's converter refuses
    "opt-125m-trimmed": lambda ids: t.OPTConfig(**ids, vocab_size=2048),
    "opt-350m": lambda ids: t.OPTConfig(
        **ids, vocab_size=50272, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, ffn_dim=4096,
        word_embed_proj_dim=512, do_layer_norm_before=False,
    ),
    "opt-1.3b": lambda ids: t.OPTConfig(
        **ids, vocab_size=50272, hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, ffn_dim=8192,
        word_embed_proj_dim=2048,
    ),
    "gpt-neo-33m": lambda ids: t.GPTNeoConfig(
        **ids, vocab_size=50257, hidden_size=768, num_layers=4, num_heads=16, attention_types=[[["global", "local"], 2]]
    ),
    "gpt-neo-8m": lambda ids: t.GPTNeoConfig(
        **ids, vocab_size=50257, hidden_size=256, num_layers=8, num_heads=16, attention_types=[[["global", "local"], 4]]
    ),
    "gpt-neo-1m": lambda ids: t.GPTNeoConfig(
        **ids, vocab_size=50257, hidden_size=64, num_layers=8, num_heads=16, attention_types=[[["global", "local"], 4]]
    ),
    "llama-15m": lambda ids: t.LlamaConfig(
        **ids, vocab_size=32000, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6,
        max_position_embeddings=1024, tie_word_embeddings=True,
    ),
    "smollm2-135m": lambda ids: _smollm2(ids, 49152),
    "smollm2-135m-trimmed": lambda ids: _smollm2(ids, 2048),
}  # fmt: skip


def make_model(shape: str, folder: Path) -> Path:
    """A model folder of this shape with random weights and the tokenizer of `builtin:base`."""
    tokenizer: Any = load_tokenizer(ModelConfig())
    if not (folder / "config.json").exists():
        if shape == "base":
            model = load_model(ModelConfig(), 0)
        else:
            ids = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
            torch.manual_seed(0)
            model = t.AutoModelForCausalLM.from_config(SHAPES[shape](ids))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def make_table(path: Path, num_rows: int) -> Path:
    """SMILES and names of the `chemicals` package, mixed lengths, in random order."""
    if not path.exists():
        frame, _ = chemicals_table(80, 120)
        frame.sample(num_rows, shuffle=True, seed=0).select("smiles", "iupac").write_csv(path)
    return path


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """The table's rows."""
    with path.open(newline="", encoding="utf-8") as handle:
        return [(row["smiles"], row["iupac"]) for row in csv.DictReader(handle)]


def num_multiplied(model: Any) -> int:
    """Parameters that take part in a matrix product for every token: those of the blocks."""
    outside = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    outside |= {id(p) for p in model.get_output_embeddings().parameters()}
    return sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in outside)


def matmul_ceiling(rows: int = 2048, inner: int = 768, columns: int = 3072, repeats: int = 12) -> float:
    """fp32 GFLOP/s of one large matrix product on the threads in use, median."""
    a, b = torch.randn(rows, inner), torch.randn(columns, inner)
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        rates.append(2 * rows * inner * columns / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates[2:])


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*:\s*(.*)", info)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": name.group(1) if name else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": t.__version__,
    }


def peak_mib() -> float:
    """Peak resident memory of this process; `ru_maxrss` would not be below the size of the process that started it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def report(**values: Any) -> None:
    """The line that the driver reads."""
    print("RESULT " + json.dumps(values), flush=True)
