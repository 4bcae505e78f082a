"""Running text of any length, read aloud by one voice: sentence by sentence, each a turn that hears the ones before.

Where a script has turns, programs have one long text; this is their way from text to sound. A new conversation
begins where the position budget of one ends, with the voice's prompt and the last sentence as its context.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from csm.config import FRAME_RATE, FRAME_SIZE
from csm.errors import InputError
from csm.frames import Segment
from csm.generator import Conversation, Generator, Turn
from csm.events import Settings
from csm.voices import Voice, load_prompt

SLOT = 0  # the speaker's number
LONGEST = 200  # letters; the model has heard hardly any turn that was longer
SHORTEST = 20  # letters; a turn of less than about two seconds has hardly room for its mark
SLOWEST = 8.0  # letters a second; calm speech has 12 to 15

_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)])\s+|(?<=[。！？])\s*")
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|[A-Z])\.$")
_PAUSE = re.compile(r"(?<=[,;:—–])\s+")


@dataclass(frozen=True)
class Sentence:
    """One spoken sentence. `audio` float32 (1920 frames,) is unmarked; `state` is `ended`, `capped` or `stopped`;
    `text_positions` counts the ids of its text."""

    index: int
    total: int
    text: str
    audio: Tensor
    frames: int
    state: str
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
    generator: Generator,
    texts: list[str],
    voice: Voice,
    settings: Settings,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Sentence]:
    """Speak `texts` one after the other; `stop` is asked after every chunk. Raises `InputError` before the first
    sound for a voice or a text that can't be used."""
    if not voice.transcript.strip():
        raise InputError(f"The voice {voice.name} has no transcript: write down what is said in it.")
    needed = [len(generator.turn_rows(text, SLOT)) for text in texts]
    prompt = Segment(SLOT, voice.transcript, audio=load_prompt(voice))
    prompt = replace(prompt, codes=generator.segment_codes(prompt))
    most = generator.config.max_positions
    conversation = generator.conversation([prompt], settings.seed)
    for index, text in enumerate(texts):
        if stop():
            return
        frames = min(settings.max_turn_seconds, 1 + len(text) / SLOWEST) * FRAME_RATE
        if conversation.turns and conversation.positions_used + needed[index] + frames > most:
            last, before = conversation.turns[-1], needed[index - 1]
            conversation = generator.conversation([prompt], settings.seed + index)
            if len(last.codes) and conversation.positions_used + before + len(last.codes) < most / 2:
                heard = Segment(SLOT, last.text, codes=last.codes)
                conversation = generator.conversation([prompt, heard], settings.seed + index)
        turn = _spoken(conversation, text, settings, stop)
        # A turn that was stopped lacks the samples that its decoder still held: silence takes their place.
        audio = torch.zeros(len(turn.codes) * FRAME_SIZE)
        audio[: len(turn.audio)] = turn.audio
        yield Sentence(index, len(texts), text, audio, len(turn.codes), turn.state, needed[index])
        if turn.state == "stopped":
            return


def _spoken(conversation: Conversation, text: str, settings: Settings, stop: Callable[[], bool]) -> Turn:
    stream = conversation.stream(
        text,
        SLOT,
        max_audio_length_ms=settings.max_turn_seconds * 1000,
        temperature=settings.temperature,
        topk=settings.topk,
    )
    for _ in stream:
        if stop():
            stream.close()
            break
    return conversation.turns[-1]


def _pieces(text: str) -> Iterator[str]:
    """Sentences, and parts of those that are longer than `LONGEST`."""
    for line in map(str.split, text.splitlines()):
        unfinished = ""
        for sentence in _END.split(" ".join(line)):
            unfinished = f"{unfinished} {sentence}".strip()
            if not _ABBREVIATED.search(unfinished):
                yield from _parts(unfinished)
                unfinished = ""
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
