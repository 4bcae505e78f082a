"""Numbers that are no date, money or measure: telephones, fractions, ranges, scores, versions, ordinals, codes."""

from __future__ import annotations

import re

from csm.spoken.measures import VULGAR, fraction, mixed
from csm.spoken.numbers import cardinal, digits, number, ordinal, plain_year, plural, two_digits, value
from csm.spoken.rules import NUMBER, START, Rule, rule

_SAME = {
    "24/7": "twenty four seven",
    "9/11": "nine eleven",
    "50/50": "fifty fifty",
    "50-50": "fifty fifty",
    "20/20": "twenty twenty",
}
_RATED = r"(?i:rated|rating|score|scored|scores|gave|give|got|gets|earned|an|a solid)"
_ASKED = "people|stars|points|dentists|doctors|women|men|adults|students|users|customers|voters|times"
_BOOKS = (
    "Genesis|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Psalms?|Proverbs|Isaiah|Jeremiah|Matthew|Mark|Luke|John|Acts"
    "|Romans|Corinthians|Galatians|Ephesians|Hebrews|James|Revelation"
)
_RUN = re.compile(r"\b(?:ran|run|running|runs|raced|walked|finished)\s+(?:a|the|my|his|her|our)\s+(?:first\s+)?$", re.I)
_OUGHT = (
    r"(?i:version|release|python|java|ios|android|windows|ubuntu|kernel|node|chrome|firefox|django|rails|php|ruby|v)"
)


def _slash(match: re.Match[str]) -> str:
    whole, first, second = match[1], match[2], match[3]
    if (known := _SAME.get(f"{first}/{second}")) and not whole:
        return known
    top, bottom = int(first), int(second)
    if whole and top < bottom:
        return mixed(whole, top, bottom)
    before = match.string[max(0, match.start() - 16) : match.start()]
    rated = re.search(rf"\b{_RATED}\s+(?:it\s+)?$", before) or re.match(
        rf"\s(?:{_ASKED})\b", match.string[match.end() : match.end() + 16]
    )
    if not whole and (top == bottom or (bottom in (5, 10, 100) and rated)):
        return f"{cardinal(top)} out of {cardinal(bottom)}"
    said = f"{number(whole.strip())} " if whole else ""
    named = 2 <= bottom <= 20 or bottom in (24, 30, 32, 50, 64, 100, 1000)
    return said + (fraction(top, bottom) if named and top < 2 * bottom else f"{cardinal(top)} over {cardinal(bottom)}")


def _telephone(match: re.Match[str]) -> str:
    return " ".join(filter(None, ("plus" if match[0].startswith("+") else "", digits(match[0]))))


def _toll_free(match: re.Match[str]) -> str:
    return f"{_toll_free_code(match)} {digits(match[3])}"


def _toll_free_code(match: re.Match[str]) -> str:
    return f"{'one ' if match[1] else ''}{'eight hundred' if match[2] == '800' else digits(match[2])}"


def _vanity(match: re.Match[str]) -> str:
    """1-800-FLOWERS: its word is said as one."""
    return f"{_toll_free_code(match)} {match[3].replace('-', ' ').lower()}"


def _worded(match: re.Match[str]) -> str:
    """555-CALL-NOW."""
    return f"{digits(match[1])} {match[2].replace('-', ' ').lower()}"


def _code(match: re.Match[str]) -> str | None:
    """ "Text 741741", "Text STOP to 12345"."""
    before = match.string[max(0, match.start() - 30) : match.start()]
    return digits(match[1]) if re.search(r"\b(?i:text(?:ing|ed)?)\s(?:[A-Z]+\s(?:to|TO)\s)?$", before) else None


def _pairs(match: re.Match[str]) -> str:
    """Three figures that are read as a name: Boeing 747, Flight 370, error 404."""
    return f"{match[1]} {digits(match[2])} {two_digits(int(match[3]))}"


def _score(match: re.Match[str]) -> str:
    return f"{match[1]}{cardinal(int(match[2]))} to {cardinal(int(match[3]))}"


def _version(match: re.Match[str]) -> str:
    said = " point ".join(map(_part, match[2].split(".")))
    return f"version {said}" if match[1] else said


def _named_version(match: re.Match[str]) -> str:
    return f"{match[1]} " + " point ".join(map(_part, match[2].split(".")))


def _part(text: str) -> str:
    return digits(text) if len(text) > 1 and text[0] == "0" else cardinal(int(text))


def _range(match: re.Match[str]) -> str:
    joint = " " if re.match(r"0\d", match[2]) else " to "  # 2024-001 counts nothing
    return f"{number(match[1])}{joint}{number(match[2])}"


def _ordinal(match: re.Match[str]) -> str:
    return ordinal(value(match[1]))


def _scaled(match: re.Match[str]) -> str | None:
    """10K followers, 3M views; a 5k run and 4K pictures keep their letter."""
    amount, letter = match[1], match[2]
    after = match.string[match.end() : match.end() + 12]
    if letter in "kK" and _RUN.search(match.string[max(0, match.start() - 30) : match.start()]):
        return f"{number(amount)} K"
    if letter == "B" and "." not in amount and not re.match(" (?:people|users|views|dollars)", after):
        return None
    if letter in "kK" and (amount in ("4", "8") or re.match(r"[ -](?:run|race|walk|tv|res)", after.lower())):
        return f"{number(amount)} K"
    return f"{number(amount)} {dict(k='thousand', m='million', b='billion')[letter.lower()]}"


def _power(match: re.Match[str]) -> str:
    mantissa, sign, exponent = match.groups()
    minus = "minus " if sign in ("-", "−") else ""
    return f"{number(mantissa)} times ten to the power of {minus}{cardinal(int(exponent))}"


def _half(match: re.Match[str]) -> str:
    return mixed(match[1], *VULGAR[match[2]]) if match[1] else fraction(*VULGAR[match[2]])


def _signed(match: re.Match[str]) -> str:
    said = {"-": "minus", "−": "minus", "–": "minus", "+": "plus", "±": "plus or minus", "~": "about", "≈": "about"}
    return f"{said[match[1]]} "


def _plain(match: re.Match[str]) -> str:
    return number(match[0])


_GAP = r"[\s.\u2010\u2011-]"
CODES: list[Rule] = [  # before dates and measures
    rule(r"(?<![\w.,])\d{1,3}(?:\.\d{3}){2,6}(?![\w,]|\.\d)", lambda m: m[0].replace(".", ",")),
    rule(r"(?<![\d.,])(\d{1,3}(?:\.\d{3}){1,6}),(\d{1,2})(?![\d,])", lambda m: f"{m[1].replace('.', ',')}.{m[2]}"),
    rule(
        r"(?<![\w.,])(\d{1,6}),(\d{1,2})(?=\s?(?:€|%|°|(?:euros?|million|billion|km|kg|cm|mm|m|l|g)\b))",
        lambda m: f"{m[1]}.{m[2]}",
    ),
    rule(r"(?<=€)(\s?\d{1,6}),(\d{2})(?!\d)", lambda m: f"{m[1]}.{m[2]}"),
    rule(r"(?<!\w)N[º°]\.?\s?(?=\d)", "number "),
    rule(r"\d{41,}", lambda m: digits(m[0])),
    rule(r"(?<![\w.+-])(1[\s.-])?\(?(800|888|877|866)\)?[\s.-](\d{3}[\s.-]?\d{4})(?![\w-])", _toll_free),
    rule(r"(?<![\w.+-])1-(900)-([A-Z]{1,10}(?:-[A-Z]{1,10}){0,3})(?![\w-])", lambda m: f"one {_worded(m)}"),
    rule(r"(?<![\w.+-])(1[\s.-])?\(?(800|888|877|866)\)?[\s.-]([A-Z]{2,10}(?:-[A-Z]{2,10})?)(?![\w-])", _vanity),
    rule(rf"(?<![\w.+-])(?:\+?1{_GAP})?(?:\(\d{{3}}\)\s?|\d{{3}}{_GAP})\d{{3}}{_GAP}\d{{4}}(?![\w-]|\.\d)", _telephone),
    rule(r"(?<!\w)\+\d{1,3}(?:[\s.()-]{1,2}\d{1,5}){2,6}(?![\w-])", _telephone),
    rule(r"(?<!\w)\+\d{1,3}\s?\d{2,4}\s?\d{5,9}(?![\w-])", _telephone),
    rule(r"(?i:(?<=\bpin )|(?<=\bpin is )|(?<=ending in )|(?<=passcode ))(\d{3,6})(?!\w|[.,]\d)", _telephone),
    rule(r"(?<![\w.,-])0\d{2,4}[\s-]\d{3,4}[\s-]?\d{3,4}(?![\w-])", _telephone),
    rule(r"(?<![\w.,$€£-])\d{3}-\d{4}(?![\w%-]|[.,]\d)", _telephone),
    rule(r"(?<![\w.-])\d{3}-\d{2}-\d{4}(?![\w-])|(?<![\w.-])(?:\d{4}[\s-]){3}\d{4}(?![\w-])", _telephone),
    rule(r"(?<![\w.,$€£-])(?:\(\d{3}\)\d{7}|\d{3} \d{4})(?![\w,-]|\.\d| \d)", _telephone),
    rule(r"(?<![\w.,$€£-])(\d{3})-([A-Z]{4}|[A-Z]{2,5}-[A-Z]{2,5})(?![\w-])", _worded),
    rule(r"(?i:(?<=\btext )|(?<=\btexting )|(?<=\bto ))(\d{5,6})(?!\w|[.,]\d)", _code),
    rule(r"(?i:(?<=call )|(?<=dial )|(?<=called )|(?<=dialed ))(911|999|112|411|311)(?!\w|[.,]\d)", _telephone),
    rule(r"(?<![\w.])97[89][- ]\d[\d -]{8,12}\d(?!\w)", _telephone),
]
RULES: list[Rule] = [
    rule(r"(?<!\w)((?i:boeing|flight|error|status|http))\s(\d)(\d{2})(?!\w|[.,]\d)", _pairs),
    rule(r"(?<!\w)()(4)(04)(?= (?:error|page))", lambda m: _pairs(m).strip()),
    rule(r"(?<!\w)(1080|1440|2160)(?=[pi]\b)", lambda m: plain_year(m[1]) + " "),
    rule(r"(?<!\w)(10{2,3}|1,?000(?:,000)?|10)s(?= of (?!the\b))", lambda m: plural(number(m[1]).removeprefix("one "))),
    rule(
        r"(?i:((?:score|final|result|game)(?:\s(?:was|is|of|ended|finished))?\s))(\d{1,3}):(\d{1,3})(?![\w:])", _score
    ),
    rule(r"(?<!\w)(49|76)ers(?!\w)", lambda m: "forty niners" if m[1] == "49" else "seventy sixers"),
    rule(r"(?<!\w)(\d{1,3}):(\d{1,3}):(\d{1,3})(?![\w:])", lambda m: " to ".join(map(number, m.groups()))),
    rule(rf"(?<!\w)({_BOOKS})\s(\d{{1,3}}):(\d{{1,3}})(?![\w:])", lambda m: f"{m[1]} {number(m[2])} {number(m[3])}"),
    rule(r"(?<!\w)[vV](?:er)?\.?\s?()(\d{1,4}(?:\.\d{1,4}){1,4})(?![\w]|\.\d)", lambda m: f"version {_version(m)}"),
    rule(r"(?<![\w.,])()(\d{1,4}(?:\.\d{1,4}){2,5})(?![\w]|[.,]\d)", _version),
    rule(rf"(?<!\w)({_OUGHT})\s(\d{{1,3}}\.\d{{1,3}})(?![\w%]|[.,]\d)", _named_version),
    rule(rf"{START}()(24/7|9/11|50[/-]50|20/20)(?![\w/])", lambda m: _SAME[m[2]]),
    rule(rf"{START}(\d{{1,3}}\s)?(\d{{1,4}})[/⁄](\d{{1,4}})(?:th|rd|nd)?s?(?![\w/])", _slash),
    rule(rf"(?:{START}(\d{{1,12}})\s?)?([{''.join(VULGAR)}])", _half),
    rule(rf"{START}({NUMBER})(?:[eE]|\s?[x×·*]\s?10\^?(?=[-+−]?\d))([-+−]?)(\d{{1,3}})(?!\w|\.\d)", _power),
    rule(rf"{START}({NUMBER})(?:st|nd|rd|th|ST|ND|RD|TH)\b", _ordinal),
    rule(rf"{START}(\d{{1,4}})[ºª](?!\w)", _ordinal),
    rule(rf"{START}({NUMBER})([kKMB])(?!\w)", _scaled),
    rule(rf"(?<![\w.,-])({NUMBER})\s?(?:[–—~]|-)\s?({NUMBER})(?![\w-]|[.,]\d)", _range),
    rule(r"(?<![\w.:])(\d{1,4}):(\d{1,4})(?![\w:])", _range),
    rule(r"(?<![\w.,)\]%-])([-−–])(?=\.?\d)", _signed),
    rule(r"(?<![\w.,)\]])([+±~≈])\s?(?=\.?\d)", _signed),
    rule(r"(?<!\w)(?:No|Nos|Nr|№)\.?\s?(?=\d)|№", "number "),
    rule(rf"(?<!\d)(?<!\d\.)(?:(?<![\w)])(?=\.)|(?=\d)){NUMBER}", _plain),
]
# What joins a number to a word or letter is no pause: "ten year old", "B fifty two".
JOINTS: list[Rule] = [
    rule(r"(?<=[A-Za-z])[-\u2010\u2011](?=\d)|(?<=\d)[-\u2010\u2011](?=[A-Za-z])", " "),
]
