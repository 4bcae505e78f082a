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
    can't be used. Pass `lengths` again to count the next time faster."""
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

    turns: list[TurnPositions] = []
    longest = frames_in(script.settings.max_turn_seconds)
    for turn in script.turns:
        if turn.take:
            frames = len(turn.take.codes)
            heard[turn.speaker].append((turn.take.text, frames))
        else:
            frames = min(longest, math.ceil(Pace.learned(heard[turn.speaker]).expected_frames(turn.text)))
        turns.append(TurnPositions(text(turn.text, turn.speaker), frames + 1, turn.take is None))
    counted = Positions(generator.config.max_positions, prompts, turns, len(turns))
    return _past_the_window(counted, generator.budget, [turn.text for turn in script.turns], longest)


def _past_the_window(counted: Positions, budget: Budget, texts: list[str], longest: int) -> Positions:
    """Go through the turns as a conversation will, and note where the oldest leave."""
    prompts, first = sum(counted.prompts.values()), 0
    sizes = [turn.text + turn.audio for turn in counted.turns]
    slides, too_long = [], []
    for index, (turn, text) in enumerate(zip(counted.turns, texts)):
        try:
            budget.check_turn(text, turn.text, prompts, longest)
        except InputError:
            too_long.append(index)
        leaving = budget.leaving(prompts, sizes[first:index], room_for(text, turn.text))
        if leaving:
            slides.append(index)
            first += leaving
    fits = too_long[0] if too_long else len(sizes)
    return replace(counted, fits=fits, slides=slides, too_long=too_long)
