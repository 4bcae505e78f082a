"""Figures to words as Americans say them: "two thousand five", "nineteen oh five", "three point one four"."""

from __future__ import annotations

from num2words import num2words

LARGEST = 10**36  # what has a name that people know ends well before; what is larger is said digit by digit
DIGITS = "zero one two three four five six seven eight nine".split()


def cardinal(number: int) -> str:
    """1234 -> "one thousand two hundred thirty four"."""
    if number < 0:
        return f"minus {cardinal(-number)}"
    if number >= LARGEST:
        return digits(str(number))
    return _plain(num2words(number)).replace(" and ", " ")


def ordinal(number: int) -> str:
    """21 -> "twenty first"."""
    return _plain(num2words(number, to="ordinal")).replace(" and ", " ") if number < LARGEST else cardinal(number)


def digits(text: str) -> str:
    """Every digit of a text by its name: "555-01" -> "five five five zero one"."""
    return " ".join(DIGITS[int(letter)] for letter in text if letter.isdecimal())


def value(text: str) -> int:
    """The whole part of a written number."""
    return int(text.replace(",", "").partition(".")[0] or 0)


def number(text: str) -> str:
    """A number as it is written, commas and all: "1,234.50", "007", ".5"."""
    whole, point, rest = text.replace(",", "").partition(".")
    if whole.startswith("0") and len(whole) > 1:
        said = digits(whole)  # 007 is not seven
    elif "," not in text and len(whole) > 12 and not whole.endswith("000000"):
        said = digits(whole)  # a code: nobody counts so far
    else:
        said = cardinal(int(whole)) if whole else ""
    return f"{said} point {digits(rest)}".strip() if point and rest else said


def plain_year(text: str) -> str:
    """A year's four digits: "twenty twenty four", "nineteen oh five", "two thousand five", "nineteen hundred"."""
    first, last = divmod(int(text), 100)
    if first % 10 == 0 and last < 10:
        return cardinal(int(text))
    if last == 0:
        return f"{cardinal(first)} hundred"
    return f"{cardinal(first)} {two_digits(last)}"


def two_digits(number: int) -> str:
    """The end of a year or of a time: 5 -> "oh five", 24 -> "twenty four"."""
    return f"oh {cardinal(number)}" if number < 10 else cardinal(number)


def plural(word: str) -> str:
    """The tens of decades: "ninety" -> "nineties", "ten" -> "tens"."""
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}es" if word.endswith("x") else f"{word}s"


def letters(text: str) -> str:
    """A word spelt out: "FBI" -> "F B I", its figures by their names."""
    return " ".join(DIGITS[int(letter)] if letter.isdecimal() else letter for letter in text if letter.isalnum())


def _plain(words: str) -> str:
    return words.replace("-", " ").replace(",", "")
