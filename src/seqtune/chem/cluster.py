"""Curation on a Ray cluster: the same rows in the same order as on one machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars
import pyarrow

from seqtune.chem.curation import Curation
from seqtune.chem.isolation import Workers
from seqtune.chem.pipeline import Frames, curated_frame
from seqtune.cluster.mapping import mapped

ROWS = 20_000  # rows a file, and so a task


class Curator:
    """One core, one worker process that may hang or crash, one OPSIN."""

    def __init__(self, curation: Curation):
        self.curation = curation
        self.workers = Workers(num_workers=1)

    def __call__(self, path: str) -> pyarrow.Table:
        """The curated rows of a file."""
        return curated_frame(polars.read_parquet(path), self.curation, self.workers).to_arrow()


def curated_on_cluster(frames: Frames, curation: Curation, address: str, folder: Path) -> Frames:
    """Curate on a cluster; the raw rows pass through files that all its machines must be able to read.

    Args:
        frames: raw rows.
        curation: what is kept.
        address: of the cluster, or `local` for one on this machine.
        folder: where the raw rows are put meanwhile; a shared one if the cluster has several machines.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".raw.") as raw:
        paths: list[str] = []
        for frame in frames:
            for piece in frame.iter_slices(ROWS):
                paths.append(str(Path(raw).resolve() / f"{len(paths):08d}.parquet"))
                piece.write_parquet(paths[-1])
        if paths:
            yield from map(polars.DataFrame, mapped(Curator, (curation,), paths, address, Path(paths[0])))
