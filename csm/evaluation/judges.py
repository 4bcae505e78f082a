"""Those who listen to what the model says: a recogniser, and where they are installed, judges of voice and sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from csm.errors import InputError
from csm.evaluation.metrics import Naturalness, SpeakerSimilarity
from csm.listening import recogniser as recognisers
from csm.listening.recogniser import Recogniser

Report = Callable[[str], None]


@dataclass(frozen=True)
class Judges:
    """Those who listen; what somebody who is not there would say is None."""

    recogniser: Recogniser | None
    similarity: SpeakerSimilarity | None = None
    naturalness: Naturalness | None = None

    @classmethod
    def load(cls, recogniser: str | None = None, report: Report = print) -> Judges:
        """The recogniser by name (None: the best installed) and the others, those that are installed; who is missing
        is reported. Raises `InputError` when the recogniser that is named is not there."""
        optional: list[Any] = []
        for judge in (SpeakerSimilarity, Naturalness):
            try:
                optional.append(judge())
            except InputError as error:
                optional.append(None)
                report(f"Left out: {error}")
        try:
            words = recognisers.pick(recogniser)
        except InputError as error:
            if recogniser:
                raise
            words = None
            report(f"Left out: whatever takes a recogniser. {error}")
        return cls(words, *optional)

    @property
    def names(self) -> dict[str, str | None]:
        """Who listens, as it stands beside the figures."""
        return {
            "words": self.recogniser.name if self.recogniser else None,
            "voices": "resemblyzer" if self.similarity else None,
            "naturalness": "distillmos" if self.naturalness else None,
        }

    def hear(self, wave: Tensor) -> str | None:
        return self.recogniser.transcribe(wave) if self.recogniser else None

    def embed(self, wave: Tensor) -> np.ndarray | None:
        return self.similarity.embed(wave) if self.similarity else None

    def rate(self, wave: Tensor) -> float | None:
        return self.naturalness(wave) if self.naturalness else None
