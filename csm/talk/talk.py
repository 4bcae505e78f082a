"""One talk: a user's sound and words come in, events go out. It listens, thinks and speaks, and is interrupted.

At a short pause the words are found and an answer is begun at once; whether the turn was over is known later, and if it
was not, all of that is thrown away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import numpy as np

from csm.config import SAMPLE_RATE
from csm.conversation.studio import Studio
from csm.errors import InputError
from csm.speech.voices import Voice
from csm.talk.answer import BROKEN, Answer
from csm.talk.events import (
    AnswerBegan,
    AnswerEnded,
    Committed,
    Cost,
    Deleted,
    Dropped,
    Event,
    Failed,
    ItemAdded,
    SpeechBegan,
    SpeechEnded,
    Transcribed,
    Truncated,
    Words,
)
from csm.talk.hearing import Activity, Ears
from csm.talk.language import LanguageModel, Prompt
from csm.talk.memory import FRAME_MS, Item, Memory, Piece, Said, milliseconds
from csm.talk.mouth import Mouth
from csm.talk.once import Once
from csm.talk.options import LONGEST_BUFFER, LONGEST_UTTERANCE, TalkOptions
from csm.talk.tape import Tape
from csm.talk.turns import WINDOW_SECONDS, Kind, Moment, TurnDetector

WINDOW = round(WINDOW_SECONDS * SAMPLE_RATE)
LEAST = SAMPLE_RATE // 10  # samples that can be committed
KEPT = 2 * SAMPLE_RATE  # samples of silence that are kept, from before a turn
TOO_SHORT = "There is too little sound to commit: send at least 100 ms before."
NOTHING_SAID = "No words were heard in that: speak a little longer, or closer to the microphone."
ANSWERING = "An answer is being given already: wait for its end, or cancel it."
logger = logging.getLogger(__name__)


class _Turn:
    """A turn of the user's that may be over: its item's name, and the work on it."""

    def __init__(self, item: str, since: float, answers: bool) -> None:
        self.item, self.since, self.answers = item, since, answers
        self.over = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.check: asyncio.Task[None] | None = None

    def drop(self) -> None:
        """It goes on: what was made of it is of no use."""
        for task in (self.task, self.check):
            if task is not None:
                task.cancel()


class Talk:
    """One talk over `studio`'s model, with what the `ears` hear and one of `models`; `tell` is given each event.

    Its methods belong to one event loop. A refusal is an `InputError`, and changes nothing.
    """

    def __init__(
        self,
        studio: Studio,
        ears: Ears,
        models: Mapping[str, LanguageModel],
        voices: Mapping[str, Voice],
        options: TalkOptions,
        tell: Callable[[Event], None],
        who: str = "",
    ) -> None:
        self.memory = Memory()
        self.options = options
        self._ears, self._models, self._voices, self._tell = ears, models, voices, tell
        self._mouth = Mouth(studio, who)
        self._tape = Tape()
        self._committed = 0  # the sample from which nothing is committed yet
        self._activity: Activity | None = None
        self._detector: TurnDetector | None = None
        self._origin = 0  # the detector's first sample
        self._speech: tuple[str, int] | None = None  # the item that is being said, and its first sample
        self._turn: _Turn | None = None
        self._hearing: asyncio.Task[None] | None = None  # the last turn that was committed
        self._answer: Answer | None = None
        self._playing: Answer | None = None  # the last answer, which may still be heard
        self._giving = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._listen_anew()

    # What it is told

    def begin(self) -> None:
        """Have ears and language model ready before the first word; what is missing is told."""
        self._start(self._prepared())

    def configure(self, options: TalkOptions) -> None:
        """Go on like this. Raises `InputError` for a voice that there isn't."""
        if options.voice not in self._voices:
            raise InputError(f"There is no voice “{options.voice}”: choose one of {', '.join(self._voices)}.")
        before, self.options = self.options, options
        if options.turns != before.turns:
            self._listen_anew()
        if (options.instructions, options.model) != (before.instructions, before.model):
            self._read_ahead()

    def append(self, wave: np.ndarray) -> None:
        """Sound of the user's, float32 (num_samples,) at 24 kHz. Raises `InputError` for too much of it."""
        if self._detector is None or self._activity is None:
            if self._tape.end + len(wave) - self._committed > LONGEST_BUFFER * SAMPLE_RATE:
                raise InputError(
                    f"More than {LONGEST_BUFFER:.0f} seconds of sound wait to be committed: commit or clear them.",
                    "input_audio_buffer_full",
                )
            self._tape.add(wave)
            return
        self._tape.add(wave)
        for probability in self._activity.push(wave):
            self._noticed(self._detector.push(probability))
        if self._speech is None:
            self._committed = max(self._committed, self._tape.end - KEPT)
            self._tape.forget(self._committed)

    def commit(self) -> None:
        """The user's turn is over, because the client says so. Raises `InputError` for too little sound."""
        item, start = self._speech or ("", self._committed)
        end = self._tape.end
        if end - max(start, self._tape.start) < LEAST:
            raise InputError(TOO_SHORT, "input_audio_buffer_commit_empty")
        self._drop_turn()
        turn = _Turn(item or Item("user").id, time.monotonic(), False)
        self._hear(turn, start, end, silent=False)
        self._over(turn)
        self.clear()

    def clear(self) -> None:
        """Forget the sound that was not committed."""
        self._drop_turn()
        self._committed = self._tape.end
        self._tape.forget(self._committed)
        self._listen_anew()

    def add(self, item: Item, after: str | None = None) -> None:
        """Put an item into the talk. Raises `InputError`."""
        self._tell(ItemAdded(item, self.memory.add(item, after)))

    async def delete(self, name: Any) -> None:
        """Forget an item. Raises `InputError`."""
        item = self.memory.find(name)
        await self._left_off(item)
        self.memory.delete(name)
        self._tell(Deleted(item.id))

    async def truncate(self, name: Any, heard: float) -> None:
        """Forget what of an answer comes after so many milliseconds. Raises `InputError`."""
        item = self.memory.find(name)
        await self._left_off(item)
        self.memory.truncate(name, heard)
        self._tell(Truncated(item, int(heard)))

    def answer(self, options: TalkOptions | None = None) -> None:
        """Answer what was said, with these `options`. Raises `InputError` while another answer is given."""
        if self._answer is not None:
            raise InputError(ANSWERING, "conversation_already_has_active_response")
        chosen = options or self.options
        self._model(chosen)
        self._start(self._answered(chosen, time.monotonic()))

    def cancel(self, name: Any = None) -> None:
        """Leave off the answer that is being given. Raises `InputError` where there is none, or another."""
        if self._answer is None or name not in (None, self._answer.id):
            raise InputError("There is no such answer to cancel.", "response_cancel_not_active")
        self._answer.stop()

    async def close(self) -> None:
        """End everything; nothing of the talk is kept."""
        self._drop_turn()
        if self._answer is not None:
            self._answer.stop()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.memory.items.clear()
        await asyncio.to_thread(self._mouth.forget)

    # Listening

    def _listen_anew(self) -> None:
        turns = self.options.turns
        self._origin = self._tape.end
        self._detector = TurnDetector(turns) if turns else None
        self._activity = self._ears.activity() if turns else None
        self._drop_turn()
        self._speech = None

    def _sample(self, window: int) -> int:
        return self._origin + window * WINDOW

    def _noticed(self, moments: list[Moment]) -> None:
        turns = self.options.turns
        assert turns is not None
        for moment in moments:
            at = self._sample(moment.window)
            if moment.kind is Kind.BEGUN:
                item = Item("user").id
                self._speech = item, max(self._committed, at - round(turns.prefix * SAMPLE_RATE))
                self._tell(SpeechBegan(item, milliseconds(at)))
                if turns.interrupts:
                    self._interrupt()
            elif self._speech is None:
                continue
            elif moment.kind is Kind.PAUSED:
                item, start = self._speech
                quiet = WINDOW_SECONDS * (self._detector.quiet if self._detector else 0)
                turn = self._turn = _Turn(item, time.monotonic() - quiet, turns.answers)
                self._hear(turn, start, at + WINDOW, silent=True)
                if turns.kind == "semantic":
                    turn.check = self._start(self._checked(turn, self._cut(start, at + WINDOW)))
            elif moment.kind is Kind.RESUMED:
                self._drop_turn()
            else:
                self._ended(moment, at)

    def _ended(self, moment: Moment, at: int) -> None:
        assert self._speech is not None
        (item, start), turn, self._turn, self._speech = self._speech, self._turn, None, None
        self._tell(SpeechEnded(item, milliseconds(max(0, at))))
        self._committed = self._tape.end
        if moment.kind is Kind.DROPPED:
            if turn is not None:
                turn.drop()
            self._tell(Dropped(item))
            return
        if turn is None:  # it was as long as turns may be, and had no pause
            turn = _Turn(item, time.monotonic(), self.options.turns is not None and self.options.turns.answers)
            self._hear(turn, start, self._tape.end, silent=True)
        self._over(turn)

    def _drop_turn(self) -> None:
        if self._turn is not None:
            self._turn.drop()
            self._turn = None

    def _hear(self, turn: _Turn, start: int, end: int, silent: bool) -> None:
        """Find out what was said from sample `start` to `end`; where no word was, that is told unless `silent`."""
        turn.task = self._start(self._heard(turn, self._cut(start, end), silent))

    def _cut(self, start: int, end: int) -> np.ndarray:
        return self._tape.cut(max(start, end - round(LONGEST_UTTERANCE * SAMPLE_RATE)), end)

    def _over(self, turn: _Turn) -> None:
        """The turn is the user's last word."""
        if turn.check is not None:
            turn.check.cancel()
        turn.over.set()
        self._hearing = turn.task

    async def _checked(self, turn: _Turn, wave: np.ndarray) -> None:
        """End the turn as soon as it sounds whole."""
        if await asyncio.to_thread(self._ears.whole, wave) and turn is self._turn and self._detector is not None:
            turn.check = None
            self._noticed(self._detector.end())

    async def _heard(self, turn: _Turn, wave: np.ndarray, silent: bool) -> None:
        """The way of one turn: its words, and where it asks for one, an answer that is given once it is over."""
        answer: Answer | None = None
        times = {"noticed": time.monotonic()}
        try:
            if self._reading is not None:
                self._reading.cancel()
            words = await asyncio.to_thread(self._ears.words, wave)
            times["recognised"] = time.monotonic()
            if not words:
                await turn.over.wait()
                self._tell(Dropped(turn.item))
                if not silent:
                    self._tell(Failed(NOTHING_SAID, "no_words"))
                return
            encoded = Once(lambda: self._mouth.hear(words, wave))
            item = Item("user", pieces=[Piece(words)], sound=True, id=turn.item)
            if turn.answers:
                answer = self._begun(self.options, item, encoded)
            await turn.over.wait()
            times["over"] = time.monotonic()
            item.pieces = [Piece(words, await asyncio.to_thread(encoded.get))]
            previous = self.memory.add(item)
            self._tell(Committed(item.id, previous))
            self._tell(ItemAdded(item, previous))
            self._tell(Transcribed(item, len(wave) / SAMPLE_RATE))
            if answer is not None:
                giving, answer = answer, None
                giving.times |= times
                await self._give(giving, turn.since)
        except InputError as error:
            await turn.over.wait()
            self._tell(Dropped(turn.item))
            self._tell(Failed(str(error), error.code))
        finally:
            if answer is not None:
                answer.stop()

    # Thinking and speaking

    def _model(self, options: TalkOptions) -> LanguageModel:
        if not self._models:
            raise InputError("There is no language model here: set CSM_LLM_URL, or install one.", "no_language_model")
        return self._models.get(options.model) or next(iter(self._models.values()))

    def _prompt(self, options: TalkOptions, item: Item | None = None) -> Prompt:
        memory, letters = Memory(), self._model(options).letters
        memory.items = [*self.memory.items, *([item] if item else [])]
        messages = memory.messages(options.instructions, letters)
        return Prompt(messages, options.tools, options.tool_choice, options.temperature, options.most_tokens)

    def _begun(
        self, options: TalkOptions, item: Item | None = None, encoded: Once[Said | None] | None = None
    ) -> Answer:
        """An answer to what was said, and then `item`, which is not part of the talk yet, and its sound."""
        voice = self._voices[options.voice]

        def before() -> list[Said]:
            new = encoded.get() if encoded is not None else None
            return [*(one for one in self.memory.said() if one is not new), *([new] if new is not None else [])]

        return Answer(self._model(options), self._mouth, voice, self._prompt(options, item), before, options)

    async def _answered(self, options: TalkOptions, since: float) -> None:
        if self._hearing is not None and not self._hearing.done():
            await asyncio.wait({self._hearing})
        await self._give(self._begun(options), since)

    async def _give(self, answer: Answer, since: float) -> None:
        """Tell an answer as it is made, and keep what was heard of it."""
        try:
            async with self._giving:
                self._answer = self._playing = answer
                self._tell(AnswerBegan(answer.id, answer.item.sound))
                async for step in answer.steps():
                    if isinstance(step, Words) and not any(known is answer.item for known in self.memory.items):
                        self._tell(ItemAdded(answer.item, self.memory.add(answer.item)))
                    if answer.began is not None:
                        answer.times.setdefault("first_sound", answer.began)
                    self._tell(step)
                await self._given(answer, since)
        finally:
            answer.stop()
            if self._answer is answer:
                self._answer = None

    async def _given(self, answer: Answer, since: float) -> None:
        heard = answer.heard
        if not answer.stopped:
            await answer.settled()
        for call in answer.calls:
            self.memory.add(call)
        state = "cancelled" if answer.stopped else "failed" if answer.error else "completed"
        positions, most = self._mouth.positions
        steps = {step: round(at - since, 4) for step, at in answer.times.items()}
        cost = Cost(positions, most, answer.item.frames, steps)
        items = [item for item in (answer.item, *answer.calls) if item in self.memory.items]
        sentence, code = (str(answer.error), answer.error.code) if answer.error and state == "failed" else ("", "")
        self._answer = None
        interrupted = self._speech is not None
        if answer.stopped:
            answer.item.done = False
        self._tell(AnswerEnded(answer.id, state, items, interrupted, sentence, code, cost))
        if answer.stopped:
            await answer.settled()
            self._forget_unheard(answer, heard)
        if state != "failed":
            self._read_ahead()

    def _interrupt(self) -> None:
        """The user speaks: leave off, and forget what was not heard."""
        if self._answer is not None:
            self._answer.stop()
        elif self._playing is not None:
            self._forget_unheard(self._playing, self._playing.heard)
            self._playing = None
            self._read_ahead()

    def _forget_unheard(self, answer: Answer, heard: int) -> None:
        if answer.item.sound and heard < answer.item.frames and answer.item in self.memory.items:
            answer.item.truncate(heard)
            self._tell(Truncated(answer.item, heard * FRAME_MS))

    async def _left_off(self, item: Item) -> None:
        """Wait until `item` no longer grows."""
        answer = self._answer
        if answer is not None and answer.item is item:
            answer.stop()
            await answer.settled()

    def _read_ahead(self) -> None:
        """Let the language model read what will stand before the next turn."""
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self._start(self._read())

    async def _read(self) -> None:
        await self._model(self.options).ready(self._prompt(self.options))

    async def _prepared(self) -> None:
        try:
            await asyncio.to_thread(self._ears.load)
            self._read_ahead()
        except InputError as error:
            self._tell(Failed(str(error), error.code))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda task: work.close())  # it may never have begun
        return task

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except InputError as error:
            self._tell(Failed(str(error), error.code))
        except Exception:
            logger.exception("A talk's work failed.")
            self._tell(Failed(BROKEN, "server_error"))
