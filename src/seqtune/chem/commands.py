"""What `seqtune data` can write: `chemicals`, `pubchem`, `molecules`; the entry points name these functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import polars
import typer

from seqtune import plugins, progress
from seqtune.chem import pubchem as files
from seqtune.chem import sdf as structure_data
from seqtune.chem.curation import Curation, Form, Preset
from seqtune.chem.download import PUBCHEM, fetch
from seqtune.chem.pipeline import Frames, check_kind, curated_here, settled, write_table
from seqtune.chem.sdf import Style
from seqtune.chem.sources import chemicals_table
from seqtune.data.sources import read_examples
from seqtune.errors import ConfigError
from seqtune.sections import DataConfig

OutOption = Annotated[Path, typer.Option("--out", help="Table to write: .csv, .tsv or .parquet.")]
PresetOption = Annotated[
    Preset,
    typer.Option(
        help="open: organic, neutral, 3-50 heavy atoms, name read back by OPSIN; paper: arXiv 2402.05616; none: all rows."
    ),
]
FormOption = Annotated[
    Form | None, typer.Option("--smiles-form", help="How SMILES are written; default: canonical, with preset none as given.")
]
RandomOption = Annotated[
    int, typer.Option("--random-smiles", min=0, help="Add so many random spellings a molecule, in the column input_smiles.")
]
SelfiesOption = Annotated[bool, typer.Option("--selfies", help="Add a column selfies.")]
KeysOption = Annotated[
    bool | None,
    typer.Option("--keys/--no-keys", help="Add the columns skeleton and scaffold, to split by; default: unless preset none."),
]
RayOption = Annotated[str | None, typer.Option("--ray", help="Curate on this Ray cluster: an address, or local.")]
MaxSmilesOption = Annotated[int | None, typer.Option(min=1, help="Leave out longer SMILES (characters).")]
MaxNameOption = Annotated[int | None, typer.Option(min=1, help="Leave out longer names (characters).")]


def chemicals(
    out: OutOption,
    preset: PresetOption = "open",
    max_smiles: MaxSmilesOption = None,
    max_name: MaxNameOption = None,
    smiles_form: FormOption = None,
    random_smiles: RandomOption = 0,
    selfies: SelfiesOption = False,
    keys: KeysOption = None,
    ray: RayOption = None,
) -> dict[str, int]:
    """73,000 molecules of the package `chemicals`, embedded and offline; systematic names."""
    frame, found = chemicals_table(max_smiles, max_name)
    counts = Counter({reason: number for reason, number in found.items() if reason != "kept"})
    return _write(iter([frame]), _curation(preset, smiles_form, random_smiles, selfies, keys), out, counts, ray)


def pubchem(
    out: OutOption,
    preset: PresetOption = "open",
    smiles_file: Annotated[Path | None, typer.Option(help="A local CID-SMILES(.gz); default: download from NIH.")] = None,
    names_file: Annotated[Path | None, typer.Option(help="A local CID-IUPAC(.gz); default: download from NIH.")] = None,
    sdf: Annotated[list[Path] | None, typer.Option(help="Read PubChem SDF files instead; may be repeated.")] = None,
    name_style: Annotated[Style, typer.Option(help="Which of an SDF's names.")] = "preferred",
    max_smiles: MaxSmilesOption = None,
    max_name: MaxNameOption = None,
    one_fragment: Annotated[bool, typer.Option("--one-fragment", help="Leave out salts and mixtures, by the dot.")] = False,
    smiles_form: FormOption = None,
    random_smiles: RandomOption = 0,
    selfies: SelfiesOption = False,
    keys: KeysOption = None,
    ray: RayOption = None,
) -> dict[str, int]:
    """PubChem's SMILES and IUPAC names, streamed: over 100 million molecules in flat memory."""
    check_kind(out)
    if name_style != "preferred" and not sdf:
        raise ConfigError(f"--name-style {name_style}: CID-IUPAC has preferred names only; give SDF files with --sdf")
    counts: Counter[str] = Counter()
    if sdf:
        frames = structure_data.frames(sdf, name_style, counts)
    else:
        frames = files.joined(
            smiles_file or _download("CID-SMILES.gz", out.parent), names_file or _download("CID-IUPAC.gz", out.parent), counts
        )
    limited = (files.within(f, counts, max_smiles, max_name, one_fragment=one_fragment) for f in frames)
    return _write(limited, _curation(preset, smiles_form, random_smiles, selfies, keys), out, counts, ray)


def molecules(
    file: Annotated[Path, typer.Option("--file", help="A table of pairs: CSV, TSV, JSONL or Parquet.")],
    out: OutOption,
    preset: PresetOption = "open",
    smiles: Annotated[str, typer.Option(help="Its column of SMILES.")] = "smiles",
    iupac: Annotated[str, typer.Option(help="Its column of names.")] = "iupac",
    smiles_form: FormOption = None,
    random_smiles: RandomOption = 0,
    selfies: SelfiesOption = False,
    keys: KeysOption = None,
    ray: RayOption = None,
) -> dict[str, int]:
    """A table of your own, curated by the same rules; `cid` is its line."""
    examples, rejected = read_examples(str(file), DataConfig(input=smiles, output=iupac))
    rows = [(e.line, e.input, e.output) for e in examples]
    frame = polars.DataFrame(rows, schema={"cid": polars.UInt32, "smiles": polars.String, "iupac": polars.String}, orient="row")
    counts = Counter({"rows without both texts": len(rejected)})
    return _write(iter([frame]), _curation(preset, smiles_form, random_smiles, selfies, keys), out, counts, ray)


def _curation(preset: Preset, form: Form | None, num_random: int, selfies: bool, keys: bool | None) -> Curation:
    plain = preset == "none"
    return Curation(
        preset, form or ("given" if plain else "canonical"), num_random, selfies, not plain if keys is None else keys
    )


def _download(name: str, folder: Path) -> Path:
    with progress.show(name, 1.0) as tick:
        return fetch(PUBCHEM + name, folder, tick)


def _write(frames: Frames, curation: Curation, out: Path, counts: Counter[str], ray: str | None) -> dict[str, int]:
    check_kind(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    curation = settled(curation)
    if ray is None:
        done = curated_here(frames, curation)
    else:
        done = plugins.load("seqtune.chem.cluster:curated_on_cluster")(frames, curation, ray, out.parent)
    return write_table(_told(done, counts), curation, out, counts)


def _told(frames: Frames, counts: Counter[str]) -> Iterator[polars.DataFrame]:
    """Say how far it is, a line or a bar's worth at a time."""
    with progress.show("rows", None) as tick:
        for frame in frames:
            yield frame
            tick(counts["rows"] or counts["kept"])
