"""`python -m csm train codec`: nano's codec, or a Mimi of any shape, from the options to the run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm.config import MimiConfig, SpectralConfig
from csm.errors import InputError
from csm.training.options import natural, positive
from csm.training.run import say
from csm.training.shapes import CODECS, codec_shape, keep_shape

if TYPE_CHECKING:
    from csm.checkpoint import Loaded
    from csm.codec.spectral import SpectralCodec


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


def add_speaker_arguments(speakers: argparse.ArgumentParser) -> None:
    speakers.add_argument("--init", metavar="MODEL", default="nano", help="whose codec it is (default: nano)")
    speakers.add_argument("--natural", type=Path, default=Path("runs/natural"), help="natural speech of `train data`")
    speakers.add_argument("--pairs", type=Path, default=Path("runs/pairs"), help="what `train pairs` made of it")
    speakers.add_argument("--data", type=Path, default=Path("runs/speech"), help="the recipe's speech")
    speakers.add_argument("--out", type=Path, default=Path("runs/speakers"))
    speakers.add_argument("--steps", type=positive, default=2_000, help="to be right on average (default: 2000)")
    speakers.add_argument("--refined", type=natural, default=1_000, help="more, to sound like speech (default: 1000)")
    speakers.add_argument("--batch", type=positive, default=16, help="clips a step (default: 16)")
    speakers.add_argument("--frames", type=positive, default=16, help="frames of a clip (default: 16)")
    speakers.add_argument("--rate", type=float, default=5e-4, metavar="RATE", help="of learning (default: 0.0005)")
    speakers.add_argument("--blocks", type=positive, metavar="N", help="of the decoder: it may get more than it has")
    speakers.add_argument("--numbers", type=positive, default=128, metavar="N", help="of an embedding (default: 128)")
    speakers.add_argument("--sharpen", type=float, default=1.0, metavar="FACTOR", help="peaks of the voice (1)")
    speakers.add_argument(
        "--stress", type=float, default=1.0, metavar="FACTOR", help="what an embedding does, once learned (1)"
    )
    speakers.add_argument("--seed", type=natural, default=1)
    speakers.add_argument("--every", type=positive, default=200, help="steps between saves (default: 200)")


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
    _check_sharpness(arguments)
    if not 0 <= arguments.shifted <= 1:
        raise InputError(f"--shifted {arguments.shifted} is no part of the clips: choose one from 0 to 1.")
    told = {name: getattr(arguments, name) for name in ("refined", "adversarial", "shifted", "seed", "every")}
    given = {name: getattr(arguments, name) for name in ("steps", "rate")}
    return told | {name: value for name, value in given.items() if value is not None}


def _check_sharpness(arguments: argparse.Namespace) -> None:
    if not 0.5 <= arguments.sharpen <= 2:
        raise InputError(f"--sharpen {arguments.sharpen} leaves no voice: choose a factor from 0.5 to 2, such as 1.1.")


def _light(name: str) -> tuple[Loaded, SpectralCodec]:
    """A model and its codec. Raises `InputError` for another kind of codec than nano's."""
    from csm.checkpoint import load_model
    from csm.codec.spectral import SpectralCodec

    loaded = load_model(name)
    codec = loaded.codec.module
    if not isinstance(codec, SpectralCodec):
        raise InputError(f"{name} has a Mimi, which --init doesn't take: give a model with nano's codec.")
    return loaded, codec


def _save(arguments: argparse.Namespace, loaded: Loaded, trained: SpectralCodec) -> None:
    """The model with its trained codec."""
    from csm.codec import build_codec
    from csm.training.finetune import save_like

    trained.decoder.sharpen(arguments.sharpen)
    grown = build_codec(trained.config)
    grown.module.load_state_dict(trained.state_dict())
    loaded.model.config = replace(loaded.model.config, codec=trained.config)
    save_like(arguments.init, loaded.model, grown, arguments.out / "model")
    say(f"written: {arguments.out / 'model'}, to use with --model {arguments.out / 'model'}")


def run_speakers(arguments: argparse.Namespace) -> None:
    """Let a model's codec speak in any voice. Raises `InputError`."""
    from csm.codec import codec_key
    from csm.training.speakers import train_speakers

    _check_sharpness(arguments)
    if not 0 < arguments.stress <= 3:
        raise InputError(f"--stress {arguments.stress} leaves no speakers: choose a factor above 0, at most 3.")
    loaded, codec = _light(arguments.init)
    told = codec.config.speaker_dim or arguments.numbers
    config = replace(_grown(codec.config, arguments), speaker_dim=told, codes_of=codec_key(loaded.codec))
    keep_shape(arguments.out, config)
    options = {
        name: getattr(arguments, name) for name in ("steps", "refined", "batch", "frames", "rate", "seed", "every")
    }
    places = arguments.natural, arguments.pairs, arguments.data
    trained = train_speakers(*places, arguments.out, config, codec, **options)
    trained.decoder.stress(arguments.stress)
    _save(arguments, loaded, trained)


def _go_on(arguments: argparse.Namespace) -> None:
    from csm.codec import codec_key
    from csm.training.codec import train_codec
    from csm.training.corpus import Corpus

    options = {"steps": 0} | _light_options(arguments)
    loaded, codec = _light(arguments.init)
    Corpus(arguments.data)
    same = "" if options["steps"] else codec_key(loaded.codec)
    config = replace(_grown(codec.config, arguments), codes_of=same)
    keep_shape(arguments.out, config)
    _save(arguments, loaded, train_codec(arguments.data, arguments.out, config, **options, start=codec))
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
