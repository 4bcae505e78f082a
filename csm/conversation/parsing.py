"""Script text to turns: who says what, in order; the first step on the way from script to sound. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from csm.conversation.scripts import lines as of_lines
from csm.conversation.scripts.directions import left_out
from csm.conversation.scripts.forms import recognised
from csm.conversation.scripts.labels import MAX_LABEL as MAX_LABEL
from csm.conversation.scripts.pieces import Found, Said, has_words
from csm.errors import InputError
from csm.utterance import bare, marked

DEFAULT_SPEAKERS = ("A", "B")
MAX_SPEAKERS = 8


@dataclass(frozen=True)
class Line:
    """One turn: the speaker's label as displayed, the text to say, its line number in the script (from 1), and the
    stage directions that stand beside it and are not spoken."""

    speaker: str
    text: str
    number: int
    directions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A script as it was understood. `kind` names its format, empty for lines; `guessed`: it may mean otherwise."""

    lines: list[Line]
    kind: str = ""
    guessed: bool = False

    @property
    def told(self) -> str:
        """What was understood, in one sentence: “Read as a table: 3 speakers, 12 turns, 2 directions left out.”"""
        directions = sum(len(line.directions) for line in self.lines)
        counts = [_plural(len(speakers(self.lines)), "speaker"), _plural(len(self.lines), "turn")]
        counts += [f"{_plural(directions, 'direction')} left out"] if directions else []
        return f"Read as {self.kind}{': ' if self.kind else ''}{', '.join(counts)}."


def parse_script(text: str) -> list[Line]:
    """`read_script`'s turns."""
    return read_script(text).lines


def read_script(text: str, as_it_stands: bool = False) -> Reading:
    """Split a script into turns, in whichever format it is written: lines, or one of `csm.conversation.scripts`.

    A line is `A: text`, `Name: text` or bare text. A label begins with a letter, has at most 24 characters and three
    words, or five that are written as a name; any other colon belongs to the text, and so does that of `Note:` or
    `Chapter 1:` unless it comes back. Labels that differ only in case are one speaker, written as it first appears;
    single letters become capitals. Directions in brackets are not said and are kept beside the turn; those that stand
    alone belong to the turn behind them.

    A bare line goes to the speaker after the one who spoke last, in the order in which the script first names
    them, and a bare first line to the first of them. While a script names nobody but A and B, both take turns.
    Blank lines, and bare lines without a letter or digit such as `---`, are skipped.

    `as_it_stands`: every line is said as it is written, but for labels that leave no doubt.

    Raises `InputError`, with the line, when a label has nothing after it or a format is broken, and when there are
    more than 8 speakers or nothing to say.
    """
    text = "\n".join(text.removeprefix("\ufeff").splitlines())
    found = of_lines.as_it_stands(text) if as_it_stands else recognised(text)
    said = found.said if as_it_stands else _directed(found.said)
    turns = _cast(replace(found, said=[one for one in said if has_words(bare(one.text))]))
    guessed = not as_it_stands and (found.guessed or any(line.directions for line in turns))
    return Reading(turns, found.kind, guessed)


def speakers(lines: list[Line]) -> list[str]:
    """The labels of those who speak, each once, in order of their first turn."""
    return list(dict.fromkeys(line.speaker for line in lines))


def _directed(said: list[Said]) -> list[Said]:
    """The same with directions beside the texts; those without words go to the turn behind them, or else before, and so
    do pauses that stand alone."""
    told: list[Said] = []
    waiting: tuple[str, ...] = ()
    pauses = ""
    for one in said:
        text, directions = left_out(one.text, alone=one.label is None)
        directions = one.directions + directions
        if has_words(bare(text)):
            text, directions = f"{pauses} {text}".strip(), waiting + directions
            told.append(replace(one, text=text, directions=directions) if (text, directions) != (one.text, ()) else one)
            waiting, pauses = (), ""
        else:
            waiting += tuple(f"{one.label}: {each}" if one.label else each for each in directions)
            pauses += f" {text}" if marked(text) else ""
    if told and (waiting or pauses):
        last = told[-1]
        told[-1] = replace(last, text=f"{last.text}{pauses}", directions=last.directions + waiting)
    return told


def _cast(found: Found) -> list[Line]:
    """Pieces -> turns: bare ones are given to whoever's they are. Raises `InputError`."""
    if not found.said:
        raise InputError("The script is empty; write at least one line such as “A: Hello.”")
    shown: dict[str, str] = {}
    for one in found.said:
        if one.label is not None:
            shown.setdefault(one.label.casefold(), one.label)
    order = list(shown.values())
    if set(order) <= set(DEFAULT_SPEAKERS):
        order += [name for name in DEFAULT_SPEAKERS if name not in order]
    if len(order) > MAX_SPEAKERS:
        raise InputError(f"The script has {len(order)} speakers; at most {MAX_SPEAKERS} fit in one conversation.")
    place = {name: index for index, name in enumerate(order)}
    turns: list[Line] = []
    following = 0
    for one in found.said:
        speaker = order[following] if one.label is None else shown[one.label.casefold()]
        following = (place[speaker] + found.alternate) % len(order)
        turns.append(Line(speaker, one.text, one.number, one.directions))
    return turns


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
