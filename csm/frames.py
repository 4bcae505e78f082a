"""Segments to rows: the (S, K+1) ids and mask that the backbone reads, and the position budget.

A segment is text rows, then audio rows, then one row of zeros that ends the turn. In a text row only the last
column is in use; in an audio row, all but the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csm.config import FRAME_RATE
from csm.errors import InputError
from csm.text import Tokenizer, turn_text


@dataclass
class Segment:
    """One turn as context: what was said, by which speaker slot, and how it sounded.

    Give `audio`, float32 (num_samples,) at 24 kHz, or `codes`, int64 (frames, K) without the zero frame.
    """

    speaker: int
    text: str
    audio: Tensor | None = None
    codes: Tensor | None = None


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


def text_rows(tokenizer: Tokenizer, text: str, speaker: int, num_codebooks: int) -> Rows:
    """One row for every id of the turn's text."""
    tokens = torch.tensor(tokenizer.encode(turn_text(text, speaker)), dtype=torch.int64)
    ids = torch.zeros(len(tokens), num_codebooks + 1, dtype=torch.int64)
    ids[:, -1] = tokens
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, -1] = True
    return Rows(ids, mask)


def audio_rows(codes: Tensor) -> Rows:
    """codes int64 (frames, K) -> one row a frame."""
    ids = torch.cat([codes, codes.new_zeros(codes.shape[0], 1)], dim=1)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, -1] = False
    return Rows(ids, mask)


def segment_rows(tokenizer: Tokenizer, segment: Segment, codes: Tensor) -> Rows:
    """A whole turn: its text, its frames, and the zero frame that ends it."""
    ended = torch.cat([codes, codes.new_zeros(1, codes.shape[1])])
    return Rows.join([text_rows(tokenizer, segment.text, segment.speaker, codes.shape[1]), audio_rows(ended)])


@dataclass(frozen=True)
class Budget:
    """How many positions a model has, and what fits into them."""

    positions: int

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
