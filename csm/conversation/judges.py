"""Those who listen to takes, where they are installed: a recogniser for the words, an encoder for the voice.

They come with the packages of the evaluation; without them takes are compared by how they end and how long they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from torch import Tensor

from csm.conversation.takes import Judges, codes_key
from csm.errors import InputError
from csm.listening import recogniser
from csm.listening.speakers import SpeakerSimilarity, cosine
from csm.listening.words import word_error_rate
from csm.spoken import spoken

REMEMBERED = 32  # recordings whose voice is kept in mind


def installed_judges() -> Judges:
    """The judges that this machine has; loading them takes seconds, so keep them. Never raises."""
    return Judges(_words(), _likeness())


class LazyJudges:
    """The judges of takes that are installed here, loaded when somebody first wants several takes."""

    def __init__(self, load: Callable[[], Judges] = installed_judges) -> None:
        self._load = load
        self._judges: Judges | None = None
        self._lock = threading.Lock()

    def get(self) -> Judges:
        with self._lock:
            if self._judges is None:
                self._judges = self._load()
            return self._judges


class _Words:
    def __init__(self, engine: recogniser.Recogniser) -> None:
        self._engine = engine
        self._one_at_a_time = threading.Lock()

    def __call__(self, audio: Tensor, text: str) -> float | None:
        """The share of words heard wrong; None for a text without any."""
        try:
            with self._one_at_a_time:
                heard = self._engine.transcribe(audio)
            return min(1.0, word_error_rate([spoken(text)], [spoken(heard)]))
        except ValueError:
            return None


class _Likeness:
    def __init__(self, similarity: SpeakerSimilarity) -> None:
        self._similarity = similarity
        self._prompts: dict[str, np.ndarray | None] = {}
        self._one_at_a_time = threading.Lock()

    def __call__(self, audio: Tensor, prompt: Tensor) -> float | None:
        key = codes_key(prompt.mul(32_767).round())
        with self._one_at_a_time:
            if key not in self._prompts:
                if len(self._prompts) >= REMEMBERED:
                    self._prompts.clear()
                self._prompts[key] = self._similarity.embed(prompt)
            return cosine(self._similarity.embed(audio), self._prompts[key])


def _words() -> _Words | None:
    try:
        return _Words(recogniser.pick())
    except (InputError, ImportError, OSError, RuntimeError):
        return None


def _likeness() -> _Likeness | None:
    try:
        return _Likeness(SpeakerSimilarity())
    except (InputError, ImportError, OSError, RuntimeError):
        return None
