"""How many processors there are to use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors that this process may use: those that its affinity (`taskset`) leaves, lowered by a container's quota.

    Args:
        quota: the file in which Linux tells a container its share of processor time.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        time, period = quota.read_text().split()
        return max(1, min(cpus, math.ceil(int(time) / int(period))))
    except (OSError, ValueError):  # no container, or "max": no quota
        return cpus
