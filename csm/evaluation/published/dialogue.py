"""Figures of dialogues: cpWER (Watanabe et al. 2020, CHiME-6) and cpSIM, as papers on spoken dialogues give them.

Speech is sorted by who is heard in it, and each heard speaker is paired with a written one so that the figure is best:
a model that mixes its speakers up within a dialogue can't hide behind right words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

from rapidfuzz.distance import Levenshtein

from csm.listening.words import comparable


def cp_word_error_rate(written: Sequence[str], heard: Sequence[str | None]) -> float | None:
    """Concatenated minimum-permutation word error rate: all that each speaker had to say against all that was heard of
    each, paired so that the errors are fewest. None where nobody listened, or there was no word.

    Raises `ValueError` for different numbers of speakers.
    """
    if len(written) != len(heard):
        raise ValueError(f"{len(written)} speakers were written and {len(heard)} heard.")
    references, hypotheses = [comparable(text) for text in written], [comparable(text or "") for text in heard]
    words = sum(map(len, references))
    if not words or None in heard:
        return None
    errors = min(
        sum(Levenshtein.distance(reference, hypothesis) for reference, hypothesis in zip(references, order))
        for order in permutations(hypotheses)
    )
    return errors / words


def cp_similarity(likeness: Sequence[Sequence[float | None]]) -> float | None:
    """Concatenated maximum-permutation similarity: the mean of `likeness` (heard speakers, prompts), paired so that it
    is largest. A speaker who was never heard is like nobody: 0. None where nothing was judged."""
    if not any(value is not None for row in likeness for value in row):
        return None
    return max(
        sum(row[place] or 0.0 for row, place in zip(likeness, order)) / len(likeness)
        for order in permutations(range(len(likeness)))
    )
