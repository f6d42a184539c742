"""`seqtune export`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import USAGE, JsonOption, TrustOption, app, complain, print_json


@app.command()
def export(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A finished run folder.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder to write.")] = None,
    to: Annotated[str, typer.Option("--to", help="Format; --formats shows what there is.")] = "hf",
    weights: Annotated[str | None, typer.Option("--weights", help="Kind of weights, such as f16 or q8_0.")] = None,
    full_vocabulary: Annotated[
        bool, typer.Option("--full-vocabulary", help="Undo the trimming: the base's whole vocabulary.")
    ] = False,
    verify: Annotated[
        int, typer.Option("--verify", metavar="N", min=0, help="Ask it N stored test inputs again, in its own runtime.")
    ] = 0,
    max_different: Annotated[
        float, typer.Option("--max-different", metavar="SHARE", min=0, max=1, help="Of them that may come out different.")
    ] = 0.02,
    formats: Annotated[bool, typer.Option("--formats", help="Show which family goes to which format, and stop.")] = False,
    trust_remote_code: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's model for another program: transformers, llama.cpp, onnxruntime, CTranslate2, mlx.

    [bold]Example[/bold]: seqtune export runs/names --to gguf --out names-gguf --verify 200
    """
    if formats:
        show_formats(as_json)
        return
    if run is None or out is None:
        complain(f"{'RUN' if run is None else '--out'} is missing: seqtune export RUN --out DIR, or seqtune export --formats")
        raise typer.Exit(USAGE)
    from pathlib import Path

    from seqtune.procedures.export import Order
    from seqtune.procedures.export import export as procedure

    order = Order(to, weights, full_vocabulary, verify, max_different)
    facts = procedure(Path(run), Path(out), order, trusted=trust_remote_code or ())
    if as_json:
        print_json({"out": out, **facts})
        return
    size = f"{facts['num_bytes'] / 1e6:.1f} MB"
    print(f"{out}: {facts['format']}, {facts['weights']}, {facts['num_tokens']:,} tokens in the vocabulary, {size}")
    if verify:
        print(
            f"{facts['num_different']} of {facts['num_verified']} answers in {facts['runtime']} differ from "
            f"{facts['verified_against']}; {facts['num_tokenized_differently']} prompts tokenized differently"
        )


def show_formats(as_json: bool) -> None:
    """Print the table of families and formats."""
    from seqtune.procedures.formats.table import FAMILIES, FORMATS

    if as_json:
        print_json({n: {"runtime": f.runtime, "families": f.families, "weights": f.weights} for n, f in FORMATS.items()})
        return
    from rich.table import Table

    from seqtune.cli.app import stdout_console

    table = Table(title="family x format")
    for heading in ("", *FORMATS):
        table.add_column(heading, no_wrap=True)
    table.add_row("read by", *(f.runtime for f in FORMATS.values()))
    table.add_row("weights", *(" ".join(f.weights) for f in FORMATS.values()))
    table.add_row("search", *("the run's" if f.searches else "greedy" for f in FORMATS.values()), end_section=True)
    for family in FAMILIES:
        table.add_row(family, *("yes" if f.holds(family) else "no" for f in FORMATS.values()))
    table.add_row("others", *("yes" if f.families is None else "no" for f in FORMATS.values()))
    stdout_console().print(table)
