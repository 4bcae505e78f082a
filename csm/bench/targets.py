"""How fast, and in how much memory, this project wants CSM to run: what a machine's figures are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csm.config import PRESETS
from csm.model.size import parameter_counts


@dataclass(frozen=True)
class Target:
    """`path` leads to the figure, which in `unit` is `scale` times as large, in the figures of a model of the preset's
    size on such a device."""

    preset: str
    device: str
    words: str
    path: tuple[str, ...]
    limit: float
    unit: str = ""
    scale: float = 1.0
    at_most: bool = True

    def met(self, found: float) -> bool:
        return found <= self.limit if self.at_most else found >= self.limit


def _runs(*path: str) -> tuple[str, ...]:
    return ("runs", *path)


def _peer(weights: str) -> tuple[str, ...]:
    return ("peer", weights, "times_as_fast", "median")


KNOWN_VOICE = "known_voice_first_audio_seconds"
TARGETS = (  # those of the GPU are for an H200
    Target("tiny", "cuda", "frame at 600 positions", _runs("bfloat16", "contexts", "600", "median"), 3.2, " ms", 1e3),
    Target("tiny", "cuda", "the same in int8", _runs("int8", "contexts", "600", "median"), 2.2, " ms", 1e3),
    Target("tiny", "cuda", "the same in float8", _runs("float8", "contexts", "600", "median"), 2.2, " ms", 1e3),
    Target("tiny", "cuda", "first audio of a known voice", _runs("bfloat16", KNOWN_VOICE, "median"), 60, " ms", 1e3),
    Target("tiny", "cuda", "64 streams, frame (p95)", _runs("bfloat16", "batches", "64", "p95"), 80, " ms", 1e3),
    Target(
        "tiny",
        "cuda",
        "64 streams in all",
        _runs("bfloat16", "batches", "64", "times_real_time"),
        500,
        " x real time",
        at_most=False,
    ),
    Target(
        "tiny",
        "cuda",
        "memory of one stream at 2 048 positions",
        _runs("bfloat16", "peak_device_memory_mb"),
        4.5,
        " GB",
        1e-3,
    ),
    Target("tiny", "cpu", "as fast as transformers, bfloat16", _peer("bfloat16"), 1.3, " x", at_most=False),
    Target("tiny", "cpu", "the same in int8", _peer("int8"), 2.5, " x", at_most=False),
    Target("tiny", "cpu", "the same in int4", _peer("int4"), 6.5, " x", at_most=False),
    Target(
        "tiny", "cpu", "frame in int4 at 600 positions", _runs("int4", "contexts", "600", "median"), 105, " ms", 1e3
    ),
    Target("nano", "cpu", "real-time factor", ("real_time_factor", "median"), 0.25),
)


def reached(figures: dict[str, Any]) -> list[tuple[Target, float | None]]:
    """The targets for the model's size and the device, and what was found, in their units; None: not measured."""
    wanted = [target for target in TARGETS if target.device == figures["device"].split(":")[0]]
    sizes = {preset: parameter_counts(PRESETS[preset])["total"] for preset in {target.preset for target in wanted}}
    return [(target, _at(figures, target)) for target in wanted if sizes[target.preset] == figures["parameters"]]


def _at(figures: Any, target: Target) -> float | None:
    for key in target.path:
        figures = figures.get(key) if isinstance(figures, dict) else None
    return None if figures is None else figures * target.scale
