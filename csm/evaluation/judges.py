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
    """Those who listen. Only the recogniser must be there; what the others would say is None without them."""

    recogniser: Recogniser
    similarity: SpeakerSimilarity | None = None
    naturalness: Naturalness | None = None

    @classmethod
    def load(cls, recogniser: str | None = None, report: Report = print) -> Judges:
        """The recogniser by name (None: the best installed) and the others where they are installed.

        Raises `InputError` when there is no recogniser.
        """
        optional: list[Any] = []
        for judge in (SpeakerSimilarity, Naturalness):
            try:
                optional.append(judge())
            except InputError as error:
                optional.append(None)
                report(f"Left out: {error}")
        return cls(recognisers.pick(recogniser), *optional)

    def embed(self, wave: Tensor) -> np.ndarray | None:
        return self.similarity.embed(wave) if self.similarity else None

    def rate(self, wave: Tensor) -> float | None:
        return self.naturalness(wave) if self.naturalness else None
