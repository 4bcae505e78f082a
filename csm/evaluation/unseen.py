"""Voices that the model never heard: does it speak like the prompt it was given?

Eleven speakers are made of the teacher's four voices that no training hears (`KEPT_FOR_TESTS`): as they are, mixed, and
played faster or slower, which changes pitch and vocal tract. Measured are the codec alone, single sentences, the same
without their closing marks, turns of several hundred letters, turns behind two of another speaker, and ten in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.audio import write_audio
from csm.codec import decoded_again
from csm.engine.frames import Segment
from csm.evaluation.context import Speech, shifted
from csm.evaluation.judges import Judges, Report
from csm.evaluation.metrics import cosine, error_rate, mean, rounded
from csm.speech.generator import Generator
from csm.speech.voices import Voice, load_prompt
from csm.training.kokoro import Kokoro, Style, voice_rows
from csm.watermark import mark

Figures = dict[str, Any]

LONG = (200, 300, 400, 500)  # letters of a turn
DRIFT_TURNS = 10
FOREIGN_TURNS = 2


@dataclass(frozen=True)
class Maker:
    """A speaker: the shares of the teacher's voices, and how much faster than made it is played."""

    shares: tuple[tuple[str, float], ...]
    factor: float = 1.0

    @property
    def name(self) -> str:
        mixed = "+".join(voice for voice, _ in self.shares)
        return mixed if self.factor == 1 else f"{mixed}*{self.factor:g}"


MAKERS = (
    *(Maker(((name, 1.0),)) for name in ("af_sarah", "am_onyx", "bf_isabella", "bm_lewis")),
    Maker((("af_sarah", 0.5), ("bf_isabella", 0.5))),
    Maker((("am_onyx", 0.5), ("bm_lewis", 0.5))),
    Maker((("af_sarah", 0.6), ("am_onyx", 0.4))),
    Maker((("af_sarah", 1.0),), 1.14),
    Maker((("am_onyx", 1.0),), 1.12),
    Maker((("bf_isabella", 1.0),), 0.9),
    Maker((("bm_lewis", 1.0),), 0.88),
)
PROMPTS = (
    "We walked along the river until it was almost dark, and then we turned around and went home for supper.",
    "My brother keeps all of his letters in an old wooden box, and nobody has ever been allowed to read them.",
    "The train was late again this morning, so I bought a newspaper and waited on the bench by the door.",
    "If you mix the flour with the butter first, the dough will be softer and much easier to roll out.",
    "There used to be a small cinema on this corner, with red seats and a piano that was never in tune.",
    "She told me that the garden looks best in early summer, when the roses and the apple trees are in bloom.",
    "He has promised to repair the roof before winter, although he said the same thing about it last year.",
    "The children were allowed to stay up late, because their uncle had come all the way from the coast.",
    "Please leave the keys under the blue pot by the window, and remember to close the gate behind you.",
    "It took the whole village three days to clear the snow, and on the fourth day it began to fall again.",
    "I would like to learn how to sail one day, but the sea here is too rough for most of the year.",
)


@dataclass(frozen=True)
class Unseen:
    """A speaker that the model never heard: its prompt float32 (num_samples,) and the words in it."""

    name: str
    words: str
    prompt: Tensor
    identity: np.ndarray | None

    def segment(self, slot: int) -> Segment:
        return Segment(slot, self.words, self.prompt)


def unseen_speakers(teacher: Path, judges: Judges) -> list[Unseen]:
    """The eleven, made anew. Raises `InputError` where a package, the weights or a voice is missing."""
    engine = Kokoro(teacher)
    speakers = []
    for maker, words in zip(MAKERS, PROMPTS):
        rows = sum(share * voice_rows(teacher, voice) for voice, share in maker.shares)
        british = maker.shares[0][0].startswith("b")
        wave, _, _ = engine.speak(words, Style(maker.name, british, np.asarray(rows, np.float32)))
        prompt = torch.from_numpy(wave)
        prompt = prompt if maker.factor == 1 else shifted(prompt, maker.factor)
        speakers.append(Unseen(maker.name, words, prompt, judges.embed(prompt)))
    return speakers


@dataclass(frozen=True)
class Said:
    """A turn that was spoken, and what the judges say of it: its voice, and the likeness of that to the own prompt and
    to the others'; None is "not judged"."""

    text: str
    heard: str | None
    ended: bool
    spoken: np.ndarray | None
    own: float | None
    others: tuple[float | None, ...]
    naturalness: float | None

    @property
    def nearest(self) -> bool | None:
        known = [other for other in self.others if other is not None]
        return self.own > max(known) if self.own is not None and known else None


def measure_unseen(
    generator: Generator,
    teacher: Path,
    voices: dict[str, Voice],
    sentences: Sequence[str],
    judges: Judges,
    speech: Speech,
    out: Path | None = None,
    report: Report = print,
) -> Figures:
    """Everything about unseen voices -> figures by name; rates and shares from 0 to 1.

    `teacher` has the weights and voices of Kokoro-82M; `voices` are those of the training that speak before an unseen
    one. `out` keeps the sound, watermarked. Raises `InputError` where the teacher can't be used.
    """
    return _Measure(generator, unseen_speakers(teacher, judges), judges, speech, out, report).all(voices, sentences)


class _Measure:
    def __init__(
        self,
        generator: Generator,
        speakers: list[Unseen],
        judges: Judges,
        speech: Speech,
        out: Path | None,
        report: Report,
    ) -> None:
        self.generator, self.speakers, self.judges = generator, speakers, judges
        self.speech, self.out, self.report = speech, out, report
        self.clips = 0
        if out:
            out.mkdir(parents=True, exist_ok=True)

    def all(self, voices: dict[str, Voice], sentences: Sequence[str]) -> Figures:
        alone = list(self.sentences(sentences))
        bare = list(self.sentences([text.rstrip(".?!") for text in sentences]))
        return {
            "speakers": len(self.speakers),
            "codec": self.codec(),
            "sentences": _figures(alone),
            "without_closing_mark": _figures(bare),
            "long_turns": {f"{letters}": _figures(list(self.long(sentences, letters))) for letters in LONG},
            "behind_others": self.behind_others(voices, sentences, _own(alone)),
            "drift": self.drift(sentences),
        }

    def codec(self) -> Figures:
        """The prompts, and the same after the codec alone."""
        before: list[Said] = []
        after: list[Said] = []
        for speaker in self.speakers:
            again = decoded_again(self.generator.codec, speaker.prompt.to(self.generator.device)).cpu()
            for sound, kept in ((speaker.prompt, before), (again, after)):
                kept.append(self._judged(sound, speaker, speaker.words, ended=True))
        found = {"prompts": _figures(before), "decoded": _figures(after)}
        self.report(f"codec alone: {found['decoded']}")
        return found

    def sentences(self, texts: Sequence[str]) -> Iterator[Said]:
        """Each sentence in the next of the voices, from its prompt alone."""
        for number, text in enumerate(texts):
            speaker = self.speakers[number % len(self.speakers)]
            talk = self.generator.conversation([speaker.segment(number % 8)], seed=self.speech.seed + number)
            yield self._say(talk, text, speaker, number % 8)

    def long(self, sentences: Sequence[str], letters: int) -> Iterator[Said]:
        """One turn a voice, of as many whole sentences as fit into so many letters."""
        for number, speaker in enumerate(self.speakers):
            text, at = "", number * 5
            while len(text) + len(following := sentences[at % len(sentences)]) < letters:
                text, at = f"{text} {following}".strip(), at + 1
            talk = self.generator.conversation([speaker.segment(0)], seed=self.speech.seed + number)
            yield self._say(talk, text, speaker, 0, seconds=letters / 8)

    def behind_others(self, voices: dict[str, Voice], sentences: Sequence[str], alone: dict[str, float]) -> Figures:
        """A turn behind two of another speaker, one of the training or not: likeness against what it is alone, and
        whether it is nearer to the own prompt than to the other's."""
        known = [
            Unseen(name, voice.transcript, prompt, self.judges.embed(prompt))
            for name, voice in voices.items()
            for prompt in [load_prompt(voice)]
        ]
        shares, nearer = [], []
        for number, speaker in enumerate(self.speakers):
            for other in (known[number % len(known)], self.speakers[(number + 3) % len(self.speakers)]):
                talk = self.generator.conversation(
                    [speaker.segment(0), other.segment(1)], seed=self.speech.seed + number
                )
                for turn in range(FOREIGN_TURNS):
                    talk.say(sentences[(number + turn) % len(sentences)], 1, marked=False, **self.speech.options())
                said = self._say(talk, sentences[(number + 7) % len(sentences)], speaker, 0)
                rival = cosine(said.spoken, other.identity)
                if said.own is not None and rival is not None:
                    nearer.append(said.own > rival)
                    if speaker.name in alone:
                        shares.append(said.own / alone[speaker.name])
        return {
            "turns": 2 * len(self.speakers),
            "likeness_of_alone": rounded(mean(shares)),
            "nearer_to_own": rounded(mean(nearer)),
        }

    def drift(self, sentences: Sequence[str]) -> Figures:
        """Ten turns of one voice in a row, for every third voice: likeness turn by turn."""
        turns: list[list[float | None]] = [[] for _ in range(DRIFT_TURNS)]
        for number, speaker in enumerate(self.speakers[::3]):
            talk = self.generator.conversation([speaker.segment(0)], seed=self.speech.seed + number)
            for place in range(DRIFT_TURNS):
                turns[place].append(self._say(talk, sentences[(place + number) % len(sentences)], speaker, 0).own)
        by_turn = [rounded(mean(turn)) for turn in turns]
        half = DRIFT_TURNS // 2
        first, last = mean(by_turn[:half]), mean(by_turn[half:])
        return {"by_turn": by_turn, "change": None if first is None or last is None else rounded(last - first)}

    def _say(self, talk: Any, text: str, speaker: Unseen, slot: int, seconds: float = 0.0) -> Said:
        options = self.speech.options()
        options["max_audio_length_ms"] = max(options["max_audio_length_ms"], seconds * 1000)
        turn = talk.say(text, slot, marked=False, **options)
        said = self._judged(turn.audio, speaker, text, turn.state == "ended")
        self.clips += 1
        self.report(f"{self.clips:4}  {speaker.name:>22}  {turn.state}  {rounded(said.own)}  heard: {said.heard}")
        if self.out and turn.audio.numel():
            write_audio(self.out / f"{self.clips:04}-{speaker.name}.wav", mark(turn.audio))
        return said

    def _judged(self, sound: Tensor, speaker: Unseen, text: str, ended: bool) -> Said:
        spoken, heard = self.judges.embed(sound), self.judges.hear(sound)
        others = tuple(cosine(spoken, other.identity) for other in self.speakers if other is not speaker)
        own = cosine(spoken, speaker.identity)
        return Said(text, heard, ended, spoken, own, others, self.judges.rate(sound))


def _own(said: Sequence[Said]) -> dict[str, float]:
    """The mean likeness of each voice to its own prompt, from sentences spoken in turn."""
    found = {}
    for place, maker in enumerate(MAKERS):
        value = mean([one.own for one in said[place :: len(MAKERS)]])
        if value:
            found[maker.name] = value
    return found


def _figures(said: Sequence[Said]) -> Figures:
    return {
        "clips": len(said),
        "likeness": rounded(mean([one.own for one in said])),
        "nearest_is_own": rounded(mean([one.nearest for one in said])),
        "word_error_rate": rounded(error_rate([one.text for one in said], [one.heard for one in said])),
        "naturalness": rounded(mean([one.naturalness for one in said])),
        "ended": rounded(mean([one.ended for one in said])),
    }


def unseen_lines(figures: Figures) -> list[str]:
    """What was found, for people."""

    def row(title: str, found: Figures) -> str:
        cells = [
            "-" if found[key] is None else format(found[key] * factor, kind)
            for key, factor, kind in (
                ("likeness", 1, ".2f"),
                ("nearest_is_own", 100, ".0f"),
                ("word_error_rate", 100, ".1f"),
                ("naturalness", 1, ".2f"),
                ("ended", 100, ".0f"),
            )
        ]
        return f"{title:<24}" + "".join(f"{cell:>12}" for cell in cells)

    behind, drift = figures["behind_others"], figures["drift"]
    headings = ("likeness", "nearest %", "WER %", "MOS 1-5", "ended %")
    return [
        f"{figures['speakers']} voices that no training heard",
        " " * 24 + "".join(f"{heading:>12}" for heading in headings),
        row("prompts", figures["codec"]["prompts"]),
        row("codec alone", figures["codec"]["decoded"]),
        row("sentences", figures["sentences"]),
        row("no closing mark", figures["without_closing_mark"]),
        *(row(f"turns of {letters} letters", found) for letters, found in figures["long_turns"].items()),
        f"behind two turns of another: {behind['likeness_of_alone']} of the likeness alone, nearer to the own prompt "
        f"in {behind['nearer_to_own']}",
        f"ten turns: {drift['by_turn']}, change {drift['change']}",
    ]
