"""Numbers on the command line that are checked as they are read: `type=positive` refuses 0 in one sentence."""

from __future__ import annotations

from argparse import ArgumentTypeError


def natural(text: str) -> int:
    """A whole number from 0 on."""
    return _at_least(0, text)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    return _at_least(1, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise ArgumentTypeError(f"{text} is no whole number of at least {least}")
    return number
