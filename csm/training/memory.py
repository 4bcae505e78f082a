"""How much memory training takes: measured while it runs, and computed for a preset before anything is allocated."""

from __future__ import annotations

import re
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return int(found[1]) * 1024 if found else 0


def resident_bytes(device: torch.device) -> int:
    """What this process holds now: device memory on a GPU, resident memory otherwise (0 where Linux doesn't say)."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """The most that this process held since `reset_peak`, of the same kind as `resident_bytes`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Start to measure the peak anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        RESET.write_text("5")
    except OSError:
        pass
