"""The mark on a sound that is complete, and the search for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import SAMPLE_RATE
from csm.watermark.networks import networks
from csm.watermark.spectra import BINS, HOP, WINDOW, checked, hann, magnitude, normalised, sounding, spectrum_of

SHORTEST = SAMPLE_RATE  # shorter sound is padded to this much while it is marked
SILENCE = 1e-4  # peak below which there is nothing that could carry a mark
PIECE = 20 * SAMPLE_RATE  # detection listens to this much at a time
THRESHOLD = 0.6  # of 290 unmarked clips the highest read 0.39, of 40 marked ones the lowest 0.78 (as MP3 at 32 kbit/s)


@dataclass(frozen=True)
class Detection:
    """Whether a sound carries the mark; `confidence` runs from 0 (no mark) to 1."""

    marked: bool
    confidence: float


@torch.inference_mode()
def mark(wave: Tensor) -> Tensor:
    """float32 (num_samples,) at 24 kHz -> the same with the mark: same length and level, within [-1, 1], on the CPU.

    Mark a sound once, when it is complete. Silence comes back as it was; in much less than a second of speech the
    mark is there but may be too short to be found. Raises `RuntimeError` when `resemble-perth` is not installed:
    nothing leaves unmarked by accident.
    """
    wave = checked(wave)
    encoder, _ = networks()
    if not len(wave) or float(wave.abs().max()) < SILENCE:
        return wave.clamp(-1.0, 1.0).clone()
    marked = with_mark(encoder, F.pad(wave, (0, max(0, SHORTEST - len(wave)))))[: len(wave)]
    # The mark adds up to 2 dB; the detector does not mind the gain that takes them back.
    return (marked * (wave.norm() / marked.norm())).clamp(-1.0, 1.0)


@torch.inference_mode()
def detect(wave: Tensor, given_up: Callable[[], bool] = lambda: False) -> Detection:
    """Look for the mark in float32 (num_samples,) at 24 kHz, 20 seconds at a time; the surest piece counts, so that
    a marked passage inside a long recording is found. Silence has no mark; steady tones, unlike speech, can read as
    marked without being so. When it is `given_up`, the pieces so far are all that counts."""
    wave = checked(wave)
    _, decoder = networks()
    count = max(1, round(len(wave) / PIECE))
    confidence = 0.0
    for piece in wave.tensor_split(count):
        if given_up():
            break
        confidence = max(confidence, _confidence(decoder, piece))
    return Detection(confidence >= THRESHOLD, confidence)


def with_mark(encoder: nn.Module, wave: Tensor) -> Tensor:
    """float32 (num_samples,), at least a window long, with the mark added, which makes it up to 2 dB louder."""
    spectrum = spectrum_of(wave)
    seen = normalised(spectrum)
    target = seen[:BINS] + encoder(seen[None, :BINS])[0] * sounding(seen)
    change = torch.zeros_like(spectrum)
    change[:BINS] = torch.polar(magnitude(target), spectrum[:BINS].angle()) - spectrum[:BINS]
    # Reconstruction needs whole hops: what the last, partial hop lacks is padded with no change at all.
    whole = (len(wave) // HOP) * HOP
    added = torch.istft(change, WINDOW, HOP, window=hann(), length=whole)
    return wave + F.pad(added, (0, len(wave) - whole))


def _confidence(decoder: nn.Module, piece: Tensor) -> float:
    if not len(piece) or float(piece.abs().max()) < SILENCE:
        return 0.0
    seen = normalised(spectrum_of(F.pad(piece, (0, max(0, SHORTEST - len(piece))))))
    return float(decoder(seen[None, :BINS], sounding(seen)[None, None]).clamp(0.0, 1.0))
