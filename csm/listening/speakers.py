"""Who speaks: how alike two voices are, and whether a recording holds more than one; no part of making sound."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE
from csm.errors import InputError

_RATE = 16_000  # Hz, what the encoder listens to
_SHORTEST = _RATE // 4  # samples; less than this has no voice to compare


class SpeakerSimilarity:
    """How alike two voices are: the cosine of Resemblyzer's embeddings (GE2E, Wan et al. 2018).

    Between Flite's voices: 0.86 to 0.93 for two sentences in one voice, 0.52 to 0.67 for two voices.
    """

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its dependencies are old and say so
                from resemblyzer import VoiceEncoder, preprocess_wav
        except ImportError as error:
            raise InputError(
                "The speaker similarity needs Resemblyzer: run `pip install resemblyzer 'setuptools<80'`."
            ) from error
        self._encoder = VoiceEncoder("cpu", verbose=False)
        self._prepare = preprocess_wav

    def embed(self, wave: Tensor) -> np.ndarray | None:
        """Unit vector (256,) of float32 (num_samples,) at 24 kHz; None when there is no speech in it."""
        samples = resample(wave.detach().to("cpu", torch.float32), SAMPLE_RATE, _RATE).numpy()
        if samples.size < _SHORTEST or not np.any(samples):
            return None
        speech = self._prepare(samples)
        return self._encoder.embed_utterance(speech) if speech.size >= _SHORTEST else None

    def pieces(self, wave: Tensor) -> np.ndarray:
        """Unit vectors (pieces, 256) of the 1.6 s windows of speech in `wave`, about one every 0.4 s."""
        samples = resample(wave.detach().to("cpu", torch.float32), SAMPLE_RATE, _RATE).numpy()
        speech = self._prepare(samples) if samples.size >= _SHORTEST and np.any(samples) else samples[:0]
        if speech.size < _SHORTEST:
            return np.zeros((0, 256), dtype=np.float32)
        return self._encoder.embed_utterance(speech, return_partials=True, rate=2.5)[1]

    def __call__(self, wave: Tensor, other: Tensor) -> float | None:
        """Between 0 and 1; None when one of the two holds no speech."""
        return cosine(self.embed(wave), self.embed(other))


def cosine(one: np.ndarray | None, other: np.ndarray | None) -> float | None:
    """The cosine of two unit vectors; None when one is missing."""
    return None if one is None or other is None else float(np.dot(one, other))


def unity(pieces: np.ndarray) -> float:
    """How much one voice the windows of a recording are: the cosine of the means of its two halves, where they are
    cut into the two most different groups. 1 for fewer than eight windows, which are too few to tell.

    pieces: unit vectors (windows, 256), as `SpeakerSimilarity.pieces` gives them.
    """
    if len(pieces) < 8:
        return 1.0
    alike = pieces @ pieces.T
    first, second = np.unravel_index(alike.argmin(), alike.shape)
    centres = pieces[[first, second]]
    for _ in range(10):  # two means on the sphere
        nearer = (pieces @ centres.T).argmax(axis=1)
        if min((nearer == 0).sum(), (nearer == 1).sum()) < 2:
            return 1.0
        centres = np.stack([pieces[nearer == side].mean(axis=0) for side in (0, 1)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return float(centres[0] @ centres[1])
