"""`seqtune demo`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from seqtune.cli.app import JsonOption, app, print_json, stdout_console

if TYPE_CHECKING:
    from seqtune.procedures.demo import Demo

MINUTES = 4.5


@app.command()
def demo(
    out: Annotated[str, typer.Option("--out", help="Folder for the table and the run.")] = "demo",
    minutes: Annotated[float, typer.Option("--minutes", min=0.01, help="Training time.")] = MINUTES,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demonstration.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Teach the embedded base model to name molecules, offline, in about six minutes on two cores.

    [bold]Example[/bold]: seqtune demo --out demo
    """
    import time
    from pathlib import Path

    from seqtune.procedures import demo as procedure

    began = time.monotonic()
    table, counts = procedure.build_table(Path(out), overwrite=overwrite)
    config = procedure.configuration(table, Path(out), minutes)
    _say(f"{table}: {counts['kept']:,} of {counts['records']:,} records of the chemicals package")
    _say("molecules that share an InChIKey first block stay on one side of the split")
    shown = procedure.run(config, overwrite=overwrite)
    seconds = time.monotonic() - began
    if as_json:
        result = {"run": str(shown.fitted.folder), "base": shown.base_metrics, "fine_tuned": shown.fitted.metrics}
        print_json(result | {"seconds": seconds})
    else:
        _show(shown, seconds)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(shown: Demo, seconds: float) -> None:
    from rich.table import Table
    from rich.text import Text

    from seqtune.report.scores import scores_of

    assert shown.fitted.metrics is not None
    out = stdout_console()
    table = Table(title=f"{shown.fitted.metrics['num_items']} held-out molecules", title_justify="left")
    base = f"base model ({shown.base_metrics['num_items']} of them)"
    for heading in ("metric", base, "fine-tuned", "95% interval"):
        table.add_column(heading, justify="left" if heading == "metric" else "right", no_wrap=True)
    before = scores_of(shown.base_metrics)
    for name, ours in scores_of(shown.fitted.metrics).items():
        base_value = f"{before[name]['value']:.4f}" if name in before else "-"
        table.add_row(name, base_value, f"{ours['value']:.4f}", f"{ours['low']:.4f} to {ours['high']:.4f}")
    out.print(table)
    out.print("ten held-out molecules, drawn by hash:")
    for sample in shown.samples:
        right = sample.prediction == sample.reference
        line = Text("  right  " if right else "  WRONG  ", style="green" if right else "bold red")
        out.print(line.append(f"{sample.input}  ->  {sample.prediction}", style="default"))
        if not right:
            out.print(Text(f"         reference: {sample.reference}", style="dim"))
    run = shown.fitted.folder
    out.print(f"{seconds:.0f} s in all; every wrong answer: {run / 'report.html'}", soft_wrap=True)
    out.print(f"try:  seqtune predict {run} 'CCOC(=O)C' --num-beams 5 --num-return 3", markup=False)
