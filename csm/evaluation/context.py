"""Whether context matters: a long conversation in which the voices must not drift, and voices the model never heard.

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
from csm.evaluation.judges import Judges
from csm.evaluation.metrics import cosine, mean, word_error_rate
from csm.frames import Segment
from csm.generator import Generator
from csm.training.corpus import SHIFTS
from csm.voices import Voice, load_prompt

NEW_SHIFTS = (0.86, 1.15)  # halfway between those of training


@dataclass(frozen=True)
class Speech:
    """How turns are spoken: seed of the first, longest length in seconds, and the sampling of the model's own."""

    seed: int = 7
    max_turn_seconds: float = 20.0
    sampling: dict[str, Any] | None = None

    def options(self) -> dict[str, Any]:
        return {"max_audio_length_ms": self.max_turn_seconds * 1000, **(self.sampling or {})}


def shifted(wave: Tensor, factor: float) -> Tensor:
    """float32 (num_samples,) played `factor` times as fast: pitch, vocal tract and pace change together."""
    return resample(wave, round(SAMPLE_RATE * factor), SAMPLE_RATE)


def converse(
    generator: Generator,
    voices: dict[str, Voice],
    conversation: Sequence[tuple[int, str]],
    judges: Judges,
    speech: Speech,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Speak one conversation in each pair of `voices` and compare every speaker's first and last turn to the prompt.

    Returns word error rate, share of turns that ended, and mean similarities to the prompts of first and last turns.
    """
    names = list(voices)
    pairs = [tuple(names[i : i + 2]) for i in range(0, len(names) - 1, 2)]
    prompts = {name: load_prompt(voice) for name, voice in voices.items()}
    texts, heard, ended = [], [], 0
    first: list[float | None] = []
    last: list[float | None] = []
    for number, pair in enumerate(pairs):
        segments = [Segment(slot, voices[name].transcript, prompts[name]) for slot, name in enumerate(pair)]
        talk = generator.conversation(segments, seed=speech.seed + number)
        similarities: dict[int, list[float | None]] = {slot: [] for slot in range(len(pair))}
        for slot, text in conversation:
            turn = talk.say(text, slot, marked=False, **speech.options())
            ended += turn.state == "ended"
            texts.append(text)
            heard.append(judges.recogniser.transcribe(turn.audio))
            similarities[slot].append(cosine(judges.embed(turn.audio), judges.embed(prompts[pair[slot]])))
            report(f"{pair[slot]:>10}  {turn.state}  {_rounded(similarities[slot][-1])}  heard: {heard[-1]}")
        for own in similarities.values():
            first.append(own[0])
            last.append(own[-1])
    return {
        "turns": len(texts),
        "word_error_rate": round(word_error_rate(texts, heard), 4),
        "ended": round(ended / len(texts), 4),
        "similarity_first_turns": _rounded(mean(first)),
        "similarity_last_turns": _rounded(mean(last)),
    }


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
        report(f"{name} at {shift} of its speed: {_rounded(own[-1])}, nearest training voice {_rounded(nearest[-1])}")
    judged = [(mine, other) for mine, other in zip(own, nearest) if mine is not None and other is not None]
    return {
        "clips": len(cases),
        "similarity_new": _rounded(mean(own)),
        "similarity_nearest_training": _rounded(mean(nearest)),
        "followed": round(float(np.mean([mine > other for mine, other in judged])), 4) if judged else None,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
