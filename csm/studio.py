"""A script and voices in, a finished conversation out: what the command line and the app both do.

It puts the parts together in order: check everything, read the prompts, speak turn by turn in one growing
context, mark the whole once, and report. The watermark never reaches the context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from csm import watermark
from csm.config import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from csm.conversation import Line
from csm.errors import InputError
from csm.frames import Segment
from csm.generator import ConversationFull, Generator
from csm.model import Sampling
from csm.voices import Voice, load_prompt


@dataclass(frozen=True)
class Settings:
    """How to speak. The same seed, voices and script give the same conversation. Without `temperature` or `topk` the
    model's own is used."""

    seed: int = 7
    temperature: float | None = None
    topk: int | None = None
    max_turn_seconds: float = 20.0

    def __post_init__(self) -> None:
        Sampling(1.0 if self.temperature is None else self.temperature, 1 if self.topk is None else self.topk)
        if not 0 <= self.seed < 2**63:
            raise InputError(f"The seed is {self.seed}; choose a whole number from 0 on.")
        if not 0.08 <= self.max_turn_seconds <= 600:
            raise InputError(f"The longest turn is {self.max_turn_seconds} s; choose between 0.08 and 600 seconds.")


@dataclass(frozen=True)
class TurnReport:
    """One turn of the report; `start` and `end` are seconds in the finished conversation."""

    speaker: str
    text: str
    start: float
    end: float
    frames: int
    state: str
    positions_prefilled: int


@dataclass(frozen=True)
class TurnStarted:
    index: int
    total: int
    line: Line


@dataclass(frozen=True)
class TurnFinished:
    """`audio` float32 (num_samples,) is the turn before marking: to listen to on the way, not to give out."""

    index: int
    total: int
    turn: TurnReport
    audio: Tensor


@dataclass(frozen=True)
class Performed:
    """`audio` float32 (num_samples,) at 24 kHz is the whole conversation, marked once; `report` is plain JSON data,
    with a `notice` when not all of the script could be spoken."""

    audio: Tensor
    report: dict


Event = TurnStarted | TurnFinished | Performed


def prompts_for(lines: list[Line], voices: dict[str, Voice]) -> tuple[dict[str, int], list[Segment]]:
    """Speaker slots in order of appearance, and one prompt segment for each speaker.

    Raises `InputError` for a speaker without a voice and for a prompt that can't be used.
    """
    slots: dict[str, int] = {}
    for line in lines:
        slots.setdefault(line.speaker, len(slots))
    for speaker in slots:
        if speaker not in voices:
            raise InputError(f"Speaker {speaker} has no voice: choose one for {speaker}.")
    prompts = []
    for speaker, slot in slots.items():
        voice = voices[speaker]
        if not voice.transcript.strip():
            raise InputError(f"The voice of speaker {speaker} has no transcript: write down what is said in it.")
        prompts.append(Segment(speaker=slot, text=voice.transcript, audio=load_prompt(voice)))
    return slots, prompts


def perform(
    generator: Generator,
    lines: list[Line],
    voices: dict[str, Voice],
    settings: Settings = Settings(),
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Speak `lines` and yield what happens, `Performed` last. All input is checked before the first turn.

    A turn that no longer fits ends the performance with what was made so far; `stop` is asked after every chunk.
    """
    if not lines:
        raise InputError("The script is empty: write at least one line.")
    started = time.perf_counter()
    slots, prompts = prompts_for(lines, voices)
    for line in lines:
        generator.turn_rows(line.text, slots[line.speaker])
    conversation = generator.conversation(prompts, settings.seed)
    first_audio: float | None = None
    reports: list[TurnReport] = []
    pieces: list[Tensor] = []
    notice = None

    for index, line in enumerate(lines):
        if stop():
            break
        yield TurnStarted(index, len(lines), line)
        stream = conversation.stream(
            line.text,
            slots[line.speaker],
            max_audio_length_ms=settings.max_turn_seconds * 1000,
            temperature=settings.temperature,
            topk=settings.topk,
        )
        try:
            for _ in stream:
                first_audio = first_audio or time.perf_counter() - started
                if stop():
                    stream.close()
                    break
        except ConversationFull as full:
            notice = f"Turn {index + 1} of {len(lines)} and what follows it were left out. {full}"
            break
        turn = conversation.turns[-1]
        start = reports[-1].end if reports else 0.0
        seconds = len(turn.codes) / FRAME_RATE
        prefilled = turn.positions_prefilled
        report = TurnReport(
            line.speaker, line.text, start, round(start + seconds, 2), len(turn.codes), turn.state, prefilled
        )
        reports.append(report)
        # A turn that was stopped lacks the samples that its decoder still held: silence takes their place.
        audio = torch.zeros(len(turn.codes) * FRAME_SIZE)
        audio[: len(turn.audio)] = turn.audio
        pieces.append(audio)
        yield TurnFinished(index, len(lines), report, audio)
        if turn.state == "stopped":
            break

    if not reports and notice:
        raise InputError(notice)
    whole = torch.cat(pieces) if pieces else torch.zeros(0)
    generated = time.perf_counter() - started
    seconds = len(whole) / SAMPLE_RATE
    result = {
        "model": generator.model_name,
        "device": str(generator.device),
        "seed": conversation.seed,
        "sample_rate": SAMPLE_RATE,
        "audio_seconds": round(seconds, 2),
        "generation_seconds": round(generated, 3),
        "real_time_factor": round(generated / seconds, 3) if seconds else None,
        "first_audio_seconds": round(first_audio, 3) if first_audio else None,
        "positions_prefilled": conversation.positions_prefilled,
        "turns": [vars(report) for report in reports],
    }
    if notice:
        result["notice"] = notice
    yield Performed(watermark.mark(whole) if len(whole) else whole, result)
