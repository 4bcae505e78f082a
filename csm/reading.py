"""Running text of any length, read aloud by one voice: sentence by sentence, each a turn that hears the ones before.

Where a script has turns, programs have one long text; this is their way from text to sound. A new conversation
begins where the position budget of one ends, with the voice's prompt and the last sentence as its context.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from csm.config import FRAME_RATE
from csm.errors import InputError
from csm.events import Settings
from csm.frames import Segment
from csm.generator import Conversation, Generator, Stop
from csm.voices import Voice, load_prompt
from csm.watermark import LiveMark

SLOT = 0  # the speaker's number
LONGEST = 200  # letters; the model has heard hardly any turn that was longer
SHORTEST = 20  # letters; shorter ones are joined, as a voice would
SLOWEST = 8.0  # letters a second; calm speech has 12 to 15

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
    needed = [len(generator.turn_rows(text, SLOT)) for text in texts]
    codes = voice.codes_for(generator.codec_key)
    prompt = Segment(SLOT, voice.transcript, None if codes is not None else load_prompt(voice), codes)
    prompt = replace(prompt, codes=generator.segment_codes(prompt))
    conversation = generator.conversation([prompt], settings.seed)
    live, frames, positions = LiveMark(), 0, 0
    for index, text in enumerate(texts):
        expected = min(settings.max_turn_seconds, 1 + len(text) / SLOWEST) * FRAME_RATE
        if (
            conversation.turns
            and conversation.positions_used + needed[index] + expected > generator.config.max_positions
        ):
            conversation = _next_conversation(generator, prompt, conversation, settings.seed + index)
        longest = settings.max_turn_seconds * 1000
        for wave in conversation.stream(
            text, SLOT, longest, settings.temperature, settings.topk, settings.seed + index, stop
        ):
            if len(ready := live.push(wave)):
                yield Piece(index, len(texts), ready, frames, positions)
        frames, positions = frames + len(conversation.turns[-1].codes), positions + needed[index]
        if stop():
            break
    yield Piece(index, len(texts), live.flush(), frames, positions)


def _next_conversation(generator: Generator, prompt: Segment, full: Conversation, seed: int) -> Conversation:
    """A conversation that has heard the voice, and the last sentence of the `full` one where that is short enough."""
    last = full.turns[-1]
    conversation = generator.conversation([prompt], seed)
    heard = conversation.positions_used + len(last.text) + len(last.codes)
    if not len(last.codes) or heard > generator.config.max_positions / 2:
        return conversation
    return generator.conversation([prompt, Segment(SLOT, last.text, codes=last.codes)], seed)


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
