"""Names of tables -> files: a path, a folder that `datasets.save_to_disk` wrote, or a data set on the hub.

Folders and listings are only read: nothing that they name outside of themselves is followed, and nothing in them is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, urlsplit

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from seqtune.data.archives import COMPRESSIONS, ZIP
from seqtune.errors import DataError, did_you_mean, near_path

KINDS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet", ".arrow", ".feather", ".xlsx")
ALIASES = {".ndjson": ".jsonl", ".feather": ".arrow", ".xlsm": ".xlsx"}
PACKED = {**COMPRESSIONS, ".zip": ZIP}
HUB = "hf://"
STATE, SPLITS = "state.json", "dataset_dict.json"  # of a saved data set, and of several
SIDES = {  # as file names on the hub say them
    "train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "testing", "eval"),
}  # fmt: skip
MOST_JSON = 2**20


def kind_of(name: str) -> tuple[str, str | None]:
    """The ending of a table's name, and how it is packed, a value of `PACKED`.

    Example:
        >>> kind_of("pairs.CSV.gz"), kind_of("pairs.feather")
        (('.csv', 'gzip'), ('.arrow', None))
    """
    path = PurePosixPath(name.lower())
    compression = PACKED.get(path.suffix)
    kind = PurePosixPath(path.stem).suffix if compression else path.suffix
    return ALIASES.get(kind, kind), compression


def files_of(name: str) -> tuple[Path, ...]:
    """The files that make up a table, in their order.

    Args:
        name: a path, or `hf://datasets/OWNER/NAME[@REVISION][/FILE][?split=NAME]`.

    Raises:
        DataError: there is none, or the hub cannot be reached; or it is in doubt which table is meant.
    """
    if name.startswith(HUB):
        return _from_hub(name)
    path = Path(name)
    if path.is_dir():
        return _saved(name, path)
    if not path.exists():
        raise DataError(f"{name!r} does not exist{near_path(path)}")
    return (path,)


def sides_of(name: str) -> dict[str, str]:
    """The parts of a data set that is several tables: name of the split -> the name of its table; empty for a single table.

    Raises:
        DataError: it cannot be read.
    """
    if name.startswith(HUB):
        repository, _, file, asked = _address(name)
        if file or asked:
            return {}
        found = _by_split(_listed(name, repository, _address(name)[1]))
        return {split: f"{name}?split={split}" for split in found} if len(found) > 1 else {}
    path = Path(name)
    return {split: str(path / split) for split in _splits(path)} if (path / SPLITS).is_file() else {}


def is_saved(path: Path) -> bool:
    """Whether a folder is a data set that was saved, or several."""
    return (path / STATE).is_file() or (path / SPLITS).is_file()


def _saved(name: str, folder: Path) -> tuple[Path, ...]:
    """The shards of a folder that `datasets` wrote."""
    if (folder / SPLITS).is_file():
        raise DataError(
            f"{name!r} is a data set of several splits; name one of them: "
            f"{', '.join(str(folder / split) for split in _splits(folder))}"
        )
    if not (folder / STATE).is_file():
        raise DataError(
            f"{name!r} is a folder; name a table file in it ({', '.join(KINDS)}), or a folder that datasets.save_to_disk wrote"
        )
    listed = _json(folder / STATE).get("_data_files")
    names = [each.get("filename") for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    shards = [_inside(folder, shard) for shard in names]
    if not shards:
        raise DataError(f"{str(folder / STATE)!r} lists no file; save the data set again")
    return tuple(shards)


def _splits(folder: Path) -> list[str]:
    splits = _json(folder / SPLITS).get("splits")
    if not isinstance(splits, list) or not splits:
        raise DataError(f"{str(folder / SPLITS)!r} lists no split; save the data set again")
    return [_inside(folder, split).name for split in splits]


def _inside(folder: Path, name: object) -> Path:
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name) or (folder / name).is_symlink():
        raise DataError(f"{str(folder)!r} lists {name!r}, which is no name of a file in it; save the data set again")
    if not (folder / name).exists():
        raise DataError(f"{str(folder)!r} lists {name!r}, which is not there; save the data set again")
    return folder / name


def _json(path: Path) -> dict:
    try:
        with path.open(encoding="utf-8") as handle:
            content = json.loads(handle.read(MOST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{str(path)!r} holds no JSON object")
    return content


def _address(name: str) -> tuple[str, str | None, str, dict[str, str]]:
    """Repository, revision, file and what else is asked for."""
    parts = urlsplit(name.replace("#", "%23"))
    place = PurePosixPath(parts.netloc + parts.path).parts
    place = place[1:] if place[:1] == ("datasets",) else place
    asked = dict(parse_qsl(parts.query))
    if len(place) < 2 or set(asked) - {"split"}:
        raise DataError(
            f"{name!r}: write hf://datasets/OWNER/NAME, with /FILE or ?split=NAME behind it if it holds several tables"
        )
    repository, _, revision = "/".join(place[:2]).partition("@")
    return repository, revision or None, "/".join(place[2:]), asked


def _from_hub(name: str) -> tuple[Path, ...]:
    repository, revision, file, asked = _address(name)
    files = (
        [file] if kind_of(file)[0] in KINDS and not asked else _tables(name, repository, revision, (file, asked.get("split")))
    )
    try:
        return tuple(
            Path(huggingface_hub.hf_hub_download(repository, each, repo_type="dataset", revision=revision)) for each in files
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _unreachable(name, error) from None


def _tables(name: str, repository: str, revision: str | None, asked: tuple[str, str | None]) -> list[str]:
    """The files of a data set that make up what is asked for: a folder in it, and a split."""
    folder, split = asked
    tables = [file for file in _listed(name, repository, revision) if not folder or file.startswith(f"{folder}/")]
    if split is None:
        if len(tables) != 1:
            known = ", ".join([f"?split={each}" for each in _by_split(tables)] + [f"/{table}" for table in tables[:10]])
            raise DataError(f"{name!r} holds {len(tables)} tables; name one, with one of these behind it: {known or 'none'}")
        return tables
    by_split = _by_split(tables)
    found = by_split.get(split, [])
    if not found:
        raise DataError(
            f"{name!r} has no split {split!r}{did_you_mean(split, by_split)}; splits: {', '.join(by_split) or 'none'}"
        )
    folders = sorted({str(PurePosixPath(each).parent) for each in found})
    if len({kind_of(each) for each in found}) > 1 or len(folders) > 1:
        raise DataError(
            f"{name!r}: the split lies in {len(found)} tables of different kinds or folders; name one, or a folder "
            f"(hf://datasets/{repository}/{folders[0]}?split={split}): {', '.join(found[:10])}"
        )
    return sorted(found)


def _listed(name: str, repository: str, revision: str | None) -> list[str]:
    try:
        listing = huggingface_hub.list_repo_files(repository, repo_type="dataset", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _unreachable(name, error) from None
    return [file for file in listing if kind_of(file)[0] in KINDS and PurePosixPath(file).name not in ("dataset_infos.json",)]


def _by_split(files: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split by their names, as the hub's own viewer takes them."""
    found: dict[str, list[str]] = {}
    for side, words in SIDES.items():
        pattern = re.compile(rf"(^|[^a-z0-9])({'|'.join(words)})([^a-z0-9]|$)")
        if matching := [file for file in files if pattern.search(PurePosixPath(file.lower()).name)]:
            found[side] = matching
    return found


def _unreachable(name: str, error: Exception) -> DataError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"{name!r} cannot be fetched from the hub: {first_line}")
