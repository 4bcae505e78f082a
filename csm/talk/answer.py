"""One answer while it is made: the language model's words, cut into clauses, spoken one after the other. It may be made
before anybody knows that it is wanted, and be thrown away."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from queue import SimpleQueue

import numpy as np

from csm.config import FRAME_SIZE
from csm.errors import InputError
from csm.speech.voices import Voice
from csm.talk.clauses import clauses, speakable
from csm.talk.events import Called, Failed, Held, Sound, Words
from csm.talk.language import Call, LanguageModel, Prompt
from csm.talk.memory import Item, Piece, Said
from csm.talk.mouth import Mouth
from csm.talk.options import LONGEST_ANSWER, TalkOptions

BROKEN = "Something went wrong in the program, not in what you said; please try again."
SILENT = "The language model had nothing to say: ask something else, or choose another one."
logger = logging.getLogger(__name__)

Step = Words | Sound | Called | Held | Failed


class Answer:
    """An answer to `prompt`, spoken by `mouth` after what was said `before`. Belongs to one event loop.

    `item` grows with what is said, and is whole once `settled` returns. `times` holds when each step was first done, by
    `time.monotonic`.
    """

    def __init__(
        self,
        model: LanguageModel,
        mouth: Mouth,
        voice: Voice,
        prompt: Prompt,
        before: Callable[[], list[Said]],
        options: TalkOptions,
    ) -> None:
        self.id = f"resp_{secrets.token_hex(12)}"
        self.item = Item("assistant", sound=options.spoken, done=False)
        self.calls: list[Item] = []
        self.times: dict[str, float] = {}
        self.error: InputError | None = None
        self.stopped = False
        self.sent = 0  # samples
        self.began: float | None = None  # when the first of them left
        self._model, self._mouth, self._voice, self._prompt = model, mouth, voice, prompt
        self._before, self._options = before, options
        self._stop = threading.Event()
        self._steps: asyncio.Queue[Step | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._clauses: SimpleQueue[tuple[str, str] | None] = SimpleQueue()
        self._silent = asyncio.Event()  # the speaking thread has left off
        self._task = asyncio.create_task(self._run())
        if options.spoken:
            threading.Thread(target=self._speak, name="talk", daemon=True).start()

    async def steps(self) -> AsyncIterator[Step]:
        """What happens, until it ends or is stopped."""
        while not self.stopped and (step := await self._steps.get()) is not None and not self.stopped:
            if isinstance(step, Sound):
                self.began = self.began or time.monotonic()
                self.sent += len(step.wave)
            yield step

    def stop(self) -> None:
        """Leave off: nothing more is told, the language model is hung up on, the speaking ends at its next frame."""
        self.stopped = True
        self._stop.set()
        self._task.cancel()
        self._clauses.put(None)  # a task that has not begun does not end its clauses
        self._steps.put_nowait(None)

    async def settled(self) -> None:
        """Wait until nothing of it works any more."""
        await asyncio.wait({self._task})
        if self._options.spoken:
            await self._silent.wait()

    @property
    def heard(self) -> int:
        """Frames that can have been heard by now: nobody hears faster than time goes."""
        if self.began is None:
            return 0
        return min(self.sent, round((time.monotonic() - self.began) * 24_000)) // FRAME_SIZE

    async def _run(self) -> None:
        try:
            await self._think()
        except InputError as error:
            self.error = error
        except Exception:
            logger.exception("An answer failed.")
            self.error = InputError(BROKEN, "server_error")
        finally:
            self._clauses.put(None)
        if self._options.spoken:
            await self._silent.wait()
        if not (self.error or self.item.pieces or self.calls):
            self.error = InputError(SILENT, "no_words")
        self.item.done = self.error is None
        self._steps.put_nowait(None)

    async def _think(self) -> None:
        cutter, letters = clauses(), 0
        async with aclosing(self._model.answer(self._prompt)) as parts:  # type: ignore[type-var]
            async for part in parts:
                self._note("first_word")
                if isinstance(part, Call):
                    self._call(part)
                    continue
                for piece in cutter.push(part) if self._options.spoken else [part]:
                    self._written(piece)
                letters += len(part)
                if letters > LONGEST_ANSWER:
                    break
        for piece in cutter.finish():
            self._written(piece)

    def _written(self, piece: str) -> None:
        if self._options.spoken:
            self._note("first_clause")
            self._clauses.put((piece, speakable(piece)))
        else:
            self._told(piece)
            self._told(Piece(piece))

    def _call(self, call: Call) -> None:
        call = Call(call.id or f"call_{secrets.token_hex(8)}", call.name, call.arguments or "{}")
        item = Item("assistant", "function_call", call_id=call.id, name=call.name, arguments=call.arguments, done=True)
        self.calls.append(item)
        self._steps.put_nowait(Called(self.id, item, call))

    def _note(self, step: str) -> None:
        self.times.setdefault(step, time.monotonic())

    def _told(self, news: str | np.ndarray | Piece | InputError | int) -> None:
        """On the loop: what the mouth tells."""
        if isinstance(news, Piece):
            self.item.pieces.append(news)
        elif isinstance(news, str):
            self._steps.put_nowait(Words(self.id, self.item, news))
        elif isinstance(news, int):
            self._steps.put_nowait(Held(news))
        elif isinstance(news, InputError):
            self._steps.put_nowait(Failed(str(news), news.code))
        else:
            self._note("first_sound_made")
            self._steps.put_nowait(Sound(self.id, self.item, news))

    # In the speaking thread

    def _speak(self) -> None:
        def given() -> Iterator[tuple[str, str]]:
            while (clause := self._clauses.get()) is not None:
                yield clause

        error: InputError | None = None
        try:
            self._mouth.speak(self._voice, self._before, given(), self._options.settings, self._stop.is_set, self._tell)
        except InputError as refused:
            error = refused
        except Exception:
            logger.exception("Speaking an answer failed.")
            error = InputError(BROKEN, "server_error")
        self._on_loop(self._left_off, error)

    def _tell(self, news: str | np.ndarray | Piece | InputError | int) -> None:
        self._on_loop(self._told, news)

    def _left_off(self, error: InputError | None) -> None:
        self.error = self.error or error
        self._silent.set()
        if error is not None and not self._task.done():
            self._task.cancel()
            self._steps.put_nowait(None)

    def _on_loop(self, work: Callable[..., None], *inputs: object) -> None:
        try:
            self._loop.call_soon_threadsafe(work, *inputs)
        except RuntimeError:  # the loop has ended
            self._stop.set()
