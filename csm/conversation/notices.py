"""What is told of turns beside their sound: words read otherwise than typed, signs left out, a full
window, what may have gone wrong."""

from __future__ import annotations

from collections.abc import Sequence

from csm.conversation.takes import Turn
from csm.errors import InputError
from csm.speech.generator import Generator
from csm.spoken import changed
from csm.utterance import Wording, bare

MOST_TOLD = 5  # turns of which it is said what is doubtful; the others are only named


def read_as(generator: Generator, text: str, wording: Wording) -> str:
    """The words that the model reads, where they are not those of the text; empty for a text that it can't read."""
    try:
        words = generator.words(text, wording)
    except InputError:
        return ""
    return words if changed(bare(text), words) else ""


def notice(generator: Generator, turns: Sequence[Turn], slides: Sequence[int], spoken: range) -> dict[str, str]:
    """What the report says of the turns of `spoken`: that others left meanwhile, and which signs were not read.

    `slides` are the turns before which the oldest ones left.
    """
    told = []
    if moved := [index + 1 for index in slides if index in spoken]:
        told.append(
            f"All of this no longer fits into the {generator.config.max_positions} positions of the model: before "
            f"{_named(moved)} the oldest turns left its memory, and only the voices and the newest ones were heard."
        )
    signs = {index + 1: generator.tokenizer.left_out(turns[index].text) for index in spoken}
    if silent := [number for number, found in signs.items() if found]:
        named = " ".join(dict.fromkeys(sign for number in silent for sign in signs[number]))
        told.append(f"What is no speech was left out of {_named(silent)}: {named}.")
    return {"notice": " ".join(told)} if told else {}


def warning(turns: Sequence[Turn], spoken: range) -> dict[str, str]:
    """What the report says of the turns of `spoken` that may have gone wrong."""
    doubts = [(index + 1, take.doubt) for index in spoken if (take := turns[index].take) and take.doubt]
    told = [f"Turn {number} may have gone wrong: {doubt}." for number, doubt in doubts[:MOST_TOLD]]
    if len(doubts) > MOST_TOLD:
        told.append(f"So may {_named([number for number, _ in doubts[MOST_TOLD:]])}.")
    return {"warning": " ".join(told)} if told else {}


def _named(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"turn {last}" if not others else f"turns {', '.join(others)} and {last}"
