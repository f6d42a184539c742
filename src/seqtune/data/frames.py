"""Tables that are already in memory: of pandas, polars, pyarrow or datasets; the first and last are not imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import polars
import pyarrow

from seqtune import folders
from seqtune.data import kept
from seqtune.errors import DataError

KEYS = {"train": "data.path", "validation": "data.validation_path", "test": "data.test_path"}


def frame_of(values: Any) -> Any:
    """What holds a table, as a frame with named columns; anything else as it is.

    Raises:
        DataError: it holds several tables, or its rows only come one by one.
    """
    if isinstance(values, pyarrow.Table | pyarrow.RecordBatch):
        return polars.from_arrow(values)
    if isinstance(values, polars.LazyFrame):
        return values.collect()
    if not (hasattr(values, "column_names") and hasattr(values, "with_format")):  # of datasets
        return values
    if isinstance(values, Mapping):
        raise DataError(f"this is a DatasetDict with the splits {', '.join(values)}; give one of them")
    if not hasattr(values, "__len__"):
        raise DataError(f"a {type(values).__name__} cannot be read from here; make it a Dataset, or name the table's file")
    return polars.from_arrow(values.with_format("arrow")[:])


def settings_of(data: Any) -> dict[str, str]:
    """The settings that name a table: a path, a frame, or a dictionary of them by split.

    Frames are written to the cache, under a hash of their content, so that the run's `config.yaml` can be run again.

    Raises:
        DataError: it is none of that.

    Example:
        >>> settings_of("pairs.csv")
        {'data.path': 'pairs.csv'}
    """
    if isinstance(data, Mapping):
        unknown = [split for split in data if split not in KEYS]
        if unknown or "train" not in data:
            raise DataError(
                f"the splits {', '.join(map(str, data))}: there must be train, and there may be validation and test"
            )
        return {KEYS[split]: name_of(table) for split, table in data.items()}
    return {"data.path": name_of(data)}


def name_of(data: Any) -> str:
    """The path of a table: itself, or of the file that a frame is written to.

    Raises:
        DataError: it is no table.
    """
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    frame = frame_of(data)
    if not isinstance(frame, polars.DataFrame):
        if not (hasattr(frame, "columns") and hasattr(frame, "iloc")):  # of pandas
            raise DataError(
                f"a table is a path, or a frame of pandas, polars, pyarrow or datasets, not a {type(data).__name__}"
            )
        try:
            frame = polars.from_pandas(frame.rename(columns=str).reset_index(drop=True))
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            raise DataError(f"the frame cannot be read: {error}") from None
    place = folders.cache("tables")
    place.mkdir(parents=True, exist_ok=True)
    with folders.scratch(place / "frame.parquet") as hidden:
        frame.write_parquet(hidden)
        return str(hidden.replace(place / f"{kept.digest(hidden)}.parquet"))
