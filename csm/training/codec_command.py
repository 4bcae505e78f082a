"""`python -m csm train codec`: nano's codec, or a Mimi of any shape, from the options to the run."""

from __future__ import annotations

import argparse
from pathlib import Path

from csm.config import MimiConfig, SpectralConfig
from csm.errors import InputError
from csm.training.options import natural, positive
from csm.training.shapes import CODECS, codec_shape, keep_shape


def add_arguments(codec: argparse.ArgumentParser) -> None:
    codec.add_argument("--data", type=Path, default=Path("runs/speech"))
    codec.add_argument("--out", type=Path, default=Path("runs/codec"))
    codec.add_argument(
        "--config", default="nano", help=f"{', '.join(CODECS)} (the published one is mimi), or a JSON file of sizes"
    )
    codec.add_argument("--steps", type=positive, help="steps in all; of reconstruction for nano")
    codec.add_argument("--seed", type=natural, default=1)
    codec.add_argument("--every", type=positive, default=250, help="steps between saves (default: 250)")
    nano = codec.add_argument_group("nano")
    nano.add_argument("--refined", type=natural, default=4_000, help="steps in which the decoder meets discriminators")
    mimi = codec.add_argument_group("Mimi")
    mimi.add_argument(
        "--adversarial-from",
        type=natural,
        metavar="STEP",
        help="meet discriminators from here (default: 2000 or half)",
    )
    mimi.add_argument("--teacher", metavar="FOLDER", help="WavLM or HuBERT for code 0: folder or cached hub id")
    mimi.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(arguments: argparse.Namespace) -> None:
    """Train what the options say. Raises `InputError`."""
    config = codec_shape(arguments.config)
    if isinstance(config, MimiConfig):
        _train_mimi(arguments, config)
    else:
        _train_light(arguments, config)


def _train_light(arguments: argparse.Namespace, config: SpectralConfig) -> None:
    from csm.training.codec import train_codec
    from csm.training.corpus import Corpus

    Corpus(arguments.data)  # without speech there is nothing to begin
    keep_shape(arguments.out, config)
    options = {"refined": arguments.refined, "seed": arguments.seed, "every": arguments.every}
    steps = {} if arguments.steps is None else {"steps": arguments.steps}
    train_codec(arguments.data, arguments.out, config, **options, **steps)


def _train_mimi(arguments: argparse.Namespace, config: MimiConfig) -> None:
    from csm.training.distributed import processes
    from csm.training.mimi import MimiRecipe, train_mimi
    from csm.training.teacher import load_teacher

    with processes(arguments.device) as together:
        if together.count > 1:
            raise InputError("The codec trains on one process: start it without torchrun.")
        device = together.device.type
        teacher = load_teacher(arguments.teacher, device) if arguments.teacher else None
        recipe = MimiRecipe.of(
            arguments.steps or MimiRecipe.steps, arguments.adversarial_from, seed=arguments.seed, every=arguments.every
        )
        train_mimi(arguments.data, arguments.out, config, recipe, teacher, device)
