"""Subtitles can be read: two short lines at once, which change where the voice rests."""

from __future__ import annotations

import itertools

import pytest
import torch

from csm.config import FRAME_SIZE
from csm.conversation.cues import LINE, LINES, cues, lines, pieces
from csm.conversation.exports import subtitles
from csm.conversation.parsing import parse_script
from csm.conversation.script import Span

LONG = (
    "When the rain finally stopped we walked down to the harbor and watched the fishermen bring in their nets. The "
    "gulls circled above the boats, and the church bells rang in the distance. Nobody knew who had opened the window."
)


@pytest.mark.parametrize("text", [LONG, "word " * 200, "x" * 500, "你好，世界。" * 40, "Hi.", "a" * 43 + " b"])
def test_a_cue_has_at_most_two_lines_of_42_letters_and_no_letter_is_lost(text: str):
    cut = pieces(text.strip())
    assert all(len(lines(piece)) <= LINES and max(map(len, lines(piece))) <= LINE for piece in cut)
    assert "".join("".join(lines(piece)) for piece in cut).replace(" ", "") == text.replace(" ", "")


def test_a_cue_ends_at_a_sentence_where_one_ends_in_its_second_half():
    assert pieces("We walked down to the harbor and watched them. The gulls circled above all of the boats there.")[
        0
    ] == ("We walked down to the harbor and watched them.")


def test_cues_follow_each_other_without_a_gap_and_end_with_frames():
    span = Span(0, "A", LONG, 960, 960 + 150 * FRAME_SIZE + 500)
    made = cues([span])
    assert (made[0].start, made[-1].end) == (span.start, span.end) and len(made) > 2
    assert all(one.end == after.start for one, after in itertools.pairwise(made))
    assert all((one.end - span.start) % FRAME_SIZE == 0 and one.end > one.start for one in made[:-1])


def test_a_cue_changes_where_it_is_quiet():
    sound, quiet = torch.full((160 * FRAME_SIZE,), 0.5), 77
    sound[quiet * FRAME_SIZE : (quiet + 1) * FRAME_SIZE] = 0
    words = " ".join(["tick"] * 30)
    (first, _) = cues([Span(0, "A", words, 0, len(sound))], sound)
    assert first.end in (quiet * FRAME_SIZE, (quiet + 1) * FRAME_SIZE)


def test_a_turn_shorter_than_its_cues_gives_each_what_there_is():
    made = cues([Span(0, "A", LONG, 0, 2 * FRAME_SIZE)])
    assert made[-1].end == 2 * FRAME_SIZE and all(one.start <= one.end for one in made)


@pytest.mark.parametrize("kind", [".srt", ".vtt"])
def test_subtitles_that_were_written_are_read_again(kind: str):
    spans = [Span(0, "Anna", LONG, 0, 150 * FRAME_SIZE), Span(1, "Ben", "I see <that> & more.", 288_000, 300_000)]
    again = parse_script(subtitles(spans, kind))
    assert {line.speaker for line in again} == {"Anna", "Ben"}
    assert " ".join(line.text for line in again if line.speaker == "Anna") == LONG
