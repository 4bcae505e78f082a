"""What a conversation consists of, without a model: turns with their takes, voices and settings, and how they change.

The cards of the page and the lines of the script are two views of this; `csm.conversation.session` lets it be spoken.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from csm.conversation.parsing import MAX_SPEAKERS, Line
from csm.conversation.takes import Portable, Take, Turn, codes_key
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.settings import USUAL, Settings
from csm.speech.tempo import length_at
from csm.speech.voices import Voice
from csm.utterance import PLAIN, Wording, bare, parts

T = TypeVar("T")

BUSY = "This conversation is being spoken: stop it or wait for its end, then change it."


@dataclass(frozen=True)
class Prompt(Portable):
    """A voice as the model hears it: codes int64 (frames, K) of its recording, and where the codec is told who speaks
    its embedding, float32 (D,)."""

    voice: Voice
    codes: Tensor
    embedding: Tensor | None = None
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", codes_key(self.codes))

    @classmethod
    def of(cls, voice: Voice, heard: Segment) -> Prompt:
        """A voice that a model hears so."""
        assert heard.codes is not None
        return cls(voice, heard.codes, heard.embedding)

    def segment(self, slot: int) -> Segment:
        """What a conversation begins with in which the speaker has this slot."""
        return Segment(slot, self.voice.transcript, codes=self.codes, embedding=self.embedding)


@dataclass(frozen=True)
class Span:
    """Where a spoken turn lies in the whole conversation: samples at 24 kHz, `end` excluded."""

    index: int
    speaker: str
    text: str
    start: int
    end: int


class Script:
    """Turns, voices, settings and wording of one conversation.

    `turns` may be read at any time; change them through the methods. `slots` numbers the speakers for the model.
    `model` and `codec` name who made the takes (None before the first), `prompts` holds the voices it has encoded.
    `unheard` counts the turns whose takes were let go, because no model that there is can play them.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        voices: dict[str, Voice],
        settings: Settings = USUAL,
        wording: Wording = PLAIN,
    ) -> None:
        self.settings, self.wording = settings, wording
        self.voices = dict(voices)
        self.turns = [Turn(line.speaker, line.text, directions=line.directions) for line in lines]
        self.slots: dict[str, int] = {}
        self.model: str | None = None
        self.codec: str | None = None
        self.prompts: dict[str, Prompt] = {}
        self.unheard = 0
        self._busy = False
        self._number_speakers()

    @property
    def speakers(self) -> list[str]:
        """The labels of those who speak, each once, in order of their first turn."""
        return list(dict.fromkeys(turn.speaker for turn in self.turns))

    def stale(self, index: int) -> bool:
        """Whether the kept take of turn `index` was said after something else than what stands before it now."""
        self._known(index)
        return self.stale_turns()[index]

    def stale_turns(self) -> list[bool]:
        """`stale` of every turn, which is as much work as that of one."""
        return [
            turn.take is not None and turn.take.history != history
            for turn, history in zip(self.turns, self.histories())
        ]

    def other_settings(self, index: int) -> bool:
        """Whether the kept take of turn `index` was drawn with another seed, temperature or top-k than is set now, or
        its text worded otherwise.

        It is not stale for that: what follows it heard it all the same. A take that was asked for by its own seed
        doesn't depend on the seed that is set."""
        take, now = self._known(index).take, self.settings
        if take is None or not take.drawing:
            return False
        if self._reworded(take):
            return True
        return take.drawing != now.drawing or take.from_seed not in (None, now.seed)

    def let_go(self) -> None:
        """Keep script, voices and settings, and no take: their codes are those of weights that are no more."""
        self.unheard = sum(bool(turn.takes) for turn in self.turns)
        self.turns = [replace(turn, takes=(), chosen=None, drawn=0) for turn in self.turns]
        self.prompts, self.model, self.codec = {}, None, None

    @property
    def first_open(self) -> int | None:
        """The first turn that waits or is stale: where to carry on from. None when all is said."""
        now = self.histories()
        for index, turn in enumerate(self.turns):
            if turn.take is None or turn.take.history != now[index]:
                return index
        return None

    def spans(self) -> list[Span]:
        """Where each spoken turn lies in the whole conversation, at the speed that is set, in order."""
        spans: list[Span] = []
        for index, turn in enumerate(self.turns):
            if turn.take:
                start = spans[-1].end if spans else 0
                end = start + length_at(turn.take.samples, self.settings.speed)
                spans.append(Span(index, turn.speaker, bare(turn.take.text), start, end))
        return spans

    def keep(self, index: int, take: int) -> Turn:
        """Let take `take` (from 0) of turn `index` be heard, with the text it speaks. Raises `InputError`."""
        self._idle()
        turn = self._known(index)
        if not 0 <= take < len(turn.takes):
            raise InputError(f"Turn {index + 1} has {len(turn.takes)} takes; there is no take {take + 1}.")
        self.turns[index] = replace(turn, chosen=take, text=turn.takes[take].text)
        return self.turns[index]

    def edit(self, index: int, text: str | None = None, speaker: str | None = None) -> Turn:
        """Change what turn `index` says or who says it. It then waits to be spoken; its takes can still be kept,
        unless the speaker is another one. Raises `InputError` for a text without words and for a ninth speaker."""
        self._idle()
        turn = self._known(index)
        text, speaker = turn.text if text is None else " ".join(text.split()), speaker or turn.speaker
        if not any(character.isalnum() for character in bare(text)):
            raise InputError("There is nothing to say in this turn: write some words.")
        if speaker not in self.speakers and len(self.speakers) == MAX_SPEAKERS:
            raise InputError(f"The script has {MAX_SPEAKERS} speakers, and no more fit: choose one of them.")
        if speaker != turn.speaker:
            self.turns[index] = Turn(speaker, text, drawn=turn.drawn, directions=turn.directions)
        elif text != turn.text:
            same = [number for number, take in enumerate(turn.takes) if take.text == text]
            self.turns[index] = replace(turn, text=text, chosen=same[-1] if same else None)
        self._number_speakers()
        return self.turns[index]

    def rewrite(self, lines: Sequence[Line]) -> None:
        """Take a changed script: turns that say the same, in the same order, keep their takes; new ones wait.

        A speaker whose label alone has changed keeps number, voice and takes."""
        self._idle()
        for label, renamed in self._renamed(lines).items():
            self._rename(label, renamed)
        old, new = [(turn.speaker, turn.text) for turn in self.turns], [(line.speaker, line.text) for line in lines]
        turns = [Turn(*said) for said in new]
        for at, to, size in same_blocks(old, new):
            turns[to : to + size] = self.turns[at : at + size]
        self.turns = turns
        self.direct(lines)
        self._number_speakers()

    def direct(self, lines: Sequence[Line]) -> None:
        """Take over the directions that stand beside `lines`, one for each turn; they change nothing that is heard."""
        self.turns = [
            turn if turn.directions == line.directions else replace(turn, directions=line.directions)
            for turn, line in zip(self.turns, lines)
        ]

    def rename(self, label: str, renamed: str) -> None:
        """Call a speaker something else; number, voice and takes stay. Raises `InputError` for a label in use."""
        self._idle()
        if label not in self.speakers or not renamed.strip():
            raise InputError(f"There is no speaker {label} to rename, or no new name: choose one of the script's.")
        if renamed != label and renamed in self.speakers:
            raise InputError(f"There is a speaker {renamed} already: choose another name.")
        self._rename(label, renamed)

    def set_voice(self, speaker: str, voice: Voice) -> None:
        """Give `speaker` another voice. What has been spoken stays, and is stale."""
        self._idle()
        self.voices[speaker] = voice

    def settle(self) -> None:
        """No turn is being spoken any more: for whoever saw speaking break off."""
        self.turns = [replace(turn, speaking=False) for turn in self.turns]

    def histories(self) -> list[str]:
        """What was said before each turn, named; up to the first turn that waits, and an empty name behind it."""
        prompts = [
            (self.slots[speaker], prompt.voice.transcript, prompt.key)
            for speaker in sorted(self.speakers, key=self.slots.__getitem__)
            if (prompt := self.prompts.get(speaker)) and prompt.voice == self.voices.get(speaker)
        ]
        names = [hashlib.sha256(repr((self.codec, prompts)).encode()).hexdigest()[:16]]
        for turn in self.turns:
            before = names[-1]
            take = turn.take if before else None
            names.append(said_after(before, self.slots[turn.speaker], take) if take else "")
        return names

    def _renamed(self, lines: Sequence[Line]) -> dict[str, str]:
        """Who is called something else in `lines` while saying the same: old label -> new label.

        A label that is gone and one that is new belong together when all the lines of the old one that are still
        there are said by the new one, and the other way round.
        """
        now = {line.speaker for line in lines}
        said: set[tuple[str, str]] = set()
        old, new = [turn.text for turn in self.turns], [line.text for line in lines]
        for at, to, size in same_blocks(old, new):
            for offset in range(size):
                said.add((self.turns[at + offset].speaker, lines[to + offset].speaker))
        pairs = [(a, b) for a, b in said if a not in now and b not in self.speakers]
        return {a: b for a, b in pairs if sum(a == one or b == other for one, other in said) == 1}

    def _reworded(self, take: Take) -> bool:
        try:
            now = " ".join(part.text for part in parts(take.text, self.wording) if part.text)
        except InputError:
            return True
        return " ".join(" ".join(text for text, _ in take.stretches).split()) != now

    def _rename(self, label: str, renamed: str) -> None:
        self.turns = [replace(turn, speaker=renamed) if turn.speaker == label else turn for turn in self.turns]
        self.slots = _moved(self.slots, label, renamed)
        self.voices = _moved(self.voices, label, renamed)
        self.prompts = _moved(self.prompts, label, renamed)

    def _number_speakers(self) -> None:
        """Give every speaker a number for the model; those who had one keep it."""
        self.slots = {speaker: self.slots[speaker] for speaker in self.speakers if speaker in self.slots}
        for speaker in self.speakers:
            free = (number for number in range(len(self.turns) + 1) if number not in self.slots.values())
            self.slots.setdefault(speaker, next(free))

    def _known(self, index: int) -> Turn:
        if not 0 <= index < len(self.turns):
            raise InputError(f"There is no turn {index + 1}: the script has {len(self.turns)}.")
        return self.turns[index]

    def _idle(self) -> None:
        if self._busy:
            raise InputError(BUSY, "busy")


def same_blocks(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[tuple[int, int, int]]:
    """What is the same in both, in order: (place in `old`, place in `new`, how many). What both begin and end with is
    found at once; only what lies between is compared, which takes the square of its length where lines repeat."""
    most, first, last = min(len(old), len(new)), 0, 0
    while first < most and old[first] == new[first]:
        first += 1
    while last < most - first and old[-1 - last] == new[-1 - last]:
        last += 1
    between = difflib.SequenceMatcher(
        None, old[first : len(old) - last], new[first : len(new) - last], autojunk=False
    ).get_matching_blocks()
    blocks = [(0, 0, first), *((first + one.a, first + one.b, one.size) for one in between)]
    return [*blocks, (len(old) - last, len(new) - last, last)]


def said_after(history: str, slot: int, take: Take) -> str:
    """A name for what was said: what came before, and then this."""
    return hashlib.sha256(repr((history, slot, take.text, take.key)).encode()).hexdigest()[:16]


def _moved(named: dict[str, T], label: str, renamed: str) -> dict[str, T]:
    """What stands under `label`, if anything does, under `renamed`; all else as it was."""
    if label not in named:
        return named
    return {name: value for name, value in named.items() if name not in (label, renamed)} | {renamed: named[label]}
