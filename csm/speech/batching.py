"""Many streams at once: texts join a batch and leave it at any frame, and threads share one without knowing.

Right above the generator, whose single stream it multiplies: the codes of a stream are those that it gives alone
(exactly where arithmetic doesn't depend on the batch; in bfloat16 rounding does, and a draw may fall differently).
"""

from __future__ import annotations

import atexit
import copy
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Frames
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from typing import cast

import torch
from torch import Tensor

from csm.config import Environment
from csm.engine import Context, Engine, Lineup, Stream, Together
from csm.engine.frames import Rows, Segment, frames_in
from csm.settings import USUAL, Settings
from csm.speech.generator import ConversationFull, Generator, one_by_one, piece_seed
from csm.speech.sound import Sounding

LEAD = 12  # frames (1 s) that a stream may be ahead of the thread that takes them
IDLE_SECONDS = 5.0  # without a stream, after which the stepping thread ends
MOST_USUAL_SLOTS = 32
SLOTS_ON_CPU = 8
STOP_SECONDS = 0.1  # how long a step of takes that wait for a slot lasts at most: their caller may not want them


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

        A long text is cut into pieces as everywhere, and is one stream; silence for its pauses is not among the frames.
        Raises `InputError` for what can't be spoken or doesn't fit.
        """
        generator, settings = self.generator, one_by_one(max_audio_length_ms, temperature, topk)
        longest = frames_in(settings.max_turn_seconds)
        heard = [generator.prompt_rows(context)] if context else []
        pieces = [part.text for part in generator.parts(text) if part.text]
        rows = [generator.turn_rows(piece, speaker) for piece in pieces]
        for piece, own in zip(pieces, rows):
            generator.budget.check_turn(piece, len(own), sum(map(len, heard)), longest)
        return self.join_rows(Rows.join([*heard, rows[0]]), longest, settings, seed, further=rows[1:])

    def join_rows(
        self,
        rows: Rows,
        longest: int,
        settings: Settings = USUAL,
        seed: int | None = None,
        endless: bool = False,
        further: Sequence[Rows] = (),
    ) -> Stream:
        """Go on after `rows` for at most `longest` frames; an `endless` stream doesn't mind zero frames.

        The rows are read in when a slot is free; the others wait so long. Each of the `further` rows is read in where
        the piece before it ends. Raises `ConversationFull`.
        """
        engine, positions = self.generator.engine, self.generator.config.max_positions
        needed = len(rows) + 1 + sum(len(more) + 1 for more in further)
        free = positions - needed
        if free < 1:
            raise ConversationFull(f"This turn doesn't fit: it needs {needed + 1} of {positions} positions.")

        def begin() -> Context:
            context = engine.new_context()
            engine.prefill(context, rows)
            return context

        seed = secrets.randbits(31) if seed is None else seed
        noises = [
            torch.Generator(engine.device).manual_seed(piece_seed(seed, number)) for number in range(1 + len(further))
        ]
        stream = Stream(begin, self.generator.filled(settings), noises[0], min(longest, free), endless=endless)
        for more, noise in zip(further, noises[1:]):
            stream.further.append((partial(engine.prefill, rows=more), noise))
        return self._lineup.join(stream)

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
class _Heard(Stream):
    """A stream whose frames another thread takes out of `given`, where None is the end; it may be `lead` frames ahead
    of that thread."""

    given: SimpleQueue[Tensor | None] = field(default_factory=SimpleQueue, repr=False)
    taken: int = 0
    lead: float = LEAD

    @property
    def far_ahead(self) -> bool:
        return len(self.frames) - self.taken >= self.lead


class _Stepper:
    """Steps streams for whichever threads ask, in one of its own, which ends when nobody has spoken for a while.

    One thread for all, because the steps hold Python for a moment each, and those who take frames decode them
    meanwhile.
    """

    def __init__(self, new_lineup: Callable[[], Lineup]) -> None:
        self._new_lineup = new_lineup
        self._lineup = new_lineup()
        self._changed = threading.Condition()
        self._joining: list[_Heard] = []
        self._leaving: list[_Heard] = []
        self._present: list[_Heard] = []  # the lineup's; this thread's own
        self._thread: threading.Thread | None = None
        self._over = False

    def join(self, streams: Sequence[_Heard]) -> None:
        """Let `streams` speak from the next frame on, or once slots are free."""
        with self._changed:
            self._joining += streams
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
                self._thread.start()
                atexit.register(self._end)  # a thread that ends inside torch takes the program with it
            self._changed.notify_all()

    def leave(self, streams: Sequence[_Heard]) -> None:
        """Take `streams` out; when this returns, nobody works on their contexts any more."""
        with self._changed:
            if self._over:
                return
            self._leaving += streams
            self._changed.notify_all()
            if threading.current_thread() is not self._thread:  # which collects what others dropped
                self._changed.wait_for(lambda: all(stream.done for stream in streams))

    def taken(self, stream: _Heard) -> None:
        """Somebody took a frame of `stream`."""
        stream.taken += 1
        if stream.paused:
            with self._changed:
                self._changed.notify_all()

    def _end(self) -> None:
        """Nobody speaks any more: the program ends."""
        with self._changed:
            self._over, thread = True, self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while self._anybody() and not self._over:
            try:
                given = self._lineup.step()
            except Exception as error:  # nobody may wait for ever for what does not come
                self._fail(error)
            else:
                for stream, frame in given.items():
                    cast(_Heard, stream).given.put(frame)
            self._tell()

    def _anybody(self) -> bool:
        """Wait until a stream has a frame to come; False when that takes too long."""
        with self._changed:
            while not self._over and not self._ready():
                if not self._changed.wait(IDLE_SECONDS) and not self._present and not self._joining:
                    self._thread = None
                    atexit.unregister(self._end)
                    return False
            return True

    def _ready(self) -> bool:
        """Bring the lineup up to date -> whether it has something to do."""
        for stream in self._joining:
            self._lineup.join(stream)
            self._present.append(stream)
        for stream in self._leaving:
            self._lineup.leave(stream)
        if self._leaving:
            self._tell()
        self._joining, self._leaving = [], []
        for stream in self._present:
            stream.paused = stream.far_ahead
        if self._lineup.waiting and self._lineup.speaking < self._lineup.stage.slots:
            return True
        return any(stream.state == "speaking" and not stream.paused for stream in self._present)

    def _tell(self) -> None:
        """Let those go whose streams are done."""
        if over := [stream for stream in self._present if stream.done]:
            self._present = [stream for stream in self._present if not stream.done]
            for stream in over:
                stream.given.put(None)
            with self._changed:
                self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        """End all streams with `error`, and begin anew for those to come."""
        for stream in self._present:
            stream.state, stream.error = "failed", error
        self._lineup = self._new_lineup()


class _InOrder:
    """A lock that is given in the order in which it was asked for, so that nobody waits for ever."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._places: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        place = threading.Event()
        with self._guard:
            self._places.append(place)
            self._places[0].set()
        place.wait()

    def __exit__(self, *error: object) -> None:
        with self._guard:
            self._places.popleft()
            if self._places:
                self._places[0].set()


class SharedEngine(Engine):
    """An engine whose turns are all spoken in one batch, whichever thread asks for them; it has `engine`'s weights.

    Whoever begins a turn reads its text in by itself, beside the frames of the others and one after the other. A
    stream whose frames nobody takes pauses after a second of sound.
    """

    def __init__(self, engine: Engine, slots: int) -> None:
        super().__init__(engine.model, lineups=engine.lineups)
        self.slots = slots
        self._reading = _InOrder()
        self._stepper = _Stepper(lambda: self.lineups.new(slots))

    def decoding(self) -> AbstractContextManager[object]:
        """On a CPU, with one thread: the steps of all, beside which sound is made, have the others."""
        return self.threads.one() if self.device.type == "cpu" else super().decoding()

    def _read(self, context: Context, rows: Rows) -> None:
        with self._reading:
            super()._read(context, rows)

    def speak(
        self,
        context: Context,
        sampling: Settings,
        generator: torch.Generator,
        longest: int,
        endless: bool = False,
    ) -> Frames[Tensor, None, None]:
        stream = _Heard(context.itself, sampling, generator, longest, endless=endless)
        before, heard_out = context.length, False
        self._stepper.join([stream])
        try:
            while (frame := stream.given.get()) is not None:
                self._stepper.taken(stream)
                yield frame
            heard_out = True
        finally:
            self._stepper.leave([stream])
            if not heard_out:  # what was spoken ahead was never taken
                context.cache.length = before + stream.taken
        if stream.error is not None:
            raise stream.error

    @contextmanager
    def speak_side_by_side(
        self,
        contexts: Sequence[Context],
        sampling: Settings,
        generators: Sequence[torch.Generator],
        longest: int,
    ) -> Iterator[Together]:
        given: SimpleQueue[Tensor | None] = SimpleQueue()
        streams = [
            _Heard(context.itself, sampling, generator, longest, given=given, lead=inf)
            for context, generator in zip(contexts, generators, strict=True)
        ]
        self._stepper.join(streams)

        def step() -> None:
            first = next((stream for stream in streams if not stream.done), streams[0])
            count = len(first.frames)
            while not first.done and len(first.frames) == count:
                try:
                    given.get(timeout=STOP_SECONDS)
                except Empty:  # they wait for slots
                    return

        def end() -> None:
            self._stepper.leave(streams)

        try:
            yield Together(streams, step, end)
        finally:
            end()


def shared(generator: Generator, slots: int) -> Generator:
    """The same model, codec and voices, for threads that speak at once: up to `slots` turns step together."""
    together = copy.copy(generator)
    together.engine = SharedEngine(generator.engine, slots)
    together.sounding = Sounding(generator.codec, together.engine, together=True)
    return together


def usual_slots(generator: Generator) -> int:
    """How many turns to speak at once on this generator's device: CSM_SLOTS, if it is set; else 8 on a CPU, where more
    would each be slower than real time, and on CUDA a power of two, at most 32, whose keys and values take at most half
    of the memory that is free. Raises `InputError` for a CSM_SLOTS that is no number."""
    if (wanted := Environment.read().slots) is not None:
        return wanted
    if generator.device.type != "cuda":
        return SLOTS_ON_CPU
    config, width = generator.config, generator.engine.model.projection.weight.dtype.itemsize
    backbone = config.backbone
    each = 2 * backbone.layers * backbone.kv_heads * backbone.head_dim * config.max_positions * width
    fit = torch.cuda.mem_get_info(generator.device)[0] // 2 // (2 * each)  # in its slot, and in the context behind it
    return 1 << max(0, min(MOST_USUAL_SLOTS, fit).bit_length() - 1)
