"""`seqtune compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, app, print_json, print_undefined, stdout_console


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The first system: a run folder, or predictions.jsonl.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The second one, on the same items.")],
    as_json: JsonOption = False,
) -> None:
    """Say whether two prediction files differ by more than chance (paired randomisation test).

    [bold]Example[/bold]: seqtune compare runs/small runs/large
    """
    from seqtune.scoring.evaluate import compare as procedure
    from seqtune.scoring.evaluate import read_predictions

    result = procedure(read_predictions(a), read_predictions(b))
    if as_json:
        print_json(result)
        return
    from rich.table import Table

    out = stdout_console()
    table = Table(title=f"{result['num_items']} items, A = {a}, B = {b}", title_justify="left")
    for heading in ("metric", "A", "B", "B - A", "p"):
        table.add_column(heading, justify="left" if heading == "metric" else "right", no_wrap=True)
    for name, row in result.items():
        if name not in ("num_items", "undefined"):
            table.add_row(name, *(f"{row[key]:.4f}" for key in ("a", "b", "difference", "p_value")))
    out.print(table)
    print_undefined(result, out)
    out.print("paired randomisation, two-sided; p below 0.05 is unlikely to be chance", style="dim")
