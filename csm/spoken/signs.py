"""Characters before and behind the figures: odd digits and spaces made plain, powers, and the signs of arithmetic."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from csm.spoken.numbers import cardinal
from csm.spoken.rules import Rule, rule

MOST_MARKS = 4  # combining marks on one letter; reordering a long run of them takes quadratic time
_ABOVE, _BELOW = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "₀₁₂₃₄₅₆₇₈₉"
_RAISED = str.maketrans(_ABOVE, "0123456789-+n")
_PLAIN = {
    "’": "'",
    "‘": "'",
    "ʼ": "'",
    "‛": "'",
    "“": '"',
    "”": '"',
    "„": '"',
    "«": '"',
    "»": '"',
    "″": "″",
    "‒": "–",
    "―": "—",
}
_PLAIN |= {"\u2010": "-", "\u2011": "-", "。": ".", "、": ",", "¿": "", "¡": "", "\u00ad": "", "\ufeff": ""}
_SPACES = frozenset("\u00a0\u2007\u2008\u2009\u200a\u202f\u205f\u3000\u2002\u2003\u2004\u2005\u2006")
_ALIKE = ("<wide>", "<narrow>", "<font>", "<circle>", "<compat>")
_KEPT = frozenset("…℃℉℀№™℠")
POWERS = {"2": "squared", "3": "cubed"}


def readable(text: str) -> str:
    """The text in composed Unicode of plain shapes: ASCII digits, spaces and quotes, no invisible characters."""
    text = re.sub(r"(?<![\w.,])\d{1,3}(?: \d{3}){0,5} 000(?! ?\d)", lambda match: match[0].replace(" ", ","), text)
    if text.isascii():
        return text
    text = composed(text)
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", ",", text)  # 1 000 000
    return "".join(map(_character, text))


def composed(text: str) -> str:
    """The text in composed Unicode (NFC), without the marks that a letter has beyond `MOST_MARKS`."""
    kept, run = [], 0
    for letter in text:
        run = run + 1 if unicodedata.combining(letter) else 0
        if run <= MOST_MARKS:
            kept.append(letter)
    return unicodedata.normalize("NFC", "".join(kept))


@lru_cache(maxsize=4096)
def _character(letter: str) -> str:
    if letter < "\x80" or letter in _KEPT:
        return letter
    if letter in _PLAIN:
        return _PLAIN[letter]
    if letter in _SPACES:
        return " "
    if letter.isdecimal():
        return str(unicodedata.decimal(letter))
    kind = unicodedata.decomposition(letter).split(" ")[0]
    if kind in _ALIKE and unicodedata.category(letter)[0] in "LNPS":
        alike = unicodedata.normalize("NFKC", letter)
        return f" {alike} " if kind == "<circle>" else alike
    return "" if unicodedata.category(letter) == "Cf" else letter


def _raised(match: re.Match[str]) -> str | None:
    exponent = match[1].translate(_RAISED)
    if exponent in POWERS:
        return f" {POWERS[exponent]}"
    if re.fullmatch(r"[-+]?\d{1,30}", exponent):
        return f" to the power of {'minus ' if exponent[0] == '-' else ''}{cardinal(abs(int(exponent)))}"
    return f" to the power of {exponent}" if exponent == "n" else None


def _hat(match: re.Match[str]) -> str:
    exponent = match[1].strip("(){}")
    if exponent in POWERS:
        return f" {POWERS[exponent]}"
    return f" to the power of {'minus ' if exponent[0] in '-−' else ''}{exponent.lstrip('-−+')}"


def _product(match: re.Match[str]) -> str:
    """ "3 × 5" is three times five, "1920x1080" is by."""
    if re.match(r"10\^|10 to the power", match.string[match.end() : match.end() + 15]):
        return " times "
    counted = match[1] in "×*·⋅" and ("=" in match.string or " " in match[0])
    return " times " if counted or "=" in match.string else " by "


def _between(match: re.Match[str]) -> str:
    return " minus " if "=" in match.string or "−" in match[0] else " to "


def _minus(match: re.Match[str]) -> str | None:
    return " minus " if re.search(r"[=²³^+]", match.string) else None


def _greek(match: re.Match[str]) -> str:
    """A letter alone is said by its name: α, Δ, µ."""
    name = unicodedata.name(match[0]).removesuffix(" SYMBOL").split()[-1].lower()
    return {"lamda": "lambda", "micro": "mu", "sign": "mu"}.get(name, name)


def _heart(match: re.Match[str]) -> str | None:
    """<3 is a heart, unless something is compared."""
    before = match.string[max(0, match.start() - 12) : match.start()]
    if re.search(r"\b(?:I|we|We) $", before):
        return "love"
    return None if re.search(r"\b(?:is|are|was|be|if|of|or|and|by|at|in|with|[a-z])\s?$|\d\s?$", before) else " "


ARITHMETIC: list[Rule] = [
    rule(r"(?<!\S)[:;]['-]?[)(\]DPp|](?!\w)|(?<!\S)[:;]['-]?/(?!\S)", ""),
    rule(r"(?<!\S)<3(?![\w.,])", _heart),
    rule(r"(?<!\S)<(?=\d)", "less than "),
    rule(r"(?<!\S)>(?=\d)", "more than "),
    rule(r"(?<!\w)([a-zA-Z])\((?=[^()\s]{1,20}\))", lambda m: f"{m[1]} of ("),
    rule(rf"\s?[x×·*]\s?10([{_ABOVE}]{{1,5}})", lambda m: f" times 10{_raised(m) or ''}"),
    rule(rf"(?<![A-Za-z])([a-zA-Z])([a-zA-Z])(?=[{_ABOVE}])", lambda m: f"{m[1]} {m[2]}"),
    rule(rf"(?<=[\w)])([{_ABOVE}]{{1,31}})", _raised),
    rule(r"(?<=[\w)])\^(\(?\{?[-−+]?\w{1,30}\}?\)?)", _hat),
    rule(rf"[{_BELOW}]+", lambda m: "".join(str(_BELOW.index(letter)) for letter in m[0])),
    rule(r"(?<=\d)\s?([x×*·⋅])\s?(?=\d)", _product),
    rule(r"(?<=\b[a-zA-Z])\s?<\s?(?=\.?\d)", " is less than "),
    rule(r"(?<=\b[a-zA-Z])\s?>\s?(?=\.?\d)", " is more than "),
    rule(r"(?<=\d)[x×](?=\s+[a-z]{2}|[,.;!?]|$)", " times"),
    rule(r"(?<=\d)\s?÷\s?(?=\d)", " divided by "),
    rule(r"(?<=[²³])\s[-−]\s(?=\w)|(?<=\b[a-z])\s[-−]\s(?=[a-z\d](?:\b|[²³^]))", _minus),
    rule(r"(?<=\d)\s+[-−]\s+(?=\d)|(?<=\d)−(?=\d)", _between),
    rule(r"(?<=\d)\s?\+\s?(?=\d)", " plus "),
    rule(r"√\s?", "the square root of "),
]
SIGNS: list[Rule] = [
    rule(r"(?<!.)\s?(?:→|⇒|->|=>)\s?", ""),
    rule(r"(?<![Ͱ-Ͽ])([Α-Ωα-ωϑϕ])(?![Ͱ-Ͽ])|(?<![^\W\d])µ(?!\w)", _greek),
    rule(r"\s?[×]\s?", " times "),
    rule(r"\s?÷\s?", " divided by "),
    rule(r"(?<=\w)\s?\+\s?(?=\w)|(?<=\s)\+(?=\s)", " plus "),
    rule(r"(?<=\b[A-F])-(?=[.,;!?)]|\s(?:in|on|for|and|or|this)\b|$)", " minus"),
    rule(r"(?<=\b[A-F])\+(?!\w)|(?<=\w)\+(?!\w)", " plus"),
    rule(r"(?<![\w])\+", "plus "),
    rule(r"(?<=\w)\s?−\s?(?=\w)", " minus "),
    rule(r"−\s?(?=\w)", "minus "),
    rule(r"\s?(?<![=<>!])={1,2}(?![=>])\s?", " equals "),
    rule(r"\s?≠\s?|(?<=\s)!=(?=\s)", " is not equal to "),
    rule(r"\s?≈\s?", " is about "),
    rule(r"^≤\s?", "at most "),
    rule(r"^≥\s?", "at least "),
    rule(r"\s?(?:≤|<=)\s?(?=[\w(])", " is at most "),
    rule(r"\s?(?:≥|>=)\s?(?=[\w(])", " is at least "),
    rule(r"(?<=\w)\s<\s(?=\w)", " is less than "),
    rule(r"(?<=\w)\s>\s(?=\w)", " is more than "),
    rule(r"±\s?", "plus or minus "),
    rule(r"π", "pi"),
    rule(r"∞", "infinity"),
    rule(r"∑|Σ(?=\s)", "the sum of "),
    rule(r"\s?(?:→|⇒|->|=>)\s?", " to "),
    rule(r"\s?&\s?", " and "),
    rule(r"%", " percent "),
    rule(r"‰", " per mille "),
    rule(r"§§?\s?", "section "),
    rule(r"¶\s?", "paragraph "),
    rule(r"©\s?", "copyright "),
    rule(r"°", " degrees "),
    rule(r"€", " euros "),
    rule(r"£", " pounds "),
    rule(r"\$", " dollars "),
    rule(r"¥", " yen "),
    rule(r"(?:(?<=\s)|^)@(?=\s)|(?<=\w)@(?=\w)", " at "),
    rule(r"~(?=\s?\w)", "about "),
    rule(r"(?i:\band/or\b)", "and or"),
    rule(r"(?i:\b(he)/(she)\b|\b(him)/(her)\b|\b(his)/(hers?)\b)", lambda m: m[0].replace("/", " or ")),
    rule(r"(?i:\bw/o\b)\s?", "without "),
    rule(r"(?i:\bw/)\s?", "with "),
    rule(r"(?i:\bc/o\b)", "care of"),
]
