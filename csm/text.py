"""Text to ids: `BOS "[0]Hello." EOS`, the speaker's slot in brackets with no space after it, unless the model has one.

Two tokenizers behind one function `encode(text) -> list[int]`: bytes for the embedded model, Llama 3 for the
published ones. Either way a script that contains a special token's name is text, not a token.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Protocol

from num2words import num2words


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]:
        """Ids of one turn's text, BOS and EOS included."""
        ...


def turn_text(text: str, speaker: int, space: bool = False) -> str:
    """What the model reads for a turn: the speaker's slot, then the text; `space` between them, where there is a text,
    is for models that were trained so (`ModelConfig.space_after_slot`)."""
    return f"[{speaker}] {text.lstrip()}" if space and text.strip() else f"[{speaker}]{text}"


class ByteTokenizer:
    """The embedded model's: the bytes of plain lower-case English, numbers spelled out. 258 ids."""

    BOS, EOS = 256, 257

    @staticmethod
    def normalise(text: str) -> str:
        """ASCII, lower case, digits as words; the speaker's slot in front stays as it is."""
        found = re.match(r"\[\d+\]", text)
        slot = found[0] if found else ""
        text = text.removeprefix(slot)
        text = text.translate(str.maketrans("’‘“”—–…", "''\"\"--."))
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
        text = text.replace("&", " and ").replace("%", " percent").replace("$", " dollars ")
        text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
        text = re.sub(r"\d+(?:\.\d+)?", ByteTokenizer._spell, text)
        text = re.sub(r"[^a-z ,.?!';:-]+", " ", text)
        return slot + re.sub(r"\s+", " ", text).strip()

    @staticmethod
    def _spell(match: re.Match[str]) -> str:
        digits = match[0]
        if len(digits) > 12:
            return " ".join(num2words(int(digit)) for digit in digits if digit.isdigit())
        words = num2words(float(digits) if "." in digits else int(digits))
        return f" {words.replace('-', ' ').replace(',', '')} "

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

    def encode(self, text: str) -> list[int]:
        return [self._bos, *self._fast.encode(text, add_special_tokens=False).ids, self._eos]
