"""Weights in eight bits with one scale per output row: half the bytes that a frame must read, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT8_LARGEST = 448.0  # of e4m3


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (N, K) -> int8 (N, K) and scale float32 (N,): weight is about int8 * scale[:, None], to half a step."""
    wide = weight.float()
    scale = _scale(wide, 127.0)
    return (wide / scale[:, None]).round().to(torch.int8), scale


def quantise_rows_float8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (N, K) -> float8 e4m3 (N, K) and scale float32 (N,), for devices that convert it in hardware."""
    wide = weight.float()
    scale = _scale(wide, FLOAT8_LARGEST)
    return (wide / scale[:, None]).to(torch.float8_e4m3fn), scale


def _scale(wide: Tensor, largest: float) -> Tensor:
    """What maps each row's largest weight to `largest`; a row of zeros keeps scale 1."""
    peak = wide.abs().amax(dim=1)
    return torch.where(peak > 0, peak / largest, torch.ones_like(peak))
