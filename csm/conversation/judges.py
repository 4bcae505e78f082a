"""Those who listen to takes, where they are installed: a recogniser for the words, an encoder for the voice.

They come with the packages of the evaluation; without them takes are judged by how they end, how long they are, and
whether anything is to be heard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache

import numpy as np
from torch import Tensor

from csm.config import Environment
from csm.conversation.takes import NOBODY, Judges, codes_key
from csm.errors import InputError
from csm.listening import recogniser
from csm.listening.speakers import SpeakerSimilarity, cosine
from csm.listening.words import word_error_rate
from csm.spoken import spoken

REMEMBERED = 32  # recordings whose voice is kept in mind


def installed_judges() -> Judges:
    """The judges that this machine has; loading them takes seconds, so keep them. Never raises."""
    return Judges(_words(), _likeness())


def installed_listener() -> Judges:
    """The recogniser alone, which hears every turn where there is one. Never raises."""
    return Judges(_words())


class LazyJudges:
    """The judges of takes that are installed here, loaded when somebody first wants several takes; the recogniser alone
    where there is time to `listen` to every turn."""

    def __init__(
        self,
        load: Callable[[], Judges] = installed_judges,
        listener: Callable[[], Judges] = installed_listener,
    ) -> None:
        self._load, self._listener = load, listener
        self._judges: Judges | None = None
        self._listening: Judges | None = None
        self._lock = threading.Lock()

    def get(self) -> Judges:
        with self._lock:
            if self._judges is None:
                self._judges = self._load()
            return self._judges

    @property
    def listening(self) -> Judges:
        """Who hears every turn: nobody before `listen`."""
        return self._listening or NOBODY

    def listen(self) -> None:
        """Hear every turn from now on, unless nobody is to (`CSM_LISTEN=0`)."""
        if Environment.read().listen:
            with self._lock:
                self._listening = self._listening or self._listener()


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


@cache
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
