"""Which precision matrix products are quick in, on the device at hand."""

from __future__ import annotations

from functools import cache

import torch


@cache
def quick_in_bfloat16(device: str) -> bool:
    """Whether a device ("cpu", "cuda") multiplies bfloat16 at least as fast as float32; a processor without
    instructions for it takes ten times as long."""
    return device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
