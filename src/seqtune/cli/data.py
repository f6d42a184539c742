"""`seqtune data`."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.app import JsonOption, app, print_json

NAMES = ("chemicals",)


@app.command()
def data(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"Which data set: {', '.join(NAMES)}.")],
    out: Annotated[str, typer.Option("--out", help="CSV file to write.")],
    max_smiles: Annotated[int | None, typer.Option(min=1, help="Leave out longer SMILES (characters).")] = None,
    max_name: Annotated[int | None, typer.Option(min=1, help="Leave out longer names (characters).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a curated data set as a table; `chemicals` is embedded and offline.

    [bold]Example[/bold]: seqtune data chemicals --out molecules.csv
    """
    from pathlib import Path

    from seqtune.errors import ConfigError, did_you_mean

    if name not in NAMES:
        raise ConfigError(f"there is no data set {name!r}{did_you_mean(name, NAMES)}; there is: {', '.join(NAMES)}")
    path = Path(out)
    if path.suffix != ".csv":
        raise ConfigError(f"--out {out!r}: the file must end in .csv")
    from seqtune.chem.sources import chemicals_table

    frame, counts = chemicals_table(max_smiles, max_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name("." + path.name)
    frame.write_csv(hidden)
    hidden.replace(path)
    if as_json:
        print_json({"out": out, "columns": frame.columns, "counts": counts})
        return
    print(f"{out}: {frame.height:,} rows, columns {', '.join(frame.columns)}")
    for reason, count in counts.items():
        print(f"  {count:>7,} {reason}")
