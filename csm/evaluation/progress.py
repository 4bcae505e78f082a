"""How far a long evaluation is: one line that is written over again at a terminal, and lines now and then in a file."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 30
PAUSE = 30.0  # seconds between lines where nobody watches


class Progress:
    """Counts `total` steps on `stream` (standard error)."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total, self.done = total, 0
        self._stream = stream or sys.stderr
        self._start = self._told = time.monotonic()
        self._spoken = 0

    def step(self, what: str, kept: bool = False) -> None:
        """One more is done; `kept`: it was there before, and says nothing about how long the others take."""
        self.done += 1
        self._spoken += not kept
        now = time.monotonic()
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{self.line(what, now)}" + ("\n" if self.done == self.total else ""))
            self._stream.flush()
        elif now - self._told >= PAUSE or self.done == self.total:
            self._stream.write(f"{self.line(what, now)}\n")
            self._stream.flush()
            self._told = now

    def line(self, what: str, now: float) -> str:
        """`[####    ] 12/40 sentences, 3 min left`."""
        filled = round(WIDTH * self.done / max(1, self.total))
        left = ""
        if self._spoken and self.done < self.total:
            seconds = (now - self._start) / self._spoken * (self.total - self.done)
            left = f", {seconds / 60:.0f} min left" if seconds >= 60 else f", {seconds:.0f} s left"
        return f"[{'#' * filled}{' ' * (WIDTH - filled)}] {self.done}/{self.total} {what}{left}"
