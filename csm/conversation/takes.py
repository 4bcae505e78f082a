"""Takes of a turn: where the sound of each ends, how fit it is, and which of several is kept and why.

Between the generator, which samples codes, and the session, which keeps the best and says in one sentence why.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.spoken import spoken
from csm.utterance import bare

KEPT_SILENCE = 0.15  # seconds of silence that stay behind the last sound
SILENCE_DB = -45.0  # below the turn's own level; nothing louder is ever cut
FADE = 120  # samples: 5 ms
LEVEL_WINDOW = 480  # samples: the 20 ms over which the level is measured
LEAD = 4.0  # frames of breath and pause that a turn has whatever its text is
USUAL_PACE = 0.9  # frames for each letter of a text: 14 letters a second
TOLERANCE = math.log(1.35)  # a turn may be this much longer or shorter than expected and still fit
UNENDED, LENGTH, WORDS, LIKENESS = 10.0, 2.0, 4.0, 1.0  # what each fault costs


@dataclass(frozen=True)
class Scores:
    """How fit a take is; `None` where nobody could judge.

    `ended`: the model ended it itself. `length`: frames divided by those that the text should take. `word_errors`:
    the share of words that a recogniser heard wrong. `likeness`: to the voice's recording, 0 to 1.
    """

    ended: bool
    length: float
    word_errors: float | None = None
    likeness: float | None = None

    def costs(self) -> dict[str, float]:
        """What speaks against this take, by kind; the take with the smallest sum is kept."""
        off = abs(math.log(max(self.length, 1e-3)))
        return {
            "ended": 0.0 if self.ended else UNENDED,
            "length": LENGTH * max(0.0, off - TOLERANCE),
            "word_errors": WORDS * min(1.0, self.word_errors or 0.0),
            "likeness": LIKENESS * (1.0 - self.likeness) if self.likeness is not None else 0.0,
        }


@dataclass(frozen=True)
class Judges:
    """Who listens to takes, besides the model itself; either may be missing.

    `word_errors(audio, text)`: float32 (num_samples,) at 24 kHz and the text -> share of words heard wrong, 0 to 1.
    `likeness(audio, prompt)`: two such sounds -> 0 to 1, None when one holds no speech.
    """

    word_errors: Callable[[Tensor, str], float | None] | None = None
    likeness: Callable[[Tensor, Tensor], float | None] | None = None


NOBODY = Judges()


class Portable:
    """Tensors are pickled as plain arrays, which survive the end of the process that sent them."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: _AsArray(value.cpu().numpy()) if isinstance(value, Tensor) else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(
            {
                name: torch.from_numpy(value.array) if isinstance(value, _AsArray) else value
                for name, value in state.items()
            }
        )


@dataclass(frozen=True)
class _AsArray:
    array: np.ndarray


@dataclass(frozen=True)
class Stretch:
    """What was said at a stretch of a turn: the `text` that the model read, its `frames`, how many `samples` of them
    are heard, and the samples of `silence` behind it. A pause that opens a turn has neither text nor frames."""

    text: str
    frames: int
    samples: int
    silence: int = 0


@dataclass(frozen=True)
class Take(Portable):
    """One way in which a turn was spoken. The codes are the truth; the sound is always decoded from them.

    `codes` int64 (frames, K); `samples` is the length of the sound for output, its trailing silence trimmed;
    `pieces` are what it was spoken in, where that is not its text at a stretch. `doubt` says what sounds wrong, and
    `again` how often the turn was tried again for such.
    `history` names everything that was said before it, so that a take that heard something else is known.
    `state` is `ended`, `capped` or `stopped`; `reason` says in one sentence why it was kept (or wasn't).
    Turn `heard_from` (from 0) is the first that it heard. `drawing` is `Settings.drawing` when it was made and
    `from_seed` their seed, None where it had a seed of its own; empty and None where that is not known.
    `embedding`, float32 (D,), is whose voice it is in, where the codec is told.
    `key` names the sound: takes of the same codes in the same voice share it.
    """

    seed: int
    text: str
    codes: Tensor
    state: str
    samples: int
    history: str
    positions_prefilled: int = 0
    scores: Scores | None = None
    reason: str = ""
    heard_from: int = 0
    drawing: str = ""
    from_seed: int | None = None
    pieces: tuple[Stretch, ...] = ()
    doubt: str = ""
    again: int = 0
    embedding: Tensor | None = None
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key = codes_key(self.codes)
        if self.pieces or self.embedding is not None:
            voice = None if self.embedding is None else self.embedding.tolist()
            key = hashlib.sha256(repr((key, self.pieces, voice)).encode()).hexdigest()[:16]
        object.__setattr__(self, "key", key)

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    @property
    def trimmed(self) -> float:
        """Seconds of trailing silence that are left out of the sound."""
        return (len(self.codes) * FRAME_SIZE - self.samples) / SAMPLE_RATE + self.paused

    @property
    def paused(self) -> float:
        """Seconds of silence that the text asks for."""
        return sum(piece.silence for piece in self.pieces) / SAMPLE_RATE

    @property
    def stretches(self) -> list[tuple[str, Tensor]]:
        """The texts that were read and the codes that followed each."""
        if not self.pieces:
            return [(self.text, self.codes)]
        sizes = [piece.frames for piece in self.pieces]
        told = zip(self.pieces, self.codes.split(sizes))
        return [(piece.text, codes) for piece, codes in told if piece.text]


@dataclass(frozen=True)
class Turn:
    """Who says what, and the takes of it so far, `chosen` of which is heard (None: it waits to be spoken).

    `drawn` counts the takes ever made, so that each has a seed of its own; `directions` stand beside the text.
    """

    speaker: str
    text: str
    takes: tuple[Take, ...] = ()
    chosen: int | None = None
    drawn: int = 0
    speaking: bool = False
    directions: tuple[str, ...] = ()

    @property
    def take(self) -> Take | None:
        return None if self.chosen is None else self.takes[self.chosen]

    @property
    def status(self) -> str:
        """`waiting`, `speaking`, `ended`, `capped` or `stopped`."""
        if self.speaking:
            return "speaking"
        return self.take.state if self.take else "waiting"

    @property
    def seconds(self) -> float:
        return self.take.seconds if self.take else 0.0


def codes_key(codes: Tensor) -> str:
    """Sixteen hexadecimal digits that stand for codes int64 (frames, K)."""
    shape = f"{tuple(codes.shape)}".encode()
    return hashlib.sha256(shape + codes.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()[:16]


def level_of(audio: Tensor) -> float:
    """The RMS of the sounding part of float32 (num_samples,): of the 20 ms windows within 20 dB of the loudest."""
    if not len(audio):
        return 0.0
    padded = torch.nn.functional.pad(audio, (0, -len(audio) % LEVEL_WINDOW))
    power = padded.view(-1, LEVEL_WINDOW).square().mean(dim=1)
    return float(power[power >= 0.01 * power.max()].mean().sqrt())


def trimmed_length(audio: Tensor) -> int:
    """How many samples of float32 (num_samples,) stay when trailing silence is cut.

    Silence is what lies 45 dB below the turn's own level; 150 ms of it stay behind the last sound.
    """
    level = level_of(audio)
    sounding = (audio.abs() >= level * 10 ** (SILENCE_DB / 20)).nonzero() if level else torch.zeros(0)
    if not len(sounding):
        return len(audio)
    return min(len(audio), int(sounding[-1]) + 1 + int(KEPT_SILENCE * SAMPLE_RATE))


def output_sound(audio: Tensor, samples: int) -> Tensor:
    """The first `samples` of float32 (num_samples,), the cut in the silence behind them faded over 5 ms."""
    if samples >= len(audio):
        return audio
    kept = audio[:samples].clone()
    fade = min(FADE, samples)
    kept[samples - fade :] *= torch.linspace(1.0, 0.0, fade)
    return kept


def letters(text: str) -> int:
    """Letters to say in a text, numbers spelled out; pauses and other marks don't count."""
    return max(1, sum(character.isalpha() for character in spoken(bare(text))))


@dataclass(frozen=True)
class Pace:
    """How many frames one speaker takes for a letter: the median of what has been heard, with the usual pace as one
    more vote, so that a single odd recording doesn't decide alone."""

    frames_per_letter: float = USUAL_PACE

    @classmethod
    def learned(cls, heard: Sequence[tuple[str, int]]) -> Pace:
        """From (text, frames) of the speaker's recording and of the turns that ended by themselves."""
        paces = [max(frames - LEAD, 1.0) / letters(text) for text, frames in heard if frames]
        middle = statistics.median([*paces, USUAL_PACE])
        return cls(min(max(middle, USUAL_PACE / 3), USUAL_PACE * 3))

    def expected_frames(self, text: str) -> float:
        """How many frames `text` should take."""
        return LEAD + self.frames_per_letter * letters(text)


def judge(take: Take, audio: Tensor, pace: Pace, prompt: Tensor | None, judges: Judges) -> Scores:
    """Scores of a take from its sound, float32 (num_samples,), and the voice's recording (None if it isn't at hand)."""
    errors = judges.word_errors(audio, take.text) if judges.word_errors and len(audio) else None
    likeness = judges.likeness(audio, prompt) if judges.likeness and prompt is not None and len(audio) else None
    if judges.word_errors and not len(audio):
        errors = 1.0
    length = (len(take.codes) + LEAD) / (pace.expected_frames(take.text) + LEAD)
    return Scores(take.state == "ended" and len(take.codes) > 0, length, errors, likeness)


def rank(takes: Sequence[Take], judges: Judges = NOBODY) -> tuple[int, tuple[Take, ...]]:
    """The index of the take to keep, and the takes with a `reason` in each. All takes need scores.

    A tie goes to the earlier take.
    """
    costs = [_scores(take).costs() for take in takes]
    sums = [sum(cost.values()) for cost in costs]
    best = min(range(len(takes)), key=lambda index: sums[index])
    if len(takes) == 1:
        return 0, (replace(takes[0], reason="The only take that was asked for."),)
    runner_up = min((index for index in range(len(takes)) if index != best), key=lambda index: sums[index])
    said = []
    for index, take in enumerate(takes):
        other = runner_up if index == best else best
        why = _difference(_scores(take), _scores(takes[other]), index == best)
        name = f"Take {index + 1} of {len(takes)}"
        said.append(replace(take, reason=f"{name} {'was kept' if index == best else 'was not kept'}: {why}."))
    if missing := unjudged(takes, judges):
        said[best] = replace(said[best], reason=f"{said[best].reason[:-1]} ({missing}).")
    return best, tuple(said)


def unjudged(takes: Sequence[Take], judges: Judges) -> str:
    """What was left out of the comparison, in words; empty when all was compared."""
    left = []
    if not judges.word_errors:
        left.append("the words")
    if not judges.likeness:
        left.append("the likeness to the voice")
    return f"{' and '.join(left)} could not be compared here" if left else ""


def _scores(take: Take) -> Scores:
    if take.scores is None:
        raise ValueError("A take without scores can't be ranked.")
    return take.scores


def _difference(one: Scores, other: Scores, kept: bool) -> str:
    """What tells `one` from `other`, the strongest cost first, as the end of a sentence."""
    mine, others = one.costs(), other.costs()
    gaps = {kind: others[kind] - mine[kind] if kept else mine[kind] - others[kind] for kind in mine}
    kind = max(gaps, key=lambda name: gaps[name])
    if gaps[kind] <= 1e-9:
        return "it is as good as the next best and came first" if kept else "it is no better than the one that was"
    if kind == "ended":
        return "it ended by itself and the next best did not" if kept else "it did not end by itself"
    if kind == "length":
        return f"its length is {one.length:.1f} times the expected, the other's {other.length:.1f} times"
    if kind == "word_errors":
        return (
            f"{_percent(one.word_errors)} of its words were heard wrong, {_percent(other.word_errors)} of the other's"
        )
    like, likes = (f"{scores.likeness or 0:.2f}" for scores in (one, other))
    if like == likes:
        return f"its likeness to the voice is a hair {'greater' if kept else 'smaller'}; both are {like}"
    return f"its likeness to the voice is {like}, the other's {likes}"


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0):.0f} %"
