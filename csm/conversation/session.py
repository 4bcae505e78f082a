"""One user's conversation on the way from script to sound: spoken, redone, carried on from, stopped, listened to.

A session owns all that changes and is given the generator with each call. It keeps the KV cache of what was said
while it lives; pickled or reopened it has none and reads the codes in again. It is not for two threads at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from csm import watermark
from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.conversation.events import Comparing, Event, Performed, TurnChunk, TurnFinished, TurnReport, TurnStarted
from csm.conversation.notices import notice, read_as
from csm.conversation.parsing import Line
from csm.conversation.script import Prompt, Script, Span, said_after
from csm.conversation.takes import NOBODY, Judges, Pace, Take, judge, output_sound, rank, trimmed_length
from csm.engine.frames import Segment, frames_in
from csm.errors import InputError
from csm.settings import USUAL, Settings
from csm.speech.generator import Conversation, Generator, Stop
from csm.speech.generator import Turn as Spoken
from csm.speech.tempo import at_speed
from csm.speech.voices import Voice, load_prompt

MOST_KEPT = 24  # takes of one turn; the oldest beyond them are forgotten
NEXT_SEED = 1_000_003  # from one take's seed to the next of the same turn
NEWS_SECONDS = 0.25  # how often to tell how far several takes are


@dataclass
class Spent:
    """What speaking has cost so far: seconds, samples made (takes that were not kept included), positions read in."""

    seconds: float = 0.0
    samples: int = 0
    prefilled: int = 0
    first_audio: float | None = None


@dataclass
class _Memory:
    """A conversation whose KV cache holds the turns named in `said`: what was said before turn 0, 1, 2, ..."""

    generator: Generator
    conversation: Conversation
    said: list[str]


@dataclass
class _Work:
    """One call of `speak` or `redo`: what it was asked, and how it goes."""

    generator: Generator
    stop: Stop
    judges: Judges
    live: bool
    again: bool = False
    seed: int | None = None
    started: float = field(default_factory=time.perf_counter)


class Session(Script):
    """A script that is spoken: what one user has, and nobody else."""

    def __init__(self, lines: Sequence[Line], voices: dict[str, Voice], settings: Settings = USUAL) -> None:
        super().__init__(lines, voices, settings)
        self.spent = Spent()
        self._sounds: dict[str, Tensor] = {}
        self._memory: _Memory | None = None

    # Speaking

    def speak(
        self,
        generator: Generator,
        start: int = 0,
        stop: Stop = lambda: False,
        judges: Judges = NOBODY,
        live: bool = True,
    ) -> Iterator[Event]:
        """Speak turn `start` (from 0) and all after it, and yield what happens. The same seed after the same turns
        gives the same takes.

        `TurnStarted`, `TurnChunk`s (unless not `live`), `Comparing` now and then where there are several takes, and
        `TurnFinished` for each turn, `Performed` last. All input is checked before the first turn. `stop` is asked at
        every frame; a turn that is stopped keeps what was made,
        and closing the iterator does the same. When the model's positions are full the oldest turns are no longer
        heard, and a `notice` in the report says so, once for all of them. Raises `InputError` for what can't be spoken
        and when a turn before `start` has not been spoken.
        """
        if not self.turns:
            raise InputError("The script is empty: write at least one line.")
        self._known(start)
        return self._run(_Work(generator, stop, judges, live), range(start, len(self.turns)))

    def redo(
        self,
        generator: Generator,
        index: int,
        seed: int | None = None,
        stop: Stop = lambda: False,
        judges: Judges = NOBODY,
        live: bool = True,
    ) -> Iterator[Event]:
        """Speak turn `index` alone once more with the next seed, or with `seed`; yields what `speak` yields.

        Turns before it stay as they are and are not read in again; those after it become stale, because they were
        said after another take. `speak(generator, index + 1)` carries on from there.
        """
        self._known(index)
        if seed is not None:
            replace(self.settings, seed=seed)  # refuses an impossible one
        return self._run(_Work(generator, stop, judges, live, True, seed), range(index, index + 1))

    # Listening

    def apply(self, event: Event) -> None:
        """Bring what happened to this session's copy in another process into this one; here it changes nothing."""
        if isinstance(event, TurnStarted):
            self.turns[event.index] = replace(self.turns[event.index], speaking=True)
        elif isinstance(event, TurnFinished):
            self.turns[event.index] = event.spoken
            self._sounds.update(event.sounds)
        elif isinstance(event, Performed) and isinstance(event.session, Session) and event.session is not self:
            self.prompts, self.spent = event.session.prompts, event.session.spent
            self.model, self.codec = event.session.model, event.session.codec
            self.settle()
            self._forget_sounds()

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
        return _marked(self.sound(generator, index, take))

    def whole(self, generator: Generator) -> Tensor:
        """The conversation as it stands, float32 (num_samples,), marked once: what leaves the program."""
        pieces = self.sounds(generator)
        return _marked(torch.cat(pieces)) if pieces else torch.zeros(0)

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

    def rest(self) -> None:
        """Let the KV cache go; what was said is read in again when speaking goes on."""
        if not self._busy:
            self._memory = None

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

    # Inside

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memory": None, "_busy": False, "_sounds": {}}

    def _run(self, work: _Work, indexes: range) -> Iterator[Event]:
        """Speak some turns. The cache may be anywhere before; afterwards it is behind the last of them."""
        self._idle()
        self._busy = True
        spent, made = self.spent.seconds, range(indexes[0], indexes[0])
        try:
            self._prepare(work.generator, indexes)
            memory = self._memory_at(work.generator, indexes[0])
            conversation = memory.conversation
            for index in indexes:
                if work.stop():
                    break
                turn = self.turns[index]
                self.turns[index] = replace(turn, speaking=True)
                yield TurnStarted(index, len(self.turns), Line(turn.speaker, turn.text, index + 1))
                slot, seeds, sounds = self.slots[turn.speaker], self._seeds(work, index), dict[str, Tensor]()
                if len(seeds) > 1:
                    with conversation.takes(turn.text, slot, self.settings, seeds) as takes:
                        told, judges = time.monotonic(), work.judges
                        judged: list[Take] = []
                        try:
                            while takes.speaking and not work.stop():
                                takes.step()
                                if time.monotonic() - told > NEWS_SECONDS:
                                    told = time.monotonic()
                                    yield Comparing(index, takes.frames)
                            for seed, one in zip(seeds, takes.finish()):
                                if judges != NOBODY:
                                    yield Comparing(index, takes.frames, len(judged) + 1)
                                judged.append(self._judged(work, judges, index, seed, one, memory.said[-1]))
                        except GeneratorExit:  # nobody is told any more, but what was made stays
                            for seed, one in list(zip(seeds, takes.finish()))[len(judged) :]:
                                judged.append(self._judged(work, NOBODY, index, seed, one, memory.said[-1]))
                            takes.keep(self._decided(work, index, memory, takes.turns, judged, sounds))
                            return
                        takes.keep(self._decided(work, index, memory, takes.turns, judged, sounds))
                    self._first_audio(work)
                    if work.live:
                        yield TurnChunk(index, self.clip(work.generator, index))
                else:
                    known = len(conversation.turns)
                    waves = conversation.speak(turn.text, slot, self.settings, seeds[0], work.stop, work.live)
                    try:
                        with closing(waves):
                            for wave in waves:
                                self._first_audio(work)
                                if work.live:
                                    yield TurnChunk(index, wave)
                    finally:
                        if len(conversation.turns) > known:
                            one = self._whole_sound(work, conversation.turns[-1])
                            judged = [self._judged(work, NOBODY, index, seeds[0], one, memory.said[-1])]
                            self._decided(work, index, memory, [one], judged, sounds)
                made = range(indexes[0], index + 1)
                self.spent.seconds = spent + time.perf_counter() - work.started
                text = conversation.turns[-1].positions - len(conversation.turns[-1].codes) - 1
                yield self._finished(work.generator, index, sounds, text)
                if self.turns[index].status == "stopped":
                    break
            self.spent.seconds = spent + time.perf_counter() - work.started
            report = self.report(work.generator) | notice(work.generator, self.turns, self.slides, made)
            whole = torch.zeros(0) if work.live else self.whole(work.generator)
            yield Performed(whole, report, self)
        finally:
            self._busy = False
            self.settle()

    def _seeds(self, work: _Work, index: int) -> list[int]:
        """The seeds of the takes that turn `index` is to have."""
        if work.seed is not None:
            return [work.seed]
        first = self.turns[index].drawn if work.again else 0
        return [self._seed(index, first + number) for number in range(self.settings.takes)]

    def _whole_sound(self, work: _Work, spoken: Spoken) -> Spoken:
        """A turn with all of its sound, though it was closed while its decoder held more."""
        if len(spoken.unmarked) < len(spoken.codes) * FRAME_SIZE:
            spoken.unmarked = work.generator.decode(spoken.codes)
        return spoken

    def _finished(self, generator: Generator, index: int, sounds: dict[str, Tensor], text: int) -> TurnFinished:
        self.turns[index] = replace(self.turns[index], speaking=False)
        histories = self.histories()
        report = next(self._turn_report(generator, span, histories) for span in self.spans() if span.index == index)
        audio = self.sound(generator, index)
        return TurnFinished(index, len(self.turns), report, audio, self.turns[index], dict(sounds), text)

    def _judged(self, work: _Work, judges: Judges, index: int, seed: int, spoken: Spoken, history: str) -> Take:
        """One take, with its scores."""
        turn = self.turns[index]
        pace, voice = self._pace(turn.speaker, index), self.prompts[turn.speaker].voice
        prompt = load_prompt(voice) if judges.likeness else None
        samples = trimmed_length(spoken.unmarked)
        take = Take(seed, turn.text, spoken.codes, spoken.state, samples, history, spoken.positions_prefilled)
        from_seed = self.settings.seed if work.seed is None else None
        take = replace(take, heard_from=spoken.heard_from, drawing=self.settings.drawing, from_seed=from_seed)
        return replace(take, scores=judge(take, output_sound(spoken.unmarked, samples), pace, prompt, judges))

    def _decided(
        self,
        work: _Work,
        index: int,
        memory: _Memory,
        spoken: list[Spoken],
        judged: list[Take],
        sounds: dict[str, Tensor],
    ) -> int:
        """Record the takes and which is kept -> its number. Their sounds go into `sounds`, by `Take.key`."""
        judges = work.judges if len(judged) > 1 else NOBODY
        chosen, takes = rank(judged, judges)
        sounds.update((take.key, one.unmarked) for take, one in zip(takes, spoken))
        self._record(index, list(takes), chosen, sounds)
        self.spent.prefilled += spoken[chosen].positions_prefilled
        slot = self.slots[self.turns[index].speaker]
        memory.said.append(said_after(memory.said[-1], slot, takes[chosen]))
        return chosen

    def _record(self, index: int, takes: list[Take], chosen: int, sounds: dict[str, Tensor]) -> None:
        turn = self.turns[index]
        new = {(take.history, take.key) for take in takes}
        old = [take for take in turn.takes if (take.history, take.key) not in new]
        kept = (*old, *takes)[-MOST_KEPT:]
        at = len(kept) - len(takes) + chosen
        self.turns[index] = replace(turn, takes=kept, chosen=at, drawn=turn.drawn + len(takes))
        self._sounds.update(sounds)
        self.spent.samples += sum(len(sound) for sound in sounds.values())
        self._forget_sounds()

    def _first_audio(self, work: _Work) -> None:
        if self.spent.first_audio is None:
            self.spent.first_audio = time.perf_counter() - work.started

    def _seed(self, index: int, number: int) -> int:
        """The seed of take `number` of turn `index`; take 0 has the seed that the turn always had."""
        return (self.settings.seed + index + NEXT_SEED * number) % 2**63

    def _pace(self, speaker: str, index: int) -> Pace:
        heard = [(self.prompts[speaker].voice.transcript, len(self.prompts[speaker].codes))]
        for turn in self.turns[:index]:
            if turn.speaker == speaker and turn.take and turn.take.state == "ended":
                heard.append((turn.take.text, len(turn.take.codes)))
        return Pace.learned(heard)

    def _prepare(self, generator: Generator, indexes: range) -> None:
        """Check all input of the turns to be spoken, and encode the voices that are new."""
        if any(turn.takes for turn in self.turns) and self.codec not in (None, generator.codec_key):
            raise InputError(
                f"This conversation was spoken by {self.model}, and {generator.model_name} can't go on with it: load "
                f"{self.model}, or begin a new one."
            )
        if self.codec != generator.codec_key:
            self.prompts = {}
        for speaker in self.speakers:
            voice = self.voices.get(speaker)
            if voice is None:
                raise InputError(f"Speaker {speaker} has no voice: choose one for {speaker}.")
            if not voice.transcript.strip():
                raise InputError(f"The voice of speaker {speaker} has no transcript: write down what is said in it.")
        generator.check_lines((f"Turn {number}", turn.text) for number, turn in enumerate(self.turns, 1))
        for turn in self.turns:
            generator.turn_rows(turn.text, self.slots[turn.speaker])
        for speaker in self.speakers:
            voice = self.voices[speaker]
            if speaker not in self.prompts or self.prompts[speaker].voice != voice:
                self.prompts[speaker] = Prompt(voice, generator.voice_codes(voice))
        prompts = len(generator.prompt_rows(self._prompt_segments()))
        for index in indexes:
            turn, longest = self.turns[index], frames_in(self.settings.max_turn_seconds)
            slot = self.slots[turn.speaker]
            generator.prompts.fitting_rows(turn.text, slot, prompts, longest, f"Turn {index + 1}")
        self.model, self.codec = generator.model_name, generator.codec_key

    def _memory_at(self, generator: Generator, index: int) -> _Memory:
        """A conversation that has heard the voices and the turns before `index`, and nothing else.

        What the one at hand knows of that is kept; the rest is read in from codes.
        """
        wanted, memory = self.histories()[: index + 1], self._memory
        if memory is None or memory.generator is not generator or memory.said[0] != wanted[0]:
            conversation = generator.conversation(self._prompt_segments(), self.settings.seed)
            memory = _Memory(generator, conversation, wanted[:1])
        same = 1
        while same < min(len(wanted), len(memory.said)) and wanted[same] == memory.said[same]:
            same += 1
        if same < len(memory.said):
            memory.conversation.rewind(memory.conversation.turns[same - 1])
            del memory.said[same:]
        for number in range(same - 1, index):
            turn = self.turns[number]
            if turn.take is None:
                raise InputError(f"Turn {number + 1} has not been spoken yet: speak it first.")
            memory.conversation.hear(turn.take.text, self.slots[turn.speaker], turn.take.codes)
            memory.said.append(wanted[number + 1])
        self._memory = memory
        return memory

    def _prompt_segments(self) -> list[Segment]:
        return [
            Segment(self.slots[speaker], self.prompts[speaker].voice.transcript, codes=self.prompts[speaker].codes)
            for speaker in sorted(self.speakers, key=self.slots.__getitem__)
        ]

    def _decoded(self, generator: Generator, take: Take) -> Tensor:
        if take.key not in self._sounds:
            if generator.codec_key != self.codec:
                raise InputError(f"This conversation was spoken by {self.model}: load that model to hear it.")
            self._sounds[take.key] = generator.decode(take.codes)
        return self._sounds[take.key]

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
            read_as(generator, take.text),
        )

    def _forget_sounds(self) -> None:
        used = {take.key for turn in self.turns for take in turn.takes}
        self._sounds = {key: sound for key, sound in self._sounds.items() if key in used}


def _marked(wave: Tensor) -> Tensor:
    return watermark.mark(wave) if len(wave) else wave
