"""Running text of any length, read aloud by one voice: sentence by sentence, each a turn that hears the ones before.

Where a script has turns, programs have one long text; this is their way from text to sound. It is one conversation,
whose oldest sentences leave when the model's positions are full.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from csm.errors import InputError
from csm.frames import Segment, frames_in
from csm.generator import Generator, Stop
from csm.settings import Settings
from csm.voices import Voice, load_prompt
from csm.watermark import LiveMark

SLOT = 0  # the speaker's number
LONGEST = 200  # letters; the model has heard hardly any turn that was longer
SHORTEST = 20  # letters; shorter ones are joined, as a voice would

CLOSING = "\"'”’)"

_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)])\s+|(?<=[。！？])\s*")
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|[A-Z])\.$")
_PAUSE = re.compile(r"(?<=[,;:—–])\s+")


@dataclass(frozen=True)
class Piece:
    """The next `wave`, float32 (num_samples,) at 24 kHz, marked, to be played behind the last, from sentence `index`
    (from 0) of `total`. `frames` were made and `text_positions` read in for it all so far."""

    index: int
    total: int
    wave: Tensor
    frames: int
    text_positions: int


def sentences(text: str) -> list[str]:
    """Running text -> pieces of 20 to 200 letters where that is possible, cut at sentences, pauses, then words.

    Empty when nothing in the text can be spoken.
    """
    found: list[str] = []
    for piece in filter(_speakable, _pieces(text)):
        if found and len(found[-1]) < SHORTEST and len(found[-1]) + len(piece) < LONGEST:
            found[-1] = f"{found[-1]} {piece}"
        else:
            found.append(piece)
    if len(found) > 1 and len(found[-1]) < SHORTEST and len(found[-2]) + len(found[-1]) < LONGEST:
        found[-2:] = [" ".join(found[-2:])]
    return found


def _speakable(text: str) -> bool:
    return any(map(str.isalnum, text))


def read_aloud(
    generator: Generator, texts: list[str], voice: Voice, settings: Settings, stop: Stop = lambda: False
) -> Iterator[Piece]:
    """Speak `texts` one after the other, as pieces of one sound; `stop` is asked at every frame.

    Raises `InputError` before the first sound for a voice or a text that can't be used.
    """
    if not voice.transcript.strip():
        raise InputError(f"The voice {voice.name} has no transcript: write down what is said in it.")
    codes = voice.codes_for(generator.codec_key)
    prompt = Segment(SLOT, voice.transcript, None if codes is not None else load_prompt(voice), codes)
    prompts, longest = len(generator.prompt_rows([prompt])), frames_in(settings.max_turn_seconds)
    needed = [len(generator.turn_rows(text, SLOT)) for text in texts]
    for number, (text, rows) in enumerate(zip(texts, needed), 1):
        generator.budget.check_turn(text, rows, prompts, longest, f"Sentence {number}")
    conversation = generator.conversation([prompt], settings.seed)
    live, frames, positions = LiveMark(), 0, 0
    for index, text in enumerate(texts):
        for wave in conversation.speak(text, SLOT, settings, settings.seed + index, stop):
            if len(ready := live.push(wave)):
                yield Piece(index, len(texts), ready, frames, positions)
        frames, positions = frames + len(conversation.turns[-1].codes), positions + needed[index]
        if stop():
            break
    yield Piece(index, len(texts), live.flush(), frames, positions)


def _pieces(text: str) -> Iterator[str]:
    """Sentences, and parts of those that are longer than `LONGEST`."""
    for line in map(str.split, text.splitlines()):
        unfinished = ""
        for sentence in _END.split(" ".join(line)):
            # “Really?” asked Anna.
            goes_on = sentence[:1].islower() and unfinished[-1:] in CLOSING
            if unfinished and not goes_on and not _ABBREVIATED.search(unfinished):
                yield from _parts(unfinished)
                unfinished = ""
            unfinished = f"{unfinished} {sentence}".strip()
        yield from _parts(unfinished)


def _parts(sentence: str) -> Iterator[str]:
    """A sentence, cut where a speaker breathes and, where that does not help, between words and at last anywhere."""
    while len(sentence) > LONGEST:
        window = sentence[: LONGEST + 1]
        pauses = [match.start() for match in _PAUSE.finditer(window) if match.start() >= SHORTEST]
        words = [index for index, letter in enumerate(window) if letter == " " and index >= SHORTEST]
        cut = (pauses or words or [LONGEST])[-1]
        yield sentence[:cut].strip()
        sentence = sentence[cut:].strip()
    if sentence:
        yield sentence
