"""The scripts that the page offers to begin with, and what happened when somebody had one spoken."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass

from csm.conversation.events import Event, Performed, Waiting
from csm.conversation.parsing import parse_script
from csm.conversation.studio import Job
from csm.speech.generator import Generator

MOST_KEPT = 16  # runs of examples that are kept

EXAMPLE_SCRIPT = """\
A: Good morning! Did you sleep well?
B: Not really. The wind kept me awake all night.
A: Then you need some coffee. I just made a fresh pot.
B: You are a good friend. Thank you."""

EXAMPLES = {
    "Over coffee": EXAMPLE_SCRIPT,
    "Three friends": """\
Anna: Where shall we go this summer?
Ben: I want to see the mountains again.
Cleo: And I would like to swim in the sea.
Anna: Then we need a place that has both.""",
    "At the door": """\
A: Hello! Is anybody at home?
B: Just a moment, please. I am coming.
A: I have a letter for you.""",
}

SAID = {tuple((line.speaker, line.text) for line in parse_script(script)) for script in EXAMPLES.values()}


@dataclass(frozen=True)
class Kept:
    """What follows happened before: another page had the same example spoken."""


class Remembered:
    """Runs of examples, so that each is spoken once and there at once for whoever asks next."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._kept: dict[str, list[bytes]] = {}

    def name(self, job: Job) -> str:
        """What is asked, by name, where it is one of the page's examples in the voices that are offered to all."""
        session, offered = job.session, self._generator.voices().values()
        if job.index or job.again or any(turn.takes for turn in session.turns):
            return ""
        if not all(voice in offered for voice in session.voices.values()):
            return ""
        said = tuple((turn.speaker, turn.text) for turn in session.turns)
        return repr((said, session.voices, session.settings, session.wording)) if said in SAID else ""

    def again(self, job: Job, name: str) -> Iterator[Event | Kept] | None:
        """What happened the last time, happening to the job's session; None where this is the first."""
        return self._replayed(job, self._kept[name]) if name in self._kept else None

    def keep(self, name: str, happened: list[Event]) -> None:
        """Remember a run, if it came to its end and there is room."""
        session = happened[-1].session if happened and isinstance(happened[-1], Performed) else None
        whole = session and all(turn.take and turn.take.state != "stopped" for turn in session.turns)
        if name and whole and len(self._kept) < MOST_KEPT:
            self._kept[name] = [pickle.dumps(event) for event in happened if not isinstance(event, Waiting)]

    def _replayed(self, job: Job, happened: list[bytes]) -> Iterator[Event | Kept]:
        yield Kept()
        spent = job.session.spent
        for data in happened:
            event = pickle.loads(data)
            job.session.apply(event)
            job.session.spent = spent  # nothing, this time
            yield event
