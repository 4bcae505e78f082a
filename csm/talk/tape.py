"""The sound of a talk that came and is still of use."""

from __future__ import annotations

import numpy as np


class Tape:
    """The sound that came and is still of use, by the number of each sample since the talk began."""

    def __init__(self) -> None:
        self.end = 0
        self._waves: list[np.ndarray] = []

    def add(self, wave: np.ndarray) -> None:
        """float32 (num_samples,) at 24 kHz."""
        self._waves.append(wave)
        self.end += len(wave)

    @property
    def start(self) -> int:
        """The first sample that is still there."""
        return self.end - sum(map(len, self._waves))

    def cut(self, start: int, end: int) -> np.ndarray:
        """The samples from `start` to `end`, as far as they are there."""
        first = self.start
        whole = np.concatenate(self._waves) if self._waves else np.zeros(0, dtype=np.float32)
        return whole[max(0, start - first) : max(0, end - first)]

    def forget(self, before: int) -> None:
        """Let go what lies before a sample, as far as whole waves do."""
        start = self.start
        while self._waves and start + len(self._waves[0]) <= before:
            start += len(self._waves.pop(0))
