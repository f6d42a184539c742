"""Curation on a Ray cluster: the same rows in the same order as on one machine, by Ray Data.

Source: https://docs.ray.io/en/latest/data/data.html.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars
import pyarrow
import ray
import ray.data

from seqtune.chem.curation import Curation
from seqtune.chem.isolation import Workers
from seqtune.chem.pipeline import Frames, curated_frame
from seqtune.ray_cluster import connect

ROWS = 20_000  # rows a file, and so a task


class _Curator:
    """A Ray actor: one core, one worker process that may hang or crash, one OPSIN."""

    def __init__(self, curation: Curation):
        self.curation = curation
        self.workers = Workers(num_workers=1)

    def __call__(self, files: pyarrow.Table) -> pyarrow.Table:
        return curated_frame(polars.read_parquet(files["path"].to_pylist()), self.curation, self.workers).to_arrow()


def curated_on_cluster(frames: Frames, curation: Curation, address: str, folder: Path) -> Frames:
    """Curate on a cluster; the raw rows pass through files that all its machines must be able to read.

    Args:
        frames: raw rows.
        curation: what is kept.
        address: of the cluster, or `local` for one on this machine.
        folder: where the raw rows are put meanwhile; a shared one if the cluster has several machines.
    """
    connect(address)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    with tempfile.TemporaryDirectory(dir=folder, prefix=".raw.") as raw:
        paths = []
        for frame in frames:
            for piece in frame.iter_slices(ROWS):
                paths.append({"path": f"{raw}/{len(paths):08d}.parquet"})
                piece.write_parquet(paths[-1]["path"])
        num_cores = max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)  # one reads and sorts
        # one file a task; left to itself, Ray would read several small files in one
        done = ray.data.from_items(paths, override_num_blocks=len(paths)).map_batches(
            _Curator,
            fn_constructor_args=(curation,),
            batch_format="pyarrow",
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=num_cores),
        )
        for batch in done.iter_batches(batch_format="pyarrow", batch_size=None):
            yield polars.DataFrame(batch)
