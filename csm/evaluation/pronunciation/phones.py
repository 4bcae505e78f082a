"""CMU's phones (ARPAbet, a digit for stress behind each vowel) in the letters of those who speak them.

The lists write a pronunciation once, as CMU's dictionary does: `R IY1 D`. The judge wants it without stress, Kokoro
in IPA, eSpeak in its own letters.
"""

from __future__ import annotations

VOWELS = {  # CMU's: IPA as Kokoro was trained on it, eSpeak's
    "AA": ("ɑː", "A:"), "AE": ("æ", "a"), "AH": ("ʌ", "V"), "AO": ("ɔː", "O:"), "AW": ("aʊ", "aU"), "AY": ("aɪ", "aI"),
    "EH": ("ɛ", "E"), "ER": ("ɜː", "3:"), "EY": ("eɪ", "eI"), "IH": ("ɪ", "I"), "IY": ("iː", "i:"), "OW": ("oʊ", "oU"),
    "OY": ("ɔɪ", "OI"), "UH": ("ʊ", "U"), "UW": ("uː", "u:"),
}  # fmt: skip
CONSONANTS = {
    "B": ("b", "b"), "CH": ("tʃ", "tS"), "D": ("d", "d"), "DH": ("ð", "D"), "F": ("f", "f"), "G": ("ɡ", "g"),
    "HH": ("h", "h"), "JH": ("dʒ", "dZ"), "K": ("k", "k"), "L": ("l", "l"), "M": ("m", "m"), "N": ("n", "n"),
    "NG": ("ŋ", "N"), "P": ("p", "p"), "R": ("ɹ", "r"), "S": ("s", "s"), "SH": ("ʃ", "S"), "T": ("t", "t"),
    "TH": ("θ", "T"), "V": ("v", "v"), "W": ("w", "w"), "Y": ("j", "j"), "Z": ("z", "z"), "ZH": ("ʒ", "Z"),
}  # fmt: skip
UNSTRESSED = {"AH": ("ə", "@"), "ER": ("ɚ", "3")}
STRESS = {"1": ("ˈ", "'"), "2": ("ˌ", ","), "0": ("", "")}
IPA, ESPEAK = 0, 1


def written(phones: str, letters: int) -> str:
    """`phones` of CMU's in `IPA` or `ESPEAK` letters. Raises `ValueError` for a phone that is none."""
    return "".join(_letter(phone, letters) for phone in phones.split())


def unstressed(phones: str) -> str:
    """`R IY1 D` as `R IY D`, which is how acoustic models name their phones."""
    return " ".join(phone.rstrip("012") for phone in phones.split())


def _letter(phone: str, letters: int) -> str:
    name, stress = phone.rstrip("012"), phone[len(phone.rstrip("012")) :]
    if not stress and name in CONSONANTS:
        return CONSONANTS[name][letters]
    if stress in STRESS and name in VOWELS:
        plain = UNSTRESSED.get(name) if stress == "0" else None
        return STRESS[stress][letters] + (plain or VOWELS[name])[letters]
    raise ValueError(f"{phone} is no phone of CMU's: consonants have no stress, vowels end in 0, 1 or 2.")
