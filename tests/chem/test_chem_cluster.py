"""Curation on a local Ray cluster of two workers gives the same table, row by row, as on one machine."""

from __future__ import annotations

import polars
import pytest

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from seqtune.chem import cluster as on_cluster  # noqa: E402
from seqtune.chem import commands  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def two_workers(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def test_the_same_rows_in_the_same_order(two_workers, tmp_path, monkeypatch):
    smiles = [("C" * n + tail, f"name {n % 40}") for n in range(1, 80) for tail in ("O", "N", "(", ".Cl", "c1ccccc1")]
    polars.DataFrame(smiles, schema=["smiles", "iupac"], orient="row").write_csv(tmp_path / "in.csv")
    here = commands.molecules(tmp_path / "in.csv", tmp_path / "here.parquet", "paper", random_smiles=2)
    monkeypatch.setattr(on_cluster, "ROWS", 60)
    there = commands.molecules(tmp_path / "in.csv", tmp_path / "there.parquet", "paper", random_smiles=2, ray=two_workers)
    assert there == here
    for name in ("{}.parquet", "{}.parquet.dropped.parquet"):
        ours, theirs = (polars.read_parquet(tmp_path / name.format(side)) for side in ("here", "there"))
        assert ours.equals(theirs)
    assert not list(tmp_path.glob(".raw*"))
