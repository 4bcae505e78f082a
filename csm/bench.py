"""`python -m csm bench`: how long the way from script to sound takes on this machine, stated plainly.

Every figure comes from several repeats on a warm model: the median, and beside it the smallest and the largest.
A measurement is one function from a generator and a `Workload` to named samples; `MEASUREMENTS` lists them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from csm.checkpoint import Loaded
from csm.codec import build_codec
from csm.config import PRESETS, SAMPLE_RATE
from csm.errors import InputError
from csm.frames import Rows, Segment
from csm.generator import Generator, load
from csm.model import CSM, Sampling
from csm.text import ByteTokenizer
from csm.voices import load_prompt, shipped_voices

Samples = dict[str, list[float]]

TEXT = "I think I left my umbrella in the restaurant, so I have to go back."


@dataclass(frozen=True)
class Workload:
    """What is said after which prompts, and how often. `frames` are stepped for the frame times of a repeat."""

    prompts: list[Segment] = field(default_factory=list)
    text: str = TEXT
    repeats: int = 5
    frames: int = 50
    seed: int = 7
    max_turn_seconds: float = 8.0


def time_turns(generator: Generator, workload: Workload) -> Samples:
    """Whole turns, streamed, in a conversation whose prompts are in the cache already.

    `first_audio_seconds` runs from asking for the turn to having its first chunk; `real_time_factor` is the
    time of the whole turn, decoded, by the length of its sound.
    """
    samples: Samples = {
        "first_audio_seconds": [],
        "real_time_factor": [],
        "audio_seconds": [],
        "positions_prefilled": [],
    }
    conversation = generator.conversation(workload.prompts, workload.seed)
    longest = workload.max_turn_seconds * 1000
    conversation.rewind(conversation.say(workload.text, 0, longest))
    for repeat in range(workload.repeats):
        start = time.perf_counter()
        first = None
        for _ in conversation.stream(workload.text, 0, longest, seed=workload.seed + repeat):
            first = first or time.perf_counter() - start
        seconds = time.perf_counter() - start
        turn = conversation.turns[-1]
        audio = turn.audio.numel() / SAMPLE_RATE
        samples["audio_seconds"].append(audio)
        samples["positions_prefilled"].append(turn.positions_prefilled)
        if first is not None:  # a turn may be empty
            samples["first_audio_seconds"].append(first)
            samples["real_time_factor"].append(seconds / audio)
        conversation.rewind(turn)
    return samples


def time_new_conversations(generator: Generator, workload: Workload) -> Samples:
    """A click with a new voice: encode the prompts, prefill them and the text, and give the first chunk."""
    samples: Samples = {"new_voice_first_audio_seconds": [], "new_voice_positions_prefilled": []}
    for repeat in range(workload.repeats):
        start = time.perf_counter()
        conversation = generator.conversation(workload.prompts, workload.seed + repeat)
        chunks = conversation.stream(workload.text, 0, workload.max_turn_seconds * 1000)
        if next(chunks, None) is not None:
            samples["new_voice_first_audio_seconds"].append(time.perf_counter() - start)
            chunks.close()  # type: ignore[attr-defined]  # a generator, typed as the iterator that callers need
        samples["new_voice_positions_prefilled"].append(conversation.turns[-1].positions_prefilled)
    return samples


def time_frames(generator: Generator, workload: Workload) -> Samples:
    """Single frames of the language model, all codebooks and sampling, without the codec.

    They are stepped past the end of the turn, if it comes, so that each repeat counts the same frames.
    """
    samples: Samples = {"frame_seconds": []}
    engine, sampling = generator.engine, Sampling()
    turn = generator.turn_rows(workload.text, 0)
    rows = Rows.join([generator.prompt_rows(workload.prompts), turn]) if workload.prompts else turn
    frames = min(workload.frames, generator.config.max_positions - len(rows))
    for repeat in range(workload.repeats):
        context = engine.new_context()
        noise = torch.Generator(generator.device).manual_seed(workload.seed + repeat)
        engine.prefill(context, rows)
        _synchronise(generator)
        for _ in range(frames):
            start = time.perf_counter()
            engine.step(context, sampling, noise)
            _synchronise(generator)
            samples["frame_seconds"].append(time.perf_counter() - start)
    return samples


MEASUREMENTS: tuple[Callable[[Generator, Workload], Samples], ...] = (time_turns, time_new_conversations, time_frames)


def bench(generator: Generator, workload: Workload) -> dict[str, Any]:
    """All measurements of `workload`: machine and model, then `{median, min, max, p95, count}` of each figure."""
    figures: dict[str, Any] = {}
    for measure in MEASUREMENTS:
        figures |= {name: spread(values) for name, values in measure(generator, workload).items()}
    return {
        "model": generator.model_name,
        "device": str(generator.device),
        "parameters": sum(weight.numel() for weight in generator.engine.model.parameters()),
        **machine(generator.device),
        "repeats": workload.repeats,
        "prompt_seconds": round(sum(_seconds(prompt) for prompt in workload.prompts), 2),
        **figures,
        "peak_memory_mb": peak_memory_mb(),
        "peak_device_memory_mb": _peak_device_memory_mb(generator.device),
    }


def spread(values: list[float]) -> dict[str, float] | None:
    """Median, smallest, largest and 95th percentile (nearest rank); None when nothing was measured."""
    if not values:
        return None
    ordered = sorted(values)
    p95 = ordered[-(-95 * len(ordered) // 100) - 1]
    figures = {"median": statistics.median(ordered), "min": ordered[0], "max": ordered[-1], "p95": p95}
    return {**{key: round(value, 5) for key, value in figures.items()}, "count": len(ordered)}


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and the versions that the figures hold for."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_name(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def peak_memory_mb() -> float | None:
    """The most memory this process ever held, in MB; None where the system doesn't tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if platform.system() == "Darwin" else 1024) / 1e6, 1)


def random_generator(preset: str, device: str = "auto") -> Generator:
    """A preset with random weights and byte text, to time sizes whose weights aren't here. Its speech is noise.

    Raises `InputError` for an unknown preset.
    """
    if preset not in PRESETS:
        raise InputError(f"--random builds a preset: choose one of {', '.join(PRESETS)}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = PRESETS[preset]
    torch.manual_seed(0)
    with torch.device(device):
        model = CSM(config)
    loaded = Loaded(f"{preset} (random weights)", model, build_codec(config.codec), ByteTokenizer())
    return Generator(loaded, torch.device(device))


def table(figures: dict[str, Any]) -> str:
    """The figures as lines of text."""
    rows: list[tuple[str, ...]] = [("", "median", "min", "max", "p95")]
    rows += [
        (name.replace("_", " "), *(f"{value[key]:.4g}" for key in ("median", "min", "max", "p95")))
        for name, value in figures.items()
        if isinstance(value, dict)
    ]
    lines = [
        f"{figures['model']}, {figures['parameters'] / 1e6:.1f} M parameters, on {figures['device']}",
        f"{figures['repeats']} repeats after a warm-up, {figures['prompt_seconds']} s of prompt",
        f"{figures['accelerator'] or figures['cpu']}, {figures['cores']} cores, {figures['threads']} threads",
        f"torch {figures['torch']}, peak memory {figures['peak_memory_mb']} MB",
        "",
    ]
    lines += [f"{row[0]:<32}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in rows]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="preset, folder or hub id (default: as everywhere)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="how often each thing is timed (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--random", action="store_true", help="random weights in the preset's sizes, to time them only")


def run(arguments: argparse.Namespace) -> int:
    """Print the table and, as the last line, the figures as JSON. Raises `InputError`."""
    if arguments.repeats < 1:
        raise InputError("There is nothing to time: ask for at least one repeat.")
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise InputError("At least one thread is needed.")
        torch.set_num_threads(arguments.threads)
    if arguments.random:
        generator = random_generator(arguments.model or "nano", arguments.device)
    else:
        generator = load(arguments.model, arguments.device)
    voice = next(iter(shipped_voices().values()), None)
    if voice is None:
        raise InputError("There is no shipped voice to start from: the folder prompts is empty.")
    prompt = Segment(speaker=0, text=voice.transcript, audio=load_prompt(voice))
    figures = bench(generator, Workload(prompts=[prompt], repeats=arguments.repeats))
    print(f"{table(figures)}\n\n{json.dumps(figures)}")
    return 0


def _seconds(segment: Segment) -> float:
    return 0.0 if segment.audio is None else segment.audio.numel() / SAMPLE_RATE


def _synchronise(generator: Generator) -> None:
    if generator.device.type == "cuda":
        torch.cuda.synchronize(generator.device)


def _peak_device_memory_mb(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 1e6, 1) if device.type == "cuda" else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
