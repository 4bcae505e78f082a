"""Text to ids: `BOS "[0]Hello." EOS`, the speaker's slot in brackets with no space after it, unless the model has one.

Two tokenizers behind one function `encode(text) -> list[int]`: the bytes of spoken words for the embedded model, Llama
3 for the published ones, which read a text as it is written. Either way a script that contains a special token's name
is text, not a token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from csm.spoken import left_out, plain, spoken


class Tokenizer(Protocol):
    def words(self, text: str) -> str:
        """The text as the model reads it. Raises `InputError` for what it can't read."""
        ...

    def left_out(self, text: str) -> list[str]:
        """The signs in a text that the model does not read, because they are no speech."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of one turn's text, BOS and EOS included."""
        ...


def turn_text(text: str, speaker: int, space: bool = False) -> str:
    """What the model reads for a turn: the speaker's slot, then the text; `space` between them, where there is a text,
    is for models that were trained so (`ModelConfig.space_after_slot`)."""
    return f"[{speaker}] {text.lstrip()}" if space and text.strip() else f"[{speaker}]{text}"


class ByteTokenizer:
    """The embedded model's: the bytes of plain lower-case English, all written as it is said. 258 ids."""

    BOS, EOS = 256, 257

    @staticmethod
    def normalise(text: str) -> str:
        """The words that are said, in lower-case ASCII; the speaker's slot in front stays as it is.

        Raises `InputError` that names a word in letters which can't be read.
        """
        found = re.match(r"\[\d+\]", text)
        slot = found[0] if found else ""
        words = plain(spoken(text.removeprefix(slot))).lower()
        words = re.sub(r"\s+", " ", re.sub(r"[^a-z ,.?!';:-]+", " ", words)).strip()
        words = re.sub(r"(?<=[a-z,;:]) +(?=[,.?!;:](?![a-z]))", "", words)
        if re.search("[a-z]", words) and words[-1] not in ".?!":
            words = words.rstrip(" ,;:-") + "."  # no sentence that the model has heard ended without
        return slot + words

    def words(self, text: str) -> str:
        return self.normalise(text)

    def left_out(self, text: str) -> list[str]:
        return left_out(spoken(text))

    def encode(self, text: str) -> list[int]:
        return [self.BOS, *self.normalise(text).encode(), self.EOS]


class LlamaTokenizer:
    """Llama 3's, from a `tokenizer.json`. BOS and EOS are put on by hand: stock Llama adds no EOS."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Fast  # only the published models need it

        self._fast = Fast.from_file(str(path))
        # With this flag the names of special tokens inside a text are split like any other text.
        self._fast.encode_special_tokens = True
        self._bos = self._fast.token_to_id("<|begin_of_text|>")
        self._eos = self._fast.token_to_id("<|end_of_text|>")

    def words(self, text: str) -> str:
        return text

    def left_out(self, text: str) -> list[str]:
        return []

    def encode(self, text: str) -> list[int]:
        return [self._bos, *self._fast.encode(text, add_special_tokens=False).ids, self._eos]
