"""Collections of tasks that others wrote, each format with its reader. What cannot be read is named, with the reason.

In goes a file, a folder or a tar archive. Out come the keys of task bundles (`seqtune.data.bundles`), by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Collection:
    """What a collection holds.

    Attributes:
        tasks: name -> a bundle's keys.
        unreadable: name of a task or template -> why it cannot be used.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def is_collection(path: Path) -> bool:
    """True for what `read` reads."""
    return False


def read(path: Path) -> Collection:
    """All tasks of a collection."""
    return Collection()
