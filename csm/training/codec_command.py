"""`python -m csm train codec`: nano's codec, or a Mimi of any shape, from the options to the run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from csm.config import MimiConfig, SpectralConfig
from csm.errors import InputError
from csm.training.options import natural, positive
from csm.training.run import say
from csm.training.shapes import CODECS, codec_shape, keep_shape


def add_arguments(codec: argparse.ArgumentParser) -> None:
    codec.add_argument("--data", type=Path, default=Path("runs/speech"))
    codec.add_argument("--out", type=Path, default=Path("runs/codec"))
    shape = codec.add_mutually_exclusive_group()
    shape.add_argument(
        "--config", default="nano", help=f"{', '.join(CODECS)} (the published one is mimi), or a JSON file of sizes"
    )
    shape.add_argument("--init", metavar="MODEL", help="go on with the codec of nano or of a folder like it")
    codec.add_argument("--steps", type=positive, help="in all; of reconstruction for nano; with --init the codes move")
    codec.add_argument("--seed", type=natural, default=1)
    codec.add_argument("--every", type=positive, default=250, help="steps between saves (default: 250)")
    nano = codec.add_argument_group("nano")
    nano.add_argument("--refined", type=natural, default=4_000, help="steps in which the decoder learns to sound")
    nano.add_argument("--rate", type=float, metavar="RATE", help="of reconstruction (default: 0.001)")
    nano.add_argument("--blocks", type=positive, metavar="N", help="of the decoder: --init may get more than it has")
    nano.add_argument(
        "--shifted", type=float, default=0.0, metavar="PART", help="of the clips, played as other speakers (default: 0)"
    )
    nano.add_argument(
        "--sharpen", type=float, default=1.0, metavar="FACTOR", help="with --init: peaks of the voice, once learned (1)"
    )
    nano.add_argument("--adversarial", type=float, default=0.0, metavar="WEIGHT", help="of discriminators (default: 0)")
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
    if arguments.init:
        _go_on(arguments)
        return
    config = codec_shape(arguments.config)
    if isinstance(config, MimiConfig):
        _train_mimi(arguments, config)
    else:
        _train_light(arguments, config)


def _train_light(arguments: argparse.Namespace, config: SpectralConfig) -> None:
    from csm.training.codec import train_codec
    from csm.training.corpus import Corpus

    Corpus(arguments.data)  # without speech there is nothing to begin
    config = _grown(config, arguments)
    keep_shape(arguments.out, config)
    train_codec(arguments.data, arguments.out, config, **_light_options(arguments))


def _grown(config: SpectralConfig, arguments: argparse.Namespace) -> SpectralConfig:
    """The shape with the decoder blocks that are asked for. Raises `InputError` for fewer than there are."""
    blocks = arguments.blocks or config.decoder_blocks
    if arguments.init and blocks < config.decoder_blocks:
        raise InputError(f"{arguments.init} has {config.decoder_blocks} decoder blocks: --blocks can only add some.")
    return replace(config, decoder_blocks=blocks)


def _light_options(arguments: argparse.Namespace) -> dict[str, Any]:
    if not 0 <= arguments.adversarial < 100:
        raise InputError(
            f"The weight --adversarial {arguments.adversarial} means nothing: choose one from 0 up, such as 1."
        )
    if not 0.5 <= arguments.sharpen <= 2:
        raise InputError(f"--sharpen {arguments.sharpen} leaves no voice: choose a factor from 0.5 to 2, such as 1.1.")
    if not 0 <= arguments.shifted <= 1:
        raise InputError(f"--shifted {arguments.shifted} is no part of the clips: choose one from 0 to 1.")
    told = {name: getattr(arguments, name) for name in ("refined", "adversarial", "shifted", "seed", "every")}
    given = {name: getattr(arguments, name) for name in ("steps", "rate")}
    return told | {name: value for name, value in given.items() if value is not None}


def _go_on(arguments: argparse.Namespace) -> None:
    from csm.checkpoint import load_model
    from csm.codec import build_codec
    from csm.codec.spectral import SpectralCodec
    from csm.training.codec import train_codec
    from csm.training.corpus import Corpus
    from csm.training.finetune import save_like

    options = {"steps": 0} | _light_options(arguments)
    loaded = load_model(arguments.init)
    codec = loaded.codec.module
    if not isinstance(codec, SpectralCodec):
        raise InputError(f"{arguments.init} has a Mimi, which --init doesn't take: give a model with nano's codec.")
    Corpus(arguments.data)
    config = _grown(codec.config, arguments)
    keep_shape(arguments.out, config)
    trained = train_codec(arguments.data, arguments.out, config, **options, start=codec)
    trained.decoder.sharpen(arguments.sharpen)
    grown = build_codec(config)
    grown.module.load_state_dict(trained.state_dict())
    loaded.model.config = replace(loaded.model.config, codec=config)
    save_like(arguments.init, loaded.model, grown, arguments.out / "model")
    say(f"written: {arguments.out / 'model'}, to use with --model {arguments.out / 'model'}")
    if options["steps"]:
        say("Its codes are others than before: the language model in it says nothing yet until it has learned them.")


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
