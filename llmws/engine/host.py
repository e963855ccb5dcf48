"""What the host says about itself: memory, of the container where it runs in one, and the processor's name.

Knows neither models nor GPUs, so that it runs where no NVIDIA library is. Invariant: never raises.
"""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def host_memory() -> tuple[int, int]:
    """Total and available bytes of the host, or of the container where that has less."""
    memory = psutil.virtual_memory()
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is None or used is None or limit >= memory.total:
        return memory.total, memory.available
    # The page cache counts as used there, and is given back on demand.
    cached = _cgroup_cache_bytes()
    return limit, min(memory.available, max(0, limit - used + cached))


def cpu_name() -> str:
    """The processor's model, as its maker calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


def _cgroup_bytes(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):
        return None


def _cgroup_cache_bytes() -> int:
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
