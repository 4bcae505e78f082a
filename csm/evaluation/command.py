"""`python -m csm evaluate`: from its options to what is measured, and the figures to the terminal and into files."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from csm.errors import InputError
from csm.evaluation.context import Speech
from csm.evaluation.desk import Desk, ends_turns, never_ends
from csm.evaluation.evaluate import EvaluationSettings, evaluate, evaluate_codec, held_out_clips, table
from csm.evaluation.full import Sizes, full, lines, players, settings_of
from csm.evaluation.judges import Judges
from csm.evaluation.keeping import Store
from csm.evaluation.mixed import mixed, mixed_lines
from csm.evaluation.preference import pairs as preference_pairs
from csm.evaluation.preference.page import write_page
from csm.evaluation.preference.results import preference, read_results
from csm.evaluation.progress import Progress
from csm.evaluation.published.listed import listed, voices_of, write_manifest
from csm.evaluation.published.lists import read_list
from csm.evaluation.report.page import write_report
from csm.evaluation.unseen import measure_unseen, unseen_lines
from csm.listening import recogniser as recognisers
from csm.speech.generator import Generator
from csm.speech.loading import load
from csm.speech.voices import shipped_voices
from csm.training.held_out import SENTENCES
from csm.training.options import natural, positive

SIZES = Sizes()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="preset, folder or hub id (default: as everywhere)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--sentences", type=int, default=30, metavar="N", help=f"1 to {len(SENTENCES)} (default: 30)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the first sentence (default: %(default)s)")
    parser.add_argument("--temperature", type=float, help="default: the model's own")
    parser.add_argument("--topk", type=int, help="default: the model's own")
    parser.add_argument(
        "--context",
        action="store_true",
        help="also conversations of two and of three, turn by turn, and voices made new",
    )
    parser.add_argument("--codec", type=Path, metavar="RUN", help="judge a run of `train codec` alone, on N clips of")
    parser.add_argument("--data", type=Path, default=Path("runs/speech"), help="the speech it was trained on")
    parser.add_argument("--recogniser", choices=recognisers.ENGINES, help="default: the most accurate one installed")
    parser.add_argument("--install-recogniser", action="store_true", help="fetch moonshine-base with npm and stop")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="keep what was said and heard; --all, --mixed, --list and --cmos go on from it where they stopped",
    )
    parser.add_argument("--rhvoice", type=Path, metavar="PREFIX", help="where RHVoice is installed, for recordings")

    whole = parser.add_argument_group("every measure, and a report")
    whole.add_argument("--all", action="store_true", help="sentences, long conversations and pronunciation")
    whole.add_argument("--html", type=Path, metavar="FILE", help="write the report of --all as one page")
    for name, usual, what in (
        ("talks", SIZES.talks, f"conversations of {SIZES.turns} turns"),
        ("homographs", SIZES.homographs, "sentences that decide how a word is said"),
        ("continuations", SIZES.continuations, "turns that say a word again"),
    ):
        whole.add_argument(
            f"--{name}", type=natural, default=usual, metavar="N", help=f"{what}; 0: none (default: {usual})"
        )
    whole.add_argument(
        "--known",
        type=Path,
        metavar="FOLDER",
        help="Kokoro's weights and voices, to measure the judge of pronunciations on (default: eSpeak NG)",
    )

    people = parser.add_argument_group("what people prefer")
    people.add_argument(
        "--cmos", type=Path, metavar="FILE", help="write a page on which people compare context with none"
    )
    people.add_argument("--pairs", type=positive, default=12, metavar="N", help="pairs to compare (default: 12)")
    people.add_argument(
        "--cmos-read", type=Path, nargs="+", metavar="FILE", help="count the results that the page saved, or a folder's"
    )

    parser.add_argument(
        "--unseen",
        type=Path,
        metavar="FOLDER",
        help="voices that no training heard, made of Kokoro's weights in FOLDER: does the model follow them?",
    )

    others = parser.add_argument_group("written English")
    others.add_argument("--mixed", action="store_true", help="lines with amounts, dates and units against spelt words")
    others = parser.add_argument_group("published lists")
    others.add_argument("--list", type=Path, metavar="FILE", help="speak a list such as Seed-TTS-eval's meta.lst")
    others.add_argument("--most", type=positive, metavar="N", help="only its first N lines")


def run(arguments: argparse.Namespace) -> int:
    """Print tables and, as the last line, the figures as JSON. Raises `InputError`."""
    if arguments.install_recogniser:
        recognisers.install_base()
        return 0
    kinds = ("all", "cmos", "cmos_read", "mixed", "list", "codec", "unseen")
    modes = [name for name in kinds if getattr(arguments, name)]
    if len(modes) > 1:
        raise InputError(
            f"--{modes[0].replace('_', '-')} and --{modes[1].replace('_', '-')} are two things: ask for one."
        )
    if arguments.html and not arguments.all:
        raise InputError("--html is the report of --all: give both.")
    if arguments.cmos_read:
        return _told(_preference_lines(found := preference(read_results(arguments.cmos_read))), found)
    if not 1 <= arguments.sentences <= len(SENTENCES):
        raise InputError(f"There are {len(SENTENCES)} sentences: choose a number from 1 to {len(SENTENCES)}.")
    if arguments.list:
        return _list(arguments)
    if arguments.mixed:
        return _mixed(arguments)
    if arguments.cmos:
        return _cmos(arguments)
    if arguments.all:
        return _all(arguments)
    if arguments.unseen:
        return _unseen(arguments)
    judges = Judges.load(arguments.recogniser)
    if arguments.codec:
        from csm.training.export import trained_codec

        codec, clips = trained_codec(arguments.codec), held_out_clips(arguments.data, arguments.sentences)
        figures = evaluate_codec(codec, str(arguments.codec), clips, judges, arguments.out)
    else:
        settings = EvaluationSettings(
            seed=arguments.seed,
            out=arguments.out,
            rhvoice=arguments.rhvoice,
            temperature=arguments.temperature,
            topk=arguments.topk,
            context=arguments.context,
        )
        generator = load(arguments.model, arguments.device)
        figures = evaluate(generator, shipped_voices(), SENTENCES[: arguments.sentences], judges, settings)
    return _told(["", table(figures), ""], figures)


def _all(arguments: argparse.Namespace) -> int:
    folder = arguments.out
    if arguments.html:
        preference_pairs.check_target(arguments.html)
        folder = folder or arguments.html.with_name(f"{arguments.html.stem}-clips")
    judges = Judges.load(arguments.recogniser, _say)
    sizes = Sizes(
        sentences=arguments.sentences,
        talks=arguments.talks,
        homographs=arguments.homographs,
        continuations=arguments.continuations,
    )
    generator = load(arguments.model, arguments.device)
    figures, store = full(generator, shipped_voices(), judges, _speech(arguments), sizes, folder, arguments.known, _say)
    if arguments.html:
        write_report(arguments.html, figures, players(store), folder)
        _say(f"Written to {arguments.html}; its clips are in {folder}.")
    return _told([*lines(figures), ""], figures)


def _unseen(arguments: argparse.Namespace) -> int:
    judges = Judges.load(arguments.recogniser, _say)
    generator = load(arguments.model, arguments.device)
    sentences = SENTENCES[: arguments.sentences]
    figures = measure_unseen(
        generator, arguments.unseen, shipped_voices(), sentences, judges, _speech(arguments), arguments.out, _say
    )
    return _told(["", *unseen_lines(figures), ""], {"model": generator.model_name, **figures})


def _cmos(arguments: argparse.Namespace) -> int:
    preference_pairs.check_target(arguments.cmos)
    voices = shipped_voices()
    preference_pairs.check_count(arguments.pairs, list(voices))
    folder = arguments.out or arguments.cmos.with_name(f"{arguments.cmos.stem}-clips")
    nobody = Judges(None)
    generator, speech = load(arguments.model, arguments.device), _speech(arguments)
    talks = -(-arguments.pairs // len(preference_pairs.ASKED))
    desk = _desk(generator, voices, nobody, speech, folder, talks)
    made = preference_pairs.make_pairs(desk, arguments.pairs)
    study = write_page(arguments.cmos, made, generator.model_name)
    figures = {"model": generator.model_name, "study": study, "pairs": arguments.pairs, "tasks": len(made)}
    return _told(
        [f"Written to {arguments.cmos}: send it to people, and read what they save with --cmos-read.", ""], figures
    )


def _list(arguments: argparse.Namespace) -> int:
    items = read_list(arguments.list, arguments.most)
    voices = voices_of(items)
    judges = Judges.load(arguments.recogniser, _say)
    folder = arguments.out or Path("runs") / f"{arguments.list.stem}-clips"
    generator, speech = load(arguments.model, arguments.device), _speech(arguments)
    desk = _desk(generator, voices, judges, speech, folder, len(items))
    if not desk.ends:
        _say(f"Not measured: {never_ends(speech)}")
    figures, manifest = listed(desk, items)
    target = write_manifest(
        folder, generator.model_name, f"{arguments.list.parent.name or 'list'}_{arguments.list.stem}", manifest
    )
    told = [f"  {name.replace('_', ' '):<40}{value}" for name, value in figures.items()]
    return _told([*told, "", f"Written to {target}.", ""], {"model": generator.model_name, **figures})


def _mixed(arguments: argparse.Namespace) -> int:
    lines = mixed_lines()
    judges = Judges.load(arguments.recogniser, _say)
    generator, speech = load(arguments.model, arguments.device), _speech(arguments)
    figures = mixed(_desk(generator, shipped_voices(), judges, speech, arguments.out, 2 * len(lines)), lines)
    told = [f"  {name.replace('_', ' '):<40}{value}" for name, value in figures.items() if name != "read_otherwise"]
    told += [f"  read otherwise: {line}" for line in figures["read_otherwise"]]
    return _told([*told, ""], {"model": generator.model_name, **figures})


def _desk(
    generator: Generator, voices: dict[str, Any], judges: Judges, speech: Speech, folder: Path | None, steps: int
) -> Desk:
    voice = next(iter(voices.values()))
    store = Store(folder, settings_of(generator, voice, judges, speech))
    ends = store.once("ends", lambda: {"ends": ends_turns(generator, voice, speech)})["ends"]
    return Desk(generator, voices, judges, speech, store, Progress(steps), ends)


def _speech(arguments: argparse.Namespace) -> Speech:
    return EvaluationSettings(seed=arguments.seed, temperature=arguments.temperature, topk=arguments.topk).speech()


def _preference_lines(found: dict[str, Any]) -> list[str]:
    low, high = found["interval"]
    agreement = "-" if found["agreement"] is None else f"{found['agreement']:.2f}"
    return [
        f"{found['listeners']} listeners passed the checks, {found['inattentive']} did not; {found['pairs']} pairs",
        f"with context against without, -3 to 3: {found['mean']:+.2f} (95 % from {low:+.2f} to {high:+.2f})",
        f"{100 * found['prefer_context']:.0f} % of scores prefer context, {100 * found['prefer_without']:.0f} % none",
        f"agreement (Krippendorff's alpha): {agreement}",
        "",
    ]


def _told(text: list[str], figures: dict[str, Any]) -> int:
    print("\n".join([*text, json.dumps(figures)]))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
