"""`python -m csm train STEP`: the steps of the recipe, in their order, and what shows and compares runs.

Each step reads the folders of the ones before, saves as it goes, and carries on where it was interrupted.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from csm.codec import Codec
from csm.training import amortisation, codec_command, lm_command
from csm.training.held_out import asked
from csm.training.options import natural, positive
from csm.training.parts import EVERYTHING, Part
from csm.training.remote import at_hand
from csm.training.run import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=natural, default=0, help="CPU threads for training (default: torch's choice)")
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")

    data = steps.add_parser("data", help="synthesise the training speech")
    data.add_argument("--out", type=Path, default=Path("runs/speech"))
    data.add_argument("--workers", type=positive, default=2)
    data.add_argument("--phrases", type=natural, default=10_000, help="sentences of the phrase grammar")
    data.add_argument("--mixes", type=natural, default=16_000, help="sentences of unrelated words")
    data.add_argument("--rhvoice", type=Path, metavar="PREFIX", help="where RHVoice is installed (default: /usr/local)")
    data.add_argument(
        "--natural",
        type=Path,
        metavar="FOLDER",
        help="natural speech of many speakers instead, from the Kokoro weights and voices in FOLDER",
    )
    data.add_argument(
        "--seed", type=positive, default=1, help="of natural speech; each worker has the next (default: 1)"
    )
    data.add_argument("--shards", type=positive, default=100, help="of natural speech for each worker, 7 min each")
    _part(data)
    data.set_defaults(action=_data)

    codec = steps.add_parser("codec", help="train the codec")
    codec_command.add_arguments(codec)
    codec.set_defaults(action=codec_command.run)

    codes = steps.add_parser("codes", help="encode the training speech")
    codes.add_argument("--data", type=Path, default=Path("runs/speech"))
    _codec_arguments(codes)
    codes.add_argument("--out", type=Path, default=Path("runs/codes"))
    _part(codes)
    codes.set_defaults(action=_codes)

    pairs = steps.add_parser("pairs", help="have natural voices say what the recipe's do, to learn speakers from")
    pairs.add_argument("--data", type=Path, default=Path("runs/natural"), help="natural speech of `train data`")
    pairs.add_argument("--teacher", type=Path, default=Path("runs/kokoro"), help="who made it (default: runs/kokoro)")
    _codec_arguments(pairs)
    pairs.add_argument(
        "--rhvoice", type=Path, metavar="PREFIX", help="where RHVoice is installed (default: /usr/local)"
    )
    pairs.add_argument("--out", type=Path, default=Path("runs/pairs"))
    pairs.add_argument("--seed", type=positive, default=1)
    _part(pairs)
    pairs.set_defaults(action=_pairs)

    speakers = steps.add_parser("speakers", help="let the codec of a model speak in any voice")
    codec_command.add_speaker_arguments(speakers)
    speakers.set_defaults(action=codec_command.run_speakers)

    lm = steps.add_parser("lm", help="train backbone and depth decoder")
    lm_command.add_arguments(lm)
    lm.set_defaults(action=lm_command.run)

    compare = steps.add_parser("amortisation", help="train with a share of the frames and with all, and compare")
    lm_command.add_arguments(compare)
    compare.set_defaults(action=amortisation.run, out=Path("runs/amortisation"), openings=0.0)

    curves = steps.add_parser("curves", help="several runs of `lm` in one picture, such as three sizes")
    curves.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    curves.add_argument("--out", type=Path, default=Path("runs/curves.png"), help="the picture to draw")
    curves.set_defaults(action=_curves)

    mean = steps.add_parser("average", help="the mean of models of one shape, such as of runs that began alike")
    mean.add_argument("models", nargs="+", metavar="MODEL", help="nano, a folder (a run's is RUN/model) or a hub id")
    mean.add_argument("--shares", type=float, nargs="+", metavar="SHARE", help="of each in the mean (default: alike)")
    mean.add_argument("--out", type=Path, default=Path("runs/average"), help="the folder to write")
    mean.set_defaults(action=_average)

    export = steps.add_parser("export", help="pack both runs into a folder that --model takes")
    _codec_arguments(export)
    export.add_argument("--lm", type=Path, default=Path("runs/lm"), help="a run of `train lm`")
    export.add_argument("--out", type=Path, default=Path("runs/model"), help="the folder to write")
    export.set_defaults(action=_export)

    prompts = steps.add_parser("prompts", help="make the shipped voice prompts again")
    prompts.add_argument("--out", type=Path, default=Path("prompts"))
    prompts.add_argument("--rhvoice", type=Path, metavar="PREFIX", help="where RHVoice is installed")
    prompts.set_defaults(action=_prompts)


def _codec_arguments(step: argparse.ArgumentParser) -> None:
    """Whose codes they are, for making them and for speaking with them."""
    source = step.add_mutually_exclusive_group()
    source.add_argument("--codec", type=Path, default=Path("runs/codec"), help="a run of `train codec`")
    source.add_argument("--model", help="the codec of a model instead: nano, a folder or a hub id")


def _part(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--part",
        type=Part.read,
        default=EVERYTHING,
        metavar="K/N",
        help="only the shards of job K of N, such as 2/8: N machines, one folder or folders that are copied together",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in ("data", "codes"):
        if hasattr(arguments, name) and getattr(arguments, "plan", None) is None:
            setattr(arguments, name, at_hand(getattr(arguments, name)))
    arguments.action(arguments)
    return 0


def _data(arguments: argparse.Namespace) -> None:
    from csm.training.corpus import synthesise
    from csm.training.sentences import wording

    excluded = frozenset(map(wording, asked()))  # what the evaluation asks for must stay unheard
    if arguments.natural:
        from csm.training.kokoro import synthesise_naturally
        from csm.training.sentences import training_sentences

        texts = training_sentences(random.Random(11), arguments.phrases, arguments.mixes)
        heard = [text for text in texts if wording(text) not in excluded]
        seeds = range(arguments.seed, arguments.seed + arguments.workers)
        for line in synthesise_naturally(
            arguments.out, arguments.natural, heard, seeds, arguments.shards, arguments.part
        ):
            say(line)
        return
    for line in synthesise(
        arguments.out,
        arguments.phrases,
        arguments.mixes,
        workers=arguments.workers,
        excluded=excluded,
        rhvoice=arguments.rhvoice,
        part=arguments.part,
    ):
        say(line)


def _codec(arguments: argparse.Namespace) -> Codec:
    from csm.training.export import model_codec, trained_codec

    return model_codec(arguments.model) if arguments.model else trained_codec(arguments.codec)


def _codes(arguments: argparse.Namespace) -> None:
    from csm.training.codes import encode_corpus
    from csm.training.corpus import Corpus

    device = "cuda" if torch.cuda.is_available() else "cpu"
    encode_corpus(Corpus(arguments.data), _codec(arguments), arguments.out, device, part=arguments.part)


def _pairs(arguments: argparse.Namespace) -> None:
    from csm.training.corpus import Corpus, load_engines
    from csm.training.dubbing import Dubber
    from csm.training.kokoro import Styles
    from csm.training.pairs import make_pairs

    speech, engines, codec = Corpus(arguments.data), load_engines(arguments.rhvoice), _codec(arguments)
    teacher, styles = Dubber(arguments.teacher), Styles(arguments.teacher)
    for line in make_pairs(speech, engines, teacher, styles, codec, arguments.out, arguments.seed, arguments.part):
        say(line)


def _curves(arguments: argparse.Namespace) -> None:
    from csm.training.curves import compare

    say("\n".join(compare(arguments.runs, arguments.out)))


def _average(arguments: argparse.Namespace) -> None:
    from csm.training.average import average

    average(arguments.models, arguments.shares, arguments.out)
    say(f"written: {arguments.out}, to use with --model {arguments.out}")


def _export(arguments: argparse.Namespace) -> None:
    from csm.training.export import export

    export(arguments.lm, _codec(arguments), arguments.out)
    say(f"written: {arguments.out}, to use with --model {arguments.out}")


def _prompts(arguments: argparse.Namespace) -> None:
    from csm.training.prompts import make_prompts

    make_prompts(arguments.out, arguments.rhvoice)
