"""Many streams at once: texts join a batch and leave it at any frame, and threads share one without knowing.

Right above the generator, whose single stream it multiplies: the codes of a stream are those that it gives alone
(exactly where arithmetic doesn't depend on the batch; in bfloat16 rounding does, and a draw may fall differently).
"""

from __future__ import annotations

import copy
import secrets
import threading
from collections.abc import Generator as Frames
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.engine import Context, Engine, Lineup, Stream
from csm.frames import Rows, Segment, frames_in
from csm.generator import ConversationFull, Generator, one_by_one
from csm.settings import USUAL, Settings

LEAD = 12  # frames (1 s) that a stream may be ahead of the thread that takes them


class Batch:
    """`slots` streams that step together; those that come when it is full wait their turn. For one thread.

    While some speak, the text of one more is read in a frame at most: nobody waits for more than that.

    `ahead` frames are launched before the one that is waited for (default: one on CUDA, none elsewhere).
    """

    def __init__(self, generator: Generator, slots: int, ahead: int | None = None) -> None:
        self.generator = generator
        self._lineup: Lineup = generator.engine.lineups.new(slots, ahead)

    @property
    def speaking(self) -> int:
        """Streams that have a slot."""
        return self._lineup.speaking

    @property
    def waiting(self) -> int:
        """Streams that wait for one."""
        return self._lineup.waiting

    def join(
        self,
        text: str,
        speaker: int,
        context: list[Segment] | None = None,
        max_audio_length_ms: float = 90_000,
        temperature: float | None = None,
        topk: int | None = None,
        seed: int | None = None,
    ) -> Stream:
        """Speak `text` after `context`, beginning with the next frame if a slot is free; as `Generator.stream` does.

        Raises `InputError` for what can't be spoken or doesn't fit.
        """
        generator, settings = self.generator, one_by_one(max_audio_length_ms, temperature, topk)
        rows, longest = generator.turn_rows(text, speaker), frames_in(settings.max_turn_seconds)
        heard = [generator.prompt_rows(context)] if context else []
        generator.budget.check_turn(text, len(rows), sum(map(len, heard)), longest)
        return self.join_rows(Rows.join([*heard, rows]), longest, settings, seed)

    def join_rows(
        self, rows: Rows, longest: int, settings: Settings = USUAL, seed: int | None = None, endless: bool = False
    ) -> Stream:
        """Go on after `rows` for at most `longest` frames; an `endless` stream doesn't mind zero frames.

        The rows are read in when a slot is free; the others wait so long. Raises `ConversationFull`.
        """
        engine, positions = self.generator.engine, self.generator.config.max_positions
        free = positions - len(rows) - 1
        if free < 1:
            raise ConversationFull(f"This turn doesn't fit: it needs {len(rows) + 2} of {positions} positions.")

        def begin() -> Context:
            context = engine.new_context()
            engine.prefill(context, rows)
            return context

        noise = torch.Generator(engine.device).manual_seed(secrets.randbits(31) if seed is None else seed)
        chosen = self.generator.filled(settings)
        return self._lineup.join(Stream(begin, chosen, noise, min(longest, free), keep=False, endless=endless))

    def step(self) -> dict[Stream, Tensor]:
        """Advance everyone by one frame -> the frames, int64 (K,) on the host, by stream; the rest is in `Stream`.

        Streams that end, or have spoken as long as they may, are done and free their slots. A stream whose context
        could not be read in has `failed`, and the others don't notice.
        """
        return self._lineup.step()

    def leave(self, stream: Stream) -> None:
        """Take `stream` out, whether it speaks or waits; done ones stay as they are."""
        self._lineup.leave(stream)

    def finish(self) -> None:
        """Step until everyone is done."""
        while self.speaking or self.waiting:
            self.step()


@dataclass(eq=False)
class _Pulled(Stream):
    taken: int = 0  # frames that its thread has


class SharedEngine(Engine):
    """An engine whose turns are all spoken in one batch, whichever thread asks for them; it has `engine`'s weights.

    The thread that wants a frame that isn't there yet makes one for everybody; the others find theirs ready. A stream
    whose frames nobody takes pauses after a second of sound.
    """

    def __init__(self, engine: Engine, slots: int) -> None:
        super().__init__(engine.model, lineups=engine.lineups)
        self._lineup = self.lineups.new(slots)
        self._changed = threading.Condition()

    def speak(
        self,
        context: Context,
        sampling: Settings,
        generator: torch.Generator,
        longest: int,
        endless: bool = False,
    ) -> Frames[Tensor, None, None]:
        stream = _Pulled(lambda: context, sampling, generator, longest, endless=endless)
        before, heard_out = context.length, False
        try:
            with self._changed:
                self._lineup.join(stream)
            while (frame := self._next(stream)) is not None:
                yield frame
            heard_out = True
        finally:
            with self._changed:
                self._lineup.leave(stream)
                self._changed.notify_all()
            if not heard_out:  # what was spoken ahead was never taken
                context.cache.length = before + stream.taken
        if stream.error is not None:
            raise stream.error

    def _next(self, stream: _Pulled) -> Tensor | None:
        with self._changed:
            while stream.taken == len(stream.frames):
                if stream.done:
                    return None
                if not self._advance() and stream.state == "waiting":
                    self._changed.wait(0.1)  # for somebody to take a frame, or to leave
            stream.taken += 1
            stream.paused = False
            self._changed.notify_all()
            return stream.frames[stream.taken - 1]

    def _advance(self) -> bool:
        given = self._lineup.step()
        for stream in given:
            assert isinstance(stream, _Pulled)
            stream.paused = len(stream.frames) - stream.taken >= LEAD
        return bool(given)


def shared(generator: Generator, slots: int) -> Generator:
    """The same model, codec and voices, for threads that speak at once: up to `slots` turns step together."""
    together = copy.copy(generator)
    together.engine = SharedEngine(generator.engine, slots)
    return together
