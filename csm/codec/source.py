"""A voice's source: pulses at the pitch and noise, for the light codec's decoder to filter into speech.

The source-filter model of speech, with a learned filter: what a spectrum says poorly (the phases of the harmonics)
is made here by arithmetic, and the network is left with what it learns well. Compare Wang et al. 2019
(arXiv:1904.12088) and Engel et al. 2020 (arXiv:2001.04643).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.config import SAMPLE_RATE

HIGHEST_HARMONIC = 11_500.0  # Hz
NOISE_SAMPLES = 1 << 18  # 10.9 s, then it repeats


def fixed_noise() -> Tensor:
    """The same white noise in every process: float32 (262144,). Equal codes must give equal sound."""
    return torch.randn(NOISE_SAMPLES, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class SourceState:
    """Where the source stands after what came before: phase float64 (B,) in radians, pitch (B,) in Hz, position
    int64 (B,) in samples, and the newest source samples (B, 2, history), which later windows still cover."""

    phase: Tensor
    pitch: Tensor
    position: Tensor
    history: Tensor

    @classmethod
    def start(cls, pitch: Tensor, history: int, position: Tensor | None = None) -> SourceState:
        """Silence so far; `pitch` (B,) is that of the first step."""
        zeros = torch.zeros_like(pitch, dtype=torch.int64)
        return cls(
            zeros.double(), pitch, zeros if position is None else position, pitch.new_zeros(len(pitch), 2, history)
        )

    @classmethod
    def join(cls, states: Sequence[SourceState]) -> SourceState:
        """Those of several batches as one's."""
        parts = zip(*((one.phase, one.pitch, one.position, one.history) for one in states))
        return cls(*(torch.cat(part) for part in parts))

    def split(self) -> list[SourceState]:
        """One for each row of the batch."""
        parts = (part.split(1) for part in (self.phase, self.pitch, self.position, self.history))
        return [SourceState(*rows) for rows in zip(*parts)]


def source(pitch: Tensor, hop: int, noise: Tensor, state: SourceState) -> tuple[Tensor, SourceState]:
    """pitch (B, n) in Hz at the end of each `hop` samples -> (B, 2, history + n hop): pulses and noise, unit power.

    Between its given values the pitch is a straight line. A pulse is the sum of all harmonics below 11.5 kHz.
    """
    batch, count = pitch.shape
    before = torch.cat([state.pitch.unsqueeze(1), pitch[:, :-1]], dim=1)
    turn = 2 * math.pi / SAMPLE_RATE
    ends = state.phase.unsqueeze(1) + (turn * hop / 2 * (before.double() + pitch.double())).cumsum(1)
    starts = torch.cat([state.phase.unsqueeze(1), ends[:, :-1]], dim=1).remainder(2 * math.pi).float().unsqueeze(2)
    at = torch.arange(1, hop + 1, device=pitch.device)
    slope = (pitch - before).unsqueeze(2) / hop
    hertz = before.unsqueeze(2) + slope * at
    phase = starts + turn * (before.unsqueeze(2) * at + slope * (at * at / 2))
    harmonics = (HIGHEST_HARMONIC / hertz).floor()
    half = (phase / 2).sin()
    ratio = ((harmonics + 0.5) * phase).sin() / torch.where(half.abs() < 1e-4, 1.0, half)
    ratio = torch.where(half.abs() < 1e-4, 2 * harmonics + 1, ratio)
    pulses = ((ratio - 1) / 2 * (2 / harmonics).sqrt()).view(batch, count * hop)
    reach = torch.arange(count * hop, device=pitch.device)
    rustle = noise[(state.position.unsqueeze(1) + reach) % NOISE_SAMPLES]
    sound = torch.cat([state.history, torch.stack([pulses, rustle], dim=1)], dim=2)
    history = sound[:, :, sound.shape[2] - state.history.shape[2] :]
    after = SourceState(
        ends[:, -1].remainder(2 * math.pi), pitch[:, -1], (state.position + count * hop) % NOISE_SAMPLES, history
    )
    return sound, after
