"""Faster or slower without another pitch: between the decoder and the mark, for sound that is still being made, too.

FFmpeg's `atempo` (WSOLA) does it, through PyAV: it overlaps windows of 43 ms where they are most alike.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.errors import InputError

FACTORS = 0.5, 2.0  # of one filter: beyond them it can't stretch, or leaves samples out instead of blending them


def length_at(samples: int, speed: float) -> int:
    """How many samples are left of so many at that speed."""
    return round(samples / speed)


def at_speed(wave: Tensor, speed: float) -> Tensor:
    """float32 (num_samples,) at 24 kHz -> (length_at(num_samples, speed),). Raises `InputError` without PyAV."""
    if speed == 1.0:
        return wave
    tempo = Tempo(speed)
    return torch.cat([tempo.push(wave), tempo.flush()])


class Tempo:
    """Changes the speed of a sound while it is made. What comes out does not depend on the pieces that go in; it is up
    to 0.16 s of sound behind at double speed and faster, 0.1 s at speeds near 1. At 1 nothing is touched.

    Raises `InputError` without PyAV.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._graph = _graph(speed) if speed != 1.0 else None
        self._taken = self._given = 0

    def push(self, wave: Tensor) -> Tensor:
        """float32 (num_samples,), any length -> the samples that are ready."""
        if self._graph is None or not len(wave):
            return wave
        import av

        frame = av.AudioFrame.from_ndarray(wave.numpy()[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, self._taken
        self._taken += len(wave)
        self._graph.push(frame)
        return self._ready()

    def flush(self) -> Tensor:
        """The rest. After it all that came out is as long as `length_at` says."""
        if self._graph is None or not self._taken:
            return torch.zeros(0)
        self._graph.push(None)
        wanted = length_at(self._taken, self.speed) - self._given
        rest = self._ready()[:wanted]
        return torch.nn.functional.pad(rest, (0, wanted - len(rest)))

    def _ready(self) -> Tensor:
        import av

        made: list[np.ndarray] = []
        while True:
            try:
                made.append(self._graph.pull().to_ndarray()[0])  # type: ignore[union-attr]
            except (av.error.BlockingIOError, av.error.EOFError):
                break
        wave = torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *made]))
        self._given += len(wave)
        return wave


def _graph(speed: float) -> Any:
    """Filters in a row, each with a factor that it does well."""
    if find_spec("av") is None:
        raise InputError("Another speed needs PyAV: run `pip install av`, or leave the speed at 1.")
    import av.filter

    graph = av.filter.Graph()
    last = graph.add_abuffer(format="flt", sample_rate=SAMPLE_RATE, layout="mono")
    for factor in [*_factors(speed), None]:
        following = graph.add("abuffersink") if factor is None else graph.add("atempo", f"{factor:.6f}")
        last.link_to(following)
        last = following
    graph.configure()
    return graph


def _factors(speed: float) -> list[float]:
    """Factors within `FACTORS` whose product is the speed."""
    slowest, fastest = FACTORS
    found = []
    while not slowest <= speed <= fastest:
        found.append(fastest if speed > fastest else slowest)
        speed /= found[-1]
    return [*found, speed]
