"""The `bench` command: which model in which precisions, what is timed, and where the figures go."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from csm.bench.accuracy import quantisation_loss
from csm.bench.figures import Figures, bench, compared, weights_name
from csm.bench.load import bench_load, load_table
from csm.bench.machine import copy_bandwidth
from csm.bench.measure import FRAME_SECONDS, Workload, context_at, spoken
from csm.bench.report import FOLDER, save, table
from csm.bench.server import ROUNDS, bench_server, server_table
from csm.bench.soak import CROWD, MOST_MINUTES, soak, soak_table
from csm.bench.talk import ROUNDS as QUESTIONS
from csm.bench.talk import bench_talk, talk_table
from csm.checkpoint import Loaded
from csm.codec import build_codec
from csm.config import PRESETS, Environment
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.model import CSM
from csm.model.packed import (
    EXACT,
    IN_KERNELS,
    PACKINGS,
    in_precision,
    reading_precision,
    rounded_by_kernels,
    usual_packing,
)
from csm.speech.generator import Generator
from csm.speech.loading import load, usable_device
from csm.speech.voices import load_prompt, shipped_voices
from csm.text import ByteTokenizer

NAMES = tuple(dict.fromkeys((*EXACT, *PACKINGS, *IN_KERNELS)))
PEER_POSITIONS = 64
MOST_CLIENTS, MOST_ROUNDS, MOST_QUESTIONS = 64, 20, 200
PEER_SECONDS = 12.0  # for each of those compared, all rounds together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="preset, folder or hub id (default: as everywhere)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--random", action="store_true", help="random weights in the preset's sizes, to time them only")
    parser.add_argument(
        "--weights", help=f"one or more of {', '.join(NAMES)}, separated by commas (default: the model's)"
    )
    parser.add_argument(
        "--peer", choices=["transformers"], help="also time this library's CSM on the same weights, in turn with ours"
    )
    parser.add_argument("--repeats", type=int, default=5, help="how often each thing is timed (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=50, help="frames for each frame time (default: %(default)s)")
    parser.add_argument(
        "--contexts", default="64,600,1800", help="positions in use at which frames are timed (default: %(default)s)"
    )
    parser.add_argument("--batches", default="1,4,16,64", help="streams that step together (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=20, help="turns of the long conversation (default: %(default)s)")
    parser.add_argument(
        "--server", action="store_true", help="instead, what clients get of a server of its own, several at once"
    )
    parser.add_argument("--load", metavar="URL", help="instead, what many get of a server that runs")
    parser.add_argument("--rate", type=float, default=1.0, help="listeners a second of --load (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long they come (default: %(default)s)")
    parser.add_argument("--clients", default="1,2,4,8,16", help="clients at once of --server (default: %(default)s)")
    parser.add_argument(
        "--talk",
        action="store_true",
        help="instead, what somebody who talks waits for, step by step, and when they interrupt",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"rounds of --server (default: {ROUNDS}), questions of --talk (default: {QUESTIONS})"
    )
    parser.add_argument(
        "--soak",
        type=float,
        metavar="MINUTES",
        help=f"instead, so long a crowd on a server of its own: {CROWD}, who come and go as they like",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--save",
        nargs="?",
        const=str(FOLDER),
        metavar="FOLDER",
        help="keep figures, table and plot (default: where docs/speed.md shows them)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table and, as the last line, the figures as JSON. Raises `InputError`."""
    if arguments.server:
        return _run_server(arguments)
    if arguments.talk:
        return _run_talk(arguments)
    if arguments.load:
        figures = bench_load(arguments.load, arguments.rate, arguments.seconds, Environment.read().api_key)
        print(load_table(figures))
        print(f"\n{json.dumps(figures)}")
        return 0
    if arguments.soak is not None:
        return _run_soak(arguments)
    workload = _workload(arguments)
    names = _names(arguments)
    if arguments.peer and importlib.util.find_spec("transformers") is None:
        raise InputError("transformers is not installed: install it, or leave --peer out.")
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise InputError("At least one thread is needed.")
        torch.set_num_threads(arguments.threads)
    base, generators = _generators(arguments, names)
    figures = measured(base, generators, workload, arguments.peer is not None)
    print(table(figures))
    if arguments.save:
        print(save(Path(arguments.save), figures))
    print(f"\n{json.dumps(figures)}")
    return 0


def _run_server(arguments: argparse.Namespace) -> int:
    rounds = _rounds(arguments, ROUNDS, MOST_ROUNDS)
    clients = _numbers(arguments.clients, "--clients")
    if not clients or max(clients) > MOST_CLIENTS:
        raise InputError(f"--clients {arguments.clients} is not possible: choose numbers up to {MOST_CLIENTS}.")
    figures = bench_server(arguments.model, arguments.device, clients, rounds)
    print(server_table(figures))
    print(f"\n{json.dumps(figures)}")
    return 0


def _run_talk(arguments: argparse.Namespace) -> int:
    figures = bench_talk(arguments.model, arguments.device, _rounds(arguments, QUESTIONS, MOST_QUESTIONS))
    print(talk_table(figures))
    print(f"\n{json.dumps(figures)}")
    return 0


def _rounds(arguments: argparse.Namespace, usual: int, most: int) -> int:
    rounds = usual if arguments.rounds is None else int(arguments.rounds)
    if not 1 <= rounds <= most:
        raise InputError(f"--rounds {rounds} is not possible: choose 1 to {most}.")
    return rounds


def measured(base: Generator, generators: dict[str, Generator], workload: Workload, peer: bool = False) -> Figures:
    """The first generator's figures, and under `runs` those of each, by its weights; what fewer bits cost is against
    `base`, which is none of them, or unpacked. With `peer`, how they compare."""
    bandwidth = copy_bandwidth(base.device)
    runs: dict[str, Figures] = {}
    for number, (name, generator) in enumerate(generators.items(), 1):
        print(f"Timing {generator.model_name} in {name}.", file=sys.stderr)
        last = number == len(generators)
        fitted = workload if last else replace(workload, turns=0)  # the long conversation, once
        runs[name] = bench(generator, fitted, bandwidth)
    figures = {**next(iter(runs.values())), "runs": runs}
    for name, generator in generators.items():
        if name not in EXACT:
            loss = quantisation_loss(base, generator, workload.prompts)
            against = {"against": weights_name(base)}
            rounded = {key: round(value, 6) + 0.0 for key, value in loss.items()}  # never -0.0
            runs[name]["loss"] = rounded | against
    if peer:
        figures["peer"] = _against_transformers(base, generators, workload)
    return figures


def random_generator(preset: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Generator:
    """A preset with random weights and byte text, to time sizes whose weights aren't here. Its speech is noise.

    Raises `InputError` for an unknown preset.
    """
    if preset not in PRESETS:
        raise InputError(f"--random builds a preset: choose one of {', '.join(PRESETS)}.")
    config = PRESETS[preset]
    torch.manual_seed(0)
    with torch.device("meta"):
        model = CSM(config).to(dtype)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1)
            else:
                inputs = parameter.shape[-2 if name == "audio_head" else -1]
                parameter.uniform_(-(inputs**-0.5), inputs**-0.5)
    codec = build_codec(config.codec)
    for name, buffer in codec.module.named_buffers():
        if name.endswith("embedding_sum"):  # moshi's codebooks are zero until they are loaded
            buffer.normal_()
    loaded = Loaded(f"{preset} (random weights)", model, codec, ByteTokenizer())
    return Generator(loaded, device)


def variant(base: Generator, weights: str) -> Generator:
    """The same model with its matrices in a precision, as `load` gives it; what can be shared with `base`, which is not
    packed, is. Raises `InputError`."""
    if weights == weights_name(base) and base.device.type != "cpu":
        return base
    reading_precision(weights, None, base.device)
    in_kernels = rounded_by_kernels(weights, base.device)
    model = base.engine.model if in_kernels else in_precision(base.engine.model, weights, keep=True)
    loaded = Loaded(base.model_name, model, base.codec, base.tokenizer)
    return Generator(loaded, base.device, weights if in_kernels else "bfloat16")


def _run_soak(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.soak <= MOST_MINUTES:
        raise InputError(f"--soak {arguments.soak:g} is not possible: choose minutes up to {MOST_MINUTES}.")
    figures = soak(arguments.model, arguments.device, arguments.soak, lambda line: print(line, file=sys.stderr))
    print(soak_table(figures))
    print(f"\n{json.dumps(figures)}")
    return 1 if figures["soak"]["wrong"] else 0


def _workload(arguments: argparse.Namespace) -> Workload:
    if arguments.repeats < 1:
        raise InputError("There is nothing to time: ask for at least one repeat.")
    if arguments.frames < 3:
        raise InputError("Ask for at least three frames: fewer say nothing.")
    voice = next(iter(shipped_voices().values()), None)
    if voice is None:
        raise InputError("There is no shipped voice to start from: the folder prompts is empty.")
    prompt = Segment(speaker=0, text=voice.transcript, audio=load_prompt(voice))
    return Workload(
        prompts=[prompt],
        repeats=arguments.repeats,
        frames=arguments.frames,
        contexts=_numbers(arguments.contexts, "--contexts"),
        batches=_numbers(arguments.batches, "--batches"),
        turns=max(0, arguments.turns),
    )


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = (0,)
    if any(number < 1 for number in numbers):
        raise InputError(f"{option} {text} can't be read: write whole numbers with commas between, such as 1,4,16.")
    return numbers


def _names(arguments: argparse.Namespace) -> list[str]:
    names = [name.strip() for name in (arguments.weights or "").split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise InputError(f"Weights can't be {name!r}: choose among {', '.join(NAMES)}.")
    return list(dict.fromkeys(names))


def _generators(arguments: argparse.Namespace, names: list[str]) -> tuple[Generator, dict[str, Generator]]:
    """The model as it is, and as users get it in each precision."""
    device = usable_device(arguments.device)
    wide = names == ["float32"] or (not names and device.type == "cpu")
    large = torch.float32 if wide else torch.bfloat16
    if arguments.random:
        base = random_generator(arguments.model or "nano", device, large)
    else:
        base = load(arguments.model, str(device), dtype=large)
    usual = usual_packing(base.stored) if device.type == "cpu" and wide else weights_name(base)
    if not names or (usual not in names and any(name not in EXACT for name in names)):
        names = [usual, *names]
    return base, {name: variant(base, name) for name in names}


def _against_transformers(base: Generator, generators: dict[str, Generator], workload: Workload) -> Figures:
    from csm.bench.peer import Peer, alternate

    print("Timing transformers beside it.", file=sys.stderr)
    peer = Peer(base.engine.model)
    first = next(iter(generators.values()))
    seconds = min(spoken(first, context_at(first, PEER_POSITIONS), 3))
    rounds = max(2, min(workload.repeats, 3))
    frames = max(3, min(workload.frames, int(PEER_SECONDS / rounds / max(seconds, FRAME_SECONDS / 100))))
    found = compared(alternate(peer, generators, PEER_POSITIONS, frames, rounds))
    return {
        "library": f"transformers {peer.version}",
        "weights": "bfloat16",
        "positions": PEER_POSITIONS,
        "rounds": rounds,
        **found,
    }
