"""What people install: the wheel that the source distribution gives holds all that a first result needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import seqtune
from conftest import pairs, write_csv

ROOT = Path(__file__).resolve().parents[1]
ASSETS = (
    "base/model.safetensors",
    "base/tokenizer.json",
    "report/run.html",
    "report/study.html",
    "serve/index.html",
    "serve/app.js",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the wheel in it, made from the unpacked source distribution as an installer would make it."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    hatch = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run([*hatch, "-t", "sdist", "-d", str(folder / "sdist")], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next((folder / "sdist").glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "source", filter="data")
    [source] = (folder / "source").iterdir()
    assert (source / "tests" / "test_wheel.py").exists()
    subprocess.run([*hatch, "-t", "wheel", "-d", str(folder / "dist")], cwd=source, check=True, capture_output=True)
    [wheel] = (folder / "dist").glob("*.whl")
    assert wheel.name == f"seqtune-{seqtune.__version__}-py3-none-any.whl"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    return folder


def run(installed: Path, *arguments: str) -> str:
    """The installed command, outside the checkout."""
    environment = os.environ | {"PYTHONPATH": str(installed / "site")}
    command = [str(installed / "site" / "bin" / "seqtune"), *arguments]
    done = subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_assets_and_nothing_of_the_checkout(installed):
    with zipfile.ZipFile(next((installed / "dist").glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"seqtune-{seqtune.__version__}.dist-info/METADATA").decode()
    assert {f"seqtune/assets/{name}" for name in ASSETS} | {"seqtune/py.typed"} <= names
    assert {name.partition("/")[0] for name in names} == {"seqtune", f"seqtune-{seqtune.__version__}.dist-info"}
    assert "Provides-Extra: chem" in metadata
    assert "Requires-Dist: torch" in metadata


def test_a_first_result_from_the_wheel(installed):
    assert run(installed, "--version").strip() == f"seqtune {seqtune.__version__}"
    where = [sys.executable, "-c", "import seqtune; print(seqtune.__file__)"]
    environment = os.environ | {"PYTHONPATH": str(installed / "site")}
    found = subprocess.run(where, cwd=installed, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(installed / "site"))
    assert "builtin:base" in run(installed, "bases")
    published = json.loads((ROOT / "docs" / "config.schema.json").read_text(encoding="utf-8"))
    assert json.loads(run(installed, "fit", "--print-schema")) == published

    table = write_csv(installed / "pairs.csv", pairs(80))
    fitted = json.loads(
        run(
            installed,
            "fit",
            "--data",
            str(table),
            "--out",
            "run",
            "--set",
            "train.max_steps=2",
            "--set",
            "decode.max_new_tokens=4",
            "--json",
        )
    )
    assert 0 <= fitted["metrics"]["exact_match"]["value"] <= 1
    [answer] = map(json.loads, run(installed, "predict", "run", "105", "--json").splitlines())
    assert answer["input"] == "105"
    assert answer["hypotheses"]
    (installed / "run" / "report.html").unlink(missing_ok=True)
    run(installed, "report", "run")
    page = (installed / "run" / "report.html").read_text(encoding="utf-8")
    assert "exact match" in page.lower()
    assert "</html>" in page
