"""What a conversation keeps of its turns, and how one of them is asked for: no model here."""

from __future__ import annotations

from collections.abc import Callable

from csm.engine.frames import longest_turn
from csm.errors import InputError
from csm.settings import ABOUT, Settings
from csm.speech.turn import Piece, Turn

PIECE_SEED = 7_919  # from one piece's seed to the next of the same turn
Stop = Callable[[], bool]  # asked again and again; True ends the turn with what was made


class ConversationFull(InputError):
    """The positions are used up, and this conversation keeps all its turns: the turn asked for no longer fits."""


class History:
    """Turns in order, and the pieces that they were spoken in."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self._pieces: list[Piece] = []
        self._turn_of: list[int] = []  # the number of each piece's turn

    @property
    def last(self) -> Piece | None:
        """What was said last."""
        return self._pieces[-1] if self._pieces else None

    def _forget(self, to: Turn | Piece) -> None:
        """Take out a turn, or a piece of one, and what followed. Raises `ValueError`."""
        for number in reversed(range(len(self.turns))):
            turn = self.turns[number]
            at = 0 if turn is to else next((at for at, piece in enumerate(turn.pieces) if piece is to), None)
            if at is not None:
                break
        else:
            raise ValueError("This turn is not part of the conversation.")
        first = self._turn_of.index(number) + at
        del self._pieces[first:], self._turn_of[first:]
        del self.turns[number + (at > 0) :]
        if at:
            del turn.pieces[at:]

    def _append(self, piece: Piece, onto: bool) -> None:
        if onto:
            self.turns[-1].pieces.append(piece)
            self.turns[-1].text += f" {piece.text}"
        else:
            heard = self._turn_of[piece.heard_from] if piece.heard_from < len(self._turn_of) else len(self.turns)
            self.turns.append(Turn(piece.speaker, piece.text, [piece], heard))
        self._pieces.append(piece)
        self._turn_of.append(len(self.turns) - 1)


def piece_seed(seed: int, number: int) -> int:
    """The seed of piece `number` (from 0) of a turn; the first has the turn's own."""
    return (seed + PIECE_SEED * number) % 2**63


def one_by_one(
    max_audio_length_ms: float,
    temperature: float | None,
    topk: int | None,
    min_p: float = 0.0,
    speed: float = 1.0,
) -> Settings:
    """Settings as the original's `generate` takes them, one by one. Raises `InputError`.

    Its longest length knows no bound: no model has positions for more than ours.
    """
    longest_turn(max_audio_length_ms)
    seconds = min(max_audio_length_ms / 1000, ABOUT["max_turn_seconds"].most)
    return Settings(temperature=temperature, topk=topk, max_turn_seconds=seconds, min_p=min_p, speed=speed)
