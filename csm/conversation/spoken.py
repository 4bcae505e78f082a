"""A script that has been spoken: the sound of its turns and takes, and the report on them.

Between the script, which knows no model, and the session, which speaks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from csm import watermark
from csm.config import SAMPLE_RATE
from csm.conversation.events import TurnReport
from csm.conversation.notices import read_as
from csm.conversation.parsing import Line
from csm.conversation.script import Script, Span
from csm.conversation.takes import Take, output_sound
from csm.conversation.tried import joined
from csm.errors import InputError
from csm.settings import USUAL, Settings
from csm.speech.generator import Generator
from csm.speech.tempo import at_speed
from csm.speech.voices import Voice
from csm.utterance import PLAIN, Wording

MOST_KEPT = 24  # takes of one turn; the oldest beyond them are forgotten


@dataclass
class Spent:
    """What speaking has cost so far: seconds, samples made (takes that were not kept included), positions read in."""

    seconds: float = 0.0
    samples: int = 0
    prefilled: int = 0
    first_audio: float | None = None


class SpokenScript(Script):
    """A script and what speaking it gave."""

    def __init__(
        self,
        lines: Sequence[Line],
        voices: dict[str, Voice],
        settings: Settings = USUAL,
        wording: Wording = PLAIN,
    ) -> None:
        super().__init__(lines, voices, settings, wording)
        self.spent = Spent()
        self._sounds: dict[str, Tensor] = {}

    def sound(self, generator: Generator, index: int, take: int | None = None) -> Tensor:
        """Unmarked float32 (num_samples,) of a turn's kept take, or of another, at the speed that is set: for work
        inside the program. Raises what `own_pace` raises."""
        return at_speed(self.own_pace(generator, index, take), self.settings.speed)

    def own_pace(self, generator: Generator, index: int, take: int | None = None) -> Tensor:
        """`sound` as the model spoke it, whatever speed is set.

        Raises `InputError` when the turn has not been spoken or has no such take.
        """
        turn = self._known(index)
        number = turn.chosen if take is None else take
        if number is None or not 0 <= number < len(turn.takes):
            missing = "has not been spoken yet" if take is None else f"has no take {take + 1}"
            raise InputError(f"Turn {index + 1} {missing}: speak it first.")
        wanted = turn.takes[number]
        return output_sound(self._decoded(generator, wanted), wanted.samples)

    def clip(self, generator: Generator, index: int, take: int | None = None) -> Tensor:
        """Marked float32 (num_samples,) of a turn's kept take, or of another: for a player of its own."""
        return marked(self.sound(generator, index, take))

    def whole(self, generator: Generator) -> Tensor:
        """The conversation as it stands, float32 (num_samples,), marked once: what leaves the program."""
        spoken = any(turn.take for turn in self.turns)
        return marked(torch.cat(self.sounds(generator))) if spoken else torch.zeros(0)

    def sounds(self, generator: Generator) -> list[Tensor]:
        """`sound` of every turn that has been spoken, in order."""
        return [self.sound(generator, index) for index, turn in enumerate(self.turns) if turn.take]

    @property
    def slides(self) -> list[int]:
        """The turns before which the oldest ones left, because the model's positions were full."""
        found, before = [], 0
        for index, turn in enumerate(self.turns):
            if turn.take:
                if turn.take.heard_from > before:
                    found.append(index)
                before = turn.take.heard_from
        return found

    def report(self, generator: Generator) -> dict[str, Any]:
        """Plain JSON data on the conversation as it stands, as `--json` writes it."""
        spans, spent, histories = self.spans(), self.spent, self.histories()
        made = spent.samples / SAMPLE_RATE
        return {
            "model": generator.model_name,
            "device": str(generator.device),
            "seed": self.settings.seed,
            "sample_rate": SAMPLE_RATE,
            "audio_seconds": round(spans[-1].end / SAMPLE_RATE, 6) if spans else 0.0,
            "generation_seconds": round(spent.seconds, 3),
            "real_time_factor": round(spent.seconds / made, 3) if made else None,
            "first_audio_seconds": round(spent.first_audio, 3) if spent.first_audio else None,
            "positions_prefilled": spent.prefilled,
            "window_slides": len(self.slides),
            "turns": [asdict(self._turn_report(generator, span, histories)) for span in spans],
        }

    def _record(self, index: int, takes: list[Take], chosen: int, sounds: dict[str, Tensor], drawn: int) -> None:
        turn = self.turns[index]
        new = {(take.history, take.key) for take in takes}
        old = [take for take in turn.takes if (take.history, take.key) not in new]
        kept = (*old, *takes)[-MOST_KEPT:]
        at = len(kept) - len(takes) + chosen
        self.turns[index] = replace(turn, takes=kept, chosen=at, drawn=turn.drawn + drawn)
        self._sounds.update(sounds)
        self.spent.samples += sum(len(sound) for sound in sounds.values())
        self._forget_sounds()

    def _decoded(self, generator: Generator, take: Take) -> Tensor:
        if (sound := self._sounds.get(take.key)) is None:
            if generator.codec_key != self.codec:
                raise InputError(f"This conversation was spoken by {self.model}: load that model to hear it.")
            sound = joined(take, [generator.decode(codes, take.embedding) for _, codes in take.stretches])
            self._sounds[take.key] = sound
        return sound

    def _turn_report(self, generator: Generator, span: Span, histories: list[str]) -> TurnReport:
        turn = self.turns[span.index]
        take = turn.take
        assert take is not None
        return TurnReport(
            turn.speaker,
            take.text,
            round(span.start / SAMPLE_RATE, 6),
            round(span.end / SAMPLE_RATE, 6),
            len(take.codes),
            take.state,
            take.positions_prefilled,
            round(take.trimmed, 6),
            take.seed,
            len(turn.takes),
            take.reason,
            take.history != histories[span.index],
            take.heard_from,
            self.other_settings(span.index),
            read_as(generator, take.text, self.wording),
            take.doubt,
            take.again,
            max(1, len(take.stretches)),
            round(take.paused, 6),
        )

    def _forget_sounds(self) -> None:
        used = {take.key for turn in self.turns for take in turn.takes}
        self._sounds = {key: sound for key, sound in self._sounds.items() if key in used}


def marked(wave: Tensor) -> Tensor:
    return watermark.mark(wave) if len(wave) else wave
