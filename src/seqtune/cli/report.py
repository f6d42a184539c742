"""`seqtune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, app, print_json


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, an evaluation or a study.")],
    as_json: JsonOption = False,
) -> None:
    """Write `report.html` into a folder: one self-contained page with scores, curves, tables and every wrong answer.

    [bold]Example[/bold]: seqtune report runs/names
    """
    from seqtune.report.page import write_report

    out = write_report(folder)
    if as_json:
        print_json({"out": str(out), "bytes": out.stat().st_size})
    else:
        print(f"{out} ({out.stat().st_size / 1024:,.0f} KiB)")
