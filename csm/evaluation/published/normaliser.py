"""The text normaliser that published word error rates were counted with: Whisper's for English, where it is installed.

Without it words are compared as everywhere in this program (`csm/listening/words.py`), and the figures say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from rapidfuzz.distance import Levenshtein

from csm.listening.words import comparable


@dataclass(frozen=True)
class Normaliser:
    """`words` gives the words of a text as they are compared; `name` stands beside the figures."""

    name: str
    words: Callable[[str], list[str]]


def normaliser() -> Normaliser:
    """Whisper's (PyPI's `whisper-normalization`, or with `openai-whisper`), else this program's own."""
    for package in ("whisper_normalization", "whisper.normalizers"):
        try:
            module = import_module(package)
        except ImportError:
            continue
        return _whispers(module.EnglishTextNormalizer())
    return Normaliser("own", comparable)


def _whispers(normalise: Callable[[str], str]) -> Normaliser:
    return Normaliser("Whisper's English", lambda text: normalise(text).split())


def rates(written: Sequence[str], heard: Sequence[str], words: Callable[[str], list[str]]) -> tuple[float, float]:
    """Word error rates as two communities count them: over all words, and the mean over sentences (Seed-TTS-eval).

    Raises `ValueError` when there is no word in `written`.
    """
    pairs = [(words(one), words(other)) for one, other in zip(written, heard, strict=True)]
    pairs = [(reference, hypothesis) for reference, hypothesis in pairs if reference]
    if not pairs:
        raise ValueError("There is no word in the references.")
    errors = [Levenshtein.distance(reference, hypothesis) for reference, hypothesis in pairs]
    sizes = [len(reference) for reference, _ in pairs]
    return sum(errors) / sum(sizes), sum(error / size for error, size in zip(errors, sizes)) / len(sizes)
