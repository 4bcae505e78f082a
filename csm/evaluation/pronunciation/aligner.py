"""The judge: an acoustic model that hears how well speech fits a sentence whose one word is said in one way or another.

PocketSphinx (Huggins-Daines et al. 2006) brings its English model and CMU's dictionary in its wheel, so it works
offline. The whole sentence is aligned twice, once with each pronunciation, and the one that fits better is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.evaluation.pronunciation.lists import Choice, words_of
from csm.evaluation.pronunciation.phones import unstressed
from csm.extras import install

RATE = 16_000  # Hz, what the model listens to
SHORTEST = SAMPLE_RATE // 4  # samples; less than this holds no sentence
DITHER = {"dither": True, "seed": 1}  # a synthesiser's silence is all zeros, which no model of speech has heard
BEAMS = {"beam": 1e-120, "wbeam": 1e-100, "pbeam": 1e-120}  # wide: the way that fits worse must survive, too


class Aligner:
    """The judge of pronunciations, on one thread. Raises `InputError` where PocketSphinx is missing."""

    name = "pocketsphinx"

    def __init__(self) -> None:
        try:
            import pocketsphinx
        except ImportError as error:
            raise InputError(f"The judge of pronunciations needs pocketsphinx: run `{install('evaluate')}`.") from error
        self._decoder: Any = pocketsphinx.Decoder(lm=None, loglevel="FATAL", **DITHER, **BEAMS)
        self._known: set[str] = set()

    def knows(self, words: Sequence[str]) -> bool:
        """Whether all of them are in the dictionary."""
        return all(self._decoder.lookup_word(word) for word in words)

    def margin(self, wave: Tensor, choice: Choice) -> float | None:
        """How much better float32 (num_samples,) at 24 kHz fits the choice's second way than its first, in the
        model's own units. None where the sentence can't be found in it."""
        before, after = (words_of(part) for part in choice.around())
        if wave.numel() < SHORTEST or not self.knows([*before, *after]):
            return None
        samples = resample(wave.detach().to("cpu", torch.float32), SAMPLE_RATE, RATE).numpy()
        pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()
        first, second = (self._fit(pcm, [*before, self._named(way), *after]) for way in choice.ways)
        return None if first is None or second is None else second - first

    def _named(self, way: str) -> str:
        """A word of the dictionary that is said `way`."""
        name = unstressed(way).replace(" ", "_").lower() + "_"
        if name not in self._known:
            self._decoder.add_word(name, unstressed(way), False)
            self._known.add(name)
        return name

    def _fit(self, pcm: bytes, words: Sequence[str]) -> float | None:
        decoder = self._decoder
        decoder.set_align_text(" ".join(words))
        decoder.start_utt()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return math.log(found.score) if found is not None and found.score > 0 else None


def chosen(margin: float | None) -> int | None:
    """The way that was heard, 0 or 1; None where nothing was."""
    return None if margin is None else int(margin > 0)
