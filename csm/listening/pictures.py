"""A clip as one picture on one time axis: waveform, spectrogram, codes, confidence. Drawn as SVG, for any page.

Text and lines take the page's own colour, so the picture is as readable in the dark as in the light; what is dense
(spectrogram, codes) is a small PNG inside, made here with numpy and zlib and nothing else.
"""

from __future__ import annotations

import base64
import colorsys
import struct
import zlib
from dataclasses import dataclass, field
from html import escape

import numpy as np
import torch
from torch import Tensor

from csm.config import FRAME_RATE, SAMPLE_RATE
from csm.listening.confidence import Confidence

LEFT, RIGHT, TOP, BOTTOM, GAP = 92, 12, 8, 34, 26  # around and between the tracks, in units of the picture
SECOND = 90.0  # width of one second ...
NARROWEST, WIDEST = 520.0, 2_400.0  # ... as far as the whole stays within these
LINES = {"first": "#3b82f6", "rest": "#ea580c"}  # both told from white and from black
HEAT = ((4, 4, 20), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))
LIGHTS = (0.42, 0.5, 0.58, 0.66)  # of the codes' colours: neither black nor white
BANDS = 96
LOWEST, HIGHEST = 80.0, 11_000.0  # Hz
RANGE_DB = 70.0  # from the loudest band down


def png(pixels: np.ndarray) -> bytes:
    """uint8 (height, width, 3) -> a PNG file."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def code_colours(codes: np.ndarray) -> np.ndarray:
    """int (...) -> uint8 (..., 3): the same code has the same colour, neighbouring numbers have different ones."""
    wheel = np.array([colorsys.hls_to_rgb(hue / 64, light, 0.62) for hue in range(64) for light in LIGHTS])
    hues = (codes * 0.618_033_988_75 % 1.0 * 64).astype(int)  # multiples of irrational numbers spread evenly
    lights = (codes * 0.754_877_666 % 1.0 * len(LIGHTS)).astype(int)
    return (wheel[hues * len(LIGHTS) + lights] * 255).astype(np.uint8)


def spectrogram(wave: Tensor) -> np.ndarray:
    """float32 (num_samples,) at 24 kHz -> uint8 (96, steps, 3): decibels by frequency (high above) every 10 ms."""
    padded = torch.nn.functional.pad(wave.float(), (0, max(0, 1_024 - len(wave))))
    power = torch.stft(padded, 1_024, 240, window=torch.hann_window(1_024), return_complex=True).abs().square().numpy()
    edges = np.geomspace(LOWEST, HIGHEST, BANDS + 1) / SAMPLE_RATE * 1_024
    low = np.floor(edges[:-1]).astype(int)
    high = np.maximum(low + 1, np.ceil(edges[1:]).astype(int))
    bands = np.stack([power[a:b].mean(axis=0) for a, b in zip(low, high)])
    level = 10 * np.log10(bands + 1e-12)
    heat = np.clip((level - level.max()) / RANGE_DB + 1, 0, 1)[::-1]
    places = heat * (len(HEAT) - 1)
    anchors = np.array(HEAT, dtype=float)
    below = np.minimum(places.astype(int), len(HEAT) - 2)
    share = (places - below)[..., None]
    return (anchors[below] * (1 - share) + anchors[below + 1] * share).astype(np.uint8)


@dataclass
class Picture:
    """Tracks above each other over `seconds` of one time axis. Add tracks from the top down, then take `svg()`."""

    seconds: float
    _parts: list[str] = field(default_factory=list)
    _below: float = TOP
    _told: list[str] = field(default_factory=list)

    @property
    def width(self) -> float:
        return min(WIDEST, max(NARROWEST, self.seconds * SECOND))

    def waveform(self, wave: Tensor, height: float = 70) -> Picture:
        """The envelope of float32 (num_samples,) at 24 kHz."""
        top = self._track("waveform", height)
        columns = max(1, min(int(self.width), len(wave)))
        parts = np.array_split(wave.numpy(), columns)
        high = np.array([part.max() for part in parts])
        low = np.array([part.min() for part in parts])
        scale = height / 2 / max(1e-4, float(np.abs(wave.numpy()).max()))
        reach = len(wave) / SAMPLE_RATE / self.seconds * self.width
        places = LEFT + (np.arange(columns) + 0.5) * reach / columns
        points = [f"{x:.1f},{top + height / 2 - y * scale:.1f}" for x, y in zip(places, high)]
        points += [f"{x:.1f},{top + height / 2 - y * scale:.1f}" for x, y in zip(places[::-1], low[::-1])]
        self._parts.append(f'<polygon points="{" ".join(points)}" fill="currentColor" opacity=".65"/>')
        return self

    def spectrum(self, wave: Tensor, height: float = 120) -> Picture:
        """The spectrogram of float32 (num_samples,) at 24 kHz, up to 11 kHz."""
        top = self._track("spectrogram", height)
        self._image(spectrogram(wave), top, len(wave) / SAMPLE_RATE, height)
        for hertz, label in ((200, "200 Hz"), (1_000, "1 kHz"), (5_000, "5 kHz")):
            share = np.log(hertz / LOWEST) / np.log(HIGHEST / LOWEST)
            self._label(label, top + height * (1 - float(share)))
        return self

    def codes(self, codes: Tensor) -> Picture:
        """int64 (frames, K): the semantic codes in a row of their own, the acoustic ones below, finer ones lower."""
        seconds, acoustic = len(codes) / FRAME_RATE, codes.shape[1] - 1
        colours = code_colours(codes.T.numpy())
        top = self._track("semantic code", 22)
        self._image(colours[:1], top, seconds, 22)
        self._label("0", top + 11)
        self._below -= GAP - 20
        row = 16.0 if acoustic <= 12 else 9.0
        top = self._track("acoustic codes", row * acoustic)
        self._image(colours[1:], top, seconds, row * acoustic)
        for number in sorted({1, acoustic, *range(4, acoustic, 4)}):
            self._label(str(number), top + row * (number - 0.5))
        return self

    def confidence(self, sure: Confidence, height: float = 90) -> Picture:
        """Two lines from 0 to 1: the probability of each frame's semantic code, and the acoustic codes' mean."""
        top = self._track("confidence", height)
        for share in (0, 0.5, 1):
            y = top + height * (1 - share)
            self._parts.append(
                f'<line x1="{LEFT}" x2="{LEFT + self.width:.0f}" y1="{y:.1f}" y2="{y:.1f}" '
                'stroke="currentColor" opacity=".2"/>'
            )
            self._label(f"{share:g}", y)
        for name, values in (("first", sure.first), ("rest", sure.rest)):
            points = " ".join(
                f"{self._x((index + 0.5) / FRAME_RATE):.1f},{top + height * (1 - value):.1f}"
                for index, value in enumerate(values.tolist())
            )
            dash = ' stroke-dasharray="5 3"' if name == "rest" else ""
            self._parts.append(
                f'<polyline points="{points}" fill="none" stroke="{LINES[name]}" stroke-width="2"{dash}/>'
            )
        for at, name, text in ((110, "first", "semantic code"), (250, "rest", "acoustic codes, on average")):
            x, y = LEFT + at, top - 8
            dash = ' stroke-dasharray="5 3"' if name == "rest" else ""
            self._parts.append(
                f'<line x1="{x - 24}" x2="{x - 4}" y1="{y - 4}" y2="{y - 4}" stroke="{LINES[name]}" '
                f'stroke-width="2"{dash}/><text x="{x}" y="{y}">{text}</text>'
            )
        return self

    def svg(self) -> str:
        """The whole, `<svg>` with its time axis."""
        bottom = self._below - GAP
        step = next(step for step in (0.5, 1, 2, 5, 10, 20, 60) if step * self.width / self.seconds >= 44)
        marks: list[str] = []
        for number in range(int(self.seconds / step) + 1):
            x = self._x(number * step)
            marks.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom + 5:.0f}" stroke="currentColor" '
                f'opacity=".18"/><text x="{x:.1f}" y="{bottom + 19:.0f}" text-anchor="middle">{number * step:g}</text>'
            )
        end = LEFT + self.width
        marks.append(f'<text x="{end:.0f}" y="{bottom + 32:.0f}" text-anchor="end">seconds</text>')
        width, height = end + RIGHT, bottom + BOTTOM + 4
        label = escape(f"{', '.join(self._told)} over {self.seconds:.1f} seconds")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" aria-label="{label}" fill="currentColor" font-size="12" '
            f'font-family="system-ui, sans-serif">{"".join(self._parts)}{"".join(marks)}</svg>'
        )

    def _x(self, seconds: float) -> float:
        return LEFT + seconds / self.seconds * self.width

    def _track(self, name: str, height: float) -> float:
        """Begin a track below the last: its name above it. -> its top."""
        top = self._below + 16
        self._below = top + height + GAP
        self._told.append(name)
        self._parts.append(f'<text x="{LEFT}" y="{top - 8:.1f}" font-weight="600">{escape(name)}</text>')
        return top

    def _label(self, text: str, y: float) -> None:
        self._parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" opacity=".8">{escape(text)}</text>')

    def _image(self, pixels: np.ndarray, top: float, seconds: float, height: float) -> None:
        data = base64.b64encode(png(pixels)).decode()
        self._parts.append(
            f'<image x="{LEFT}" y="{top:.1f}" width="{seconds / self.seconds * self.width:.1f}" height="{height:.1f}" '
            f'preserveAspectRatio="none" style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
        )


def inside(wave: Tensor, codes: Tensor, sure: Confidence | None = None) -> str:
    """The whole picture of a clip: float32 (num_samples,) at 24 kHz and its codes int64 (frames, K)."""
    picture = Picture(max(0.08, len(codes) / FRAME_RATE, len(wave) / SAMPLE_RATE))
    picture.waveform(wave).spectrum(wave).codes(codes)
    if sure is not None:
        picture.confidence(sure)
    return picture.svg()


def scrolling(svg: str, label: str) -> str:
    """A picture that may be wider than the page, in a frame that scrolls sideways by mouse, finger and keyboard."""
    return (
        f'<div class="csm-picture" role="region" tabindex="0" aria-label="{escape(label)}" '
        f'style="overflow-x:auto;color:var(--body-text-color)">{svg}</div>'
    )
