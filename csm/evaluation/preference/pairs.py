"""The pairs that people compare: a line of a conversation as the model says it after all that was said before, and the
same line in the same voice after its prompt alone; with checks between them that show who listens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csm.audio import load_audio
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.evaluation.desk import Desk
from csm.evaluation.keeping import Record
from csm.evaluation.talks import pairs as casts
from csm.training.held_out import LONG_CONVERSATION

ASKED = (5, 9, 13, 17)  # places of a conversation (from 1) whose line is compared
BEFORE = 3  # turns before it that are played
PAUSE = 0.3  # seconds between them
CONTEXT, PLAIN, BROKEN = "with", "without", "broken"


@dataclass(frozen=True)
class Pair:
    """What is compared: two sounds by what they are, after a `context` that is heard first. Sounds are float32
    (num_samples,) at 24 kHz."""

    name: str
    kind: str  # "pair", "check" (one side is broken) or "same" (both sides are one sound)
    text: str
    before: tuple[str, ...]
    context: Tensor
    sides: dict[str, Tensor]


def most_pairs(voices: int) -> int:
    """How many pairs can be made of so many voices before one would come again."""
    return len(ASKED) * voices * max(1, voices - 1)


def make_pairs(desk: Desk, count: int) -> list[Pair]:
    """`count` pairs, then two checks and one pair of the same sound, made of the first ones. The sounds are kept, so
    that an interrupted run goes on."""
    made: list[Pair] = []
    talks = -(-count // len(ASKED))
    for number, names in enumerate(casts(list(desk.voices), talks)):
        record = desk.once(f"cmos-{number:02}", "conversations", _talk, number, names)
        made += _read(desk, record, names)
    made = made[:count]
    checks = [
        Pair(
            f"check-{number + 1}",
            "check",
            pair.text,
            pair.before,
            pair.context,
            {CONTEXT: pair.sides[CONTEXT], BROKEN: broken(pair.sides[CONTEXT])},
        )
        for number, pair in enumerate(made[:2])
    ]
    last = made[-1]
    same = Pair("same-1", "same", last.text, last.before, last.context, {"same": last.sides[CONTEXT]})
    return [*made, *checks, same]


def broken(wave: Tensor) -> Tensor:
    """The same sound with its pieces of 0.2 s in opposite order: as loud and as long, and no speech."""
    return torch.cat(list(wave.split(SAMPLE_RATE // 5))[::-1])


def _talk(desk: Desk, number: int, names: tuple[str, str]) -> Record:
    prompts = [desk.prompt(name, slot) for slot, name in enumerate(names)]
    talk = desk.generator.conversation(prompts, seed=desk.speech.seed + number)
    options = desk.speech.options()
    turns, plain = [], {}
    for place, (who, text) in enumerate(LONG_CONVERSATION[: max(ASKED)], 1):
        turn = talk.say(text, who, marked=False, **options)
        turns.append(desk.store.keep(f"cmos-{number:02}-{place:02}", turn.audio))
        if place in ASKED:
            alone = desk.generator.conversation([desk.prompt(names[who], who)], seed=desk.speech.seed + number)
            said = alone.say(text, who, marked=False, **options)
            plain[str(place)] = desk.store.keep(f"cmos-{number:02}-{place:02}-plain", said.audio)
    return {"voices": list(names), "turns": turns, "plain": plain}


def _read(desk: Desk, record: Record, names: tuple[str, str]) -> list[Pair]:
    """The pairs of a conversation; one whose line came out empty is left out."""
    folder = desk.store.folder
    assert folder is not None, "pairs are kept in a folder"

    def sound(file: str | None) -> Tensor:
        return load_audio(folder / file) if file else torch.zeros(0)

    pause = torch.zeros(round(PAUSE * SAMPLE_RATE))
    found = []
    for place in ASKED:
        spoken, alone = sound(record["turns"][place - 1]), sound(record["plain"][str(place)])
        if not len(spoken) or not len(alone):
            continue
        earlier = range(place - 1 - BEFORE, place - 1)
        context = torch.cat([piece for at in earlier for piece in (sound(record["turns"][at]), pause)])
        before = tuple(LONG_CONVERSATION[at][1] for at in earlier)
        text = LONG_CONVERSATION[place - 1][1]
        sides = {CONTEXT: spoken, PLAIN: alone}
        found.append(Pair(f"{'-'.join(names)}-{place:02}", "pair", text, before, context, sides))
    return found


def check_count(count: int, voices: Sequence[str]) -> None:
    """Raise `InputError` for a number of pairs that can't be made."""
    most = most_pairs(len(voices))
    if not 1 <= count <= most:
        raise InputError(f"--pairs {count} is not possible: choose 1 to {most}.")


def check_target(target: Path) -> None:
    """Raise `InputError` where no page can be written."""
    if target.is_dir() or not target.resolve().parent.is_dir():
        raise InputError(
            f"{target} can't be written: give the name of a file in a folder that exists, as in cmos.html."
        )
