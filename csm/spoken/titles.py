"""Titles and other abbreviations: which word each is by what stands around it, and whose stop ends the sentence."""

from __future__ import annotations

import re

from csm.spoken.numbers import digits
from csm.spoken.rules import Rule, ends_sentence, rule

TITLES = {
    "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Mx": "Mix", "Prof": "Professor", "Rev": "Reverend",
    "Hon": "Honorable",
    "Gen": "General", "Col": "Colonel", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant", "Maj": "Major",
    "Cpl": "Corporal", "Pvt": "Private", "Cmdr": "Commander", "Adm": "Admiral", "Sen": "Senator",
    "Rep": "Representative", "Gov": "Governor",
    "Pres": "President", "Fr": "Father", "Messrs": "Messieurs", "Supt": "Superintendent", "Det": "Detective",
    "Insp": "Inspector",
}  # fmt: skip
WITHOUT_STOP = ("Mr", "Mrs", "Ms", "Mx", "Prof", "Capt", "Sgt", "Lt", "Col", "Gen")
STREETS = {
    "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Ln": "Lane", "Hwy": "Highway", "Sq": "Square",
    "Pkwy": "Parkway", "Ct": "Court",
    "Apt": "Apartment", "Bldg": "Building", "Mt": "Mount", "Jr": "Junior", "Sr": "Senior", "Inc": "Incorporated",
    "Ltd": "Limited",
    "Corp": "Corporation", "Bros": "Brothers", "Esq": "Esquire", "Dept": "Department", "Univ": "University",
    "Assn": "Association",
    "Assoc": "Associates", "Govt": "Government", "Natl": "National", "Intl": "International", "Tel": "Telephone",
}  # fmt: skip
WORDS = {
    "etc": "et cetera", "approx": "approximately", "dept": "department", "govt": "government", "misc": "miscellaneous",
    "incl": "including", "excl": "excluding", "avg": "average", "tel": "telephone", "vol": "volume", "cf": "compare",
    "esp": "especially",
    "appt": "appointment", "assn": "association", "hrs": "hours", "mins": "minutes", "secs": "seconds",
    "yrs": "years", "lbs": "pounds",
    "viz": "namely", "min": "minimum", "max": "maximum", "temp": "temperature",
}  # fmt: skip
NUMBERED = {
    "p": "page", "pp": "pages", "vol": "volume", "vols": "volumes", "ch": "chapter", "fig": "figure",
    "figs": "figures", "sec": "section",
    "eq": "equation", "no": "number", "nos": "numbers", "ext": "extension", "apt": "apartment", "rm": "room",
    "ca": "circa", "c": "circa", "art": "article", "para": "paragraph",
}  # fmt: skip
STATES = {
    "AL": "Alabama", "AK": "Alaska", "AZ": "Arizona", "AR": "Arkansas", "CA": "California", "CO": "Colorado",
    "CT": "Connecticut",
    "DE": "Delaware", "FL": "Florida", "GA": "Georgia", "HI": "Hawaii", "ID": "Idaho", "IL": "Illinois",
    "IN": "Indiana", "IA": "Iowa",
    "KS": "Kansas", "KY": "Kentucky", "LA": "Louisiana", "ME": "Maine", "MD": "Maryland", "MA": "Massachusetts",
    "MI": "Michigan",
    "MN": "Minnesota", "MS": "Mississippi", "MO": "Missouri", "MT": "Montana", "NE": "Nebraska", "NV": "Nevada",
    "NH": "New Hampshire",
    "NJ": "New Jersey", "NM": "New Mexico", "NY": "New York", "NC": "North Carolina", "ND": "North Dakota",
    "OH": "Ohio", "OK": "Oklahoma",
    "OR": "Oregon", "PA": "Pennsylvania", "RI": "Rhode Island", "SC": "South Carolina", "SD": "South Dakota",
    "TN": "Tennessee",
    "TX": "Texas", "UT": "Utah", "VT": "Vermont", "VA": "Virginia", "WA": "Washington", "WV": "West Virginia",
    "WI": "Wisconsin", "WY": "Wyoming",
}  # fmt: skip
MONTHS_AND_DAYS = "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thur Thurs Fri Sat Sun"
# Whatever is written with a stop that need not end a sentence.
SHORT_FORMS = frozenset(
    [
        *TITLES,
        *STREETS,
        *WORDS,
        *NUMBERED,
        *MONTHS_AND_DAYS.split(),
        "Dr",
        "St",
        "Ft",
        "Co",
        "vs",
        "al",
        "ft",
        "lb",
        "lbs",
        "oz",
    ]
) - {"no", "sec", "art", "sat", "sun", "Sat", "Sun", "Mar", "min", "max", "temp", "c", "p", "para"}
SIDES = {"N": "North", "S": "South", "E": "East", "W": "West"}
ALSO_WORDS = ("HI", "IN", "LA", "ME", "OH", "OK", "OR", "MA", "PA", "CO", "ID")  # a state only before a ZIP code
CLOSING_STATES = ("IN", "LA", "ME", "OR", "CO", "ID")  # or where nothing follows a name and them
_BEGINS = r"(?:^|[.!?:;\"“(]\s*)"  # what stands before the first word of a sentence


def _stop(match: re.Match[str]) -> str:
    if re.match(r"\s+[NS][EW]\b", match.string[match.end() : match.end() + 4]):
        return ""
    return "." if match[0].endswith(".") and ends_sentence(match) else ""


def _capital_before(match: re.Match[str]) -> bool:
    """Whether a name stands before: a capital letter that doesn't only begin the sentence, or "5th"."""
    before = match.string[max(0, match.start() - 40) : match.start()]
    return re.search(r"(?:[A-Z][\w'’]*|\d(?:st|nd|rd|th)|first|second|third|fourth|fifth)\s+$", before) is not None


def _begins_with(match: re.Match[str]) -> bool:
    """Whether the word before is the sentence's first, so that its capital tells nothing."""
    before = match.string[max(0, match.start() - 40) : match.start()]
    return re.search(rf"{_BEGINS}[A-Z][\w'’]*\s+$", before) is not None


def _name_follows(match: re.Match[str]) -> bool:
    return re.match(r"\s+[A-Z]", match.string[match.end() : match.end() + 3]) is not None


def _street_or(match: re.Match[str], street: str, title: str) -> str | None:
    """ "Elm St. in town", "12 Elm Dr." against "St. Paul", "Dr. Smith"."""
    named = _capital_before(match)
    if _name_follows(match):
        address = re.search(
            r"(?:\d[\w-]*|\bon|\bat|\bof|\balong|\bdown|\bup|\bthe)\s+(?:[A-Z][\w'’]*\s+){1,3}$",
            match.string[max(0, match.start() - 60) : match.start()],
        )
        if named and address and match[0].endswith(".") and not _begins_with(match):
            return f"{street}{_stop(match)}"
        return title
    if named and re.match(r"[\s,.;:!?)]|$", match.string[match.end() : match.end() + 1]):
        return f"{street}{_stop(match)}"
    return title if match[0].endswith(".") else None


def _zip(code: str | None) -> str:
    return f" {digits(code)}" if code else ""


def _cased(word: str, typed: str) -> str:
    return word.capitalize() if typed[0].isupper() else word


def _whole(match: re.Match[str]) -> str | None:
    """Short for a word only where it is not one itself: "the max. speed", but "That is Max." """
    if match[1].lower() in ("min", "max", "temp", "vol", "sec", "esp", "misc") and ends_sentence(match):
        return None
    if match[1].lower() in ("min", "max", "temp") and match[1][0].isupper():
        return None
    return f"{_cased(WORDS[match[1].lower()], match[1])}{_stop(match)}"


def _state(match: re.Match[str]) -> str | None:
    """ "Austin, TX", "Portland, OR 97201"."""
    state, code = match.groups()
    ends = state in CLOSING_STATES and _capital_before(match) and match.string[match.end() :].strip() in (".", "")
    return None if state in ALSO_WORDS and not code and not ends else f", {STATES[state]}{_zip(code)}"


# Written in small letters without a stop, and yet no words.
BARE = re.compile(r"(?<![\w/'’-])(vs|etc|approx|dept|govt|appt|mph|kph|km|kg|cm|lbs|hrs|mins|yrs)(?![\w/'’-])")
_BARE_UNITS = {"mph": "miles per hour", "kph": "kilometers per hour", "km": "kilometers", "kg": "kilograms"}
_BARE_UNITS |= {"cm": "centimeters", "vs": "versus", "etc": "et cetera"}


def _bare(match: re.Match[str]) -> str:
    return _BARE_UNITS.get(match[1]) or WORDS[match[1]]


def _loud_title(title: str) -> str:
    return "Doctor" if title == "DR" else TITLES[title.title()]


def _any(names: object) -> str:
    return "|".join(sorted(names, key=len, reverse=True))  # type: ignore[call-overload]


RULES: list[Rule] = [
    rule(
        r"(?<![\w.])([NSEW])\.?(?=\s(?:\d{1,3}(?:st|nd|rd|th)|[A-Z][a-z]+)\s(?:St|Ave|Blvd|Rd|Dr|Ln|Pkwy|Hwy)\b)"
        r"|(?<![\w.])([NSEW])\.(?=\s(?:\d{1,3}(?:st|nd|rd|th)|[A-Z][a-z]+)\s(?:Street|Avenue|Road|Lane|Drive)\b)",
        lambda m: SIDES[m[1] or m[2]],
    ),
    rule(r"(?<!\w)(MR|MRS|MS|DR|PROF)\.?(?=\s+[A-Z]{2})", lambda m: _loud_title(m[1])),
    rule(r"(?<!\w)Sr\.(?=\s[A-Z][a-z])(?<![a-z] ...)(?<![a-z], ...)", "Senor"),
    rule(r"(?<!\w)(Apt|Ste)\.?(?=\s\d)", lambda m: "Apartment" if m[1] == "Apt" else "Suite"),
    rule(r"(?<!\w)Sra\.(?=\s[A-Z])", "Senora"),
    rule(r"(?<!\w)[Ee]st\.(?=\s\d{4}\b)", lambda m: _cased("established", m[0])),
    rule(r"(?i:(?<![\w.])e\.\s?g\b\.?)", lambda m: "for example"),
    rule(r"(?i:(?<![\w.])i\.\s?e\b\.?)", lambda m: "that is"),
    rule(r"(?i:(?<![\w.])a\.k\.a\b\.?)", lambda m: "A K A"),
    rule(r"(?<![\w.])(?i:p)\.(?i:s)\.(?=\s|$)|(?<!\w)PS(?=:)", lambda m: "P S"),
    rule(r"(?<!\w)Ph\.?\s?D\b\.?", lambda m: f"P H D{_stop(m)}"),
    rule(r"(?<!\w)([BM])\.\s?Sc\b\.?", lambda m: f"{m[1]} S C{_stop(m)}"),
    rule(r"(?<!\w)et al\.", lambda m: f"et al{_stop(m)}"),
    rule(r"(?i:(?<!\w)vs\b\.?)|(?<=\w )v\.(?= [A-Z])", lambda m: "versus"),
    rule(r"(?<!\w)(Mr|Mrs|Ms|Mx|Messrs)\.", lambda m: TITLES[m[1]]),
    rule(rf"(?<!\w)({_any(TITLES)})\.(?=\s+[A-Z])", lambda m: TITLES[m[1]]),
    rule(rf"(?<!\w)({_any(WITHOUT_STOP)})(?=\s+[A-Z][a-z])", lambda m: TITLES[m[1]]),
    rule(r"(?<!\w)Drs\.", "Doctors"),
    rule(r"(?<!\w)Dr\b\.?", lambda m: _street_or(m, "Drive", "Doctor")),
    rule(r"(?<!\w)St\b\.?", lambda m: _street_or(m, "Street", "Saint")),
    rule(r"(?<!\w)Sts\.", "Streets"),
    rule(r"(?<!\w)Ft\.(?=\s+[A-Z])", "Fort"),
    rule(r"(?<!\w)Mt\b\.?(?=\s+[A-Z])", "Mount"),
    rule(rf"(?<!\w)({_any(STREETS)})\.", lambda m: f"{STREETS[m[1]]}{_stop(m)}"),
    rule(r"(?<=[a-z] )(Ave|Blvd|Rd|Hwy|Pkwy)(?!\w)", lambda m: STREETS[m[1]]),
    rule(r"(?:(?<=\w )|(?<=\w, ))(Jr|Sr|Inc|Ltd|Corp)(?=[,\s]|$)", lambda m: STREETS[m[1]]),
    rule(r"(?<=\w )Co\.|(?<=& )Co\.", lambda m: f"Company{_stop(m)}"),
    rule(
        rf"(?i:(?<!\w)({_any(NUMBERED)}))\.\s?(?=\(?\d|(?-i:(?:[IVXLC]{{2,}}|[VX])\b))",
        lambda m: _cased(NUMBERED[m[1].lower()], m[1]) + " ",
    ),
    rule(rf"(?i:(?<!\w)(?<!\d )({_any(WORDS)}))\.(?=[\s,;:)]|$)", lambda m: _whole(m)),
    rule(r"(?i:(?<![\w/])etc)(?![\w/])", "et cetera"),
    rule(rf"(?<=[a-z]), ({_any(STATES)})\b(?:\s+(\d{{5}}))?(?=[\s,.;:!?)]|$)", _state),
    rule(r"(?i:(?<=zip )|(?<=zip code )|(?<=zip code is ))(\d{5})(?!\w)", lambda m: _zip(m[1]).strip()),
    rule(rf"(?<!\d)(?<!\d ){BARE.pattern}(?!\.)", _bare),
]  # fmt: skip
