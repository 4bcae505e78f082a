"""`python -m csm train lm`: from its options to a model, conversations and settings for `csm/training/lm.py`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from csm.codec import Codec
from csm.config import PRESETS, Environment, ModelConfig
from csm.errors import InputError
from csm.model import CSM
from csm.text import ByteTokenizer, Tokenizer
from csm.training.distributed import processes
from csm.training.export import TOKENIZER, run_weights
from csm.training.finetune import add_arguments as add_finetune_arguments
from csm.training.finetune import is_own_speech, options_of, save_like
from csm.training.finetune import run as finetune_command
from csm.training.lm import LMSettings
from csm.training.lora import add_lora
from csm.training.manifest import HELP
from csm.training.options import natural, positive, share
from csm.training.run import say
from csm.training.shapes import kept_codec, make_folder, model_shape, with_codec

NANO_WIDTH, NANO_RATE = 256, 2e-3
INIT_STEPS = 1_000


def add_arguments(lm: argparse.ArgumentParser) -> None:
    """The options of `python -m csm train lm`."""
    start = lm.add_mutually_exclusive_group()
    start.add_argument(
        "--preset",
        default="nano",
        metavar="SHAPE",
        help=f"train {', '.join(PRESETS)} or what a JSON file describes from nothing, for the codes in --codes",
    )
    start.add_argument("--init", metavar="MODEL", help="go on from a model: nano, a folder with weights, or a hub id")
    lm.add_argument(
        "--data", type=Path, default=Path("runs/speech"), help=f"what `train data` wrote or, for --init, {HELP}"
    )
    lm.add_argument("--codes", type=Path, default=Path("runs/codes"), help="what `train codes` wrote")
    lm.add_argument("--out", type=Path, default=Path("runs/lm"))
    lm.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json for --preset (default: the hub's)")
    lm.add_argument("--steps", type=int, help=f"default: {LMSettings.steps}; {INIT_STEPS} with --init")
    lm.add_argument("--rate", type=float, help="learning rate (default: 0.002 for nano, less the wider the model)")
    lm.add_argument("--warmup", type=natural, default=LMSettings.warmup, help="steps until the rate is reached")
    lm.add_argument("--positions", type=int, default=LMSettings.positions, help="longest conversation, in rows")
    lm.add_argument(
        "--batch-positions", type=int, default=LMSettings.batch_positions, help="rows in a batch (default: 2048)"
    )
    lm.add_argument("--accumulate", type=int, default=1, metavar="N", help="batches a step, on each process")
    lm.add_argument(
        "--depth-share", type=float, default=LMSettings.depth_share, help="part of the frames the depth decoder learns"
    )
    lm.add_argument(
        "--openings",
        type=float,
        default=LMSettings.openings,
        metavar="PART",
        help=f"part of those frames that begin a turn (default: {LMSettings.openings}); 0: any frame, as at Sesame",
    )
    lm.add_argument(
        "--code-noise",
        type=float,
        default=LMSettings.code_noise,
        metavar="PART",
        help=f"part of the frames that are heard wrongly, to learn to go on (default: {LMSettings.code_noise})",
    )
    lm.add_argument(
        "--spliced",
        type=share,
        default=0.0,
        metavar="PART",
        help="part of the turns that are made of words of several clips, for speech of few texts (default: 0)",
    )
    lm.add_argument("--guide", type=float, default=LMSettings.guide_weight, help="weight of guided attention, 0: none")
    lm.add_argument(
        "--voice-guide",
        type=float,
        metavar="WEIGHT",
        help=f"the same to where the speaker was heard before (default: {LMSettings.voice_weight}; 0 with --init)",
    )
    lm.add_argument(
        "--tell-slots", action="store_true", help="with --init nano: from now on frames carry their speaker's slot"
    )
    lm.add_argument(
        "--formerly",
        type=Path,
        metavar="FOLDER",
        help="with --init, whose codec was trained on: the same speech in the codes that it spoke before",
    )
    lm.add_argument("--optimiser", choices=["muon", "adamw"], help="default: muon; adamw under torchrun, --init")
    lm.add_argument(
        "--precision",
        choices=["auto", "bfloat16", "float32"],
        default="auto",
        help="of matrix products (auto: bfloat16 where the device is quick in it)",
    )
    lm.add_argument("--checkpointing", action="store_true", help="less memory, a third more work: keep no activations")
    lm.add_argument("--seed", type=natural, default=1)
    lm.add_argument("--every", type=positive, default=LMSettings.every, help="steps between saves (default: 250)")
    lm.add_argument("--log-every", type=natural, default=LMSettings.log_every, help="steps between lines (default: 50)")
    add_finetune_arguments(lm)
    lm.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    lm.add_argument(
        "--plan", type=positive, nargs="?", const=1, metavar="N", help="only print the memory it takes, on N processes"
    )


def settings_of(arguments: argparse.Namespace, config: ModelConfig, several: bool) -> LMSettings:
    """The settings that options and a model's shape give. Raises `InputError`."""
    rate = arguments.rate
    if rate is None:  # wider models want smaller steps; a trained one a fifth of that, unless adapters start at nothing
        rate = NANO_RATE * NANO_WIDTH / config.backbone.dim / (5 if arguments.init and not arguments.lora else 1)
    voice = arguments.voice_guide  # a trained model's heads have something to do already
    if voice is None:
        voice = 0.0 if arguments.init else LMSettings.voice_weight
    usual = INIT_STEPS if arguments.init else LMSettings.steps
    return LMSettings(
        steps=usual if arguments.steps is None else arguments.steps,
        rate=rate,
        warmup=arguments.warmup,
        positions=arguments.positions,
        batch_positions=arguments.batch_positions,
        accumulate=arguments.accumulate,
        depth_share=arguments.depth_share,
        openings=arguments.openings,
        code_noise=arguments.code_noise,
        guide_weight=arguments.guide,
        voice_weight=voice,
        optimiser=arguments.optimiser or ("adamw" if several or arguments.init else "muon"),
        precision=arguments.precision,
        checkpointing=arguments.checkpointing,
        seed=arguments.seed,
        every=arguments.every,
        log_every=arguments.log_every,
    )


def tokenizer_for(config: ModelConfig, file: Path | None, run: Path) -> Tokenizer:
    """The tokenizer of a shape: bytes, or Llama 3's from `file`, else from the hub, kept in the folder of the `run`.

    Raises `InputError`.
    """
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    from csm.checkpoint.hub import HUB_TOKENIZER, fetch_file
    from csm.checkpoint.published import read_tokenizer

    if file is not None and not file.is_file():
        raise InputError(f"There is no file {file.name}: --tokenizer wants Llama 3's tokenizer.json.")
    source = file or fetch_file(*HUB_TOKENIZER, Environment.read().token)
    tokenizer = read_tokenizer(source, config.text_vocab_size)
    make_folder(run)
    (run / TOKENIZER).write_bytes(source.read_bytes())
    return tokenizer


def starting_model(arguments: argparse.Namespace) -> tuple[CSM, Tokenizer, Codec | None]:
    """The model that training starts from, in float32, its tokenizer and, with --init, its codec.

    Raises `InputError`.
    """
    if arguments.init:
        from csm.checkpoint import load_model

        loaded = load_model(arguments.init)
        return loaded.model, loaded.tokenizer, loaded.codec
    config = with_codec(model_shape(arguments.preset), kept_codec(arguments.codes))
    tokenizer = tokenizer_for(config, arguments.tokenizer, arguments.out)
    torch.manual_seed(arguments.seed)
    return CSM(config).init_weights(), tokenizer, None


def starting_shape(arguments: argparse.Namespace) -> tuple[str, ModelConfig]:
    """The name and the shape of the model that training starts from, its weights unread. Raises `InputError`."""
    if not arguments.init:
        return arguments.preset, model_shape(arguments.preset)
    from csm.checkpoint import describe

    return arguments.init, describe(arguments.init, Environment.read().token).config


def print_plan(arguments: argparse.Namespace) -> None:
    """Print how much memory training would take, without reading weights or speech. Raises `InputError`."""
    from csm.training.plan import table

    name, config = starting_shape(arguments)
    settings = settings_of(arguments, config, arguments.plan > 1)
    options = options_of(arguments).lora
    adapted = (lambda model: add_lora(model, options)) if options else (lambda model: model)
    print("\n".join(table(name, config, settings, arguments.plan, adapted)))


def run(arguments: argparse.Namespace) -> None:
    """Train as the options say. Raises `InputError`."""
    if arguments.plan is not None:
        print_plan(arguments)
        return
    from csm.training.codes import Conversations
    from csm.training.corpus import Corpus
    from csm.training.lm import train_lm
    from csm.training.recode import carry_over
    from csm.training.slots import tell_slots

    with processes(arguments.device) as together:
        if arguments.lora or is_own_speech(arguments.data, arguments.init):
            if arguments.spliced:
                raise InputError("--spliced needs times of words, which your own recordings lack: leave it out.")
            finetune_command(arguments, settings_of, together)
            return
        corpus = Corpus(arguments.data)
        model, tokenizer, codec = starting_model(arguments)
        if arguments.formerly:
            if not arguments.init:
                raise InputError("--formerly is for a model that goes on: name it with --init.")
            carry_over(model, arguments.formerly, arguments.codes)
        if arguments.tell_slots:
            plain = Conversations(corpus, arguments.codes, tokenizer, model.config)
            model = tell_slots(model, tokenizer, plain.batch(0, 4, min(512, model.config.max_positions)))
        settings = settings_of(arguments, model.config, together.count > 1)
        train = Conversations(
            corpus, arguments.codes, tokenizer, model.config, seed=arguments.seed, spliced=arguments.spliced
        )
        held_out = None
        if any(utterance.held_out for utterance in corpus.utterances):
            held_out = Conversations(corpus, arguments.codes, tokenizer, model.config, held_out=True, seed=0)
        config = model.config
        train_lm(model, train, held_out, arguments.out, settings, together)
        if codec is not None and together.first:
            model = CSM(config)
            model.load_state_dict(run_weights(arguments.out))
            save_like(arguments.init, model, codec, arguments.out / "model")
            say(f"written: {arguments.out / 'model'}, to use with --model {arguments.out / 'model'}")
