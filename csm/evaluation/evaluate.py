"""Sentences the model never saw go in as text, and what a recogniser hears comes out.

Each sentence is a conversation of its own that begins with a voice's prompt, so every turn is a cold start in
that voice. Beside the model stands its floor: recordings of the same sentences, as they are and through the
codec alone. No model on top of a codec is understood better than the codec is. With `--codec` a codec is judged
by itself, on clips that its training held out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import write_audio
from csm.codec import Codec, decoded_again
from csm.config import SAMPLE_RATE
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.evaluation.context import Speech, cast_lines, converse, new_voices
from csm.evaluation.judges import Judges, Report
from csm.evaluation.metrics import cosine, error_rate, mean
from csm.speech.generator import Generator
from csm.speech.voices import Voice, load_prompt
from csm.training.held_out import CONVERSATION
from csm.watermark import mark

Figures = dict[str, Any]

LEAST = 1.5  # seconds of a clip that tell whose voice it is
HEARD = "heard.tsv"  # name, state, sentence, what was heard
COLUMNS = {  # key of a figure: heading, format, factor
    "clips": ("clips", "d", 1),
    "word_error_rate": ("WER %", ".1f", 100),
    "ended": ("ended %", ".0f", 100),
    "similarity_own": ("own voice", ".2f", 1),
    "similarity_others": ("others", ".2f", 1),
    "nearest_is_own": ("nearest %", ".0f", 100),
    "naturalness": ("MOS 1-5", ".2f", 1),
    "real_time_factor": ("RTF", ".2f", 1),
}


@dataclass(frozen=True)
class EvaluationSettings:
    """`seed` is that of the first sentence, each later one has the next. Turns are cut at `max_turn_seconds`.

    Without a `temperature` or `topk` the model's own is used. `context`: conversations of two and three speakers, too,
    and new voices. `out` is a folder for the sound that was judged, watermarked, and what was heard in it. `rhvoice` is
    where RHVoice is installed, which with Flite makes the recordings.
    """

    seed: int = 7
    max_turn_seconds: float = 20.0
    out: Path | None = None
    rhvoice: Path | None = None
    temperature: float | None = None
    topk: int | None = None
    context: bool = False

    def speech(self) -> Speech:
        given = {"temperature": self.temperature, "topk": self.topk}
        return Speech(
            self.seed, self.max_turn_seconds, {key: value for key, value in given.items() if value is not None}
        )


@dataclass(frozen=True)
class Clip:
    """One sentence as it was judged. Times in seconds; similarities are cosines; None is "not judged"."""

    voice: str
    sentence: str
    heard: str | None
    audio_seconds: float
    similarity_own: float | None = None
    similarity_others: float | None = None
    nearest_is_own: bool | None = None
    naturalness: float | None = None
    state: str | None = None
    generation_seconds: float | None = None


def evaluate(
    generator: Generator,
    voices: dict[str, Voice],
    sentences: Sequence[str],
    judges: Judges,
    settings: EvaluationSettings | None = None,
    report: Report = print,
) -> Figures:
    """Speak `sentences` in `voices`, one after the other, and judge model, codec and recordings.

    Returns the figures of the model, its `voices` one by one, and of `codec` and `recordings`, which are None
    where no synthesiser is there to make recordings. Rates and shares are between 0 and 1 (a word error rate can be
    above).
    Raises `InputError` when there are no voices, or a prompt or the folder can't be used.
    """
    settings = settings or EvaluationSettings()
    if not voices or not sentences:
        raise InputError("There is nothing to evaluate: give at least one voice and one sentence.")
    if settings.out:
        _prepare(settings.out)
    prompts = {name: load_prompt(voice) for name, voice in voices.items()}
    names = [list(voices)[index % len(voices)] for index in range(len(sentences))]
    lines = list(zip(names, sentences))
    clips = list(_spoken(generator, voices, prompts, lines, judges, settings, report))
    recordings, decoded = _floor(generator, lines, judges, settings, report)
    context: Figures = {}
    if settings.context:
        speech = settings.speech()
        context["conversation"] = converse(generator, voices, CONVERSATION, judges, speech, report)
        context["new_voices"] = new_voices(generator, voices, sentences, judges, speech, report)
    return {
        "model": generator.model_name,
        "device": str(generator.device),
        "seed": settings.seed,
        "recogniser": judges.names["words"],
        **_figures(clips),
        "voices": {name: _figures(own) for name in voices if (own := [clip for clip in clips if clip.voice == name])},
        "codec": _figures(decoded) if decoded else None,
        "recordings": _figures(recordings) if recordings else None,
        **context,
    }


def evaluate_codec(
    codec: Codec, name: str, recordings: Sequence[tuple[str, str, Tensor]], judges: Judges, out: Path | None = None
) -> Figures:
    """Judge recordings (speaker, words, float32 (num_samples,) at 24 kHz) as they are and after `codec`, on the CPU.

    Raises `InputError` when the folder `out` can't be used.
    """
    if out:
        _prepare(out)
    recorded: list[Clip] = []
    decoded: list[Clip] = []
    for index, (speaker, words, wave) in enumerate(recordings):
        before, after, again = _through(codec, torch.device("cpu"), speaker, words, wave, judges)
        _keep(out, f"codec-{index + 1:02}-{speaker}", again, after)
        recorded.append(before)
        decoded.append(after)
    judged = {"codec": _figures(decoded), "recordings": _figures(recorded)}
    return {"run": name, "recogniser": judges.names["words"], **judged}


def held_out_clips(data: Path, count: int) -> list[tuple[str, str, Tensor]]:
    """Up to `count` clips that training on the speech in `data` left out, always the same. Raises `InputError`."""
    from csm.training.corpus import Corpus

    corpus = Corpus(data)
    clips = [clip for clip in corpus.utterances if clip.held_out and clip.samples >= LEAST * SAMPLE_RATE]
    if not clips:
        raise InputError(f"The speech in {data} holds no clip of {LEAST:g} s back: make more of it.")
    chosen = np.random.default_rng(0).choice(len(clips), min(count, len(clips)), replace=False)
    return [
        (clip.speaker, clip.text, torch.from_numpy(corpus.audio(clip).astype(np.float32) / 32768))
        for clip in (clips[number] for number in chosen)
    ]


def table(figures: Figures) -> str:
    """The figures as lines of text: the model and its voices if there are any, and the floor beside it."""
    rows = [(figures["model"], figures)] if "model" in figures else []
    rows += [(f"  {name}", own) for name, own in figures.get("voices", {}).items()]
    rows += [
        (title, figures[key])
        for key, title in (("codec", "codec alone*"), ("recordings", "recordings"))
        if figures[key] is not None
    ]
    width = max(len(title) for title, _ in rows)
    lines = [" " * width + "".join(f"{heading:>11}" for heading, _, _ in COLUMNS.values())]
    for title, row in rows:
        cells = [
            "-" if row.get(key) is None else format(row[key] * factor, kind)
            for key, (_, kind, factor) in COLUMNS.items()
        ]
        lines.append(f"{title:<{width}}" + "".join(f"{cell:>11}" for cell in cells))
    if figures["codec"] is not None:
        lines.append("* its own voice is the recording that went in")
    if "conversation" in figures:
        lines += ["", *cast_lines(figures["conversation"])]
    if "new_voices" in figures:
        lines += ["", "new voices: " + ", ".join(f"{key} {value}" for key, value in figures["new_voices"].items())]
    return "\n".join(lines)


def _spoken(
    generator: Generator,
    voices: dict[str, Voice],
    prompts: dict[str, Tensor],
    lines: list[tuple[str, str]],
    judges: Judges,
    settings: EvaluationSettings,
    report: Report,
) -> Iterator[Clip]:
    """The model's clips. The time of a clip counts its prompt too, encoded and prefilled for each sentence."""
    identities = {name: judges.embed(prompt) for name, prompt in prompts.items()}
    for index, (name, sentence) in enumerate(lines):
        prompt = Segment(speaker=0, text=voices[name].transcript, audio=prompts[name])
        start = time.perf_counter()
        conversation = generator.conversation(prompts=[prompt], seed=settings.seed + index)
        turn = conversation.say(sentence, speaker=0, marked=False, **settings.speech().options())
        seconds = time.perf_counter() - start
        identity = judges.embed(turn.audio)
        own = cosine(identity, identities[name])
        others = [cosine(identity, other) for key, other in identities.items() if key != name]
        known = [other for other in others if other is not None]
        clip = Clip(
            name,
            sentence,
            judges.hear(turn.audio),
            turn.audio.numel() / SAMPLE_RATE,
            own,
            mean(others),
            own > max(known) if own is not None and known else None,
            judges.rate(turn.audio),
            turn.state,
            seconds,
        )
        report(f"{index + 1:3}/{len(lines)}  {name}  {clip.state} {clip.audio_seconds:.1f} s  heard: {clip.heard}")
        _keep(settings.out, f"{index + 1:02}-{name}", turn.audio, clip)
        yield clip


def _floor(
    generator: Generator, lines: list[tuple[str, str]], judges: Judges, settings: EvaluationSettings, report: Report
) -> tuple[list[Clip], list[Clip]]:
    """Recordings of the same sentences, judged as they are and after the codec. A voice whose synthesiser is not
    installed is left out."""
    from csm.training.corpus import BASE_SPEAKERS, SPEAKERS, load_engines, say

    engines = load_engines(settings.rhvoice, lambda why: report(f"Recordings of some voices are left out. {why}"))
    at_hand = [name for name, speaker in BASE_SPEAKERS.items() if speaker.engine in engines]
    recordings: list[Clip] = []
    decoded: list[Clip] = []
    for index, (name, sentence) in enumerate(lines):
        if not at_hand or (name in SPEAKERS and SPEAKERS[name].engine not in engines):
            continue
        speaker = name if name in SPEAKERS else at_hand[index % len(at_hand)]
        wave = torch.from_numpy(say(engines, sentence, speaker)[0]).float()
        before, after, again = _through(generator.codec, generator.device, speaker, sentence, wave, judges)
        recordings.append(before)
        decoded.append(after)
        _keep(settings.out, f"codec-{index + 1:02}-{speaker}", again, after)
    return recordings, decoded


def _through(
    codec: Codec, device: torch.device, speaker: str, sentence: str, wave: Tensor, judges: Judges
) -> tuple[Clip, Clip, Tensor]:
    """A recording as it is judged, the same encoded and decoded, and that sound."""
    again = decoded_again(codec, wave.to(device)).cpu()

    def judged(sound: Tensor, likeness: float | None) -> Clip:
        words = judges.hear(sound)
        seconds = sound.numel() / SAMPLE_RATE
        return Clip(speaker, sentence, words, seconds, similarity_own=likeness, naturalness=judges.rate(sound))

    return judged(wave, None), judged(again, cosine(judges.embed(again), judges.embed(wave))), again


def _figures(clips: list[Clip]) -> Figures:
    """Means over clips, but the word error rate and the real-time factor, which are over all words and seconds."""
    audio = sum(clip.audio_seconds for clip in clips)
    spoken = [clip for clip in clips if clip.state is not None]
    figures: Figures = {
        "clips": len(clips),
        "word_error_rate": error_rate([clip.sentence for clip in clips], [clip.heard for clip in clips]),
        "similarity_own": mean([clip.similarity_own for clip in clips]),
        "similarity_others": mean([clip.similarity_others for clip in clips]),
        "nearest_is_own": mean([clip.nearest_is_own for clip in clips]),
        "naturalness": mean([clip.naturalness for clip in clips]),
        "audio_seconds": audio,
    }
    if spoken:
        seconds = sum(clip.generation_seconds or 0.0 for clip in spoken)
        figures |= {
            "ended": sum(clip.state == "ended" for clip in spoken) / len(spoken),
            "generation_seconds": seconds,
            "real_time_factor": seconds / audio if audio else None,
        }
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HEARD).write_text("", encoding="utf-8")
    except OSError as error:
        raise InputError(f"The folder {folder} can't be written to: choose another for --out.") from error


def _keep(folder: Path | None, name: str, wave: Tensor, clip: Clip) -> None:
    if folder is None:
        return
    if wave.numel():
        write_audio(folder / f"{name}.wav", mark(wave))
    with (folder / HEARD).open("a", encoding="utf-8") as file:
        file.write(f"{name}\t{clip.state or ''}\t{clip.sentence}\t{clip.heard or ''}\n")
