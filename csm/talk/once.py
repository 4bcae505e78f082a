"""Something that is worked out once, by whoever asks for it first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """What `work` returns, or raises, for any thread: those who ask while it is worked out wait."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work, self._guard = work, threading.Lock()
        self._found: list[T] = []

    def get(self) -> T:
        """What it is."""
        with self._guard:
            if not self._found:
                self._found.append(self._work())
            return self._found[0]
