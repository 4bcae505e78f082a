"""Where all parts of a long evaluation work: model, voices, judges and what is kept; and how a turn is spoken there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.engine.frames import Segment
from csm.evaluation.context import Speech
from csm.evaluation.judges import Judges
from csm.evaluation.keeping import Record, Store
from csm.evaluation.metrics import cosine
from csm.evaluation.progress import Progress
from csm.listening.speech import sounding_edges
from csm.listening.words import comparable
from csm.speech.generator import Conversation, Generator
from csm.speech.voices import Voice, load_prompt

PROBE = "Good morning."
PROBE_SECONDS, PROBES = 6.0, 2


@dataclass
class Desk:
    """`ends`: whether the model ends its turns by itself, as `ends_turns` found it."""

    generator: Generator
    voices: dict[str, Voice]
    judges: Judges
    speech: Speech
    store: Store
    progress: Progress
    ends: bool = True
    _identities: dict[str, np.ndarray | None] = field(default_factory=dict)

    def prompt(self, name: str, slot: int = 0) -> Segment:
        """The prompt of a voice in a slot."""
        return Segment(slot, self.voices[name].transcript, load_prompt(self.voices[name]))

    def identity(self, name: str) -> np.ndarray | None:
        """What the judge of voices makes of a voice's prompt."""
        if name not in self._identities:
            self._identities[name] = self.judges.embed(load_prompt(self.voices[name]))
        return self._identities[name]

    def once(self, key: str, what: str, make: Callable[..., Record], *arguments: Any) -> Record:
        """The record of `key`, made now by `make(desk, *arguments)` unless it is kept; one step of the progress."""
        kept = key in self.store
        record = self.store.once(key, lambda: make(self, *arguments))
        self.progress.step(what, kept)
        return record

    def speak(self, talk: Conversation, text: str, slot: int, key: str) -> tuple[Record, Tensor]:
        """Say `text` as the next turn -> what there is to know of it, and its sound, float32 (num_samples,)."""
        start, first = time.perf_counter(), None
        pieces: list[Tensor] = []
        for piece in talk.stream(text, slot, marked=False, **self.speech.options()):
            first = first if first is not None else time.perf_counter() - start
            pieces.append(piece.cpu())
        seconds = time.perf_counter() - start
        audio = torch.cat(pieces) if pieces else torch.zeros(0)
        heard = self.judges.hear(audio)
        length = audio.numel() / SAMPLE_RATE
        end = sounding_edges(audio, keep=0)[1] / SAMPLE_RATE if audio.numel() else 0.0
        record: Record = {
            "text": text,
            "heard": heard,
            "state": talk.turns[-1].state,
            "audio_seconds": round(length, 3),
            "silence_seconds": round(max(0.0, length - end), 3),
            "first_seconds": None if first is None else round(first, 4),
            "seconds": round(seconds, 3),
            "positions_prefilled": talk.turns[-1].positions_prefilled,
            "naturalness": self.judges.rate(audio),
            "file": self.store.keep(key, audio),
        }
        return record, audio

    def likeness(self, audio: Tensor, own: str, others: Sequence[str]) -> Record:
        """How like its own voice a sound is, and how like each of the `others`; None without a judge of voices."""
        spoken = self.judges.embed(audio)
        return {
            "own": _rounded(cosine(spoken, self.identity(own))),
            "others": [_rounded(cosine(spoken, self.identity(other))) for other in others],
        }


def ends_turns(generator: Generator, voice: Voice, speech: Speech) -> bool:
    """Whether the model ends a short turn by itself, in one of a few tries; a checkpoint that was trained without the
    end frame never does."""
    prompt = Segment(0, voice.transcript, load_prompt(voice))
    options = speech.options() | {"max_audio_length_ms": PROBE_SECONDS * 1000}
    for number in range(PROBES):
        talk = generator.conversation([prompt], seed=speech.seed + number)
        if talk.say(PROBE, 0, marked=False, **options).state == "ended":
            return True
    return False


def never_ends(speech: Speech) -> str:
    """What to say of a model that does not."""
    return (
        "How turns end: this model never ended a short one by itself, like a checkpoint that was trained "
        f"without the end frame, so its turns run to the limit of {speech.max_turn_seconds:g} s."
    )


def slipped_first(record: Record) -> bool | None:
    """Whether the first word was heard as another; None where nobody listened."""
    if record["heard"] is None:
        return None
    written, heard = comparable(record["text"]), comparable(record["heard"])
    return written[:1] != heard[:1]


def lost_last(record: Record) -> bool | None:
    """Whether the last word was heard as another, or not at all; None where nobody listened."""
    if record["heard"] is None:
        return None
    written, heard = comparable(record["text"]), comparable(record["heard"])
    return written[-1:] != heard[-1:]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
