"""Continuous batching: streams that join and leave a stage at any frame, and the frames they are given.

Between the engine's contexts and whoever wants frames: one conversation, or many at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from csm.engine.context import Context
from csm.engine.in_place import InPlaceStage
from csm.engine.stage import Launched, Stage
from csm.settings import Settings


@dataclass(eq=False)
class Stream:
    """One turn that is spoken in a slot, or waits for one.

    `begin` gives the context to speak from; it is called when a slot is free. At most `longest` frames are spoken,
    and `state` goes from `waiting` through `speaking` to `ended` (by the model), `capped`, `stopped` (it was made to
    leave) or `failed` (`begin` raised `error`). With `keep` the context has the frames when the stream is done. An
    `endless` stream is given zero frames like any other. While `paused` nothing is computed for it. Where a piece ends
    and there is `further` to say, it waits for a slot again: each reads what follows into the context and has a noise
    of its own.
    """

    begin: Callable[[], Context]
    sampling: Settings
    noise: torch.Generator
    longest: int
    keep: bool = True
    endless: bool = False
    paused: bool = False
    further: deque[tuple[Callable[[Context], None], torch.Generator]] = field(default_factory=deque, repr=False)
    state: str = "waiting"
    error: Exception | None = None
    frames: list[Tensor] = field(default_factory=list, repr=False)
    context: Context | None = field(default=None, repr=False)
    slot: int = -1
    launched: int = 0
    piece: int = 0
    piece_begins: int = 0  # frames before it
    newest: Tensor | None = field(default=None, repr=False)

    @property
    def done(self) -> bool:
        return self.state not in ("waiting", "speaking")

    @property
    def codes(self) -> Tensor:
        """The frames so far, int64 (frames, K), on the host and without the zero frame."""
        return torch.stack(self.frames) if self.frames else torch.zeros(0, 0, dtype=torch.int64)


class Lineup:
    """Streams on a stage, and those that wait for a slot of it, first come, first served. One thread at a time.

    `ahead` frames are launched before the one that is waited for, so that the device never waits for the host. What
    they hold for a stream that turns out to have ended, or leaves, is dropped.
    """

    def __init__(self, stage: Stage | InPlaceStage, ahead: int) -> None:
        self.stage = stage
        self._ahead = ahead
        self._free = list(range(stage.slots))
        self._waiting: deque[Stream] = deque()
        self._speaking: dict[int, Stream] = {}  # by slot
        self._under_way: deque[tuple[Launched, list[tuple[Stream, int]]]] = deque()

    @property
    def speaking(self) -> int:
        return len(self._speaking)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def join(self, stream: Stream) -> Stream:
        """Let `stream` speak from the next frame on, or once a slot is free and those before it have begun."""
        self._waiting.append(stream)
        return stream

    def leave(self, stream: Stream) -> None:
        """Take `stream` out after the frames it was given; it is `stopped`. Nothing happens if it is done."""
        if stream.state == "waiting":
            self._waiting.remove(stream)
            stream.state = "stopped"
        elif stream.state == "speaking":
            self._finish(stream, "stopped", len(stream.frames))

    def clear(self) -> None:
        """Let everyone leave."""
        for stream in [*self._waiting, *self._speaking.values()]:
            self.leave(stream)

    def step(self) -> dict[Stream, Tensor]:
        """Advance everyone by one frame -> the frames, int64 (K,) on the host, by stream.

        A stream that isn't in it is done, waits or is paused. It is empty when nobody can speak.
        """
        self._admit()
        while len(self._under_way) <= self._ahead and self._launch():
            pass
        if not self._under_way:
            return {}
        launched, streams = self._under_way.popleft()
        codes, given = launched.wait(), {}
        spoke = codes.any(dim=1).tolist()
        for (stream, piece), slot in zip(streams, launched.slots):
            if stream.state != "speaking" or stream.piece != piece:  # it left, or ended in the frame before
                continue
            stream.newest = launched.states[slot]
            if not spoke[slot] and not stream.endless:
                self._finish(stream, "ended", len(stream.frames) + 1)
                continue
            given[stream] = codes[slot]
            stream.frames.append(codes[slot])
            if len(stream.frames) == stream.longest:
                self._finish(stream, "capped", len(stream.frames))
        return given

    def _admit(self) -> None:
        """Give slots to those that wait: to one a frame while others speak, whom its prefill holds up."""
        alone = not self._speaking
        while self._waiting and self._free:
            stream = self._waiting.popleft()
            self._enter(stream)
            if not alone:
                break

    def _enter(self, stream: Stream) -> None:
        try:
            context = stream.begin()
            slot = min(self._free)  # low slots: the fewer rows are stepped
            self.stage.enter(slot, context, stream.sampling, stream.keep)
        except Exception as error:  # its own trouble; the others speak on
            stream.state, stream.error = "failed", error
            return
        self._free.remove(slot)
        self._speaking[slot] = stream
        stream.state, stream.slot, stream.context = "speaking", slot, context if stream.keep else None

    def _launch(self) -> bool:
        """Start a frame of everyone who has one to come."""
        ready = {
            slot: stream
            for slot, stream in self._speaking.items()
            if not stream.paused and stream.launched < stream.longest
        }
        if not ready:
            return False
        launched = self.stage.launch({slot: stream.noise for slot, stream in ready.items()})
        for stream in ready.values():
            stream.launched += 1
        self._under_way.append((launched, [(stream, stream.piece) for stream in ready.values()]))
        return True

    def _finish(self, stream: Stream, state: str, positions: int) -> None:
        context, positions = stream.context, positions - stream.piece_begins
        if context is not None and stream.newest is not None:
            self.stage.leave(stream.slot, context, positions, stream.newest)
        stream.state, stream.context, stream.newest = state, None, None
        del self._speaking[stream.slot]
        self._free.append(stream.slot)
        if state == "ended" and stream.further:
            if len(stream.frames) < stream.longest and context is not None:
                self._go_on(stream, context)
            else:
                stream.state = "capped"

    def _go_on(self, stream: Stream, context: Context) -> None:
        """Let what follows wait for a slot, before everyone else."""
        read, stream.noise = stream.further.popleft()

        def begin() -> Context:
            read(context)
            return context

        stream.begin, stream.state = begin, "waiting"
        stream.piece, stream.piece_begins, stream.launched = stream.piece + 1, len(stream.frames), len(stream.frames)
        self._waiting.appendleft(stream)
