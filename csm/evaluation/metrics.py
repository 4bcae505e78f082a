"""The figures of merit of generated speech: words heard wrong, likeness of the voice, naturalness.

All of them look at finished waveforms. The two learned judges are other people's small networks
(Resemblyzer, DistillMOS); they are imported when first used, since only the evaluation needs them.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from num2words import num2words
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE
from csm.errors import InputError

_RATE = 16_000  # Hz, what both judges listen to
_SHORTEST = _RATE // 4  # samples; less than this has no voice to compare

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|\d+(?:st|nd|rd|th)?")
# One word, two spellings: hearing it right must not count as an error.
_SPELLINGS = {
    "ok": "okay",
    "cancelled": "canceled",
    "colour": "color",
    "favourite": "favorite",
    "grey": "gray",
    "neighbour": "neighbor",
}
_COMPOUND = re.compile(r"\b(some|any|every|no) (body)\b|\b(some|any|every) (one)\b")


def normalise(text: str) -> list[str]:
    """The words of `text` as they are compared: lower-case, no punctuation, whole numbers (20th, too)
    spelled out, contractions kept as one word, two spellings of a word ("some one", "cancelled") made one."""
    text = text.lower().replace("\u2019", "'").replace("\u02bc", "'")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = _COMPOUND.sub(lambda match: match[0].replace(" ", ""), text)
    words: list[str] = []
    for word in _WORD.findall(text):
        words += _spell(word) if word[0].isdigit() else [_SPELLINGS.get(word, word)]
    return words


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Substitutions, deletions and insertions over all sentences, divided by all words of the references.

    0.25 is one word in four. More than 1 is possible: a hypothesis can be longer than its reference.
    Raises `ValueError` when the lists differ in length or the references hold no word.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references do not match {len(hypotheses)} hypotheses.")
    pairs = [(normalise(reference), normalise(hypothesis)) for reference, hypothesis in zip(references, hypotheses)]
    words = sum(len(reference) for reference, _ in pairs)
    if not words:
        raise ValueError("There is no word in the references.")
    return sum(_edits(reference, hypothesis) for reference, hypothesis in pairs) / words


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

    def __call__(self, wave: Tensor, other: Tensor) -> float | None:
        """Between 0 and 1; None when one of the two holds no speech."""
        return cosine(self.embed(wave), self.embed(other))


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


def cosine(one: np.ndarray | None, other: np.ndarray | None) -> float | None:
    """The cosine of two unit vectors; None when one is missing."""
    return None if one is None or other is None else float(np.dot(one, other))


def _spell(number: str) -> list[str]:
    digits = number.rstrip("dhnrst")
    if len(digits) > 12:  # nobody says it, and a recogniser that repeats itself may write it
        return [number]
    words = num2words(int(digits), to="cardinal" if digits == number else "ordinal")
    return [word for word in re.findall("[a-z]+", words) if word != "and"]


def _edits(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein distance between two lists of words."""
    previous = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, 1):
        row = [i]
        for j, heard in enumerate(hypothesis, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (word != heard)))
        previous = row
    return previous[-1]
