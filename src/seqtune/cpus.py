"""How many processors there are to use."""

from __future__ import annotations

import os


def available_cpus() -> int:
    """Processors that this process may run on; a container's or `taskset`'s share counts, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
