"""Plots as SVG text, drawn here so that a report is one file, follows the reader's colours and needs no package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 34
COLOURS = ("var(--one)", "var(--two)", "var(--three)")


def lines(title: str, across: str, series: Mapping[str, Sequence[float | None]], zero: bool = False) -> str:
    """One line a series over 1, 2, 3 ...; gaps where a value is None. `zero`: the axis begins at 0. Empty where nothing
    is known."""
    known = [value for values in series.values() for value in values if value is not None]
    if not known:
        return ""
    low, high, step = _scale(0.0 if zero else min(known), max(known))
    count = max(len(values) for values in series.values())
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(place: int) -> float:
        return LEFT + (right - LEFT) * (place / max(1, count - 1))

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (value - low) / (high - low)

    parts = [_grid(low, high, step, y)]
    for place in range(0, count, max(1, count // 10)):
        parts.append(f'<text x="{x(place):.1f}" y="{bottom + 16}" text-anchor="middle">{place + 1}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{escape(across)}</text>')
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        for piece in _pieces(values):
            points = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in piece)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for at, value in piece]
        parts.append(
            f'<text x="{LEFT + 8 + 170 * number}" y="{TOP + 4}" fill="{colour}" class="key">{escape(name)}</text>'
        )
    return _figure(title, HEIGHT, parts)


def bars(title: str, values: Mapping[str, float | None], line: float | None = None) -> str:
    """Shares from 0 to 1 as bars, one a row, with a dashed `line` such as chance. Empty where nothing is known."""
    rows = [(name, value) for name, value in values.items() if value is not None]
    if not rows:
        return ""
    row, left = 20, 130
    height = row * len(rows) + 30
    span = WIDTH - left - 60
    parts = []
    for number, (name, value) in enumerate(rows):
        top = 8 + row * number
        parts += [
            f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{left}" y="{top + 3}" width="{span * value:.1f}" height="{row - 6}" fill="{COLOURS[0]}"/>',
            f'<text x="{left + span * value + 6:.1f}" y="{top + 13}">{100 * value:.0f} %</text>',
        ]
    if line is not None:
        x = left + span * line
        parts.append(f'<line x1="{x}" x2="{x}" y1="4" y2="{height - 18}" class="chance"/>')
        parts.append(f'<text x="{x}" y="{height - 5}" text-anchor="middle">chance</text>')
    return _figure(title, height, parts)


def _figure(title: str, height: int, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">\n{inside}\n</svg></figure>'
    )


def _grid(low: float, high: float, step: float, y) -> str:
    parts = []
    for number in range(round((high - low) / step) + 1):
        value = low + step * number
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    return "\n".join(parts)


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """A range around both, and the round step of its grid, four to eight of which fill it."""
    spread = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if spread / (power * factor) <= 5)
    return math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step


def _pieces(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The stretches of a series without a gap, as (place, value)."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((place, value))
    return [piece for piece in pieces if piece]
