"""What this machine has (devices, bf16 units, memory), and process settings that make computing on its CPU faster."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import psutil
import torch

from seqtune.cpus import available_cpus

# By default glibc gives large freed blocks back to the system and must ask for them again at the next training step, which is
# slow. With these parameters it keeps them; see mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def has_bf16_units() -> bool:
    """True where bf16 arithmetic is native: recent GPUs, and CPUs with AVX512-BF16 or AMX; elsewhere it is slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.12
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def has_avx512() -> bool:
    """True on x86 processors with AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@functools.cache
def is_intel() -> bool:
    """True on processors that Intel made, for which its MKL, behind torch's products, takes its best paths."""
    features = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.12
    return "Intel" in str(features.get("cpu_name", ""))


def best_device() -> torch.device:
    """CUDA, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still allocate: the system's free memory, lowered by a container's limit."""
    free = psutil.virtual_memory().available
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = (cgroup / "memory.stat").read_text().partition("inactive_file ")[2].split()[0]
        return min(free, max(0, limit - used + int(cached)))
    except (OSError, ValueError, IndexError):  # no cgroup, or "max": no limit
        return free


@functools.cache
def set_up_cpu() -> None:
    """Set thread count and memory allocator for computing on the CPU; `OMP_NUM_THREADS` takes precedence."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        except (OSError, AttributeError):  # another C library
            return


def release_memory() -> None:
    """Give back what the allocator keeps since `set_up_cpu`: between long pieces of work the gaps in it would add up."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return
