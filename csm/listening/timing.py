"""When each word of a turn is heard: its text laid along its sound, for whoever highlights words while they play.

PocketSphinx (Huggins-Daines et al. 2006) aligns the words it is told with a general acoustic model; words that its
dictionary lacks are spelled out to it by rule. Where it isn't installed, or finds no way through, words have their
share of the sounding part by their letters, which is rougher.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE
from csm.spoken import spoken

RATE = 16_000  # Hz, what PocketSphinx listens to
STEP = 0.01  # seconds of one of its frames
WINDOW = 240  # samples: the 10 ms over which loudness is judged
QUIET = 0.03  # of the loudest window: below it nothing sounds

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|\d+")
# Spelling to sound, longest first; rough, and enough to find where an unknown name begins and ends.
_SOUNDS = {
    "tion": "SH AH N", "igh": "AY", "tch": "CH", "sch": "SH", "ch": "CH", "sh": "SH", "th": "TH", "ph": "F",
    "ck": "K", "ng": "NG", "qu": "K W", "wh": "W", "ee": "IY", "ea": "IY", "oo": "UW", "ou": "AW", "ow": "OW",
    "ai": "EY", "ay": "EY", "oi": "OY", "oy": "OY", "au": "AO", "aw": "AO", "er": "ER", "ar": "AA R", "or": "AO R",
    "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH",
    "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH",
    "v": "V", "w": "W", "x": "K S", "y": "IY", "z": "Z",
}  # fmt: skip
_SPELLING = re.compile("|".join(sorted(_SOUNDS, key=len, reverse=True)))

Times = list[tuple[float, float]]  # start and end of each word, in seconds


@dataclass(frozen=True)
class TimedWord:
    """A word as it is written, or as it is said where one is written for several, and its seconds in the sound."""

    word: str
    start: float
    end: float


class WordTimes:
    """Finds words in sounds, for any thread. `align` gives the times of words, None where it finds no way."""

    def __init__(self, align: Callable[[Sequence[str], Tensor], Times | None] | None = None) -> None:
        self._align = align or (Aligner() if available() else None)

    def find(self, text: str, sound: Tensor) -> list[TimedWord]:
        """The words of `text`, said in float32 (num_samples,) at 24 kHz: in order, without overlaps, within it."""
        shown, said = _words(text)
        words = [word for group in said for word in group]
        if not words or not len(sound):
            return []
        times = (self._align(words, sound) if self._align else None) or by_letters(words, sound)
        found, at = [], 0
        for written, group in zip(shown, said):
            if group:
                found.append(TimedWord(written, times[at][0], times[at + len(group) - 1][1]))
            at += len(group)
        return found

    def __call__(self, text: str, sound: Tensor) -> list[tuple[str, float, float]]:
        """The same as plain data."""
        return [(word.word, word.start, word.end) for word in self.find(text, sound)]


def available() -> bool:
    """Whether PocketSphinx is installed."""
    return find_spec("pocketsphinx") is not None


class Aligner:
    """PocketSphinx with its own English model, loaded at the first use. For any thread, one at a time."""

    def __init__(self) -> None:
        self._decoder: Any = None
        self._guard = threading.Lock()

    def __call__(self, words: Sequence[str], sound: Tensor) -> Times | None:
        """The seconds of each word in float32 (num_samples,) at 24 kHz; None where they can't all be found."""
        with self._guard:
            decoder = self._loaded()
            try:
                for word in set(words):
                    if decoder.lookup_word(word) is None:
                        decoder.add_word(word, sounds_of(word), True)
                decoder.set_align_text(" ".join(words))
                decoder.start_utt()
                decoder.process_raw(_sixteen_bits(sound), full_utt=True)
                decoder.end_utt()
                found = [
                    (part.word.partition("(")[0], part.start_frame * STEP, (part.end_frame + 1) * STEP)
                    for part in decoder.seg() or ()
                ]
            except RuntimeError:
                return None
        seconds = len(sound) / SAMPLE_RATE
        times = [(min(start, seconds), min(end, seconds)) for word, start, end in found if word[:1] not in "<[+"]
        return times if len(times) == len(words) else None

    def _loaded(self) -> Any:
        if self._decoder is None:
            import pocketsphinx

            self._decoder = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL", lm=None)
        return self._decoder


def by_letters(words: Sequence[str], sound: Tensor) -> Times:
    """The sounding part of float32 (num_samples,), shared out by the words' letters."""
    windows = torch.nn.functional.pad(sound, (0, -len(sound) % WINDOW)).view(-1, WINDOW).square().mean(dim=1).sqrt()
    sounding = (windows > QUIET * windows.max()).nonzero().flatten()
    if not len(sounding):
        sounding = torch.arange(len(windows))
    ends = np.cumsum([0, *(len(word) + 1 for word in words)])
    places = sounding[np.clip(ends * len(sounding) // ends[-1], 0, len(sounding) - 1)].tolist()
    seconds = [place * WINDOW / SAMPLE_RATE for place in places[:-1]]
    seconds.append(min((places[-1] + 1) * WINDOW, len(sound)) / SAMPLE_RATE)
    return list(pairwise(seconds))


def sounds_of(word: str) -> str:
    """How a word may sound by its letters, in the phones of CMU's dictionary."""
    return " ".join(_SOUNDS[part] for part in _SPELLING.findall(word)) or "AH"


def _words(text: str) -> tuple[list[str], list[list[str]]]:
    """What is shown, and the words said for each: as it is written where that can be told, else as it is said."""
    whole = _WORD.findall(spoken(text).lower())
    shown = text.split()
    said = [_WORD.findall(spoken(token).lower()) for token in shown]
    if [word for group in said for word in group] != whole:
        shown, said = whole, [[word] for word in whole]
    return shown, said


def _sixteen_bits(sound: Tensor) -> bytes:
    wave = resample(sound, SAMPLE_RATE, RATE).clamp(-1, 1)
    return (wave * 32_767).round().to(torch.int16).numpy().tobytes()
