"""Raw text -> a small base model: byte-level BPE tokenizer, Llama architecture, the same loop as `fit`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from seqtune import folders, progress, runs
from seqtune.data.archives import BROKEN, COMPRESSIONS, unpacked
from seqtune.data.splits import unit_hash
from seqtune.errors import DataError, InterruptedRunError, RunError
from seqtune.models.loading import save_model
from seqtune.models.loss import TargetLoss
from seqtune.records import Encoded
from seqtune.sections import TrainConfig
from seqtune.tokens.batching import by_length, collate
from seqtune.training.checkpoints import Outcome, outcome_summary
from seqtune.training.loop import Trainer

PAD, START, END = "<pad>", "<s>", "</s>"
HELD_OUT = 0.01
SETTINGS = "settings.json"
WORK = folders.Kind(
    name="pretraining",
    marker=".seqtune-pretraining",
    artefacts=("log.jsonl", "checkpoints", "seqtune", SETTINGS),
    remedy="go on with --resume, or choose another --out",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a base model.

    Attributes:
        vocab_size: rows of the embedding, at least 259 (256 bytes and three specials).
        hidden_size: width.
        num_layers: blocks.
        num_heads: attention heads; must divide the width.
        intermediate_size: width of the feed-forward layer.
        positions: tokens that the model can read.
        row_length: tokens per training row.
    """

    vocab_size: int = 2048
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 688
    positions: int = 1024
    row_length: int = 256


def read_documents(paths: Sequence[Path]) -> list[str]:
    """Paragraphs (separated by blank lines) of UTF-8 text files, plain or .gz.

    Raises:
        DataError: a file is missing, is not text, or there is too little of it.
    """
    documents: list[str] = []
    for path in paths:
        try:
            with unpacked(path, COMPRESSIONS.get(path.suffix)) as stream:
                documents += [d for d in stream.read().decode("utf-8").split("\n\n") if d.strip()]
        except (OSError, *BROKEN, UnicodeDecodeError) as error:
            raise DataError(f"{str(path)!r} cannot be read as UTF-8 text: {error}") from None
    if (number := len(set(documents))) < 100:
        raise DataError(f"the corpus holds {number} different paragraphs; pretraining needs at least 100")
    return documents


def split_documents(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Documents to train on, and about 1% held out, at least one; drawn by hash, so equal ones are on the same side."""
    hashes = [unit_hash(document, 0, "held-out") for document in documents]
    limit = max(HELD_OUT, min(hashes))
    held_out = [d for d, value in zip(documents, hashes, strict=True) if value <= limit]
    return [d for d, value in zip(documents, hashes, strict=True) if value > limit], held_out


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; digits stand alone, every byte is encodable."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def rows_of(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[Encoded]:
    """Documents, each from start to end token, joined into one stream and cut into rows of `length` tokens."""
    stream: list[int] = []
    end = tokenizer.eos_token_id
    for first in range(0, len(documents), 10_000):
        for ids in tokenizer(list(documents[first : first + 10_000]), split_special_tokens=True)["input_ids"]:
            stream += [*ids, end]
        while len(stream) >= length:
            yield Encoded(np.array(stream[:length], dtype=np.int32), 1)
            stream = stream[length:]
    if len(stream) > 1:
        yield Encoded(np.array(stream, dtype=np.int32), 1)


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, rows: Sequence[Encoded], num_bytes: int) -> float:
    """Held-out loss in bits per UTF-8 byte; comparable between tokenizers."""
    model.eval()
    loss = TargetLoss(model)
    total = 0.0
    for indices in by_length([len(r.input_ids) for r in rows], 8192):
        batch = collate([rows[i] for i in indices], pad_id=0)
        total += float(loss(batch.to(model.device)))
    return total / math.log(2) / num_bytes


def pretrain(paths: Sequence[Path], folder: Path, shape: Shape, config: TrainConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train tokenizer and model, measure held-out bits per byte, write a Hugging Face folder in bf16.

    Returns:
        Sizes, the outcome, and held-out bits per byte of the saved weights and of the random initialisation.

    Raises:
        RunError: the folder is in the way, or holds a pretraining with other settings or another corpus.
    """
    work = folder / "work"
    _check_free(folder, work, resume)
    training, held_out = split_documents(read_documents(paths))
    progress.console().print(f"{len(training):,} paragraphs to train on, {len(held_out):,} held out")
    tokenizer = train_tokenizer(training, shape.vocab_size)
    rows = list(rows_of(training, tokenizer, shape.row_length))
    test_rows = list(rows_of(held_out, tokenizer, shape.row_length))
    num_bytes = sum(len(d.encode()) + 1 for d in held_out)  # the end token stands for one separator
    model = new_model(shape, tokenizer, config.seed)
    at_random = bits_per_byte(model, test_rows, num_bytes)
    folders.create(work, WORK)
    with folders.held(work, WORK):
        _open(work, asdict(shape) | config.model_dump(), runs.fingerprint(row.input_ids.tobytes() for row in rows))
        trainer = Trainer(model, rows, config, work)
        progress.console().print(trainer.describe())
        if resume:
            trainer.restore()
        outcome: Outcome = trainer.run()
    if outcome.reason == "interrupted":
        said = f"interrupted at step {outcome.state.step}; the same command with --resume goes on"
        raise InterruptedRunError(said, outcome.signal)
    nn.Module.to(model, "cpu", torch.bfloat16)
    end: Any = tokenizer.eos_token_id
    save_model(model, tokenizer, folder, end)
    facts = {
        "shape": asdict(shape),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "corpus": {p.name: p.stat().st_size for p in paths},
        "num_training_tokens": sum(len(r.input_ids) for r in rows),
        "held_out_bytes": num_bytes,
        "bits_per_byte": bits_per_byte(model.float(), test_rows, num_bytes),
        "bits_per_byte_random_init": at_random,
        "outcome": outcome_summary(outcome),
        "train": config.model_dump(),
    }
    runs.write_json(folder / "pretraining.json", facts)
    folders.remove(work, WORK)
    return facts


def _check_free(folder: Path, work: Path, resume: bool) -> None:
    if folders.is_ours(work, WORK):
        folders.check_free(work, WORK, reuse=resume)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{str(folder)!r} exists, and there is no unfinished pretraining in it; choose another --out")


def _open(work: Path, settings: dict[str, Any], fingerprint: str) -> None:
    """Begin to pretrain, or make sure that what was begun is gone on with as it was begun.

    Raises:
        RunError: it was begun with other settings or another corpus.
    """
    folders.sweep(work, WORK)
    path = work / SETTINGS
    if not path.exists():
        runs.write_json(path, {"settings": settings, "fingerprint": fingerprint})
        return
    stored = runs.read_json(path, settings=dict, fingerprint=str)
    runs.check_unchanged(stored["settings"], settings)
    if stored["fingerprint"] != fingerprint:
        raise RunError("--resume needs the corpus that the pretraining began with; it has changed since")


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama of this shape with random weights and a tied output layer."""
    special: Any = tokenizer
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_heads,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=shape.positions,
            tie_word_embeddings=True,
            bos_token_id=special.bos_token_id,
            eos_token_id=special.eos_token_id,
            pad_token_id=special.pad_token_id,
        )
    )
