"""Sound as the networks see it, and back: 64 ms windows every 10 ms, in decibels, up to 2 kHz."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 1_536  # samples at 24 kHz: 64 ms
HOP = 240  # 10 ms
BINS = 128  # up to 2 kHz
FLOOR = 1e-9  # the magnitude that the networks see as 0
RANGE_DB = 195.0  # from the floor (-180 dB) to 15 dB, which they see as 1
SCALE = 2_048 / WINDOW  # Perth's window is 2 048 samples at 32 kHz, so its magnitudes are that much larger


def checked(wave: Tensor) -> Tensor:
    if wave.ndim != 1:
        raise ValueError(f"A waveform has one dimension, not {wave.ndim}.")
    return torch.nan_to_num(wave.detach().cpu().float(), posinf=0.0, neginf=0.0)


def hann() -> Tensor:
    return torch.hann_window(WINDOW)


def spectrum_of(wave: Tensor) -> Tensor:
    """(num_samples,) -> complex (769, frames)."""
    return torch.stft(wave, WINDOW, HOP, window=hann(), pad_mode="reflect", return_complex=True)


def normalised(spectrum: Tensor) -> Tensor:
    """Complex (bins, frames) -> decibels from the floor up, as the networks see them: 0 to about 1."""
    decibels = 20 * torch.log10((spectrum.abs() * SCALE).clamp(min=FLOOR))
    return (decibels + 180.0) / RANGE_DB


def magnitude(decibels: Tensor) -> Tensor:
    """The inverse of `normalised`, for magnitudes."""
    return 10 ** (((decibels * RANGE_DB - 180.0) / 20).clamp(max=10)) / SCALE


def sounding(seen: Tensor, loudest: float | None = None) -> Tensor:
    """(bins, frames) -> (frames,): 1 where a frame holds more than a twentieth of the fullest frame's decibels,
    which leaves out digital silence only. `loudest` is their sum where that frame is elsewhere."""
    sums = seen.sum(dim=0)
    return (sums > 0.05 * (sums.max() if loudest is None else loudest)).float()
