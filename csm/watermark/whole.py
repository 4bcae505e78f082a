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
PIECE = 20 * SAMPLE_RATE  # so much is marked or listened to at a time
AROUND = 32 * HOP  # what is seen around it while marking: 15 windows by the network, 4 that reach beyond, 7 that add up
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
    if not len(wave) or max(-float(wave.min()), float(wave.max())) < SILENCE:
        return wave.clamp(-1.0, 1.0)
    padded = F.pad(wave, (0, SHORTEST - len(wave))) if len(wave) < SHORTEST else wave
    marked = with_mark(encoder, padded)[: len(wave)]
    # The mark adds up to 2 dB; the detector does not mind the gain that takes them back.
    return marked.mul_(wave.norm() / marked.norm()).clamp_(-1.0, 1.0)


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
    """float32 (num_samples,), at least a window long, with the mark added, which makes it up to 2 dB louder.

    Long sound is marked a piece at a time, each between what the windows and the network see of its neighbours: what
    is added does not depend on the pieces, rounding aside, and of an hour no more is in memory than the sound.
    """
    count = max(1, round(len(wave) / PIECE))
    size = -(-len(wave) // count // HOP) * HOP
    pieces = [_Piece.of(wave, begin, begin + size) for begin in range(0, len(wave), size)]
    loudest = None if len(pieces) == 1 else max(float(one.sums().max()) for one in pieces)
    marked = torch.empty_like(wave)
    for at, one in enumerate(pieces):
        marked[at * size : (at + 1) * size] = one.marked(encoder, loudest)
    return marked


@dataclass(frozen=True)
class _Piece:
    """Samples of a sound with those `before` and `after` them that have a say in what is added."""

    wave: Tensor
    before: int
    after: int

    @classmethod
    def of(cls, wave: Tensor, begin: int, end: int) -> _Piece:
        end = min(end, len(wave))
        before, after = min(begin, AROUND), min(len(wave) - end, AROUND)
        return cls(wave[begin - before : end + after], before, after)

    def sums(self) -> Tensor:
        """Of the decibels of each of its own windows."""
        sums = normalised(spectrum_of(self.wave)).sum(dim=0)
        return sums[self.before // HOP : len(sums) - self.after // HOP]

    def marked(self, encoder: nn.Module, loudest: float | None) -> Tensor:
        """The samples without those around them, (num_samples,); `loudest` of the whole sound's windows, if others
        belong to it."""
        wave, spectrum = self.wave, spectrum_of(self.wave)
        seen = normalised(spectrum)
        target = seen[:BINS] + encoder(seen[None, :BINS])[0] * sounding(seen, loudest)
        change = torch.zeros_like(spectrum)
        change[:BINS] = torch.polar(magnitude(target), spectrum[:BINS].angle()) - spectrum[:BINS]
        # Reconstruction needs whole hops: what the last, partial hop lacks is padded with no change at all.
        whole = (len(wave) // HOP) * HOP
        added = torch.istft(change, WINDOW, HOP, window=hann(), length=whole)
        marked = wave + F.pad(added, (0, len(wave) - whole))
        return marked[self.before : len(marked) - self.after]


def _confidence(decoder: nn.Module, piece: Tensor) -> float:
    if not len(piece) or float(piece.abs().max()) < SILENCE:
        return 0.0
    seen = normalised(spectrum_of(F.pad(piece, (0, max(0, SHORTEST - len(piece))))))
    return float(decoder(seen[None, :BINS], sounding(seen)[None, None]).clamp(0.0, 1.0))
