"""The figures of merit of generated speech: words heard wrong, likeness of the voice, naturalness.

All of them look at finished waveforms. Words and voices are compared by `csm.listening`; the judge of naturalness
is another small network (DistillMOS), imported when first used, since only the evaluation needs it.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.listening.speakers import SpeakerSimilarity, cosine
from csm.listening.words import comparable, word_error_rate

__all__ = [
    "Naturalness",
    "SpeakerSimilarity",
    "comparable",
    "cosine",
    "error_rate",
    "interval",
    "mean",
    "rounded",
    "word_error_rate",
]

_RATE = 16_000  # Hz, what the judge listens to
_SHORTEST = _RATE // 4  # samples; less than this can't be judged


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what was judged; None when nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def rounded(value: float | None) -> float | None:
    """A figure as it is printed, to three digits; None when nothing was judged."""
    return None if value is None else round(value, 3)


def error_rate(written: Sequence[str], heard: Sequence[str | None]) -> float | None:
    """The word error rate over all sentences; None where nobody listened, or there was no word."""
    known = [words for words in heard if words is not None]
    if len(known) < len(heard) or not any(comparable(text) for text in written):
        return None
    return word_error_rate(written, known)


def interval(hits: int, count: int) -> tuple[float, float] | None:
    """The 95 % interval of a share (Wilson 1927); None where nothing was counted."""
    if not count:
        return None
    z, share = 1.959964, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


class Naturalness:
    """A listener's mean opinion score from 1 to 5, as guessed by DistillMOS (Stahl and Gamper 2025)."""

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints its path
                warnings.simplefilter("ignore")
                from distillmos import ConvTransformerSQAModel

                self._model = ConvTransformerSQAModel().eval()
        except ImportError as error:
            raise InputError("The naturalness score needs DistillMOS: run `pip install distillmos`.") from error

    @torch.inference_mode()
    def __call__(self, wave: Tensor) -> float | None:
        """The score of float32 (num_samples,) at 24 kHz; None when it is too short to judge."""
        samples = resample(wave.detach().to("cpu", torch.float32), SAMPLE_RATE, _RATE)
        return float(self._model(samples[None]).mean()) if samples.numel() >= _SHORTEST else None
