"""A turn while it is spoken: the takes of each of its pieces, which is kept, and the takes of it that they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.conversation.takes import NOBODY, Judges, Stretch, Take, output_sound, rank
from csm.speech.generator import Piece
from csm.utterance import Part


@dataclass(frozen=True)
class One:
    """One take of a piece: what was spoken, and how fit it is."""

    piece: Piece
    take: Take


@dataclass
class Tried:
    """The takes of piece `number` (from 0) so far, `chosen` of which is kept; it was tried `again` so often."""

    part: Part
    number: int = 0
    takes: list[One] = field(default_factory=list)
    chosen: int = 0
    again: int = 0

    @property
    def best(self) -> One:
        return self.takes[self.chosen]

    @property
    def onto(self) -> bool:
        """Whether the turn has a piece before it."""
        return self.number > 0

    def choose(self, judges: Judges = NOBODY) -> int:
        """Keep the fittest -> its number."""
        self.chosen, ranked = rank([one.take for one in self.takes], judges)
        self.takes = [replace(one, take=take) for one, take in zip(self.takes, ranked)]
        return self.chosen


@dataclass(frozen=True)
class Attempt:
    """A piece is to be spoken, once with each of these `seeds`."""

    tried: Tried
    seeds: list[int]

    @property
    def onto(self) -> bool:
        return self.tried.onto


class Told:
    """What was said of one turn so far, which has these `parts`; `lead` seconds of silence open it."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.lead = 0.0 if parts[0].text else parts[0].pause
        self._pieces = [Tried(part, number) for number, part in enumerate(part for part in parts if part.text)]

    def __iter__(self) -> Iterator[Tried]:
        """The pieces to be spoken, in order."""
        return iter(self._pieces)

    @property
    def pieces(self) -> list[Tried]:
        """Those that were, to their end or not."""
        return [tried for tried in self._pieces if tried.takes]

    @property
    def kept(self) -> list[One]:
        return [tried.best for tried in self.pieces]

    @property
    def drawn(self) -> int:
        """How many takes were drawn of the piece that had most."""
        return max(len(tried.takes) for tried in self.pieces)

    @property
    def prefilled(self) -> int:
        """Positions that were read in; takes side by side share them."""
        return sum(one.piece.positions_prefilled for tried in self.pieces for one in _in_turn(tried))

    def takes(self, text: str) -> tuple[list[Take], int]:
        """The takes of the turn, whose text is this, and the number of the one that is kept. A turn of several pieces
        has one, of the best of each."""
        if len(self.pieces) == 1:
            tried = self.pieces[0]
            return [self._take(text, [one], tried.again) for one in tried.takes], tried.chosen
        again = sum(tried.again for tried in self.pieces)
        return [self._take(text, self.kept, again)], 0

    def sounds(self) -> list[Tensor]:
        """The sound of each of `takes`."""
        if len(self.pieces) == 1:
            return [self._sound([one]) for one in self.pieces[0].takes]
        return [self._sound(self.kept)]

    def _take(self, text: str, ones: Sequence[One], again: int) -> Take:
        take, pieces = ones[0].take, self._stretches(ones)
        plain = len(pieces) == 1 and pieces[0] == Stretch(text, len(take.codes), take.samples)
        if plain:
            return replace(take, text=text, again=again)
        states = [one.take.state for one in ones]
        return replace(
            take,
            text=text,
            codes=torch.cat([one.take.codes for one in ones]),
            state="capped" if "capped" in states and states[-1] == "ended" else states[-1],
            samples=sum(piece.samples + piece.silence for piece in pieces),
            positions_prefilled=sum(one.take.positions_prefilled for one in ones),
            scores=take.scores if len(ones) == 1 else None,
            reason=take.reason if len(ones) == 1 else _reason(self.pieces),
            doubt=next((one.take.doubt for one in ones if one.take.doubt), ""),
            again=again,
            pieces=pieces,
        )

    def _stretches(self, ones: Sequence[One]) -> tuple[Stretch, ...]:
        lead = [Stretch("", 0, 0, round(self.lead * SAMPLE_RATE))] if self.lead else []
        said = [Stretch(one.take.text, len(one.take.codes), one.take.samples, len(one.piece.silence)) for one in ones]
        return (*lead, *said)

    def _sound(self, ones: Sequence[One]) -> Tensor:
        pieces = self._stretches(ones)
        waves = [one.piece.unmarked for one in ones]
        return waves[0] if len(pieces) == 1 and not pieces[0].silence else _joined(pieces, waves)


def joined(take: Take, waves: Sequence[Tensor]) -> Tensor:
    """The sound of a take whose pieces sound so, float32 (num_samples,) each: as it is where there is one piece."""
    if len(take.pieces) < 2 and not take.paused:
        return waves[0]
    return _joined(take.pieces, waves)


def _joined(pieces: Sequence[Stretch], waves: Sequence[Tensor]) -> Tensor:
    told, left = [], list(waves)
    for piece in pieces:
        told += [output_sound(left.pop(0), piece.samples)] if piece.text else []
        told += [torch.zeros(piece.silence)]
    return torch.cat(told)


def _in_turn(tried: Tried) -> list[One]:
    """The takes of a piece, those side by side once."""
    return tried.takes[max(0, len(tried.takes) - tried.again - 1) :]


def _reason(pieces: Sequence[Tried]) -> str:
    drawn = max(len(tried.takes) - tried.again for tried in pieces)
    if drawn > 1:
        return f"Each of its {len(pieces)} pieces is the best of {drawn} takes."
    return "The only take that was asked for."
