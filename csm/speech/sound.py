"""The sound of a turn while its frames come: decoded in growing chunks, and marked on its way out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from csm.codec import Codec
from csm.engine import Engine
from csm.watermark import LiveMark

CHUNKS = 1, 1, 2, 4, 8  # frames of a turn's first chunks, and the last number of all that follow


def chunk_sizes() -> Iterator[int]:
    """How many frames are decoded at once, of a turn's first chunk and of those that follow: few where somebody waits
    for the first sound (live marking is four frames behind), more where the work of a chunk counts."""
    return itertools.chain(CHUNKS, itertools.repeat(CHUNKS[-1]))


class TurnSound:
    """The sound of one turn while its frames come: decoded as they do, marked on its way out or not."""

    def __init__(self, codec: Codec, engine: Engine, marked: bool) -> None:
        self.frames: list[Tensor] = []
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
        return torch.cat(self._unmarked) if self._mark else self.given

    def decoded(self) -> Tensor:
        """What can be heard now that these frames are there; empty while the mark wants to see more."""
        new, self._sent = self.frames[self._sent :], len(self.frames)
        with self._engine.decoding():
            wave = self._decoder.push(torch.stack(new).to(self._engine.device)).cpu()
        return self._out(wave, self._mark.push(wave) if self._mark else wave)

    def finished(self) -> Tensor:
        """The rest."""
        ready = [self.decoded()] if self.waiting else []
        with self._engine.decoding():
            wave = self._decoder.flush().cpu()
        ready.append(self._out(wave, torch.cat([self._mark.push(wave), self._mark.flush()]) if self._mark else wave))
        return torch.cat(ready)

    def _out(self, wave: Tensor, ready: Tensor) -> Tensor:
        self._unmarked.append(wave)
        self._given.append(ready)
        return ready
