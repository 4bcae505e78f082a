"""The sound of turns while their frames come: decoded in growing chunks, brought to speed and marked on its way out.

Where many are served, turns that sound at the same moment, whichever threads speak them, are decoded and marked in one
batch.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakSet

import torch
from torch import Tensor

from csm.codec import Codec
from csm.engine import Engine
from csm.speech.tempo import Tempo
from csm.watermark import LiveMark, push_side_by_side

CHUNKS = 1, 1, 2, 4, 8  # frames of a turn's first chunks, and the last number of all that follow


def chunk_sizes() -> Iterator[int]:
    """How many frames are decoded at once, of a turn's first chunk and of those that follow: few where somebody waits
    for the first sound (live marking is four frames behind), more where the work of a chunk counts."""
    return itertools.chain(CHUNKS, itertools.repeat(CHUNKS[-1]))


class Sounding:
    """The turns of one model that sound at this moment.

    Where they are made `together`, who wants sound makes it for all who have frames, so that weights are read once for
    them; a turn's samples are then those it has alone but for rounding.
    """

    def __init__(self, codec: Codec, engine: Engine, together: bool = False) -> None:
        self.codec, self.engine = codec, engine
        self._together = together and codec.batches
        self._making: AbstractContextManager[object] = threading.Lock() if self._together else nullcontext()
        self._turns: WeakSet[TurnSound] = WeakSet()

    def join(self, turn: TurnSound) -> None:
        if self._together:
            with self._making:
                self._turns.add(turn)

    def catch_up(self, turn: TurnSound) -> None:
        """Make the sound of all frames that `turn` has now."""
        wanted = len(turn.frames)
        while turn.made < wanted:
            with self._making, self.engine.threads.few(), self.engine.decoding():
                if turn.made < wanted:  # another's turn did not bring it meanwhile
                    self._make(turn, wanted - turn.made)

    def finish(self, turn: TurnSound) -> None:
        """Make what is left of `turn`, which has no more frames to come."""
        self.catch_up(turn)
        with self._making, self.engine.threads.few(), self.engine.decoding():
            self._turns.discard(turn)
            turn.flush()

    def _make(self, turn: TurnSound, most: int) -> None:
        """The sound of at most so many frames of `turn`, and of as many of each that has them."""
        others = [one for one in self._turns if one is not turn and one.ahead]
        count = min([most, *(one.ahead for one in others)])
        together = [turn, *others]
        new = [torch.stack(one.frames[one.made : one.made + count]).to(self.engine.device) for one in together]
        decoders = [one.decoder for one in together]
        made = self.codec.push_side_by_side(decoders, new) if others else [turn.decoder.push(new[0])]
        waves = [wave.cpu() for wave in made]
        paced = [one.tempo.push(wave) for one, wave in zip(together, waves)]
        marking = [(one, wave) for one, wave in zip(together, paced) if one.mark is not None]
        marked = dict(zip((one for one, _ in marking), _marked(marking)))
        for one, wave, ready in zip(together, waves, paced):
            one.take(count, wave, marked.get(one, ready))


def _marked(turns: list[tuple[TurnSound, Tensor]]) -> list[Tensor]:
    marks = [one.mark for one, _ in turns if one.mark is not None]
    return push_side_by_side(marks, [wave for _, wave in turns])


class TurnSound:
    """The sound of one turn while its frames come: decoded as they do, in the voice of the speaker that is embedded so,
    on its way out at another speed or not, marked or not. `given` is what left, `unmarked` the same as it was decoded,
    at the model's own pace."""

    def __init__(self, sounding: Sounding, marked: bool, speed: float = 1.0, embedding: Tensor | None = None) -> None:
        self.frames: list[Tensor] = []
        self.made = 0  # frames that are decoded, whoever wanted that
        self.decoder, self.tempo = sounding.codec.stream(embedding), Tempo(speed)
        self.mark = LiveMark() if marked else None
        self._changed = marked or speed != 1.0
        self._sounding = sounding
        self._heard = 0  # frames whose sound was given out
        self._ready: list[Tensor] = []
        self._given, self._unmarked = [torch.zeros(0)], [torch.zeros(0)]
        sounding.join(self)

    @property
    def ahead(self) -> int:
        """Frames that are not decoded yet."""
        return len(self.frames) - self.made

    @property
    def waiting(self) -> int:
        """Frames whose sound was not given out yet."""
        return len(self.frames) - self._heard

    @property
    def given(self) -> Tensor:
        return torch.cat(self._given)

    @property
    def unmarked(self) -> Tensor:
        return torch.cat(self._unmarked) if self._changed else self.given

    def decoded(self) -> Tensor:
        """What can be heard now that these frames are there, or so many that another turn made it with its own, which
        may be a chunk behind; empty while the mark wants to see more."""
        self._heard = len(self.frames)
        if not self._ready:
            self._sounding.catch_up(self)
        return self._out()

    def finished(self) -> Tensor:
        """The rest."""
        self._sounding.finish(self)
        return self._out()

    def take(self, frames: int, wave: Tensor, ready: Tensor) -> None:
        """So many more frames sound like `wave`, and of that and what came before, `ready` may leave."""
        self.made += frames
        self._unmarked.append(wave)
        self._ready.append(ready)

    def flush(self) -> None:
        """Make what the decoder and the mark hold back."""
        wave = self.decoder.flush().cpu()
        last = torch.cat([self.tempo.push(wave), self.tempo.flush()])
        self.take(0, wave, torch.cat([self.mark.push(last), self.mark.flush()]) if self.mark else last)

    def _out(self) -> Tensor:
        ready, self._ready = self._ready, []
        self._given += ready
        return torch.cat([torch.zeros(0), *ready])
