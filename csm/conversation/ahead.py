"""What a job tells, taken down at the model's own pace, for one who follows it at theirs: between the studio and
whoever shows it. A listener who reads slowly holds up nobody, and one who has gone ends the work within a frame."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch

from csm.config import SAMPLE_RATE
from csm.conversation.events import TurnChunk
from csm.conversation.studio import Job
from csm.errors import InputError
from csm.limits import SILENT_SECONDS

MOST_HELD = 60 * SAMPLE_RATE  # samples in memory that nobody has taken; what comes after them waits on the disk
SILENT = "Nobody took the sound for {:.0f} seconds, so the speaking was stopped."


@dataclass(frozen=True)
class _Laid:
    """Sound of turn `index` that waits on the disk, as the 16 bits in which it will leave."""

    index: int
    at: int
    samples: int


class Ahead:
    """The `updates` of one job, made in a thread of their own as fast as they come; `take` gives them in order.

    `within` calls a function where the updates are made, such as in a context. `wake` is called from that thread
    whenever there is something to take.
    """

    def __init__(
        self,
        updates: Iterator[Any],
        job: Job,
        within: Callable[[Callable[[], None]], None] = lambda work: work(),
        wake: Callable[[], None] = lambda: None,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._updates, self._job, self._wake, self._silent = updates, job, wake, silent_seconds
        self._guard = threading.Lock()
        self._ready: deque[Any] = deque()
        self._held = 0  # samples
        self._file: IO[bytes] | None = None
        self._left = self._over = False
        self._error: BaseException | None = None
        self._taken = time.monotonic()
        self._thread = threading.Thread(target=within, args=(self._perform,), name="speech", daemon=True)
        self._thread.start()

    def take(self) -> tuple[bool, Any]:
        """(whether there is something, what it is). Raises what the job did when all before it is taken, and
        `StopIteration` at the end."""
        with self._guard:
            self._taken = time.monotonic()
            if not self._ready:
                if not self._over:
                    return False, None
                if self._error is not None:
                    raise self._error
                raise StopIteration
            update = self._ready.popleft()
            if isinstance(update, TurnChunk):
                self._held -= len(update.audio)
            return True, self._read(update) if isinstance(update, _Laid) else update

    def leave(self) -> None:
        """Nobody takes anything any more: the job ends at its next frame, and its folder goes."""
        with self._guard:
            self._left = True
            self._ready.clear()
            over = self._over
        self._job.stop()
        if over:
            self._clear()

    def _perform(self) -> None:
        try:
            for update in self._updates:
                with self._guard:
                    if self._left:
                        break
                    self._ready.append(self._lay(update) if isinstance(update, TurnChunk) else update)
                    if len(self._ready) > 1 and time.monotonic() - self._taken > self._silent:
                        self._left = True
                        self._ready.clear()
                        raise InputError(SILENT.format(self._silent), "silent")
                self._wake()
        except BaseException as error:
            self._error = error
        finally:
            if (close := getattr(self._updates, "close", None)) is not None:
                close()
            with self._guard:
                self._over, left = True, self._left
            self._wake()
            if left:
                self._clear()

    def _lay(self, chunk: TurnChunk) -> TurnChunk | _Laid:
        if self._held + len(chunk.audio) <= MOST_HELD:
            self._held += len(chunk.audio)
            return chunk
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._job.folder)
        at = self._file.seek(0, 2)
        self._file.write(_sixteen_bits(chunk.audio.numpy()).tobytes())
        return _Laid(chunk.index, at, len(chunk.audio))

    def _read(self, laid: _Laid) -> TurnChunk:
        assert self._file is not None
        self._file.seek(laid.at)
        samples = np.frombuffer(self._file.read(2 * laid.samples), np.int16)
        return TurnChunk(laid.index, torch.from_numpy(samples.astype(np.float32) / 32_767))

    def _clear(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._job.folder is not None:
            shutil.rmtree(self._job.folder, ignore_errors=True)


def _sixteen_bits(wave: np.ndarray) -> np.ndarray:
    return np.round(wave.clip(-1.0, 1.0) * 32_767).astype(np.int16)
