"""The voice of a talk: one CSM conversation that has heard what the talk's memory holds, and speaks the next piece."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain

import numpy as np
import torch

from csm.conversation.studio import Studio
from csm.errors import InputError
from csm.settings import Settings
from csm.speech.generator import Conversation, Stop
from csm.speech.voices import Voice, fetched
from csm.talk.memory import USER, VOICE, Piece, Said

Tell = Callable[[str | np.ndarray | Piece | InputError | int], None]
ANSWER_SECONDS = 5.0  # of sound that an answer should come to, for those who wait behind it


class Mouth:
    """Speaks for one talk, one answer at a time, each in a slot of the studio's and none between them.

    Its methods are for any thread; an answer waits until the one before it has left off.
    """

    def __init__(self, studio: Studio, who: str = "", seed: int | None = None) -> None:
        self._studio, self._who, self._seed = studio, who, seed
        self._busy = threading.Lock()
        self._conversation: Conversation | None = None
        self._voice: Voice | None = None
        self._told: list[Said] = []  # what each turn of the conversation is

    @property
    def positions(self) -> tuple[int, int]:
        """How many positions are in use, of how many."""
        most = self._studio.generator.config.max_positions
        return (self._conversation.positions_used if self._conversation else 0), most

    def hear(self, text: str, wave: np.ndarray) -> Said | None:
        """What the user said, float32 (num_samples,) at 24 kHz, as codes; None where CSM can't read its words."""
        generator = self._studio.generator
        try:
            generator.turn_rows(text, USER)
        except InputError:
            return None
        # Not through the generator's own way, which remembers what it encodes.
        sound = torch.from_numpy(wave).to(generator.device)
        codes, embedding = generator.codec.encode(sound), generator.codec.embed(sound)
        return Said(USER, text, codes.to("cpu", torch.int64), None if embedding is None else embedding.cpu())

    def forget(self) -> None:
        """The talk is over: nothing that was said stays, once the answer that is being given has left off."""
        with self._busy:
            self._conversation, self._told = None, []
            self._studio.generator.forget_texts()

    def speak(
        self,
        voice: Voice,
        before: Callable[[], list[Said]],
        clauses: Iterator[tuple[str, str]],
        settings: Settings,
        stop: Stop,
        tell: Tell,
    ) -> None:
        """Speak `clauses`, each as it is written and as it is said, after what was said `before`.

        Tells the words of each before its sound, its marked float32 (num_samples,) as they are made, and then the
        piece; a clause that can't be read is told as the refusal, and a number is how many are served before it.
        """
        with self._busy:
            if stop():
                return
            conversation = self._follow(voice, before())  # while the language model looks for its first words
            if (first := next(clauses, None)) is not None:
                self._answer(conversation, chain([first], clauses), settings, stop, tell)

    def _answer(
        self, conversation: Conversation, clauses: Iterator[tuple[str, str]], settings: Settings, stop: Stop, tell: Tell
    ) -> None:
        with self._studio.queue.join(ANSWER_SECONDS, self._who) as place:
            place.done = False  # the language model's pace is not this queue's
            for news in place.news(stop):
                tell(news.ahead)
            if not place.served:
                return
            for written, text in clauses:
                if stop():
                    return
                tell(written)
                if not text:
                    tell(Piece(written))
                    continue
                try:
                    tell(Piece(written, self._spoken(conversation, text, settings, stop, tell)))
                except InputError as error:
                    tell(Piece(written))
                    tell(error)

    def _spoken(self, conversation: Conversation, text: str, settings: Settings, stop: Stop, tell: Tell) -> Said:
        known = len(conversation.turns)
        try:
            with closing(conversation.speak(text, VOICE, settings, stop=stop)) as waves:
                for wave in waves:
                    tell(wave.numpy())
        finally:
            for turn in conversation.turns[known:]:
                self._told.append(Said(VOICE, turn.text, turn.codes, turn.pieces[0].embedding))
                for piece in turn.pieces:
                    piece.audio = piece.unmarked = torch.zeros(0)  # a talk may last for hours
        return self._told[-1]

    def _follow(self, voice: Voice, said: list[Said]) -> Conversation:
        """The conversation, as if it had heard `said` and nothing else; what it knows of that is not read again."""
        generator, conversation = self._studio.generator, self._conversation
        if conversation is None or self._voice != voice:
            prompt = generator.prompt(fetched(voice), VOICE)
            self._conversation = conversation = generator.conversation([prompt], self._seed)
            self._voice, self._told = voice, []
        same = 0
        while same < min(len(said), len(self._told)) and said[same] is self._told[same]:
            same += 1
        if same < len(self._told):
            conversation.rewind(conversation.turns[same])
            del self._told[same:]
        for one in said[same:]:
            conversation.hear(one.text, one.speaker, one.codes)
            self._told.append(one)
        return conversation
