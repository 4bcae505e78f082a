"""Amounts of money, whichever side their sign or code stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from csm.spoken.numbers import cardinal, number, plural, value
from csm.spoken.rules import NUMBER, Rule, rule


@dataclass(frozen=True)
class Currency:
    """What one, several, and a hundredth of it are called; without hundredths, decimals are said as such."""

    one: str
    many: str
    cent: str = ""
    cents: str = ""


_DOLLAR, _POUND = Currency("dollar", "dollars", "cent", "cents"), Currency("pound", "pounds", "penny", "pence")
_EURO, _YEN = Currency("euro", "euros", "cent", "cents"), Currency("yen", "yen")


def _of(place: str) -> Currency:
    return Currency(f"{place} dollar", f"{place} dollars", "cent", "cents")


SIGNS = {
    "US$": _of("U S"), "A$": _of("Australian"), "AU$": _of("Australian"), "C$": _of("Canadian"), "CA$": _of("Canadian"),
    "NZ$": _of("New Zealand"), "HK$": _of("Hong Kong"), "S$": _of("Singapore"),
    "R$": Currency("real", "reais", "centavo", "centavos"), "$": _DOLLAR, "£": _POUND, "€": _EURO, "¥": _YEN,
    "₹": Currency("rupee", "rupees", "paisa", "paise"), "₩": Currency("won", "won"), "₽": Currency("ruble", "rubles"),
    "₿": Currency("bitcoin", "bitcoins"), "₺": Currency("lira", "lira"), "₴": Currency("hryvnia", "hryvnias"),
    "₪": Currency("shekel", "shekels"), "₫": Currency("dong", "dong"), "₱": Currency("peso", "pesos"),
    "₦": Currency("naira", "naira"), "zł": Currency("zloty", "zlotys"), "Kč": Currency("koruna", "koruny"),
    "kr": Currency("krone", "kroner"),
}  # fmt: skip
CODES = {
    "USD": _of("U S"), "EUR": _EURO, "GBP": _POUND, "JPY": _YEN, "CHF": Currency("Swiss franc", "Swiss francs"),
    "CAD": _of("Canadian"), "AUD": _of("Australian"), "NZD": _of("New Zealand"),
    "INR": SIGNS["₹"], "CNY": Currency("yuan", "yuan"),
    "RMB": Currency("yuan", "yuan"), "SEK": Currency("Swedish krona", "Swedish kronor"), "PLN": SIGNS["zł"],
    "CZK": SIGNS["Kč"],
    "NOK": Currency("Norwegian krone", "Norwegian kroner"), "DKK": Currency("Danish krone", "Danish kroner"),
    "MXN": Currency("Mexican peso", "Mexican pesos"), "BRL": SIGNS["R$"], "BTC": SIGNS["₿"],
}  # fmt: skip
SCALES = {"k": "thousand", "m": "million", "mn": "million", "mm": "million", "mio": "million", "b": "billion"}
SCALES |= {"bn": "billion", "t": "trillion", "tn": "trillion"}
PER = {"h": "hour", "hr": "hour", "mo": "month", "yr": "year", "wk": "week", "kg": "kilogram", "lb": "pound"}
PER |= {
    "l": "liter",
    "gal": "gallon",
    "m": "meter",
    "km": "kilometer",
    "kwh": "kilowatt hour",
    "mi": "mile",
}

_SIGN = "(?P<sign>" + "|".join(re.escape(sign) for sign in sorted(SIGNS, key=len, reverse=True)) + ")"
_ANY_SIGN = _SIGN.replace("?P<sign>", "?:")
_CODE = "(?P<sign>" + "|".join(CODES) + ")"
_AMOUNT = (
    rf"(?P<amount>{NUMBER})(?:[\s-]?(?P<scale>hundred|thousand|million|billion|trillion)s?\b"
    r"|(?P<short>k|K|mn|mio|MM|m|M|bn|b|B|tn|T)\b)?"
)
_MINUS = r"(?<![\w.,-])(?:(?P<minus>[-−+–])\s?)?"
_PER = r"(?:/(?P<per>[A-Za-z]{1,8})\b)?"


def _said(currency: Currency, amount: str, scale: str | None, single: bool) -> str:
    whole, _, part = amount.replace(",", "").partition(".")
    if scale:
        return f"{number(amount)} {scale} {currency.one if single else currency.many}"
    if len(part) == 2 and currency.cent:
        units, hundredths = int(whole or 0), int(part)
        small = f"{cardinal(hundredths)} {currency.cent if hundredths == 1 else currency.cents}"
        large = f"{cardinal(units)} {currency.one if units == 1 or single else currency.many}"
        if units and hundredths:
            return f"{large} and {small}"
        return small if hundredths else large
    one = value(amount) == 1 and not part.strip("0")
    return f"{number(amount)} {currency.one if one or single else currency.many}"


def _adjective(match: re.Match[str]) -> bool:
    """ "a $5 bill": the amount stands for a kind of thing, and is said in the singular."""
    if re.match(r" (?:question|bill|note|coin|prize|fine|fee|deal)\b", match.string[match.end() : match.end() + 10]):
        return True
    before = re.search(r"(?<!\w)[Aa]n?\s+$", match.string[max(0, match.start() - 4) : match.start()])
    return bool(before and re.match(r"[ -][a-z]", match.string[match.end() : match.end() + 2]))


def _scale(match: re.Match[str]) -> str | None:
    return match["scale"] or (SCALES[match["short"].lower()] if match["short"] else None)


def _amount(match: re.Match[str]) -> str:
    sign, minus, per = match["sign"], match["minus"], match["per"]
    said = _said(SIGNS.get(sign) or CODES[sign], match["amount"], _scale(match), _adjective(match))
    if per:
        said += " each" if per == "ea" else f" per {PER.get(per.lower(), per)}"
    return f"{'plus' if minus == '+' else 'minus'} {said}" if minus else said


def _range(match: re.Match[str]) -> str:
    return (
        f"{number(match['first'])} to {_said(SIGNS[match['sign']], match['amount'], _scale(match), _adjective(match))}"
    )


def _cents(match: re.Match[str]) -> str:
    return f"{number(match[1])} {'cent' if match[1] == '1' or _adjective(match) else 'cents'}"


def _round(match: re.Match[str]) -> str:
    """$100s: "hundreds of dollars"."""
    name = plural(cardinal(int(match[2].replace(",", ""))).removeprefix("one "))
    return f"{name} of {SIGNS[match['sign']].many}"


def _both(match: re.Match[str]) -> str:
    """ "between $1.5 and $2.5 million": the scale is that of both."""
    return f"{number(match[2])} {match[3]} "


RULES: list[Rule] = [
    rule(r"(?<!\w)Rs\.?\s?(?=\d)", "₹"),
    rule(r"(?<!\w)USD\s?(?=\$)", "US"),
    rule(r"(?<![\w.,])\d{1,3}(?:'\d{3}){1,4}(?!\w)", lambda m: m[0].replace("'", ",")),
    rule(rf"(?<![\w.,]){_SIGN}(10{{1,3}}|10{{0,2}}(?:,000){{1,2}})s\b(?: of (?:dollars|euros|pounds)\b)?", _round),
    rule(
        rf"(?i:(?<=between )|(?<=from )){_SIGN}({NUMBER}) (and|to) "
        rf"(?={_ANY_SIGN}{NUMBER}[\s-]?(?:(?:hundred|thousand|million|billion|trillion)\b|(?:bn|m|M|B|K|k|b)\b))",
        _both,
    ),
    rule(rf"(?<=[\dkKmMbB])\s?[-–—]\s?(?={_ANY_SIGN}\s?\.?\d)", " to "),
    rule(rf"(?<![\w.,])({_ANY_SIGN})\s?[-−]\s?(?=\.?\d)", lambda m: f"-{m[1]}"),
    rule(rf"(?<![\w.,]){_SIGN}\s?(?P<first>{NUMBER})\s?[-–—]\s?{_AMOUNT}(?![\w-])", _range),
    rule(rf"{_MINUS}{_SIGN}\s?{_AMOUNT}(?!\w){_PER}", _amount),
    rule(rf"{_MINUS}{_AMOUNT}\s?{_SIGN}(?!\w){_PER}", _amount),
    rule(rf"{_MINUS}{_CODE}\s?{_AMOUNT}(?!\w){_PER}", _amount),
    rule(rf"{_MINUS}{_AMOUNT}\s?{_CODE}(?!\w){_PER}", _amount),
    rule(rf"(?<![\w.])({NUMBER})\s?¢", _cents),
    rule(r"(?<![\w.,])(\d{1,2})c(?!\w)", _cents),
    rule(r"(?<!\w)([A-Za-z]{1,20})\$([A-Za-z]{1,20})(?!\w)", lambda m: f"{m[1]}s{m[2]}"),
    rule(r"(?<!\w)\$(?=[A-Za-z])", "dollar "),
    rule(r"¢", " cents "),
]
