"""`seqtune data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqtune.cli.app import JsonOption, app, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

FileOption = Annotated[Path | None, typer.Option(help="A local copy, for pubchem; default: download from NIH.")]


@app.command()
def data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which data set: chemicals, pubchem.")],
    out: Annotated[Path, typer.Option("--out", help="File to write: .csv for chemicals, .parquet for pubchem.")],
    max_smiles: Annotated[int | None, typer.Option(min=1, help="Leave out longer SMILES (characters).")] = None,
    max_name: Annotated[int | None, typer.Option(min=1, help="Leave out longer names (characters).")] = None,
    one_fragment: Annotated[bool, typer.Option("--one-fragment", help="Leave out salts and mixtures (pubchem).")] = False,
    smiles_file: FileOption = None,
    names_file: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a curated data set as a table; `chemicals` is embedded and offline, `pubchem` streams two large files.

    [bold]Example[/bold]: seqtune data chemicals --out molecules.csv
    """
    from seqtune.errors import ConfigError, did_you_mean

    writers: dict[str, tuple[str, Callable[[], dict[str, int]]]] = {
        "chemicals": (".csv", lambda: _chemicals(out, max_smiles, max_name)),
        "pubchem": (".parquet", lambda: _pubchem(out, (smiles_file, names_file), max_smiles, max_name, one_fragment)),
    }
    if name not in writers:
        raise ConfigError(f"there is no data set {name!r}{did_you_mean(name, writers)}; there is: {', '.join(writers)}")
    suffix, write = writers[name]
    if out.suffix != suffix:
        raise ConfigError(f"--out {str(out)!r}: the file must end in {suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    counts = write()
    if as_json:
        print_json({"out": str(out), "counts": counts})
        return
    print(f"{out}: {counts['kept']:,} rows")
    for reason, count in counts.items():
        print(f"  {count:>11,} {reason}")


def _chemicals(out: Path, max_smiles: int | None, max_name: int | None) -> dict[str, int]:
    from seqtune.chem.sources import chemicals_table

    frame, counts = chemicals_table(max_smiles, max_name)
    hidden = out.with_name("." + out.name)
    frame.write_csv(hidden)
    hidden.replace(out)
    return counts


def _pubchem(
    out: Path, files: tuple[Path | None, Path | None], max_smiles: int | None, max_name: int | None, one_fragment: bool
) -> dict[str, int]:
    from seqtune import progress
    from seqtune.chem.download import PUBCHEM, fetch
    from seqtune.chem.pubchem import join

    smiles, names = files
    if smiles is None:
        with progress.show("CID-SMILES.gz", 1.0) as tick:
            smiles = fetch(PUBCHEM + "CID-SMILES.gz", out.parent, tick)
    if names is None:
        with progress.show("CID-IUPAC.gz", 1.0) as tick:
            names = fetch(PUBCHEM + "CID-IUPAC.gz", out.parent, tick)
    return join(smiles, names, out, max_smiles=max_smiles, max_name=max_name, one_fragment=one_fragment)
