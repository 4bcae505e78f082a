"""`python -m csm train codec`: nano's codec, or a Mimi of any shape, from the options to the run."""

from __future__ import annotations

import argparse
from pathlib import Path

from csm.config import PRESETS
from csm.errors import InputError


def add_arguments(codec: argparse.ArgumentParser) -> None:
    codec.add_argument("--data", type=Path, default=Path("runs/speech"))
    codec.add_argument("--out", type=Path, default=Path("runs/codec"))
    codec.add_argument(
        "--config", default="nano", help="nano, mimi-small, mimi (the published shape), or a JSON file of a MimiConfig"
    )
    codec.add_argument("--steps", type=int, help="steps in all; of reconstruction for nano")
    codec.add_argument("--seed", type=int, default=1)
    nano = codec.add_argument_group("nano")
    nano.add_argument("--refined", type=int, default=4_000, help="steps in which the decoder meets discriminators")
    mimi = codec.add_argument_group("Mimi")
    mimi.add_argument("--teacher", metavar="FOLDER", help="WavLM or HuBERT for code 0: folder or cached hub id")
    mimi.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(arguments: argparse.Namespace) -> None:
    """Train what the options say. Raises `InputError`."""
    if arguments.config == "nano":
        from csm.training.codec import train_codec
        from csm.training.export import light_codec

        steps = {} if arguments.steps is None else {"steps": arguments.steps}
        config = light_codec(PRESETS["nano"])
        train_codec(arguments.data, arguments.out, config, refined=arguments.refined, seed=arguments.seed, **steps)
        return
    from csm.training.distributed import processes
    from csm.training.mimi import MimiRecipe, mimi_config, save_mimi, train_mimi
    from csm.training.teacher import load_teacher

    with processes(arguments.device) as together:
        if together.count > 1:
            raise InputError("The codec trains on one process: start it without torchrun.")
        device = together.device.type
        teacher = load_teacher(arguments.teacher, device) if arguments.teacher else None
        recipe = MimiRecipe(steps=arguments.steps or MimiRecipe.steps, seed=arguments.seed)
        mimi = train_mimi(arguments.data, arguments.out, mimi_config(arguments.config), recipe, teacher, device)
        save_mimi(arguments.out / "mimi.safetensors", mimi)
