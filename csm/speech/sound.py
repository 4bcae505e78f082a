"""The sound of a turn while its frames come: decoded in growing chunks, brought to speed and marked on its way out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from csm.codec import Codec
from csm.engine import Engine
from csm.speech.tempo import Tempo
from csm.watermark import LiveMark

CHUNKS = 1, 1, 2, 4, 8  # frames of a turn's first chunks, and the last number of all that follow


def chunk_sizes() -> Iterator[int]:
    """How many frames are decoded at once, of a turn's first chunk and of those that follow: few where somebody waits
    for the first sound (live marking is four frames behind), more where the work of a chunk counts."""
    return itertools.chain(CHUNKS, itertools.repeat(CHUNKS[-1]))


class TurnSound:
    """The sound of one turn while its frames come: decoded as they do, on its way out at another speed or not, marked
    or not. `given` is what left, `unmarked` the same as it was decoded, at the model's own pace."""

    def __init__(self, codec: Codec, engine: Engine, marked: bool, speed: float = 1.0) -> None:
        self.frames: list[Tensor] = []
        self._tempo, self._changed = Tempo(speed), marked or speed != 1.0
        self._engine, self._decoder, self._mark = engine, codec.stream(), LiveMark() if marked else None
        self._sent, self._given, self._unmarked = 0, [torch.zeros(0)], [torch.zeros(0)]

    @property
    def waiting(self) -> int:
        """Frames that are not decoded yet."""
        return len(self.frames) - self._sent

    @property
    def given(self) -> Tensor:
        return torch.cat(self._given)

    @property
    def unmarked(self) -> Tensor:
        return torch.cat(self._unmarked) if self._changed else self.given

    def decoded(self) -> Tensor:
        """What can be heard now that these frames are there; empty while the mark wants to see more."""
        new, self._sent = self.frames[self._sent :], len(self.frames)
        with self._engine.decoding():
            wave = self._decoder.push(torch.stack(new).to(self._engine.device)).cpu()
        ready = self._tempo.push(wave)
        return self._out(wave, self._mark.push(ready) if self._mark else ready)

    def finished(self) -> Tensor:
        """The rest."""
        ready = [self.decoded()] if self.waiting else []
        with self._engine.decoding():
            wave = self._decoder.flush().cpu()
        last = torch.cat([self._tempo.push(wave), self._tempo.flush()])
        ready.append(self._out(wave, torch.cat([self._mark.push(last), self._mark.flush()]) if self._mark else last))
        return torch.cat(ready)

    def _out(self, wave: Tensor, ready: Tensor) -> Tensor:
        self._unmarked.append(wave)
        self._given.append(ready)
        return ready
