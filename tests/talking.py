"""What the tests of talks share: a language model that says what it is told to, ears that hear what they are told to,
and a talk of the small random model whose events are kept."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np

from csm.config import SAMPLE_RATE
from csm.conversation.studio import Studio
from csm.errors import InputError
from csm.settings import Settings
from csm.speech.voices import shipped_voices
from csm.talk.events import AnswerEnded, Event, Sound
from csm.talk.language import Call, Prompt
from csm.talk.options import TalkOptions, Turns
from csm.talk.talk import Talk

SHORT = Settings(max_turn_seconds=0.8)
MANUAL = TalkOptions("slt", turns=None, settings=SHORT)


def loud(seconds: float) -> np.ndarray:
    """Sound that the ears below take for speech, float32 (num_samples,) at 24 kHz."""
    return np.random.default_rng(0).normal(0, 0.2, round(seconds * SAMPLE_RATE)).astype(np.float32)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)


def as_audio(wave: np.ndarray) -> str:
    """float32 (num_samples,) as the API takes it."""
    return base64.b64encode((wave * 32_767).astype("<i2").tobytes()).decode()


@dataclass
class Script:
    """A language model that gives `parts`, one answer after the other, and keeps what it was asked."""

    answers: list[list[str | Call | InputError]]
    name: str = "script"
    shown: str = "a script"
    letters: int = 10_000
    asked: list[Prompt] = field(default_factory=list)
    hung_up: int = 0
    hold: asyncio.Event | None = None  # waited for before the last part

    async def answer(self, prompt: Prompt) -> AsyncIterator[str | Call]:
        self.asked.append(prompt)
        parts = self.answers.pop(0) if self.answers else ["And so it goes on."]
        done = False
        try:
            for number, part in enumerate(parts):
                if self.hold is not None and number == len(parts) - 1:
                    await self.hold.wait()
                if isinstance(part, InputError):
                    raise part
                yield part
            done = True
        finally:
            self.hung_up += not done

    async def ready(self, prompt: Prompt) -> None:
        pass


class Loudness:
    """Speech is what is loud."""

    def __init__(self) -> None:
        self._rest = quiet(0)

    def push(self, wave: np.ndarray) -> list[float]:
        self._rest = np.concatenate([self._rest, wave])
        windows = [self._rest[at : at + 768] for at in range(0, len(self._rest) - 767, 768)]
        self._rest = self._rest[768 * len(windows) :]
        return [float(np.abs(window).mean() > 0.05) for window in windows]


@dataclass
class ScriptedEars:
    """They hear the next of `says` in whatever is loud, and that a turn is over as `over` has it."""

    says: list[str] = field(default_factory=lambda: ["What is the time?"])
    over: bool | None = None
    heard: list[np.ndarray] = field(default_factory=list)

    def load(self) -> None:
        pass

    def activity(self) -> Loudness:
        return Loudness()

    def words(self, wave: np.ndarray) -> str:
        self.heard.append(wave)
        if np.abs(wave).max(initial=0) < 0.05:
            return ""
        return self.says.pop(0) if len(self.says) > 1 else self.says[0]

    def whole(self, wave: np.ndarray) -> bool | None:
        return self.over


class Listened:
    """A talk whose events are kept; `until` waits for one of a kind."""

    def __init__(
        self, studio: Studio, model: Script, ears: ScriptedEars | None = None, options: TalkOptions = MANUAL
    ) -> None:
        self.events: list[Event] = []
        self.ears, self.model = ears or ScriptedEars(), model
        self._changed = asyncio.Event()
        self._taken = 0
        self.talk = Talk(studio, self.ears, {model.name: model}, shipped_voices(), options, self._tell)  # type: ignore

    async def __aenter__(self) -> Listened:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.talk.close()

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, kind: type) -> Event:
        """The next event of this kind that was not waited for yet."""
        while True:
            while self._taken < len(self.events):
                event = self.events[self._taken]
                self._taken += 1
                if isinstance(event, kind):
                    return event
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 60)

    async def answered(self) -> AnswerEnded:
        event = await self.until(AnswerEnded)
        assert isinstance(event, AnswerEnded)
        return event

    def kinds(self) -> list[str]:
        """The kinds of all events so far, sound that follows sound left out."""
        kinds: list[str] = []
        for event in self.events:
            if not (isinstance(event, Sound) and kinds and kinds[-1] == "Sound"):
                kinds.append(type(event).__name__)
        return kinds


def detected(kind: str = "server", silence: float = 0.5, **more: bool) -> TalkOptions:
    return TalkOptions("slt", turns=Turns(kind, silence=silence, **more), settings=SHORT)  # type: ignore[arg-type]
