"""Segments to rows: the (S, K+1) ids and mask that the backbone reads, and the position budget.

A segment is text rows, then audio rows, then one row of zeros that ends the turn. In a text row only the last
column is in use; in an audio row all but the last and, in models that want it so, there the speaker's slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.config import FRAME_RATE, ModelConfig
from csm.errors import InputError
from csm.text import Tokenizer, turn_text

SLOT_AT = 2  # among the ids of a turn, behind BOS and the bracket


@dataclass
class Segment:
    """One turn as context: what was said, by which speaker slot, and how it sounded.

    Give `audio`, float32 (num_samples,) at 24 kHz, or `codes`, int64 (frames, K) without the zero frame. `embedding`,
    float32 (D,), is that of the speaker's voice, for models whose codes don't carry all of it; it is found from the
    sound where it isn't given.
    """

    speaker: int
    text: str
    audio: Tensor | None = None
    codes: Tensor | None = None
    embedding: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Input rows: `ids` int64 (S, K+1) and `mask` bool (S, K+1)."""

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return self.ids.shape[0]

    @staticmethod
    def join(parts: list[Rows]) -> Rows:
        return Rows(torch.cat([part.ids for part in parts]), torch.cat([part.mask for part in parts]))


def id_rows(text: Tensor, num_codebooks: int) -> Rows:
    """One row for each of a text's ids, int64 (S,)."""
    ids = torch.zeros(len(text), num_codebooks + 1, dtype=torch.int64)
    ids[:, -1] = text
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, -1] = True
    return Rows(ids, mask)


def audio_rows(codes: Tensor, slot_id: int | None = None) -> Rows:
    """codes int64 (frames, K) -> one row a frame, with `slot_id` in the text column where the model wants it there."""
    ids = torch.cat([codes, codes.new_full((codes.shape[0], 1), slot_id or 0)], dim=1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, -1] = slot_id is not None
    return Rows(ids, mask)


@dataclass(frozen=True)
class RowFormat:
    """How one model's rows are written: its tokenizer, its K codebooks, whether frames carry their speaker's slot and
    whether a space stands between slot and text (`ModelConfig.slots_in_frames`, `space_after_slot`)."""

    tokenizer: Tokenizer
    num_codebooks: int
    slots_in_frames: bool = False
    space_after_slot: bool = False

    @classmethod
    def of(cls, config: ModelConfig, tokenizer: Tokenizer) -> RowFormat:
        return cls(tokenizer, config.num_codebooks, config.slots_in_frames, config.space_after_slot)

    def slot_id(self, speaker: int) -> int | None:
        """The id of a slot's number, as it stands in brackets before the text; None where frames carry none."""
        return self.tokenizer.encode(turn_text("", speaker))[SLOT_AT] if self.slots_in_frames else None

    def ids(self, text: str, speaker: int) -> Tensor:
        """What a turn's text is to the model, int64 (S,): its ids, and one more for the slot where frames carry it, so
        that whatever a frame is sampled from says whose it is."""
        slot = self.slot_id(speaker)
        written = turn_text(text, speaker, self.space_after_slot)
        tokens = [*self.tokenizer.encode(written), *([] if slot is None else [slot])]
        return torch.tensor(tokens, dtype=torch.int64)

    def text(self, text: str, speaker: int) -> Rows:
        """One row for each of `ids`."""
        return id_rows(self.ids(text, speaker), self.num_codebooks)

    def spoken(self, codes: Tensor, speaker: int) -> Rows:
        """What is said in a whole turn: its frames, codes int64 (frames, K), and the zero frame that ends it."""
        return audio_rows(torch.cat([codes, codes.new_zeros(1, codes.shape[1])]), self.slot_id(speaker))

    def turn(self, text: str, speaker: int, codes: Tensor) -> Rows:
        """A whole turn: its text, its frames, and the zero frame that ends it."""
        return Rows.join([self.text(text, speaker), self.spoken(codes, speaker)])


def frames_in(seconds: float) -> int:
    """How many whole frames of 80 ms there are in `seconds`; a float's rounding costs none (20.56 s are 257)."""
    return int(round(seconds * FRAME_RATE, 6))


def longest_turn(milliseconds: float) -> int:
    """How many frames a turn may have that is to last at most so long. Raises `InputError` for less than one."""
    if (frames := frames_in(milliseconds / 1000)) < 1:
        raise InputError("The longest length of a turn is below one frame; allow at least 80 milliseconds.")
    return frames


def room_for(text: str, text_positions: int) -> int:
    """Positions to keep free for a turn that is still to be spoken: its text, its frames and the zero frame.

    2 s and 0.16 s a letter are more than twice what calm speech takes (0.07 s), so that a full window all but never
    cuts a turn short. It depends on the text alone: a conversation that is read in again slides at the same turns.
    """
    return text_positions + 25 + 2 * max(len(text.strip()), text_positions) + 1


@dataclass(frozen=True)
class Budget:
    """How many positions a model has, and what fits into them."""

    positions: int

    def leaving(self, prompts: int, turns: Sequence[int], needed: int) -> int:
        """How many of the oldest `turns` leave, so that `needed` positions are free behind `prompts` and the rest.

        `turns` are the positions of each turn that is heard now, oldest first. None leaves while all fit. Then the
        newest turns stay that fit into half of the B positions beside the prompts; the last one stays, if there is
        room for it, even when it is longer than that half.

        Why half: the turns that stay are read in once more, at most B/2 positions, and about the B/2 that became free
        are spoken before that happens again. So past the window a position costs about one further position of
        prefill, many times cheaper than the step that made it. Letting only the oldest turn leave would read in
        nearly all B positions at every turn: for 15 turns to a window 14 times as much. Keeping a quarter would save
        two thirds of what half costs, but a turn might then hear half as much. With CSM-1B and two voices of 10 s
        (B = 1 700) a slide comes about every 45 s of speech and reads in at most 850 positions.
        """
        room = self.positions - prompts
        if sum(turns) + needed <= room:
            return 0
        stay = kept = 0
        for size in reversed(turns):
            kept += size
            if kept + needed > room or (stay and kept > room // 2):
                break
            stay += 1
        return len(turns) - stay

    def check_turn(self, text: str, text_positions: int, prompts: int, longest: int, name: str = "This turn") -> None:
        """Raise `InputError` when a turn of at most `longest` frames does not fit even alone behind `prompts`.

        Speech faster than 25 letters a second does not exist: that much must fit, or its end could never be heard.
        """
        room = self.positions - prompts
        if room - text_positions - 1 < max(1, min(longest, len(text.strip()) // 2)):
            raise InputError(
                f"{name} is too long: its text takes {text_positions} positions, and text and speech together have "
                f"{max(0, room)} beside the voices; split it into several turns."
            )

    def seconds_that_fit(self, text_positions: int, used: int = 0, reserve: int = 0) -> float:
        """Seconds of audio beside `text_positions` ids, the zero frame and `reserve` further positions."""
        frames = self.positions - used - reserve - text_positions - 1
        return max(0, frames) / FRAME_RATE

    def check_prompt(self, frames: int, text_positions: int, used: int, reserve: int) -> None:
        """Raise `InputError` with the seconds that fit when a prompt of `frames` frames is too long."""
        seconds, fit = frames / FRAME_RATE, self.seconds_that_fit(text_positions, used, reserve)
        if seconds > fit:
            raise InputError(
                f"This prompt lasts {seconds:.1f} s, and only {fit:.1f} s fit beside its text "
                f"and the turn to come: use a shorter recording."
            )
