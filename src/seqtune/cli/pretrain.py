"""`seqtune pretrain`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, SetOption, app, overrides, print_json


@app.command()
def pretrain(
    corpus: Annotated[list[str], typer.Argument(metavar="CORPUS...", help="UTF-8 text, plain or .gz.")],
    out: Annotated[str, typer.Option("--out", help="Folder for the base model.")],
    vocab_size: Annotated[int, typer.Option(min=259, help="Tokens of the byte-level BPE tokenizer.")] = 2048,
    hidden_size: Annotated[int, typer.Option(min=8, help="Width.")] = 256,
    num_layers: Annotated[int, typer.Option(min=1, help="Blocks.")] = 4,
    num_heads: Annotated[int, typer.Option(min=1, help="Attention heads; must divide the width.")] = 4,
    intermediate_size: Annotated[int, typer.Option(min=8, help="Feed-forward width.")] = 688,
    settings: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a tokenizer and a small Llama-architecture base model from raw text.

    Paragraphs are separated by blank lines; 1% of them is held out to measure bits per byte.

    [bold]Example[/bold]: seqtune pretrain books/*.txt --out bases/mine --set train.max_minutes=30
    """
    from pathlib import Path

    from seqtune.config import load_config
    from seqtune.errors import ConfigError

    if hidden_size % num_heads:
        raise ConfigError(f"--num-heads {num_heads} does not divide --hidden-size {hidden_size}")
    flags = overrides(settings)
    foreign = sorted(key for key in flags if not key.startswith("train."))
    if foreign:
        raise ConfigError(f"--set {foreign[0]}: pretraining reads train.* settings only")
    config = load_config(None, {"train.token_budget": 4096, "train.checkpoint_minutes": 3} | flags)
    from seqtune.procedures.pretrain import Shape
    from seqtune.procedures.pretrain import pretrain as procedure

    shape = Shape(vocab_size, hidden_size, num_layers, num_heads, intermediate_size)
    facts = procedure([Path(c) for c in corpus], Path(out), shape, config.train, resume=resume)
    if as_json:
        print_json(facts)
        return
    print(f"{facts['num_parameters']:,} parameters, {facts['outcome']['num_tokens']:,} tokens read")
    print(
        f"held-out bits per byte: {facts['bits_per_byte']:.4f} (random initialisation "
        f"{facts['bits_per_byte_random_init']:.4f}, {facts['held_out_bytes']:,} bytes)"
    )
    print(f"base model: {out}")
