"""`seqtune export`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, TrustOption, app, print_json


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run folder.")],
    out: Annotated[str, typer.Option("--out", help="Folder to write.")],
    to: Annotated[str, typer.Option("--to", help="Format: hf, a standard Hugging Face folder.")] = "hf",
    full_vocabulary: Annotated[
        bool, typer.Option("--full-vocabulary", help="Undo the trimming: the base's whole vocabulary.")
    ] = False,
    verify: Annotated[int, typer.Option("--verify", metavar="N", help="Predict N stored test inputs again.")] = 0,
    trust_remote_code: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's model as a folder of its own.

    [bold]Example[/bold]: seqtune export runs/names --out names-model --full-vocabulary --verify 200
    """
    from seqtune.errors import ConfigError

    if to != "hf":
        raise ConfigError(f"--to {to!r} is unknown; there is: hf")
    from pathlib import Path

    from seqtune.procedures.export import export as procedure

    trusted = trust_remote_code or ()
    facts = procedure(Path(run), Path(out), full_vocabulary=full_vocabulary, num_verified=verify, trusted=trusted)
    if as_json:
        print_json({"out": out, **facts})
        return
    print(f"{out}: {facts['num_tokens']:,} tokens in the vocabulary")
    if verify:
        print(f"{facts['num_different']} of {facts['num_verified']} stored predictions come out different")
