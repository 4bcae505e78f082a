"""Whether context matters: conversations in which every speaker must keep the own voice, and voices the model never
heard.

Part of `python -m csm evaluate --context`, beside the single sentences of `evaluate.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from csm.audio import resample
from csm.config import SAMPLE_RATE
from csm.engine.frames import Segment
from csm.evaluation.judges import Judges
from csm.evaluation.metrics import cosine, error_rate, mean, rounded
from csm.speech.generator import Generator
from csm.speech.voices import Voice, load_prompt
from csm.training.corpus import SHIFTS

SLOTS = 8
NEW_SHIFTS = (0.86, 1.15)  # halfway between those of training


@dataclass(frozen=True)
class Speech:
    """How turns are spoken: seed of the first, longest length in seconds, and the sampling of the model's own."""

    seed: int = 7
    max_turn_seconds: float = 20.0
    sampling: dict[str, Any] | None = None

    def options(self) -> dict[str, Any]:
        return {"max_audio_length_ms": self.max_turn_seconds * 1000, **(self.sampling or {})}


@dataclass(frozen=True)
class Cast:
    """Voices that speak together, their slots, and whether their prompts come in the opposite order."""

    voices: tuple[str, ...]
    slots: tuple[int, ...]
    reversed: bool

    def speaker(self, place: int, turns: int) -> int:
        """Who says turn `place` (from 0) of so many: two take turns, and a third comes third and last."""
        if len(self.voices) == 3 and place in (2, turns - 1):
            return 2
        return place % 2


@dataclass(frozen=True)
class CastTurn:
    """Turn `place` (from 0) of a cast's conversation, and its likeness to the prompt of its own speaker and of the
    others."""

    place: int
    text: str
    heard: str | None
    state: str
    own: float | None
    others: list[float | None]

    @property
    def nearest_is_own(self) -> bool | None:
        known = [other for other in self.others if other is not None]
        return self.own > max(known) if self.own is not None and known else None


def shifted(wave: Tensor, factor: float) -> Tensor:
    """float32 (num_samples,) played `factor` times as fast: pitch, vocal tract and pace change together."""
    return resample(wave, round(SAMPLE_RATE * factor), SAMPLE_RATE)


def casts(names: Sequence[str]) -> list[Cast]:
    """Who speaks with whom: every voice with the next, as many casts as voices, then casts of three of every second.

    Every other cast has its prompts in the opposite order of its speakers' first turns; slots wander from 0 to 7.
    """
    count = len(names)
    groups = [[names[i], names[(i + 1) % count]] for i in range(count if count > 2 else count // 2)]
    if count >= 3:
        step = 2 if count > 4 else 1
        groups += [[names[(start + step * i) % count] for i in range(3)] for start in (0, 1)]
    return [
        Cast(tuple(group), tuple((number + 3 * i) % SLOTS for i in range(len(group))), number % 2 == 1)
        for number, group in enumerate(groups)
    ]


def converse(
    generator: Generator,
    voices: dict[str, Voice],
    conversation: Sequence[tuple[int, str]],
    judges: Judges,
    speech: Speech,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Speak the texts of one conversation in `casts` of two and of three of the `voices`, and see whose voice each turn
    has: is it nearest to its own prompt among those of the cast?

    In casts of three the third speaker says the third turn and the last one, and nothing in between. Returns for each
    size of cast the share of turns nearest to their own prompt and the likeness to it and to the others', in all and
    turn by turn, the share of turns that ended, and the word error rate.
    """
    texts = [text for _, text in conversation]
    prompts = {name: load_prompt(voice) for name, voice in voices.items()}
    identities = {name: judges.embed(prompt) for name, prompt in prompts.items()}
    turns: dict[int, list[CastTurn]] = {}
    for number, cast in enumerate(casts(list(voices))):
        segments = [
            Segment(slot, voices[name].transcript, prompts[name]) for name, slot in zip(cast.voices, cast.slots)
        ]
        talk = generator.conversation(segments[::-1] if cast.reversed else segments, seed=speech.seed + number)
        for place, text in enumerate(texts):
            who = cast.speaker(place, len(texts))
            turn = talk.say(text, cast.slots[who], marked=False, **speech.options())
            spoken = judges.embed(turn.audio)
            own, *others = (
                cosine(spoken, identities[name])
                for name in (cast.voices[who], *(name for name in cast.voices if name != cast.voices[who]))
            )
            heard = judges.hear(turn.audio)
            turns.setdefault(len(cast.voices), []).append(CastTurn(place, text, heard, turn.state, own, others))
            report(
                f"{'+'.join(cast.voices):>15}  {cast.voices[who]:>5}  {turn.state}  {rounded(own)} "
                f"({', '.join(str(rounded(other)) for other in others)})  heard: {heard}"
            )
    figures = {f"casts_of_{size}": _of_casts(spoken) for size, spoken in sorted(turns.items())}
    return figures | {"all": _of_casts([turn for spoken in turns.values() for turn in spoken])}


def _of_casts(turns: Sequence[CastTurn]) -> dict[str, Any]:
    def judged(some: Sequence[CastTurn]) -> dict[str, Any]:
        return {
            "nearest_is_own": rounded(mean([turn.nearest_is_own for turn in some])),
            "similarity_own": rounded(mean([turn.own for turn in some])),
            "similarity_others": rounded(mean([other for turn in some for other in turn.others])),
        }

    places = sorted({turn.place for turn in turns})
    return {
        "turns": len(turns),
        **judged(turns),
        "ended": rounded(mean([turn.state == "ended" for turn in turns])),
        "word_error_rate": rounded(error_rate([turn.text for turn in turns], [turn.heard for turn in turns])),
        "by_turn": [judged([turn for turn in turns if turn.place == place]) for place in places],
    }


def cast_lines(figures: dict[str, Any]) -> list[str]:
    """What `converse` found, for people: a line for each size of cast, and one for its turns one by one."""

    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.0f} %"

    lines = []
    for key, found in figures.items():
        lines += [
            f"{key.replace('_', ' ')}: {found['turns']} turns, nearest to their own prompt "
            f"{percent(found['nearest_is_own'])}, likeness {found['similarity_own']} to it and "
            f"{found['similarity_others']} to the others', ended {percent(found['ended'])}, "
            f"word error rate {percent(found['word_error_rate'])}",
            "  turn by turn: "
            + ", ".join(f"{percent(turn['nearest_is_own'])} {turn['similarity_own']}" for turn in found["by_turn"]),
        ]
    return lines


def new_voices(
    generator: Generator,
    voices: dict[str, Voice],
    sentences: Sequence[str],
    judges: Judges,
    speech: Speech,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Prompt the model with voices that were in no training set, and see whom it sounds like.

    Each voice of `voices` is played at `NEW_SHIFTS` of its speed; the training voices to confuse it with are the
    voices themselves and their shifts in training. Returns the mean similarity to the new prompt, to the training
    voice nearest to it, and the share of clips nearer to the former.
    """
    prompts = {name: load_prompt(voice) for name, voice in voices.items()}
    known = [judges.embed(shifted(prompt, shift)) for prompt in prompts.values() for shift in (1.0, *SHIFTS)]
    own: list[float | None] = []
    nearest: list[float | None] = []
    cases = [(name, shift) for name in voices for shift in NEW_SHIFTS]
    for number, (name, shift) in enumerate(cases):
        prompt = shifted(prompts[name], shift)
        identity = judges.embed(prompt)
        rival = max(known, key=lambda other: cosine(identity, other) or 0.0)
        text = sentences[number % len(sentences)]
        talk = generator.conversation([Segment(0, voices[name].transcript, prompt)], seed=speech.seed + number)
        spoken = judges.embed(talk.say(text, 0, marked=False, **speech.options()).audio)
        own.append(cosine(spoken, identity))
        nearest.append(cosine(spoken, rival))
        report(f"{name} at {shift} of its speed: {rounded(own[-1])}, nearest training voice {rounded(nearest[-1])}")
    judged = [(mine, other) for mine, other in zip(own, nearest) if mine is not None and other is not None]
    return {
        "clips": len(cases),
        "similarity_new": rounded(mean(own)),
        "similarity_nearest_training": rounded(mean(nearest)),
        "followed": round(float(np.mean([mine > other for mine, other in judged])), 4) if judged else None,
    }
