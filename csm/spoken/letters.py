"""The letters that the embedded model reads, plain lower-case English: what others become, and which are refused.

Alphabets whose letters are sounds are transliterated (`anyascii`). Scripts that can't be read out so are refused, with
the word named; signs that are no speech are left out, and `left_out` names them.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from anyascii import anyascii

from csm.errors import InputError

ALPHABETS = frozenset(
    "LATIN GREEK CYRILLIC ARMENIAN GEORGIAN MODIFIER FEMININE MASCULINE MICRO KELVIN ANGSTROM OHM".split()
)
UNREADABLE = "unreadable"  # the code of a refusal
MOST_NAMED = 40  # letters of a word that a refusal quotes
_SHAPES = str.maketrans("’‘“”—–…−", "''\"\"--.-")


def plain(text: str) -> str:
    """The text in ASCII letters. Raises `InputError` that names the word which can't be read."""
    text = text.translate(_SHAPES)
    if text.isascii():
        return text
    letters = "".join(_letter(letter) or _refuse(letter, index, text) for index, letter in enumerate(text))
    return re.sub(r"(?<! ) +(?=[,.;:!?])", "", letters.replace("\0", ""))


def left_out(text: str) -> list[str]:
    """The signs in a spoken text that are no speech, such as emoji, each once in their order."""
    return list(dict.fromkeys(letter for letter in text if letter > "\x7f" and _is_sign(letter)))


@lru_cache(maxsize=4096)
def _letter(letter: str) -> str:
    """What is read for one letter: NUL for nothing, and an empty text for what is refused."""
    if letter < "\x80":
        return letter
    kind = unicodedata.category(letter)
    if kind[0] == "M":
        return "\0"
    if kind[0] == "L" or kind in ("Nl", "No"):
        if kind[0] == "L" and unicodedata.name(letter, "").split(" ")[0] not in ALPHABETS:
            return ""
        return re.sub("[`']", "", anyascii(letter)) or "\0"
    return "\0" if kind == "Cf" else " "


@lru_cache(maxsize=4096)
def _is_sign(letter: str) -> bool:
    return unicodedata.category(letter) in ("So", "Sm", "Sc", "Co", "Cn", "No") and not letter.isnumeric()


def _refuse(letter: str, index: int, text: str) -> str:
    before = re.search(r"\S*$", text[max(0, index - MOST_NAMED) : index])
    after = re.match(r"\S*", text[index : index + MOST_NAMED])
    word = f"{before[0] if before else ''}{after[0] if after else ''}".strip(".,!?;:\"'()")
    script = unicodedata.name(letter, "unknown").split(" ")[0].lower()
    script = {"cjk": "Chinese"}.get(script, script.capitalize())
    raise InputError(
        f"“{word}” can't be spoken, because the model reads no {script} letters: write it in Latin ones.", UNREADABLE
    )
