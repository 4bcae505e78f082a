"""All figures of one model on one machine, as plain data: what is printed as JSON, shown in tables and drawn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from csm.bench.costs import MEMORY_LIMIT, Widths, frame_bytes, memory_needed
from csm.bench.machine import copy_bandwidth, machine, peak_memory_mb
from csm.bench.measure import (
    FRAME_SECONDS,
    Samples,
    Workload,
    context_at,
    speak_to_the_last_position,
    spoken,
    time_batches,
    time_contexts,
    time_frames,
    time_later_turns,
    time_new_conversations,
    time_plain_torch,
    time_turns,
)
from csm.config import SAMPLE_RATE
from csm.engine.frames import Segment
from csm.model.packed import PackedCSM, rounded_by_kernels
from csm.model.size import parameter_counts
from csm.speech.generator import Generator

Figures = dict[str, Any]

MEASUREMENTS: tuple[Callable[[Generator, Workload], Samples], ...] = (time_turns, time_new_conversations, time_frames)


def bench(generator: Generator, workload: Workload, copy_gb_per_second: float | None = None) -> Figures:
    """All measurements of `workload`, fitted to the model's speed: machine and model, then `spread`s of each figure.

    `copy_gb_per_second` is the machine's memory bandwidth; it is measured unless it is given.
    """
    cuda = generator.device.type == "cuda"
    peak = _peak_of_one_stream(generator) if cuda else None
    bandwidth = copy_gb_per_second or copy_bandwidth(generator.device)
    workload = workload.fitted(min(spoken(generator, context_at(generator, 16), 3)))
    config, widths = generator.config, Widths.of(generator.engine)
    figures: Figures = {}
    for measure in MEASUREMENTS:
        figures |= {name: spread(values) for name, values in measure(generator, workload).items()}
    contexts = {
        str(positions): _with_bandwidth(seconds, frame_bytes(config, widths, positions), bandwidth)
        for positions, seconds in time_contexts(generator, workload).items()
    }
    batches = {
        str(streams): _in_all(streams, seconds) for streams, seconds in time_batches(generator, workload).items()
    }
    plain = time_plain_torch(generator, workload) if cuda else {}
    turns = time_later_turns(generator, workload) if workload.turns else {}
    needed = memory_needed(config, widths)
    return {
        "model": generator.model_name,
        "weights": weights_name(generator),
        "device": str(generator.device),
        "parameters": parameter_counts(config)["total"],
        **machine(generator.device),
        "repeats": workload.repeats,
        "prompt_seconds": round(sum(_seconds(prompt) for prompt in workload.prompts), 2),
        **figures,
        "contexts": contexts,
        "batches": batches,
        "plain_torch": {path: spread(seconds) for path, seconds in plain.items()},
        "turns": {kind: {str(turn): round(at, 5) for turn, at in found.items()} for kind, found in turns.items()},
        "copy_gb_per_second": round(bandwidth, 1),
        "memory_needed_mb": {part: round(size / 1e6, 1) for part, size in needed.items()},
        "memory_within_4500_mb": (peak * 1e6 if peak else needed["total"]) <= MEMORY_LIMIT,
        "peak_memory_mb": peak_memory_mb(),
        "peak_device_memory_mb": peak,  # of one stream at all positions
    }


def percentile(values: Sequence[float], at: int) -> float:
    """The smallest of `values` below or at which `at` of a hundred are (nearest rank)."""
    return sorted(values)[-(-at * len(values) // 100) - 1]


def spread(values: list[float]) -> dict[str, float] | None:
    """Median, smallest, largest and 95th percentile; None when nothing was measured."""
    if not values:
        return None
    figures = {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "p95": percentile(values, 95),
    }
    return {**{key: round(value, 5) for key, value in figures.items()}, "count": len(values)}


def compared(found: dict[str, list[list[float]]]) -> Figures:
    """Rounds of frame times by name, transformers' among them: spreads, and how many times as fast each is as that.

    A ratio is one of medians: of all frames, and for its spread that of the round where it was smallest or largest.
    """
    theirs = found["transformers"]
    figures: Figures = {
        name: {"frame_seconds": spread([second for one in rounds for second in one])} for name, rounds in found.items()
    }
    for name, rounds in found.items():
        if name != "transformers":
            ratios = [statistics.median(a) / statistics.median(b) for a, b in zip(theirs, rounds)]
            whole = figures["transformers"]["frame_seconds"]["median"] / figures[name]["frame_seconds"]["median"]
            figures[name]["times_as_fast"] = {
                "median": round(whole, 3),
                "min": round(min(ratios), 3),
                "max": round(max(ratios), 3),
            }
    return figures


def weights_name(generator: Generator) -> str:
    """The precision of the language model's matrices, as `load` calls it."""
    model, in_kernels = generator.engine.model, generator.engine.lineups.weights
    if rounded_by_kernels(in_kernels, generator.device):
        return in_kernels
    return model.packing if isinstance(model, PackedCSM) else str(model.projection.weight.dtype).split(".")[1]


def frame_at(figures: Figures, positions: str = "600") -> Figures:
    """The frame times at so many positions, else those of a first turn."""
    return figures["contexts"].get(positions) or figures["frame_seconds"]


def _peak_of_one_stream(generator: Generator) -> float:
    """The most MB that tensors took on the accelerator, from before kernels are built to the last position."""
    torch.cuda.reset_peak_memory_stats(generator.device)
    speak_to_the_last_position(generator)
    return round(torch.cuda.max_memory_allocated(generator.device) / 1e6, 1)


def _with_bandwidth(seconds: list[float], read: int, bandwidth: float) -> Figures:
    found = spread(seconds)
    assert found is not None
    rate = read / found["median"] / 1e9 if found["median"] else 0.0
    return {**found, "gb_per_second": round(rate, 2), "of_copy_bandwidth": round(rate / bandwidth, 3)}


def _in_all(streams: int, seconds: list[float]) -> Figures:
    found = spread(seconds)
    assert found is not None
    return {**found, "times_real_time": round(streams * FRAME_SECONDS / max(found["median"], 1e-5), 2)}


def _seconds(segment: Segment) -> float:
    return 0.0 if segment.audio is None else segment.audio.numel() / SAMPLE_RATE
