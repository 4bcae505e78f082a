"""Dates, years, decades and times of day, as they are said."""

from __future__ import annotations

import re

from csm.spoken.numbers import cardinal, number, ordinal, plain_year, plural, two_digits
from csm.spoken.rules import Rule, ends_sentence, rule

MONTHS = "January February March April May June July August September October November December".split()
_SHORT = {month[:3].lower(): month for month in MONTHS} | {"sept": "September"}
_MONTH = "(" + "|".join([*MONTHS, r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?"]) + ")"
_DAYS = {"mon": "Monday", "tue": "Tuesday", "wed": "Wednesday", "thu": "Thursday", "fri": "Friday"}
_DAYS |= {"sat": "Saturday", "sun": "Sunday"}
_DAY = r"(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)"
_DATED = r"(?i:on|by|until|till|since|from|before|after|due|dated|of)"
_ZONE = r"(\s?[AaPp]\.?\s?[Mm]\b\.?)"

# What is counted: a number before one of these is no year.
COUNTED = frozenset(
    "people men women children dollars euros pounds cents miles feet meters metres kilometers times percent degrees "
    "words pages books cars houses jobs units points votes soldiers workers students members years days hours minutes "
    "seconds weeks months calories watts volts grams kilograms liters square cubic million billion thousand hundred "
    "dozen copies steps species sheep fish of".split()
)
_NOT_PLURAL = frozenset("was is has its his this as us does yes perhaps always olympics games elections".split())
_ASKED = re.compile(
    r"\b(?i:in|since|by|until|till|from|of|years?|before|after|around|circa|about|early|late|mid|during|through|between"
    rf"|spring|summer|autumn|winter|fall|{'|'.join(MONTHS)}),?\s+$|\($"
)


def _month(name: str) -> str:
    """The month's name, whether it is written out or short."""
    return _SHORT.get(name.rstrip(".").lower(), name)


def year(text: str) -> str:
    """A year of one to four digits, or of two behind an apostrophe."""
    return plain_year(text) if len(text) == 4 and text[0] != "0" else number(text)


def _date(month: int, day: int, written_year: str) -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    said = f"{MONTHS[month - 1]} {ordinal(day)}"
    if not written_year:
        return said
    return f"{said} {year(written_year) if len(written_year) == 4 else two_digits(int(written_year))}"


def _iso(match: re.Match[str]) -> str | None:
    return _date(int(match[2]), int(match[3]), match[1])


def _numeric(match: re.Match[str]) -> str | None:
    """Month first, as in America, unless that can't be."""
    first, second = int(match[1]), int(match[3])
    return _date(second, first, match[4]) if first > 12 else _date(first, second, match[4])


def _dotted(match: re.Match[str]) -> str | None:
    """Day first, as in Germany, unless that can't be."""
    first, second = int(match[1]), int(match[2])
    return _date(first, second, match[3]) if second > 12 else _date(second, first, match[3])


def _moment(match: re.Match[str]) -> str | None:
    """2024-12-01T10:30:00Z, as machines write it; the seconds are not said."""
    day = _date(int(match[2]), int(match[3]), match[1])
    zone = " U T C" if match[6] and match[6] in "Zz" else ""
    return f"{day} at {_clock(int(match[4]), int(match[5]))}{zone}" if day and int(match[4]) < 25 else None


def _clock(hour: int, minute: int) -> str:
    if minute:
        return f"{cardinal(hour)} {two_digits(minute)}"
    return f"{cardinal(hour)} o'clock" if 1 <= hour <= 12 else f"{cardinal(hour)} hundred"


def _lasting(match: re.Match[str]) -> str:
    """1h30m, 2m30s."""
    first, second = ("hour", "minute") if match[2] == "h" else ("minute", "second")
    return f"{_counted(int(match[1]), first)} {_counted(int(match[3]), second)}"


def _counted(count: int, what: str) -> str:
    return f"{cardinal(count)} {what if count == 1 else plural(what)}"


def _short_date(match: re.Match[str]) -> str | None:
    said = _date(int(match[2]), int(match[3]), "")
    return said and f"{match[1]} {said}"


def _month_day(match: re.Match[str]) -> str | None:
    """March 14, March 14th, 2024, Jan. 3-5."""
    first = int(match[2])
    if not 1 <= first <= 31:
        return None
    said = f"{_month(match[1])} {ordinal(first)}"
    if match[3]:
        if int(match[3]) > 31:
            return None
        said += f" to {ordinal(int(match[3]))}"
    return f"{said}{match[4] or ''} {year(match[5])}" if match[5] else said


def _day_month(match: re.Match[str]) -> str | None:
    """14 March 2024, 3rd of January."""
    day = int(match[1])
    if not 1 <= day <= 31:
        return None
    before = re.search(r"(?i)\bthe\s+$", match.string[max(0, match.start() - 8) : match.start()])
    of = "of " if match[2] or before else ""
    said = f"{'' if before or not of else 'the '}{ordinal(day)} {of}{_month(match[3])}"
    return f"{said}{match[4] or ''} {year(match[5])}" if match[5] else said


def _month_year(match: re.Match[str]) -> str:
    return f"{_month(match[1])}{match[2] or ''} {year(match[3])}"


def _decade(match: re.Match[str]) -> str | None:
    text = match[1]
    if len(text) == 4:
        first, last = divmod(int(text), 100)
        if last == 0:
            return f"{cardinal(int(text))}s" if first % 10 == 0 else f"{cardinal(first)} hundreds"
        return f"{cardinal(first)} {plural(cardinal(last))}"
    return plural(cardinal(int(text)))


def _bare_year(match: re.Match[str]) -> str | None:
    """Four digits alone, unless something is counted by them."""
    text, after = match[0], re.match(r"\s+([a-z]+)", match.string[match.end() : match.end() + 40])
    following = after[1] if after else ""
    if following in COUNTED or (following.endswith("s") and following not in _NOT_PLURAL):
        return None
    before = match.string[max(0, match.start() - 20) : match.start()]
    told = not before.strip() and following in ("was", "is", "saw", "brought", "began", "marked")
    return year(text) if told or _ASKED.search(before) or 1900 <= int(text) < 2100 else None


def _years(match: re.Match[str]) -> str | None:
    first, last = match[1], match[2]
    if len(last) == 4:
        return f"{year(first)} to {year(last)}" if int(last) > int(first) else None
    return f"{year(first)} to {two_digits(int(last))}" if int(last) > int(first[2:]) else None


def _zone(text: str | None, match: re.Match[str]) -> str:
    """A space and "a m" or "p m", with the stop that ends a sentence."""
    if not text:
        return ""
    stop = "." if text.rstrip().endswith(".") and ends_sentence(match) else ""
    half = text.strip()[0]
    return f" {half} {'m' if half.islower() else 'M'}{stop}"


def _time(match: re.Match[str]) -> str | None:
    hour, minute, second, zone = int(match[1]), int(match[2]), match[3], match[4]
    if hour > 24 or minute > 59:
        return None
    if second:
        return f"{cardinal(hour)} {two_digits(minute)} {two_digits(int(second))}{_zone(zone, match)}"
    if minute:
        return f"{cardinal(hour)} {two_digits(minute)}{_zone(zone, match)}"
    after = match.string[match.end() : match.end() + 20]
    if zone or re.match(rf"\s*o['’]clock| to \d{{1,2}}(?::\d{{2}})?{_ZONE}", after):
        return f"{cardinal(hour)}{_zone(zone, match)}"
    return _clock(hour, minute)


def _hour(match: re.Match[str]) -> str | None:
    return f"{cardinal(int(match[1]))}{_zone(match[2], match)}" if int(match[1]) <= 24 else None


def _hours(match: re.Match[str]) -> str:
    hour, minute = int(match[1][:2]), int(match[1][2:])
    said = cardinal(hour) if hour > 9 else f"zero {cardinal(hour)}"
    return f"{said} {'hundred' if not minute else two_digits(minute)} hours"


def _day(match: re.Match[str]) -> str:
    return _DAYS[match[1][:3].lower()]


def _days(match: re.Match[str]) -> str:
    return f"{_DAYS[match[1][:3].lower()]} to {_DAYS[match[2][:3].lower()]}"


def _month_alone(match: re.Match[str]) -> str:
    return _month(match[1]) + ("." if ends_sentence(match) else "")


_ORD = r"(?:st|nd|rd|th)?"
RULES: list[Rule] = [
    rule(rf"(?<=\b(?:19|20)\d\d)\s?[-–—]\s?(?={_MONTH})|(?<=\bQ[1-4])\s?[-–]\s?(?=Q[1-4]\b)", " to "),
    rule(r"(?<=\d )(AD|BC|CE|BCE)\b|\b(AD)(?= \d)", lambda m: " ".join(m[1] or m[2])),
    rule(
        r"(?<![\w/-])(\d{4})-(\d{2})-(\d{2})[T ](\d{2}):(\d{2})(?::\d{2}(?:\.\d{1,9})?)?(Z|[-+]\d{2}:?\d{2})?(?![\w:])",
        _moment,
    ),
    rule(r"(?<![\w/-])(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?=T\d|(?![\w/-]))", _iso),
    rule(r"(?<![\w/.])(\d{1,2})([/-])(\d{1,2})\2(\d{4}|\d{2})(?![\w/-])", _numeric),
    rule(r"(?<![\w.])(\d{1,2})\.(\d{1,2})\.((?:19|20)\d{2})(?![\w]|\.\d)", _dotted),
    rule(rf"\b({_DATED})\s+(\d{{1,2}})/(\d{{1,2}})(?![\w/])", _short_date),
    rule(rf"(?<!\w)({_DAY})(?=,?\.?\s(?:{_MONTH[1:-1]})\s\d)\.?", lambda m: _DAYS[m[1][:3].lower()]),
    rule(
        rf"\b{_MONTH}\s+(\d{{1,2}}){_ORD}(?:\s?[-–]\s?(\d{{1,2}}){_ORD})?(?:(,)?\s+((?:1\d|20)\d{{2}}))?(?![\w:/]|[.,]\d)",
        _month_day,
    ),
    rule(rf"(?<![\w.,/:$-])(\d{{1,2}}){_ORD}\s+(of\s+)?{_MONTH}(?:(,)?\s+((?:1\d|20)\d{{2}}))?(?!\w)", _day_month),
    rule(rf"\b{_MONTH}(,)?\s+((?:1\d|20)\d{{2}})(?![\w]|[.,]\d)", _month_year),
    rule(r"(?<!\w)['’‘]([2-9]0)s\b", _decade),
    rule(r"(?<![\w.])((?:1\d|20)\d0|[2-9]0)(?:'|’)?s\b", _decade),
    rule(r"(?<!\w)['’‘](\d{2})(?![\w%]|[.:]\d)", lambda m: two_digits(int(m[1]))),
    rule(r"(?<![\w.,])(\d{1,3})(h)\s?(\d{1,2})(?:m|min)?(?!\w)", _lasting),
    rule(r"(?<![\w.,])(\d{1,3})(m)\s?(\d{1,2})s(?!\w)", _lasting),
    rule(r"(?<![\w.,:$€£])(\d{1,2})\.([0-5]\d)(?=\s?[AaPp]\.?[Mm]\b)", lambda m: f"{m[1]}:{m[2]}"),
    rule(r"(?<!\w)FY\s?((?:19|20)\d{2})(?!\w)", lambda m: f"F Y {year(m[1])}"),
    rule(r"(?i:(?<=noon)|(?<=midnight))\s?[-–—]\s?(?=\d)", " to "),
    rule(
        r"(?<=[\dm.])\s?[-–—]\s?(?=\d{1,2}(?::\d{2}(?!\d)|\s?[AaPp]\.?[Mm]\b))|(?<=:\d\d)[-–](?=\d{1,2}(?!\w))", " to "
    ),
    rule(rf"(?<![\w:.,])(\d{{1,2}}):(\d{{2}})(?::(\d{{2}}))?(?![\d:]){_ZONE}?(?![\w])", _time),
    rule(rf"(?<![\w:.,$€£-])(\d{{1,2}}){_ZONE}(?![\w])", _hour),
    rule(r"(?<![\w:.,$-])([012]\d{3})\s(?:hours|hrs)\b", _hours),
    rule(r"(?<![\w.,$€£-])(1[1-9]\d{2}|20\d{2})\s?[-–—]\s?((?:1[1-9]|20)\d{2}|\d{2})(?![\w%]|[-.,]\d)", _years),
    rule(r"(?<![\w.,$€£#/:+×-])(?:1\d|20)\d{2}(?![\w%°$€£¢/:]|[.,]\d|\s?[-–×]\s?\d)", _bare_year),
]
# Short names that need no figure beside them.
NAMES: list[Rule] = [
    rule(rf"(?<!\w)({_DAY})\.?\s?[-–—]+\s?({_DAY})\b\.?", _days),
    rule(rf"(?<!\w)({_DAY})\.?(?=,?\s\d{{1,2}}(?::\d\d)?\s?(?:[AaPp]\.?[Mm]\b|{_MONTH[1:-1]}))", _day),
    rule(r"(?<!\w)(Sat|Sun)\.?(?=\s(?:morning|afternoon|evening|night)\b)", lambda m: _DAYS[m[1].lower()]),
    rule(
        r"(?<!\w)(Mon|Tues?|Wed|Thu(?:rs?)?|Fri)\.(?=[\s,]|$)",
        lambda m: _DAYS[m[1][:3].lower()] + ("." if ends_sentence(m) else ""),
    ),
    rule(r"(?<!\w)(Jan|Feb|Apr|Aug|Sept|Oct|Nov|Dec)\.(?=\s|$)", _month_alone),
]
