"""The figures of merit of generated speech: words heard wrong, likeness of the voice, naturalness.

All of them look at finished waveforms. Words and voices are compared by `csm.listening`; the judge of naturalness
is another small network (DistillMOS), imported when first used, since only the evaluation needs it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.listening.speakers import SpeakerSimilarity, cosine
from csm.listening.words import comparable, word_error_rate

__all__ = ["Naturalness", "SpeakerSimilarity", "comparable", "cosine", "mean", "word_error_rate"]

_RATE = 16_000  # Hz, what the judge listens to
_SHORTEST = _RATE // 4  # samples; less than this can't be judged


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of what was judged; None when nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


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
