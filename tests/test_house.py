"""The house: every room says what it is for, hands on names that are there, and costs nothing to enter."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import seqtune

SOURCE = Path(seqtune.__file__).parent
ROOMS = sorted(p.parent.name for p in SOURCE.glob("*/__init__.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_hands_on_what_it_has(room):
    package = importlib.import_module(f"seqtune.{room}")
    assert package.__doc__
    assert len(package.__doc__.split(". ")) >= 2
    for name in getattr(package, "__all__", []):
        found = getattr(package, name)
        assert name.isupper() or found.__module__.startswith(f"seqtune.{room}")
        assert name not in {p.stem for p in (SOURCE / room).iterdir()}, f"{name} names a module and something in one"


def test_a_name_that_a_room_does_not_have_is_an_attribute_error():
    with pytest.raises(ImportError, match="cannot import name 'tabel'"):
        exec("from seqtune.data import tabel")
    with pytest.raises(AttributeError, match="module 'seqtune.data' has no attribute 'tabel'"):
        _ = importlib.import_module("seqtune.data").tabel


def test_entering_the_rooms_loads_nothing_heavy():
    code = (
        f"import sys, seqtune\nfor room in {ROOMS}:\n    __import__('seqtune.' + room)\n"
        "print([m for m in ('torch', 'transformers', 'polars', 'matplotlib', 'rdkit', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_root_holds_the_ground_and_nothing_else():
    modules = {p.stem for p in SOURCE.glob("*.py")}
    ground = {
        "records",
        "errors",
        "config",
        "sections",
        "plugins",
        "progress",
        "cpus",
        "folders",
        "runs",
        "rooms",
        "yaml_files",
    }
    assert modules == ground | {"learner", "__init__", "__main__"}


def test_the_picture_of_the_house_is_drawn_from_its_imports():
    script = SOURCE.parents[1] / "docs" / "draw_architecture.py"
    spec = importlib.util.spec_from_file_location("draw_architecture", script)
    assert spec is not None
    assert spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    assert drawing.PICTURE.read_text(encoding="utf-8") == drawing.draw(), "python docs/draw_architecture.py"


def test_the_architecture_page_names_every_room_and_only_files_that_are_there():
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in ROOMS:
        assert f"`{room}/`" in page
    for path in re.findall(r"`((?:src|tests|docs|examples)/[\w/.]+)`", page):
        assert (SOURCE.parents[1] / path).exists(), path
