"""What is written in capitals: Roman numerals, letters said one by one (FBI), and words (NASA, STOP)."""

from __future__ import annotations

import re

from csm.spoken.numbers import cardinal, ordinal
from csm.spoken.rules import Rule, ends_sentence, rule

# Short ones are spelt unless they are everyday words, longer ones are words unless they are known to be spelt.
SHORT_WORDS = frozenset(
    "ad ah am an as at aw be by do ex go ha he hi ho if in is it ma me mr my no of oh on or ox pa so to uh um up "
    "we yo ace act add ado age ago aid aim air ale all and ant any ape arc are ark arm art ash ask ate awe axe "
    "bad bag ban bar bat bay bed bee beg bet bid big bin bit bow box boy bra bud bug bun bus but buy bye cab can "
    "cap car cat cop cow cry cub cup cut dad dam day den did die dig dim dip dog dot dry due dug ear eat egg ego "
    "elf end era eve eye fan far fat fed fee few fig fin fit fix fly fog for fox fry fun fur gap gas get god got "
    "gum gun gut guy gym had ham has hat hay hen her hey hid him hip his hit hop hot how hub hug huh hut ice ill "
    "ink inn its jam jar jaw jet job joy key kid kin kit lap law lay led leg let lid lie lip lit log lot low mad "
    "man map mat may men met mix mob mom mop mud mug mum nap net new nil nod nor not now nun nut oak odd off oil "
    "old one opt our out owe owl own pad pal pan pat paw pay pea pen per pet pie pig pin pit pop pot pro pub put "
    "ran rat raw red rib rid rig rim rip rob rod row rub rug run sad sat saw say sea see set sex she shy sin sip "
    "sir sit six ski sky sly sob son sow spy sub sue sum sun tan tap tax tea ten the tie tin tip toe ton too top "
    "toy try tub tug two use van vet vow wag war was wax way web wed wet who why wig win wit woe won wow yes yet "
    "you zip zoo yep nah yay yeh aha boo hmm shh wee nan ram rom sim lan wan dos "
    "gnu ted gif nav covid"
    .split()
)  # fmt: skip
SAID = {"ok": "okay", "json": "Jason", "jpeg": "jay peg", "nvidia": "Nvidia", "wwi": "World War One"}
SAID["wwii"] = "World War Two"
SPELT = frozenset(
    "aarp abc abs aclu acm adhd aipac aka amd amg aol api asap asl asmr atm bbc bbq bff bmi bmw bsc btw cbs cctv "
    "cdc ceo cfo cia cio cnn coo cpr cpu cto cv dc dea dhl diy dj dna dnd dob dui dvd ecb ecg eeg eeoc ekg emt "
    "epa er esl espn eta eu faa faq fbi fcc fda fdr fyi gdp gmo gmt gop gps gpu gpt hbo hdmi hiv hmo hp hq hr "
    "html http https ibm icu ied ieee iirc imf imho iou ipo iq irs isbn iss isp iv jfk jv kfc kgb kpi lapd lbj "
    "lcd lgbt lgbtq llc llm llp lsd mba mbti mlb mls mpg mpeg mph mri mtv mvp naacp nba nbc ncaa ndp nfl nhl nhs "
    "npr nra nsa nsf nyc nypd nyu oecd oem otc pbs pc pdf phd pga pgp ph pm ppe pr ptsd pvc rbi rgb roi rpg rsvp "
    "rv sdk sec seo sms sos spf sql ssd ssl sst suv tba tbd tcp tlc tmi tnt tsa tv uae ucla ufc ufo uk un url usa "
    "usaf usb usc usda usps ussr utc uv vat vcr vfx vhs vip vp vpn vr wwe wwf www xml ymca"
    .split()
)  # fmt: skip
# Of those, the ones that nobody takes for a shouted word.
_LOUD_TOO = SPELT - set("er abs iv sec vat eta sos dob pm hr ph un coo asap".split())
_ONSETS = frozenset(
    "bl br ch cl cr dr dw fl fr gl gr gn kn kr ph pl pr ps qu rh sc sh sk sl sm sn sp sq st sw th tr tw wh wr sch scr "
    "shr spl spr str thr chr phr".split()
)
REIGNS = (
    "Henry Louis Elizabeth George Edward Richard Charles William James John Paul Pius Benedict Leo Gregory "
    "Clement Innocent Urban Alexander Nicholas Peter Catherine Ivan Frederick Ferdinand Philip Francis Napoleon "
    "Wilhelm Joseph Ramses Ramesses Thutmose Amenhotep Ptolemy Cleopatra Darius Xerxes Otto Olaf Gustav Christian "
    "Carl Umberto Victor Emmanuel Mary Anne Stephen Robert David Alfonso Pedro Isabella Juan Boniface Sixtus "
    "Haakon Harald Abdullah"
)
PARTS = (
    "Chapter Part Act Scene Book Section Volume Vol Article Appendix Title Type Class Phase Stage Grade Level "
    "Figure Table Bowl Episode Canto Psalm Symphony Sonata Opus Rule Amendment Mark Unit Lesson Verse Division "
    "Category Schedule Annex"
)

_ROMAN = re.compile(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_VALUE = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def roman(text: str) -> int:
    """The value of a Roman numeral, 0 for what is none."""
    if not text or not _ROMAN.fullmatch(text.upper()):
        return 0
    values = [_VALUE[letter] for letter in text.upper()]
    return sum(-one if one < following else one for one, following in zip(values, [*values[1:], 0]))


def _part(match: re.Match[str]) -> str | None:
    if not (number := roman(match[2])) or match[2] not in (match[2].upper(), match[2].lower()):
        return None
    said = f"{match[1]} {cardinal(number)}"
    return f"{said} to {cardinal(roman(match[3]))}" if match[3] and roman(match[3]) else said


def _reign(match: re.Match[str]) -> str | None:
    number = roman(match[2])
    if not number or (match[2] == "I" and not _is_first(match)):
        return None
    return f"{match[1]} the {ordinal(number)}"


def _is_first(match: re.Match[str]) -> bool:
    """Whether the I behind a name is the first of that name, and nobody speaking of himself."""
    before = match.string[max(0, match.start() - 30) : match.start()]
    if re.search(r"\b(?:King|Queen|Pope|Emperor|Empress|Tsar|Czar|Sultan|Prince)\s+(?:[A-Z]\w+\s+)?$", before):
        return True
    after = match.string[match.end() : match.end() + 12]
    return re.match(r"\s*[.,;:!?)]|['’]s\b|\s+(?:of|ruled|reigned|became)\b|$", after) is not None


def _after_name(match: re.Match[str]) -> str | None:
    number = roman(match[2])
    return f"{match[1]} {cardinal(number)}" if 2 <= number <= 39 else None


def _numeral(match: re.Match[str]) -> str | None:
    """A Roman numeral by itself, of two signs only where it is no initialism."""
    sure = len(match[1]) > 2 or match[1] == "II"
    return cardinal(roman(match[1])) if sure and roman(match[1]) else None


def _spelt(name: str, end: str = "") -> str:
    letters = " ".join(letter for letter in name if letter.isalnum())
    return f"{letters}{end}"


def _dotted(match: re.Match[str]) -> str:
    """U.S.A., J. R. R. Tolkien: letters, and the stop that ends the sentence."""
    end = match[2] or ""
    at_end = re.match(r"\s*[\"'”’)]*\s*$", match.string[match.end() : match.end() + 8])
    sure = len(re.findall("[A-Za-z]", match[1])) > 1 and ends_sentence(match) and not _name_goes_on(match)
    return f"{_spelt(match[1], end)}{'.' if match[0].endswith('.') and (at_end or sure) else ''}"


def _name_goes_on(match: re.Match[str]) -> bool:
    """Whether a capital after dotted letters belongs to them: "the U.S. Army", "J.R.R. Tolkien"."""
    after = re.match(r"\s+([A-Z][\w'’]*)", match.string[match.end() : match.end() + 24])
    return after is not None and after[1] not in BEGINNERS


BEGINNERS = frozenset(
    "I He She It We You They The A An This That These Those There Then But And So Or If When What Who Why How Where My "
    "His Her Our Your Their Its No Yes In On At For From After Before Now Please Nobody Everyone Some Many Most".split()
)


def _capitals(match: re.Match[str]) -> str | None:
    """FBI, CEOs, the FBI's: letter by letter, unless it is said as a word."""
    name, lower = match[1], match[1].lower()
    if lower in SAID:
        return f"{SAID[lower]}{match[2] or ''}"
    if not _is_spelt(match, name, lower):
        return None
    return _spelt(name, "'s" if (match[2] or "").endswith("s") else match[2] or "")


def _is_spelt(match: re.Match[str], name: str, lower: str) -> bool:
    if _is_loud(match):
        return lower in _LOUD_TOO or (
            not re.search("[AEIOUY]", name) and lower not in ("mr", "mrs", "ms", "dr", "st", "mm")
        )
    before = match.string[max(0, match.start() - 5) : match.start()]
    after = match.string[match.end() : match.end() + 14]
    if lower == "it":
        technical = re.match(r" (?:depart|support|team|guy|compan|manag|staff|job|industr|crowd|worker|special)", after)
        return bool(technical or (re.search(r"\bin $", before) and re.match(r"[.,;!?]|$", after)))
    if lower == "who":
        return re.search(r"\b[Tt]he $", before) is not None
    if lower in SPELT:
        return True
    return lower not in SHORT_WORDS if len(name) <= 3 else _no_sound(name)


def _no_sound(name: str) -> bool:
    """Whether nobody could say it as a word: no vowel, or no English word begins so."""
    onset = re.match(r"[^AEIOUY]*", name)
    assert onset is not None
    return onset[0] == name or (len(onset[0]) > 1 and onset[0].lower() not in _ONSETS)


def _is_loud(match: re.Match[str]) -> bool:
    """Whether all words around are in capitals, too: then capitals tell nothing."""
    around = match.string[max(0, match.start() - 80) : match.end() + 80]
    words = re.findall(r"[A-Za-z]{2,}", around)
    return sum(word.isupper() for word in words) > max(2, 0.7 * len(words))


def _mixed(match: re.Match[str]) -> str:
    return f"{match[1]} {_spelt(match[2])}"


def _ending(match: re.Match[str]) -> str | None:
    """ChatGPT, macOS: small letters, then an initialism."""
    return f"{match[1]} {_spelt(match[2])}" if _is_spelt(match, match[2], match[2].lower()) else None


def _apostrophe(match: re.Match[str]) -> str:
    return f"{match[1]} and {match[2]}"


_NAMES = "|".join(REIGNS.split())
_PARTS = "|".join(PARTS.split())
ROMAN: list[Rule] = [
    rule(
        rf"(?<!\w)((?i:{_PARTS})s?)\s+([IVXLCDM]{{1,12}}|[ivxl]{{2,6}})(?:\s?[-–]\s?([IVXLCDM]{{1,12}}))?(?![\w'’])",
        _part,
    ),
    rule(rf"(?<!\w)({_NAMES})\s+([IVX]{{1,6}})(?![\w])", _reign),
    rule(r"(?<!\w)(World War) (I{1,3})(?!\w)", lambda m: f"{m[1]} {cardinal(roman(m[2]))}"),
    rule(r"(?<!\w)([A-Z][a-z]{2,20})\s+([IVX]{2,6})(?![\w])", _after_name),
    rule(r"(?<!\w)I(?=, II\b)", "one"),
    rule(r"(?<=\d )([A-HJ-Z])s(?!\w)", lambda m: f"{m[1]}'s"),
    rule(r"(?<![\w.])(II|III|VII|VIII|X{0,3}(?:I{2,3}|IX|IV|VI{1,3})|X{1,2}V)(?![\w'’]|\.\w)", _numeral),
    rule(r"(?<!\w)(M{1,3}[CDLXVI]{4,14})(?!\w)", lambda m: cardinal(roman(m[1])) if roman(m[1]) else None),
]
_END = r"(s|['’]s|['’])?"
RULES: list[Rule] = [
    rule(r"(?<![\w.'’])([A-HJ-Z]\.)()(?=\s+[A-Z][a-z])", lambda m: _dotted(m) if _name_goes_on(m) else None),
    rule(rf"(?<![\w.])((?:[A-Z]\.){{2,10}}[A-Z]?){_END}(?!\w)", _dotted),
    rule(r"(?<![\w.])([A-Z]\.(?:\s[A-Z]\.){1,4})()(?=\s[A-Z])", _dotted),
    rule(r"(?<!\w)([a-z]\.(?:[a-z]\.){1,4})()(?=[\s,;]|$)", _dotted),
    rule(r"(?<!\w)([A-Z])&([A-Z])(?!\w)", _apostrophe),
    rule(r"(?<!\w)([BM])(Sc|A|Ed)(?!\w)(?<=Sc)", lambda m: f"{m[1]} S C"),
    rule(r"(?<!\w)PhD(s?)(?!\w)", lambda m: f"P H D{chr(39) + 's' if m[1] else ''}"),
    rule(r"(?<!\w)IPv(?=[46]\b)", "I P V "),
    rule(r"(?<!\w)pH(?!\w)", "p H"),
    rule(r"(?<!\w)AM/FM(?!\w)", "A M F M"),
    rule(r"(?<!\w)([mtre])(RNA|SIM|SIMs|DNA)(?!\w)", _mixed),
    rule(r"(?<!\w)([A-Z]?[a-z]+)([A-Z]{2,4})(?!\w)", _ending),
    rule(rf"(?<![A-Za-z'’])([A-Z]{{2,10}}){_END}(?![A-Za-z])", _capitals),
]  # fmt: skip
