"""The pitch of recorded speech, for the codec to learn: window-corrected autocorrelation (Boersma 1993).

Made for clean synthetic voices and for speed: a batch of clips in one pass of FFTs, no path search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csm.config import SAMPLE_RATE

LOWEST, HIGHEST = 60.0, 480.0  # Hz
RATE = SAMPLE_RATE // 2  # half the rate is plenty for a pitch
WINDOW = 600  # 50 ms: three periods of the lowest pitch
VOICED = 0.45  # autocorrelation of a frame that is called voiced
OCTAVE_COST = 0.03  # a longer period must be this much better per octave


def pitch(wave: Tensor, hop: int) -> tuple[Tensor, Tensor]:
    """float32 (B, samples) at 24 kHz -> pitch in Hz and whether voiced, both (B, samples / hop), at the hops' ends.

    Through unvoiced stretches the pitch is interpolated, so that it is defined everywhere.
    """
    count = wave.shape[1] // hop
    wave, hop = torch.nn.functional.avg_pool1d(wave.unsqueeze(1), 2)[:, 0], hop // 2
    window = torch.hann_window(WINDOW, device=wave.device)
    padded = torch.nn.functional.pad(wave, (WINDOW // 2 - hop, WINDOW // 2))
    frames = padded.unfold(1, WINDOW, hop)[:, :count]
    frames = (frames - frames.mean(-1, keepdim=True)) * window
    size = 1_024  # holds the window and the longest lag
    correlation = torch.fft.irfft(torch.fft.rfft(frames, size).abs().square(), size)
    reference = torch.fft.irfft(torch.fft.rfft(window, size).abs().square(), size)
    shortest, longest = int(RATE / HIGHEST), int(RATE / LOWEST)
    energy = correlation[..., :1]
    loud = energy[..., 0] > 1e-4 * energy.amax(dim=(1, 2)).clamp_min(1e-3).unsqueeze(1)
    lags = torch.arange(shortest - 1, longest + 2, device=wave.device)
    normal = correlation[..., lags] / energy.clamp_min(1e-9) * (reference[0] / reference[lags])
    middle = normal[..., 1:-1]
    peaked = (middle > normal[..., :-2]) & (middle >= normal[..., 2:])
    cost = OCTAVE_COST * torch.log2(lags[1:-1] / shortest)
    best = torch.where(peaked, middle - cost, -1.0).argmax(-1, keepdim=True)
    left, top, right = (normal.gather(-1, best + shift)[..., 0] for shift in (0, 1, 2))
    offset = 0.5 * (left - right) / (left - 2 * top + right).clamp_max(-1e-6)
    hertz = RATE / (best[..., 0] + shortest + offset.clamp(-0.5, 0.5))
    voiced = loud & (top > VOICED)
    return _bridged(_smoothed(hertz, voiced), voiced), voiced


def _smoothed(hertz: Tensor, voiced: Tensor) -> Tensor:
    """Each frame's median with its four neighbours: single wrong octaves go."""
    filled = torch.where(voiced, hertz, torch.nan)
    around = torch.nn.functional.pad(filled, (2, 2), value=torch.nan).unfold(1, 5, 1)
    return torch.where(voiced, around.nanmedian(-1).values, hertz)


def _bridged(hertz: Tensor, voiced: Tensor) -> Tensor:
    """Straight lines (in octaves) between voiced frames; their edge values outside; 150 Hz where nothing is voiced."""
    at = torch.arange(hertz.shape[1], device=hertz.device).expand_as(hertz)
    before = torch.where(voiced, at, -1).cummax(1).values
    after = torch.where(voiced, at, hertz.shape[1]).flip(1).cummin(1).values.flip(1)
    left = torch.where(before >= 0, before, after.clamp_max(hertz.shape[1] - 1))
    right = torch.where(after < hertz.shape[1], after, before.clamp_min(0))
    octaves = hertz.log2()
    share = ((at - left) / (right - left).clamp_min(1)).clamp(0, 1)
    line = octaves.gather(1, left) * (1 - share) + octaves.gather(1, right) * share
    return torch.where(voiced.any(1, keepdim=True), line.exp2(), 150.0)
