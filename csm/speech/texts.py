"""What a loaded model can read of a text, and how: checked before anything is spoken."""

from __future__ import annotations

from collections.abc import Iterable

from csm.engine.frames import Rows
from csm.errors import InputError
from csm.speech.prompts import Prompts
from csm.text import Tokenizer
from csm.utterance import PLAIN, Part, Wording, forget, parts


class TextReader:
    """Texts as the pieces, words and rows that a model with this tokenizer reads."""

    tokenizer: Tokenizer
    prompts: Prompts

    def parts(self, text: str, wording: Wording = PLAIN) -> tuple[Part, ...]:
        """What is spoken of a text at a stretch, in order, with the pauses in it. Raises `InputError` when nothing in
        it can be spoken, or its direction can't be followed."""
        if not (found := parts(text, wording)):
            raise InputError("There is nothing to say in this turn: write some words.")
        return found

    def words(self, text: str, wording: Wording = PLAIN) -> str:
        """A text as the model reads it. Raises `InputError` that names a word which it can't read."""
        return " ".join(self.tokenizer.words(part.text) for part in parts(text, wording) if part.text)

    def check_lines(self, lines: Iterable[tuple[str, str]], wording: Wording = PLAIN) -> None:
        """Raise `InputError` for the first of some texts that can't be read; what stands before each names it."""
        for name, text in lines:
            try:
                self.words(text, wording)
            except InputError as error:
                raise InputError(f"{name}: {error}", error.code) from error

    def forget_texts(self) -> None:
        """Forget the texts that were read: they are remembered to be read quickly, and are their writers'."""
        self.prompts.forget_texts()
        forget()

    def turn_rows(self, text: str, speaker: int) -> Rows:
        """The rows of a text that is spoken at a stretch. Raises `InputError` when nothing in it can be spoken."""
        return self.prompts.turn_rows(text, speaker)

    def check_turn(self, text: str, speaker: int, wording: Wording = PLAIN) -> None:
        """Raise `InputError` when nothing in a text can be spoken, or its direction can't be followed."""
        for part in self.parts(text, wording):
            if part.text:
                self.turn_rows(part.text, speaker)
