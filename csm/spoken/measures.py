"""Numbers with a unit, a degree or a percent sign."""

from __future__ import annotations

import re

from csm.spoken.numbers import cardinal, number, ordinal, plural, value
from csm.spoken.rules import NUMBER, Rule, ends_sentence, rule

UNITS = {
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "µm": "micrometer", "μm": "micrometer",
    "nm": "nanometer", "mi": "mile", "ft": "foot", "yd": "yard", "yds": "yard", "in.": "inch", "kg": "kilogram",
    "g": "gram",
    "mg": "milligram", "µg": "microgram", "μg": "microgram", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "L": "liter", "l": "liter", "ml": "milliliter", "mL": "milliliter", "cl": "centiliter", "dl": "deciliter",
    "gal": "gallon", "pt": "pint", "qt": "quart", "tbsp": "tablespoon", "tsp": "teaspoon", "s": "second",
    "sec": "second", "secs": "second", "ms": "millisecond", "µs": "microsecond", "ns": "nanosecond", "min": "minute",
    "mins": "minute", "h": "hour", "hr": "hour", "hrs": "hour", "wk": "week", "wks": "week", "mo": "month",
    "yr": "year",
    "yrs": "year", "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "W": "watt",
    "kW": "kilowatt", "MW": "megawatt", "GW": "gigawatt", "kWh": "kilowatt hour", "MWh": "megawatt hour", "V": "volt",
    "kV": "kilovolt", "mV": "millivolt", "mA": "milliamp", "mAh": "milliamp hour", "kJ": "kilojoule",
    "cal": "calorie", "kcal": "kilocalorie",
    "Pa": "pascal", "kPa": "kilopascal", "hPa": "hectopascal", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte",
    "PB": "petabyte", "KB": "kilobyte", "kB": "kilobyte", "Kb": "kilobit", "Mb": "megabit", "Gb": "gigabit",
    "MiB": "mebibyte", "GiB": "gibibyte", "dB": "decibel", "ha": "hectare",
    "px": "pixel", "MP": "megapixel", "pp": "percentage point", "bps": "bit per second", "kbps": "kilobit per second",
    "Mbps": "megabit per second", "Gbps": "gigabit per second", "mph": "mile per hour", "kph": "kilometer per hour",
    "kmh": "kilometer per hour", "rpm": "revolution per minute", "fps": "frame per second", "psi": "P S I",
    "bpm": "beat per minute",
    "dpi": "D P I", "ppm": "part per million", "ppb": "part per billion", "Ω": "ohm", "kΩ": "kilohm", "MΩ": "megohm",
    "km²": "square kilometer", "m²": "square meter", "cm²": "square centimeter", "mm²": "square millimeter",
    "m³": "cubic meter", "cm³": "cubic centimeter", "km³": "cubic kilometer", "ft²": "square foot",
    "ft³": "cubic foot", "sq ft": "square foot", "sq. ft.": "square foot", "sq m": "square meter",
    "sq km": "square kilometer",
    "mol": "mole", "Wh": "watt hour", "TWh": "terawatt hour", "MPa": "megapascal", "kN": "kilonewton",
    "hp": "horsepower", "mmHg": "millimeter of mercury", "dL": "deciliter", "sqft": "square foot", "cc": "C C",
    "lm": "lumen", "Nm": "newton meter", "kt": "knot", "nmi": "nautical mile", "BTU": "B T U",
    "mpg": "mile per gallon", "pts": "point", "deg": "degree", "fl. oz.": "fluid ounce", "sq. m.": "square meter",
    "sq mi": "square mile", "mi²": "square mile", "in²": "square inch", "fl oz": "fluid ounce",
}  # fmt: skip
SAME = frozenset("hertz|kilohertz|megahertz|gigahertz|horsepower|C C|P S I|D P I".split("|"))  # one or many
IRREGULAR = {"foot": "feet", "inch": "inches", "square foot": "square feet", "cubic foot": "cubic feet"}
IRREGULAR["square inch"] = "square inches"
SCALE = {"c": "Celsius", "f": "Fahrenheit", "k": "Kelvin"}
SIDES = {"N": "north", "S": "south", "E": "east", "W": "west"}
PARTED = ("hrs", "hr", "lbs", "lb", "oz", "tbsp", "tsp", "in.", "ft", "mi", "km", "kg", "gal", "yds", "mins")
HALVES = {2: "half", 4: "quarter"}
VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip

_RACES = "dash|sprint|hurdles|relay|freestyle|butterfly|backstroke|breaststroke"
_LENGTH = "cm|mm|m|ft|in|km"
_UNIT = "(" + "|".join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True)) + ")"
_MINUS = r"(?<![\w.,])(?<![\w.]-)(?:([-−+±~≈<>≤≥])\s?)?"
_BEFORE = {"-": "minus ", "−": "minus ", "+": "plus ", "±": "plus or minus ", "~": "about ", "≈": "about "}
_BEFORE |= {"<": "less than ", ">": "more than ", "≤": "at most ", "≥": "at least "}


def many(unit: str) -> str:
    """The plural of a unit's name: "miles per hour"."""
    if unit in SAME:
        return unit
    first, joint, rest = next(
        (parts for word in (" per ", " of ") if (parts := unit.partition(word))[1]), (unit, "", "")
    )
    return f"{IRREGULAR.get(first) or plural(first)}{joint}{rest}"


def fraction(top: int, bottom: int) -> str:
    """3, 4 -> "three quarters"; 1, 2 -> "one half"."""
    name = HALVES.get(bottom) or ordinal(bottom)
    if top == 1:
        return f"one {name}"
    return f"{cardinal(top)} {'halves' if bottom == 2 else plural(name)}"


def mixed(whole: str, top: int, bottom: int) -> str:
    """3, 1, 2 -> "three and a half"."""
    part = fraction(top, bottom)
    if top == 1:
        part = f"{'an' if bottom in (8, 11, 18) else 'a'}{part.removeprefix('one')}"
    return f"{number(whole)} and {part}"


def _adjective(match: re.Match[str]) -> bool:
    """ "a 5 km run", "a 10-km run", "the 100m dash": said in the singular."""
    if re.match(rf" (?:{_RACES})\b", match.string[match.end() : match.end() + 14]):
        return True
    before = re.search(r"(?<!\w)[Aa]n?\s+$", match.string[max(0, match.start() - 4) : match.start()])
    return bool(before and re.match(r"[ -][a-z]", match.string[match.end() : match.end() + 2]))


def _per(unit: str) -> str:
    """What stands behind the stroke: "s²" -> "second squared"."""
    power = {"²": " squared", "³": " cubed"}.get(unit[-1], "")
    plain = unit.rstrip("²³")
    return UNITS.get(unit) or f"{UNITS.get(plain, plain)}{power}"


def _measured(match: re.Match[str]) -> str | None:
    sign, amount, vulgar, gap, unit, per = match.groups()
    if unit in ("s", "h", "l", "g", "m") and gap == "-":
        return None
    top = VULGAR.get(vulgar or "")
    words = (mixed(amount, *top) if amount else fraction(*top)) if top else number(amount)
    single = (value(amount or "0") == 1 and not top and "." not in amount) or gap == "-" or _adjective(match)
    name = UNITS[unit] if single else many(UNITS[unit])
    if top and not amount and not single:
        name = f"of {'an' if UNITS[unit][0] in 'aeiou' or unit in ('h', 'hr') else 'a'} {UNITS[unit]}"
        words = "half" if top == (1, 2) else words
        name = name.removeprefix("of ") if top == (1, 2) else name
    per = f" per {_per(per)}" if per else ""
    stop = "." if match[0].endswith(".") and ends_sentence(match) else ""
    return f"{_BEFORE.get(sign or '', '')}{words} {name}{per}{stop}"


def _degrees(match: re.Match[str]) -> str:
    sign, amount, scale = match.groups()
    one = amount == "1" or _adjective(match)
    scale = f" {SCALE[scale.lower()]}" if scale else ""
    return f"{_BEFORE.get(sign or '', '')}{number(amount)} degree{'' if one else 's'}{scale}"


def _position(match: re.Match[str]) -> str:
    degrees, minutes, seconds, side = match.groups()
    said = f"{number(degrees)} degrees {number(minutes)} minutes"
    said += f" {number(seconds)} seconds" if seconds else ""
    return f"{said} {SIDES[side]}" if side else said


def _parted(match: re.Match[str]) -> str:
    """1 1/2 hrs."""
    return f"{mixed(match[1], int(match[2]), int(match[3]))} {many(UNITS[match[4]])}"


def _height(match: re.Match[str]) -> str:
    feet, inches = int(match[1]), match[2]
    said = f"{cardinal(feet)} {'foot' if feet == 1 else 'feet'}"
    return f"{said} {number(inches)} {'inch' if inches == '1' else 'inches'}" if inches else said


def _inches(match: re.Match[str]) -> str | None:
    """15.6", unless that mark closes what another has opened."""
    if len(re.findall(r'(?<![\d½¼¾])"', match.string[: match.start()])) % 2:
        return None
    whole, top, bottom, amount, vulgar = match.groups()
    if top:
        words = mixed(whole, int(top), int(bottom)) if whole else f"{fraction(int(top), int(bottom))}"
    elif vulgar:
        words = mixed(amount, *VULGAR[vulgar]) if amount else fraction(*VULGAR[vulgar])
    else:
        words = number(amount)
    parted = not whole and not amount
    if re.match(r" [a-z]", match.string[match.end() : match.end() + 2]) or amount == "1":
        return f"{words} inch"
    return f"{words} of an inch" if parted else f"{words} inches"


def _by(match: re.Match[str]) -> str:
    """3" x 5", 10 cm x 20 cm."""
    unit = UNITS.get(match[1].strip(), "") if match[1].strip() != "in" else "inch"
    return f" {many(unit)} by " if unit else " by "


def _feet(match: re.Match[str]) -> str:
    return f"{number(match[1])} foot"


def _alone(match: re.Match[str]) -> str:
    """A unit of speed or rate without a figure: "in km/h"."""
    return many(UNITS.get(match[1]) or f"{UNITS[match[1][:-2]]} per hour")


def _percent(match: re.Match[str]) -> str:
    sign, amount, mark = match.groups()
    return f"{_BEFORE.get(sign or '', '')}{number(amount)} {'percent' if mark == '%' else 'per mille'}"


_VULGAR = "[" + "".join(VULGAR) + "]"
_MEASURE = rf"(?:[%‰°º℃℉]|{_UNIT}(?![\w°]))"
RULES: list[Rule] = [
    rule(r"(?<!\w)(\d{1,3})\s?°\s?(\d{1,2})\s?['′’]\s?(?:(\d{1,2}(?:\.\d{1,6})?)\s?[\"″”]\s?)?([NSEW]\b)?", _position),
    rule(rf"(?<=[\d\"])(\s?(?:{_LENGTH})?)\s?x\s?(?={NUMBER}\s?(?:\"|(?:{_LENGTH}|GB|TB|MP)\b))", _by),
    rule(r"(?<=\d[°%])\s?[-–—]\s?(?=\d)", " to "),
    rule(rf"(?<![\w.,/-])(\d{{1,3}}) (\d)/(\d{{1,2}})\s({'|'.join(PARTED)})\b\.?", _parted),
    rule(r"(?<=° )([NSEW])(?!\w)|(?<=°)([NSEW])(?!\w)", lambda m: " " + SIDES[m[1] or m[2]]),
    rule(r"(?<![\w.,/])(?:(\d{1,3})[\s-])?(\d{1,2})/(\d{1,2})[\"″]()()(?!\w)", _inches),
    rule(rf"(?<![\w.,/])()()()({NUMBER})?({_VULGAR})[\"″](?!\w)", _inches),
    rule(rf"(?<![\w.,/'′])()()()({NUMBER})()[\"″](?!\w)", _inches),
    rule(r"(?<![\w.,/'])(\d{1,3})[′'](?= (?:ladder|wall|boat|pole|fence|tree|ceiling|board|rope|cable)s?\b)", _feet),
    rule(r"(?<![\w.,/])(\d{1,2})\s?(?:ft|feet|foot)\.?\s?(\d{1,2})\s?in\b\.?(?!\s[a-z]*(?:the|a)\b)", _height),
    rule(rf"(?<![\w.,-])({NUMBER})\s?[-–—]\s?(?={NUMBER}\s?{_MEASURE})", lambda m: f"{number(m[1])} to "),
    rule(rf"{_MINUS}({NUMBER})\s?(?:°|º|degrees\s)\s?([CFK])(?!\w)", _degrees),
    rule(
        rf"{_MINUS}(\d{{1,3}}(?:\.\d)?)\s?([CF])(?!\w)(?=\W*$|[.,;)]| (?:for|outside|oven|degrees|or|in|and|to)\b)",
        _degrees,
    ),
    rule(rf"{_MINUS}({NUMBER})\s?℃", lambda m: f"{_BEFORE.get(m[1] or '', '')}{number(m[2])} degrees Celsius"),
    rule(rf"{_MINUS}({NUMBER})\s?℉", lambda m: f"{_BEFORE.get(m[1] or '', '')}{number(m[2])} degrees Fahrenheit"),
    rule(rf"{_MINUS}({NUMBER})\s?()°", _degrees),
    rule(rf"{_MINUS}({NUMBER})\s?(%|‰)", _percent),
    rule(r"(?<!\w)(\d)\s?['′’]\s?(\d{1,2})(?:\s?[\"″”]|['′’]{2})", _height),
    rule(r"(?<!\w)([4-7])[′'](\d{1,2})(?!\w)", _height),
    rule(r"(?<!\w)(\d)[′']()(?=\s+tall)", _height),
    rule(
        rf"{_MINUS}(?=[\d.{''.join(VULGAR)}])({NUMBER})?\s?({_VULGAR})?([\s-]?){_UNIT}"
        r"(?:(?<=\w)\.(?=[\s,]|$))?(?:/([a-zA-Z]{1,3}[²³]?))?(?![\w°]|\.\w|['’]\w)",
        _measured,
    ),
    rule(r"(?<=\d)in(?=[\s,.;]|$)", " inches"),
    rule(r"(?<![\w/])([µμ]m|km/h|mph|kHz|MHz|GHz|kWh|Mbps|Gbps|bpm)(?![\w/])", _alone),
]
