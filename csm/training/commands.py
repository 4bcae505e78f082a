"""`python -m csm train data|codec|codes|lm|amortisation|export|prompts`: the recipe's steps, in this order.

Each step reads the folders of the ones before, saves as it goes, and carries on where it was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from csm.config import PRESETS, SpectralConfig
from csm.errors import InputError
from csm.training import amortisation, codec_command, lm_command
from csm.training.held_out import CONVERSATION, SENTENCES
from csm.training.run import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=0, help="CPU threads for training (default: torch's own choice)")
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")

    data = steps.add_parser("data", help="synthesise the training speech")
    data.add_argument("--out", type=Path, default=Path("runs/speech"))
    data.add_argument("--workers", type=int, default=2)
    data.add_argument("--phrases", type=int, default=10_000, help="sentences of the phrase grammar")
    data.add_argument("--mixes", type=int, default=16_000, help="sentences of unrelated words")
    data.add_argument("--rhvoice", type=Path, metavar="PREFIX", help="where RHVoice is installed (default: /usr/local)")
    data.set_defaults(action=_data)

    codec = steps.add_parser("codec", help="train the codec")
    codec_command.add_arguments(codec)
    codec.set_defaults(action=codec_command.run)

    codes = steps.add_parser("codes", help="encode the training speech")
    codes.add_argument("--data", type=Path, default=Path("runs/speech"))
    source = codes.add_mutually_exclusive_group()
    source.add_argument("--codec", type=Path, default=Path("runs/codec"), help="a run of `train codec`")
    source.add_argument("--model", help="the codec of a model instead, for --init MODEL: a folder or a hub id")
    codes.add_argument("--out", type=Path, default=Path("runs/codes"))
    codes.set_defaults(action=_codes)

    lm = steps.add_parser("lm", help="train backbone and depth decoder")
    lm_command.add_arguments(lm)
    lm.set_defaults(action=lm_command.run)

    compare = steps.add_parser("amortisation", help="train with a share of the frames and with all, and compare")
    lm_command.add_arguments(compare)
    compare.set_defaults(action=amortisation.run, out=Path("runs/amortisation"))

    export = steps.add_parser("export", help="pack both runs into a folder that --model takes")
    export.add_argument("--codec", type=Path, default=Path("runs/codec"))
    export.add_argument("--lm", type=Path, default=Path("runs/lm"))
    export.add_argument("--preset", choices=list(PRESETS), default="nano", help="the shape that was trained")
    export.add_argument("--model", help="for presets with Mimi: the model whose Mimi made the codes")
    export.add_argument("--out", type=Path, help="a folder (default for nano: csm/assets/nano)")
    export.set_defaults(action=_export)

    prompts = steps.add_parser("prompts", help="make the shipped voice prompts again")
    prompts.add_argument("--out", type=Path, default=Path("prompts"))
    prompts.add_argument("--rhvoice", type=Path, metavar="PREFIX", help="where RHVoice is installed")
    prompts.set_defaults(action=_prompts)


def run(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.action(arguments)
    return 0


def _data(arguments: argparse.Namespace) -> None:
    from csm.training.corpus import synthesise
    from csm.training.sentences import normalise

    asked = [*SENTENCES, *(text for _, text in CONVERSATION)]
    excluded = frozenset(map(normalise, asked))  # what the evaluation asks for must stay unheard
    for line in synthesise(
        arguments.out,
        arguments.phrases,
        arguments.mixes,
        workers=arguments.workers,
        excluded=excluded,
        rhvoice=arguments.rhvoice,
    ):
        say(line)


def _codes(arguments: argparse.Namespace) -> None:
    from csm.training.codes import OneByOne, encode_corpus
    from csm.training.corpus import Corpus
    from csm.training.export import trained_codec

    corpus = Corpus(arguments.data)
    if arguments.model:
        from csm.checkpoint import load_model

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        codec = load_model(arguments.model).codec
        codec.module.to(device)
        encode_corpus(corpus, OneByOne(codec, device), arguments.out)
    else:
        encode_corpus(corpus, trained_codec(arguments.codec, PRESETS["nano"]), arguments.out)


def _export(arguments: argparse.Namespace) -> None:
    from csm.training.export import export, export_published

    config, out = PRESETS[arguments.preset], arguments.out
    if isinstance(config.codec, SpectralConfig):
        export(arguments.codec, arguments.lm, out or Path("csm/assets/nano"), config)
    elif arguments.model is None or out is None:
        raise InputError(f"{arguments.preset} speaks through Mimi: say with --model whose, and with --out where to.")
    else:
        export_published(arguments.lm, config, arguments.model, out)


def _prompts(arguments: argparse.Namespace) -> None:
    from csm.training.prompts import make_prompts

    make_prompts(arguments.out, arguments.rhvoice)
