"""One user's conversation on the way from script to sound: spoken, redone, carried on from, stopped, listened to.

A session owns all that changes and is given the generator with each call. It keeps the KV cache of what was said
while it lives; pickled or reopened it has none and reads the codes in again. It is not for two threads at once.
"""

from __future__ import annotations

import time
from collections.abc import Generator as Steps
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from csm.config import FRAME_SIZE
from csm.conversation.doubts import MOST_AGAIN, doubt, helps, unheard
from csm.conversation.events import Comparing, Event, Performed, TurnChunk, TurnFinished, TurnStarted
from csm.conversation.notices import notice, warning
from csm.conversation.parsing import Line
from csm.conversation.script import Prompt, said_after
from csm.conversation.spoken import SpokenScript, marked
from csm.conversation.takes import NOBODY, Judges, Pace, Take, judge, output_sound, trimmed_length
from csm.conversation.tried import Attempt, One, Told, Tried
from csm.engine.frames import Segment, frames_in
from csm.errors import InputError
from csm.settings import Settings
from csm.speech.generator import Conversation, Generator, Stop, Takes, piece_seed, silence
from csm.speech.generator import Piece as Spoken
from csm.speech.tempo import at_speed
from csm.speech.voices import load_prompt
from csm.utterance import Part

NEXT_SEED = 1_000_003  # from one take's seed to the next of the same turn
NEWS_SECONDS = 0.25  # how often to tell how far several takes are


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
    held: bool = False
    again: bool = False
    seed: int | None = None
    started: float = field(default_factory=time.perf_counter)


class Session(SpokenScript):
    """A script that is spoken: what one user has, and nobody else."""

    _memory: _Memory | None = None

    # Speaking

    def speak(
        self,
        generator: Generator,
        start: int = 0,
        stop: Stop = lambda: False,
        judges: Judges = NOBODY,
        live: bool = True,
        held: bool = False,
    ) -> Iterator[Event]:
        """Speak turn `start` (from 0) and all after it, and yield what happens. The same seed after the same turns
        gives the same takes.

        `TurnStarted`, `TurnChunk`s (unless not `live`; where they are `held`, one a piece, once it is chosen),
        `Comparing` now and then where there are several takes, and `TurnFinished` for each turn, `Performed` last. All
        input is checked before the first turn. `stop` is asked at every frame; a turn that is stopped keeps what was
        made, and closing the iterator does the same. A turn that went wrong is tried again with another seed, at most
        twice, unless somebody has heard it already; what is still wrong with it stands in its `doubt`. When the model's
        positions are full the oldest turns are no longer heard, and a `notice` in the report says so, once for all of
        them. Raises `InputError` for what can't be spoken and when a turn before `start` has not been spoken.
        """
        if not self.turns:
            raise InputError("The script is empty: write at least one line.")
        self._known(start)
        return self._run(_Work(generator, stop, judges, live, held), range(start, len(self.turns)))

    def redo(
        self,
        generator: Generator,
        index: int,
        seed: int | None = None,
        stop: Stop = lambda: False,
        judges: Judges = NOBODY,
        live: bool = True,
        held: bool = False,
    ) -> Iterator[Event]:
        """Speak turn `index` alone once more with the next seed, or with `seed`; yields what `speak` yields.

        Turns before it stay as they are and are not read in again; those after it become stale, because they were
        said after another take. `speak(generator, index + 1)` carries on from there.
        """
        self._known(index)
        if seed is not None:
            replace(self.settings, seed=seed)  # refuses an impossible one
        return self._run(_Work(generator, stop, judges, live, held, True, seed), range(index, index + 1))

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

    def rest(self) -> None:
        """Let the KV cache and the sounds go; what was said is read in again when speaking goes on, and decoded again
        when it is heard."""
        if not self._busy:
            self._memory, self._sounds = None, {}

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
            for index in indexes:
                if work.stop():
                    break
                turn = self.turns[index]
                self.turns[index] = replace(turn, speaking=True)
                yield TurnStarted(index, len(self.turns), Line(turn.speaker, turn.text, index + 1))
                told, sounds = Told(work.generator.parts(turn.text, self.wording)), dict[str, Tensor]()
                try:
                    with closing(self._steps(work, memory, index, told)) as steps:
                        for step in steps:
                            if isinstance(step, TurnChunk):
                                yield step
                            elif len(step.seeds) > 1:
                                with (
                                    memory.conversation.takes(*self._asked(index, step), step.onto) as takes,
                                    self._comparing(work, memory, index, step, takes) as heard,
                                ):
                                    last = time.monotonic()
                                    while takes.speaking and not work.stop():
                                        takes.step()
                                        if time.monotonic() - last > NEWS_SECONDS:
                                            last = time.monotonic()
                                            yield Comparing(index, takes.frames)
                                    for number in heard:
                                        yield Comparing(index, takes.frames, number)
                            else:
                                part, slot, settings, (seed,) = self._asked(index, step)
                                how = work.stop, work.live and not self._compared(work), step.onto
                                with (
                                    self._listening(work, memory, index, step),
                                    closing(memory.conversation.utter(part, slot, settings, seed, *how)) as waves,
                                ):
                                    for wave in waves:
                                        self._first_audio(work)
                                        if work.live and not self._held(work):
                                            yield TurnChunk(index, wave)
                finally:
                    if told.kept:
                        self._decided(work, index, memory, told, sounds)
                made = range(indexes[0], index + 1)
                self.spent.seconds = spent + time.perf_counter() - work.started
                text = sum(one.piece.positions - len(one.piece.codes) - 1 for one in told.kept)
                yield self._finished(work.generator, index, sounds, text)
                if self.turns[index].status == "stopped":
                    break
            self.spent.seconds = spent + time.perf_counter() - work.started
            notices = notice(work.generator, self.turns, self.slides, made) | warning(self.turns, made)
            report = self.report(work.generator) | notices
            whole = torch.zeros(0) if work.live else self.whole(work.generator)
            yield Performed(whole, report, self)
        finally:
            self._busy = False
            self.settle()

    def _steps(self, work: _Work, memory: _Memory, index: int, told: Told) -> Steps[Attempt | TurnChunk, None, None]:
        """What is to be done to speak one turn: attempts at its pieces, and between them what is heard of what was
        chosen, and of pauses. Afterwards the conversation goes on from the takes that are kept."""
        if work.live and told.lead:
            yield TurnChunk(index, silence(told.lead / self.settings.speed))
        for tried in told:
            try:
                for seeds in self._attempts(work, memory, index, tried):
                    yield Attempt(tried, seeds)
            finally:
                self._hold(memory, index, tried)
            if work.live and self._held(work):
                yield TurnChunk(index, self._chosen(work, tried.best))
            if tried.best.take.state == "stopped":
                break
            if work.live and tried.part.pause:
                yield TurnChunk(index, silence(tried.part.pause / self.settings.speed))

    def _asked(self, index: int, attempt: Attempt) -> tuple[Part, int, Settings, list[int]]:
        """What the conversation is to say, and how."""
        return attempt.tried.part, self.slots[self.turns[index].speaker], self.settings, attempt.seeds

    def _held(self, work: _Work) -> bool:
        """Whether the sound of a piece is told of once it is chosen, and not while it is made."""
        return work.held or self._compared(work)

    def _chosen(self, work: _Work, best: One) -> Tensor:
        """What is heard of a piece whose sound was held: takes side by side have no mark yet."""
        if self._compared(work):
            return marked(at_speed(output_sound(best.piece.unmarked, best.take.samples), self.settings.speed))
        return best.piece.audio

    def _attempts(self, work: _Work, memory: _Memory, index: int, tried: Tried) -> Iterator[list[int]]:
        """The seeds with which a piece is to be spoken, one after the other or side by side; and again others while
        that may mend what went wrong. What somebody has heard already is not said again."""
        yield [piece_seed(seed, tried.number) for seed in self._seeds(work, index)]
        more = (self.turns[index].drawn if work.again else 0) + self.settings.takes
        while tried.again < MOST_AGAIN and self._another(work, index, tried):
            memory.conversation.rewind(tried.takes[-1 if tried.again else tried.chosen].piece)
            seed = piece_seed(self._seed(index, more + tried.again), tried.number)
            tried.again += 1
            yield [seed]

    def _another(self, work: _Work, index: int, tried: Tried) -> bool:
        """Whether a piece is to be tried again."""
        best = tried.best.take
        if work.seed is not None or "stopped" in (best.state, tried.takes[-1].take.state) or work.stop():
            return False
        if work.live and not self._held(work) and not unheard(best.doubt):
            return False
        expected = self._pace(self.turns[index].speaker, index).expected_frames(best.text)
        return helps(best.doubt, expected, frames_in(self.settings.max_turn_seconds))

    def _compared(self, work: _Work) -> bool:
        """Whether several takes are asked for."""
        return self.settings.takes > 1 and work.seed is None

    @contextmanager
    def _comparing(
        self, work: _Work, memory: _Memory, index: int, attempt: Attempt, takes: Takes
    ) -> Iterator[Iterator[int]]:
        """Takes side by side are judged, one at each step of what this gives, and the best is kept; without being
        listened to where nobody is told any more, but what was made stays."""
        tried, seeds = attempt.tried, attempt.seeds
        history = memory.said[-1]

        def heard() -> Iterator[int]:
            for number, (seed, one) in enumerate(zip(seeds, takes.finish()), 1):
                if work.judges != NOBODY:
                    yield number
                tried.takes.append(self._judged(work, work.judges, index, seed, one, history))

        try:
            yield heard()
        except GeneratorExit:
            for seed, one in list(zip(seeds, takes.finish()))[len(tried.takes) :]:
                tried.takes.append(self._judged(work, NOBODY, index, seed, one, history))
            takes.keep(tried.choose(work.judges))
            raise
        takes.keep(tried.choose(work.judges))
        self._first_audio(work)

    @contextmanager
    def _listening(self, work: _Work, memory: _Memory, index: int, attempt: Attempt) -> Iterator[None]:
        """The take that is spoken meanwhile is judged, however that ends."""
        tried, (seed,) = attempt.tried, attempt.seeds
        conversation, before = memory.conversation, memory.conversation.last
        judges = work.judges if self._compared(work) else Judges(work.judges.word_errors)
        try:
            yield
        except GeneratorExit:
            judges = NOBODY
            raise
        finally:
            if (piece := conversation.last) is not None and piece is not before:
                whole = self._whole_sound(work, piece)
                tried.takes.append(self._judged(work, judges, index, seed, whole, memory.said[-1]))
                tried.choose(judges if len(tried.takes) > 1 else NOBODY)

    def _hold(self, memory: _Memory, index: int, tried: Tried) -> None:
        """Have the conversation go on from the take that is kept, if there is any."""
        if not tried.takes:
            return
        conversation, best = memory.conversation, tried.best.piece
        last = conversation.last
        if last is best:
            return
        if last is not None and any(last is one.piece for one in tried.takes):
            conversation.rewind(last)
        conversation.hear(best.text, self.slots[self.turns[index].speaker], best.codes, tried.onto)

    def _seeds(self, work: _Work, index: int) -> list[int]:
        """The seeds of the takes that turn `index` is to have."""
        if work.seed is not None:
            return [work.seed]
        first = self.turns[index].drawn if work.again else 0
        return [self._seed(index, first + number) for number in range(self.settings.takes)]

    def _whole_sound(self, work: _Work, spoken: Spoken) -> Spoken:
        """A piece with all of its sound, though it was closed while its decoder held more."""
        if len(spoken.unmarked) < len(spoken.codes) * FRAME_SIZE:
            spoken.unmarked = work.generator.decode(spoken.codes, spoken.embedding)
        return spoken

    def _finished(self, generator: Generator, index: int, sounds: dict[str, Tensor], text: int) -> TurnFinished:
        self.turns[index] = replace(self.turns[index], speaking=False)
        histories = self.histories()
        report = next(self._turn_report(generator, span, histories) for span in self.spans() if span.index == index)
        audio = self.sound(generator, index)
        return TurnFinished(index, len(self.turns), report, audio, self.turns[index], dict(sounds), text)

    def _judged(self, work: _Work, judges: Judges, index: int, seed: int, spoken: Spoken, history: str) -> One:
        """One take of a piece, with its scores and what is doubtful about it."""
        turn = self.turns[index]
        pace, voice = self._pace(turn.speaker, index), self.prompts[turn.speaker].voice
        prompt = load_prompt(voice) if judges.likeness else None
        samples = trimmed_length(spoken.unmarked)
        take = Take(seed, spoken.text, spoken.codes, spoken.state, samples, history, spoken.positions_prefilled)
        from_seed = self.settings.seed if work.seed is None else None
        take = replace(take, drawing=self.settings.drawing, from_seed=from_seed, embedding=spoken.embedding)
        heard = output_sound(spoken.unmarked, samples)
        scores = judge(take, heard, pace, prompt, judges)
        return One(spoken, replace(take, scores=scores, doubt=doubt(scores, take.state, take.text, heard)))

    def _decided(self, work: _Work, index: int, memory: _Memory, told: Told, sounds: dict[str, Tensor]) -> None:
        """Record the takes of a turn and which is kept. Their sounds go into `sounds`, by `Take.key`."""
        turn, heard_from = self.turns[index], memory.conversation.turns[-1].heard_from
        takes, chosen = told.takes(turn.text)
        takes = [replace(take, heard_from=heard_from) for take in takes]
        sounds.update(zip((take.key for take in takes), told.sounds()))
        self._record(index, takes, chosen, sounds, told.drawn)
        self.spent.prefilled += told.prefilled
        memory.said.append(said_after(memory.said[-1], self.slots[turn.speaker], takes[chosen]))

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
        lines = [(f"Turn {number}", turn.text) for number, turn in enumerate(self.turns, 1)]
        generator.check_lines(lines, self.wording)
        for turn in self.turns:
            generator.check_turn(turn.text, self.slots[turn.speaker], self.wording)
        for speaker in self.speakers:
            voice = self.voices[speaker]
            known = self.prompts.get(speaker)
            if known is None or known.voice != voice:
                self.prompts[speaker] = Prompt.of(voice, generator.prompt(voice))
            elif known.embedding is None and generator.prompts.embeds:  # from before its codec was told who speaks
                self.prompts[speaker] = replace(known, embedding=generator.prompt(voice).embedding)
        prompts = len(generator.prompt_rows(self._prompt_segments()))
        for index in indexes:
            turn, longest = self.turns[index], frames_in(self.settings.max_turn_seconds)
            slot = self.slots[turn.speaker]
            for part in generator.parts(turn.text, self.wording):
                if part.text:
                    generator.prompts.fitting_rows(part.text, slot, prompts, longest, f"Turn {index + 1}")
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
            for piece, (text, codes) in enumerate(turn.take.stretches):
                memory.conversation.hear(text, self.slots[turn.speaker], codes, onto=piece > 0)
            memory.said.append(wanted[number + 1])
        self._memory = memory
        return memory

    def _prompt_segments(self) -> list[Segment]:
        return [
            self.prompts[speaker].segment(self.slots[speaker])
            for speaker in sorted(self.speakers, key=self.slots.__getitem__)
        ]
