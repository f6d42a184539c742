"""How a room hands on its public names: each is imported from its module when it is first asked for.

So entering a room costs nothing: `seqtune score` never loads torch, and `seqtune predict` never loads polars, though both pass
through rooms that know them. Inside the package, imports name the module; the rooms' own names are for people.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def hands_on(room: str, modules: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """A room's `__all__` and `__getattr__` (PEP 562, https://peps.python.org/pep-0562/).

    Args:
        room: the package's `__name__`.
        modules: module of the room -> the names that it hands on, between blanks.

    Example:
        __all__, __getattr__ = hands_on(__name__, {"splits": "leakage split_examples subset"})
    """
    places = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{room}.{places[name]}"), name)

    return sorted(places), find
