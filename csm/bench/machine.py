"""The hardware that figures hold for: its names and versions, its memory, and how fast that memory is."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and the versions that the figures hold for."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def synchronise(device: torch.device) -> None:
    """Wait until everything that was started on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, size: int | None = None, repeats: int = 6) -> float:
    """GB/s, read and written bytes together, of the fastest of some copies of `size` bytes, far beyond any cache."""
    size = size or (1 << 30 if device.type == "cuda" else 1 << 28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    fastest = float("inf")
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size / fastest / 1e9


def free_memory(device: torch.device) -> float:
    """Bytes that can still be had on `device`; without end where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return float("inf")


def peak_memory_mb() -> float | None:
    """The most memory this process ever held, in MB; None where the system doesn't tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if platform.system() == "Darwin" else 1024) / 1e6, 1)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
