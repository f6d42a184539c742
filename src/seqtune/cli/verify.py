"""`seqtune verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seqtune.cli.app import BAD_INPUT, JsonOption, app, print_json


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    as_json: JsonOption = False,
) -> None:
    """Compare every file of a run, and of its checkpoints, with its manifest; exit code 1 on a difference.

    [bold]Example[/bold]: seqtune verify runs/names
    """
    from seqtune import runs

    wrong = runs.verify(run)
    if as_json:
        print_json({"run": str(run), "differences": wrong})
    else:
        for name, why in wrong.items():
            print(f"{run / name}: {why}")
        print(f"{run}: {len(wrong)} differences" if wrong else f"{run}: every file is as it was written")
    if wrong:
        raise typer.Exit(BAD_INPUT)
