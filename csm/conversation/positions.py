"""The position budget of a script before it is spoken: what prompts, history and coming turns take of the model's
positions. Texts are counted exactly, sound that is still to come is estimated; no model runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from csm.config import FRAME_RATE, FRAME_SIZE
from csm.conversation.script import Script
from csm.conversation.takes import Pace
from csm.engine.frames import Budget, frames_in, room_for
from csm.errors import InputError
from csm.speech.generator import Generator
from csm.speech.voices import Voice, load_prompt
from csm.utterance import parts

PUBLISHED_BYTES_PER_SECOND = 88_200  # the published prompts are 16 bit at 44.1 kHz


@dataclass(frozen=True)
class TurnPositions:
    """Positions of one turn: its text exactly, its sound as spoken, or as expected while it waits."""

    text: int
    audio: int
    expected: bool


@dataclass(frozen=True)
class Positions:
    """Who takes how many of the model's `limit` positions. `prompts` by speaker.

    Before each of the turns in `slides` (from 0) the oldest leave the window, and the script is read to its end all the
    same. Only turns in `too_long` are refused: even alone they do not fit. `fits` turns can be spoken before the first.
    """

    limit: int
    prompts: dict[str, int]
    turns: list[TurnPositions]
    fits: int
    slides: list[int] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.prompts.values()) + sum(turn.text + turn.audio for turn in self.turns)


@dataclass
class PromptLengths:
    """Frames of recordings that were measured before, so that counting at every keystroke reads no file twice."""

    known: dict[Voice, int] = field(default_factory=dict)

    def frames(self, voice: Voice) -> int:
        """Raises `InputError` for a recording that can't be used; one that is still on the hub is estimated."""
        if voice.published_bytes:
            return math.ceil(voice.published_bytes / PUBLISHED_BYTES_PER_SECOND * FRAME_RATE)
        if voice not in self.known:
            self.known[voice] = math.ceil(len(load_prompt(voice)) / FRAME_SIZE)
        return self.known[voice]


def positions(generator: Generator, script: Script, lengths: PromptLengths | None = None) -> Positions:
    """Count a script's positions. A speaker without a voice takes none yet. Raises `InputError` for a voice that
    can't be used, and for a text whose direction can't be followed. Pass `lengths` again to count the next time
    faster."""
    lengths = lengths or PromptLengths()

    def text(words: str, speaker: str) -> int:
        return len(generator.prompts.ids(words, script.slots[speaker]))

    prompts: dict[str, int] = {}
    heard: dict[str, list[tuple[str, int]]] = {}
    for speaker in script.speakers:
        heard[speaker] = []
        if voice := script.voices.get(speaker):
            encoded = script.prompts.get(speaker)
            known = encoded.codes if encoded and encoded.voice == voice else voice.codes_for(generator.codec_key)
            frames = lengths.frames(voice) if known is None else len(known)
            prompts[speaker] = text(voice.transcript, speaker) + frames + 1
            heard[speaker].append((voice.transcript, frames))

    pieces: list[list[_Piece]] = []
    longest = frames_in(script.settings.max_turn_seconds)
    for turn in script.turns:
        if turn.take:
            said = [(words, len(codes)) for words, codes in turn.take.stretches]
            heard[turn.speaker].append((turn.take.text, len(turn.take.codes)))
        else:
            pace = Pace.learned(heard[turn.speaker])
            texts = [part.text for part in parts(turn.text, script.wording) if part.text]
            said = [(words, min(longest, math.ceil(pace.expected_frames(words)))) for words in texts]
        pieces.append([_Piece(words, text(words, turn.speaker), frames + 1) for words, frames in said])
    turns = [
        TurnPositions(sum(one.text for one in told), sum(one.audio for one in told), turn.take is None)
        for turn, told in zip(script.turns, pieces)
    ]
    counted = Positions(generator.config.max_positions, prompts, turns, len(turns))
    return _past_the_window(counted, generator.budget, pieces, longest)


@dataclass(frozen=True)
class _Piece:
    """What is said at a stretch: its words, the positions of them, and those of its sound."""

    words: str
    text: int
    audio: int


def _past_the_window(counted: Positions, budget: Budget, pieces: list[list[_Piece]], longest: int) -> Positions:
    """Go through the turns as a conversation will, and note where the oldest leave."""
    prompts, first = sum(counted.prompts.values()), 0
    sizes: list[int] = []
    slides: list[int] = []
    too_long: list[int] = []
    for index, told in enumerate(pieces):
        for piece in told:
            try:
                budget.check_turn(piece.words, piece.text, prompts, longest)
            except InputError:
                too_long += [index] if index not in too_long[-1:] else []
            if leaving := budget.leaving(prompts, sizes[first:], room_for(piece.words, piece.text)):
                slides += [index] if index not in slides[-1:] else []
                first += leaving
            sizes.append(piece.text + piece.audio)
    fits = too_long[0] if too_long else len(pieces)
    return replace(counted, fits=fits, slides=slides, too_long=too_long)
