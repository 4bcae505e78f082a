"""A script and voices in, a finished conversation out: what the command line and the app both do.

It is a session that is spoken once from its first turn to its last, and then forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator

from csm.conversation import Line
from csm.events import Performed, TurnChunk, TurnFinished, TurnReport, TurnStarted
from csm.generator import Generator, Stop
from csm.session import Session
from csm.settings import USUAL, Settings
from csm.takes import NOBODY, Judges
from csm.voices import Voice

Event = TurnStarted | TurnFinished | Performed


def perform(
    generator: Generator,
    lines: list[Line],
    voices: dict[str, Voice],
    settings: Settings = USUAL,
    stop: Stop = lambda: False,
    judges: Judges = NOBODY,
) -> Iterator[Event]:
    """Speak `lines` and yield what happens, `Performed` last. All input is checked before the first turn.
    Of several takes of a turn `judges` help to keep the best.

    A script of any length is spoken to its end, as `Session.speak` says; `stop` is asked at every frame.
    """
    for event in Session(lines, voices, settings).speak(generator, stop=stop, judges=judges, live=False):
        if not isinstance(event, TurnChunk):
            yield event


__all__ = ["Event", "Performed", "TurnFinished", "TurnReport", "TurnStarted", "perform"]
