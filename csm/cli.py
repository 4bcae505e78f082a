"""`csm`, or `python -m csm`: the command line. Every subcommand is a thin layer over the module that does the work.

Exit status: 0 done; 2 for input that can't be used, with one plain sentence on standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from csm.errors import InputError
from csm.extras import need

if TYPE_CHECKING:
    from csm.conversation.parsing import Line
    from csm.speech.voices import Voice
    from csm.utterance import Wording


DICTIONARY = "how words are said: a file of lines such as Łódź = woodge"


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, like all others of the program."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message[:1].upper()}{message[1:]}; see {self.prog} --help.\n")


def _pairs(values: list[str], option: str) -> dict[str, str]:
    """`A=x B=y` as a dictionary. Raises `InputError` for anything else."""
    pairs = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (name.strip() and equals and rest.strip()):
            raise InputError(f"{option} {value} can't be read: write it as {option} A=something.")
        pairs[name.strip()] = rest.strip()
    return pairs


def _read_script(source: str, as_it_stands: bool) -> list[Line]:
    """The turns of a script file, or of standard input; what was assumed of it is said on standard error."""
    from csm.conversation.parsing import read_script
    from csm.conversation.scripts.decoding import decoded

    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"The script {source} can't be read: {error.strerror}.") from error
    script = decoded(data, "The script" if source == "-" else f"The script {source}")
    reading = read_script(script.text, as_it_stands)
    for note in (script.note, reading.told if reading.guessed else ""):
        if note:
            print(note, file=sys.stderr)
    return reading.lines


def _wording(arguments: argparse.Namespace) -> Wording:
    """How texts are to be worded."""
    from csm.conversation.scripts.decoding import decoded
    from csm.utterance import Dictionary, Wording

    if not arguments.dictionary:
        return Wording(spelled_out=arguments.spoken)
    try:
        data = Path(arguments.dictionary).read_bytes()
    except OSError as error:
        raise InputError(f"The dictionary {arguments.dictionary} can't be read: {error.strerror}.") from error
    name = f"the dictionary {arguments.dictionary}"
    return Wording(Dictionary.read(decoded(data, name).text, name), arguments.spoken)


def _check_target(path: str, what: str) -> None:
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise InputError(f"The folder {folder} for the {what} does not exist: make it first.")
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; give a file name for the {what}.")


def _generate(arguments: argparse.Namespace) -> int:
    from csm.conversation.parsing import speakers
    from csm.speech.voices import find_voice, voices_for

    lines = _read_script(arguments.script, arguments.as_it_stands)
    transcripts = _pairs(arguments.transcript, "--transcript")
    given = _pairs(arguments.voice, "--voice")
    chosen = {who: find_voice(voice, transcripts.get(who)) for who, voice in given.items()}
    voices = voices_for(speakers(lines), chosen)
    free = [f"{who}={voice.name}" for who, voice in voices.items() if who not in chosen]
    notice = f"With the shipped voices {', '.join(free)}; --voice chooses others." if free else ""
    _speak(arguments, lines, voices, notice)
    return 0


def _say(arguments: argparse.Namespace) -> int:
    from csm.audio import play_audio
    from csm.conversation.parsing import Line
    from csm.speech.voices import find_voice, voices_for

    text = " ".join(" ".join(arguments.text).split())
    if not any(character.isalnum() for character in text):
        raise InputError('There is nothing to say: write a sentence, as in `csm say "Good morning."`.')
    chosen = {"A": find_voice(arguments.voice, arguments.transcript)} if arguments.voice else {}
    _speak(arguments, [Line("A", text, 1)], voices_for(["A"], chosen))
    print(f"Written to {arguments.out}.", file=sys.stderr)
    if sys.stdout.isatty():
        play_audio(arguments.out)
    return 0


def _speak(arguments: argparse.Namespace, lines: list[Line], voices: dict[str, Voice], notice: str = "") -> None:
    """Speak `lines` into the files that `arguments` name, and say `notice` once all is checked."""
    from csm import load
    from csm.audio import check_output, write_audio
    from csm.conversation import exports
    from csm.conversation.events import Performed, TurnFinished
    from csm.conversation.project import check_project, save_project
    from csm.conversation.session import Session
    from csm.conversation.studio import Job, Studio
    from csm.settings import ABOUT, Settings

    check_output(arguments.out)
    for wanted, check in (
        (arguments.project, check_project),
        (arguments.stems, exports.check_folder),
        (arguments.subtitles, exports.check_subtitles),
    ):
        if wanted:
            check(wanted)
    if arguments.json and arguments.json != "-":
        _check_target(arguments.json, "report")
    settings, wording = Settings(**{name: getattr(arguments, name) for name in ABOUT}), _wording(arguments)
    generator = load(arguments.model, arguments.device, adapter=arguments.adapter, weights=arguments.weights)
    generator.check_lines(((f"Line {line.number}", line.text) for line in lines), wording)
    session = Session(lines, voices, settings, wording)

    studio = Studio(generator)
    studio.judges.listen()
    for event in studio.perform(Job(session, live=False)):
        if notice:
            print(notice, file=sys.stderr)
            notice = ""
        if isinstance(event, TurnFinished):
            turn = event.turn
            why = f" {turn.reason}" if settings.takes > 1 or turn.again else ""
            print(
                f"{event.index + 1}/{event.total} {turn.speaker}: {turn.text} "
                f"[{turn.end - turn.start:.2f} s, {turn.state}]{why}",
                file=sys.stderr,
            )
        if isinstance(event, Performed):
            if not len(event.audio):
                raise InputError("No turn of the script gave any sound; try another seed.")
            write_audio(arguments.out, event.audio)
            if arguments.stems:
                exports.write_stems(arguments.stems, event.audio, session.spans())
            if arguments.subtitles:
                exports.write_subtitles(arguments.subtitles, session.spans(), event.audio)
            if arguments.project:
                save_project(arguments.project, session)
            report = json.dumps(event.report, indent=2, ensure_ascii=False)
            if arguments.json == "-":
                print(report)
            elif arguments.json:
                Path(arguments.json).write_text(report + "\n", encoding="utf-8")
            for told in ("notice", "warning"):
                if told in event.report:
                    print(event.report[told], file=sys.stderr)


def _words(arguments: argparse.Namespace) -> int:
    from csm.text import ByteTokenizer
    from csm.utterance import parts

    wording = _wording(arguments)
    for number, line in enumerate(arguments.text or sys.stdin, 1):
        try:
            read = [ByteTokenizer.normalise(part.text) for part in parts(line.rstrip("\r\n"), wording) if part.text]
            print(" ".join(read), flush=True)
        except InputError as error:
            raise InputError(f"Line {number}: {error}") from error
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    need("web", "The app", "gradio", "spaces")
    if arguments.cluster:
        return _serve_cluster(arguments)

    from csm import load
    from csm.web.cluster.options import ClusterOptions
    from csm.web.server import serve

    grace = ClusterOptions.read({"grace": arguments.grace}).grace
    generator = load(arguments.model, arguments.device, adapter=arguments.adapter, weights=arguments.weights)
    try:
        serve(generator, arguments.host, arguments.port, grace)
    except OSError as error:
        raise InputError(f"{error} Choose another with --port.") from error
    return 0


def _serve_cluster(arguments: argparse.Namespace) -> int:
    need("cluster", "A cluster", "ray")

    from csm.web.cluster.options import ClusterOptions

    names = ("replicas", "cores", "share", "grace", "model", "device", "adapter", "weights", "host")
    options = ClusterOptions.read({name: getattr(arguments, name) for name in names})

    from csm.web.cluster.serving import run

    try:
        run(options, arguments.port, lambda news: print(news, file=sys.stderr, flush=True))
    except OSError as error:
        raise InputError(f"{error} Choose another with --port.") from error
    return 0


def _wyoming(arguments: argparse.Namespace) -> int:
    need("web", "The bridge", "gradio", "websockets")
    need("wyoming", "The bridge", "wyoming")

    import asyncio
    from contextlib import suppress

    from csm.config import Environment
    from csm.web.wyoming import bridge

    with suppress(KeyboardInterrupt):
        asyncio.run(bridge(arguments.uri, arguments.url, arguments.voice, Environment.read().api_key))
    return 0


def _voices(arguments: argparse.Namespace) -> int:
    from csm.checkpoint import HUB_MODEL
    from csm.config import Environment
    from csm.speech.voices import official_voices, shipped_voices

    environment = Environment.read()
    published = (arguments.model or environment.model) in ("tiny", HUB_MODEL, *environment.fallback)
    voices = [*shipped_voices().values(), *(official_voices().values() if published else ())]
    width = max(len(voice.name) for voice in voices)
    for voice in voices:
        print(f"{voice.name:<{width}}  {voice.description} ({voice.licence}): {voice.transcript}")
    return 0


def _watermark_check(arguments: argparse.Namespace) -> int:
    from csm.audio import load_audio
    from csm.watermark import detect

    found = detect(load_audio(arguments.file))
    print(f"{'yes' if found.marked else 'no'} (confidence {found.confidence:.2f})")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from csm.checkpoint import describe
    from csm.config import Environment

    environment = Environment.read()
    print("\n".join(describe(arguments.model or environment.model or "nano", environment.token).lines()))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    import torch

    from csm.checkpoint import convert
    from csm.config import Environment

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    token, target = Environment.read().token, Path(arguments.target)
    written = convert(arguments.source, target, arguments.layout, dtype, token, arguments.weights)
    for name, size in written.files.items():
        print(f"{arguments.target}/{name}  {size / 1e9:.2f} GB")
    return 0


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="nano, a folder with weights, or a hub id (default: CSM_MODEL, else nano)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--adapter", metavar="FOLDER", help="a PEFT adapter to merge, a folder or a hub id")
    parser.add_argument("--weights", help="float32, bfloat16, or on a CPU float16, int8 or int4 (default: CSM_WEIGHTS)")


def _speaking_options(parser: argparse.ArgumentParser) -> None:
    """How speech is made, and what else is written of it."""
    from csm.settings import ABOUT, USUAL

    for name, about in ABOUT.items():
        usual = getattr(USUAL, name)
        told = "the model's own" if usual is None else f"{usual:g}"
        help, kind = f"{about.help} (default: {told})", int if about.whole else float
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=usual, metavar="N", help=help)
    parser.add_argument("--dictionary", metavar="FILE", help=DICTIONARY)
    parser.add_argument(
        "--spoken",
        action="store_true",
        help="give published models figures and abbreviations in words, too, as nano always reads them",
    )
    parser.add_argument("--stems", metavar="FOLDER", help="also write a sound file for each speaker, silent elsewhere")
    parser.add_argument("--subtitles", metavar="FILE", help="also write subtitles: .srt or .vtt")
    parser.add_argument(
        "--project", metavar="FILE.csm", help="also save script, voices, takes and codes, to go on with"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report here, - for standard output")
    _model_options(parser)


def _parser() -> argparse.ArgumentParser:
    from csm import bench
    from csm.evaluation import command as evaluate
    from csm.training import commands as training

    parser = _Parser(prog="csm", description="Conversational speech from a script.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="speak a script", description="Speak a script into a file.")
    generate.add_argument("--script", required=True, help="a file in any common format, or - for standard input")
    generate.add_argument(
        "--as-it-stands",
        action="store_true",
        help="speak every line as it is written: no format is recognised, and nothing in brackets left out",
    )
    generate.add_argument(
        "--voice",
        action="append",
        default=[],
        metavar="A=NAME",
        help="a shipped voice or a sound file, once a speaker (default: the shipped ones in order)",
    )
    generate.add_argument(
        "--transcript",
        action="append",
        default=[],
        metavar="A=TEXT",
        help="what is said in speaker A's sound file (or put it in a .txt file beside it)",
    )
    generate.add_argument("--out", required=True, help="the sound file to write: .wav, .flac, .mp3 or .ogg")
    _speaking_options(generate)
    generate.set_defaults(run=_generate)

    say = commands.add_parser("say", help="speak one line", description="Speak one line into a file, and play it.")
    say.add_argument("text", nargs="+", help="what to say")
    say.add_argument("--voice", metavar="NAME", help="a shipped voice or a sound file (default: the first shipped one)")
    say.add_argument("--transcript", metavar="TEXT", help="what is said in that sound file")
    say.add_argument("--out", default="speech.wav", help="the sound file to write (default speech.wav)")
    _speaking_options(say)
    say.set_defaults(run=_say)

    words = commands.add_parser(
        "words",
        help="print the words that are read",
        description="Print, line for line, the words that the embedded model reads.",
    )
    words.add_argument("text", nargs="*", help="a line each (default: the lines of standard input)")
    words.add_argument("--dictionary", metavar="FILE", help=DICTIONARY)
    words.set_defaults(run=_words, spoken=False)

    serve = commands.add_parser("serve", help="start the app", description="Serve the page and the API.")
    serve.add_argument("--host", help="the address to listen at (default: GRADIO_SERVER_NAME, else 127.0.0.1)")
    serve.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, else 7860")
    serve.add_argument("--cluster", action="store_true", help="several replicas behind one address, with Ray Serve")
    serve.add_argument("--replicas", default="1", metavar="N", help="of --cluster: 2, or 1-4 to scale by itself")
    serve.add_argument("--cores", metavar="N", help="of --cluster: CPU cores of each replica (default: all, shared)")
    serve.add_argument("--share", default="1", metavar="N", help="of --cluster: replicas on one GPU (default: 1)")
    serve.add_argument(
        "--grace", default="30", metavar="SECONDS", help="what runs may end when it is stopped (default: %(default)s)"
    )
    _model_options(serve)
    serve.set_defaults(run=_serve)

    wyoming = commands.add_parser(
        "wyoming",
        help="let Home Assistant speak through a running app",
        description="Speak Wyoming, Home Assistant's protocol, for an app that runs.",
    )
    wyoming.add_argument("--uri", default="tcp://127.0.0.1:10200", help="where to listen (default: %(default)s)")
    wyoming.add_argument("--url", default="http://127.0.0.1:7860/v1", help="the app's /v1 (default: %(default)s)")
    wyoming.add_argument("--voice", default="nova", help="for those who name none (default: %(default)s)")
    wyoming.set_defaults(run=_wyoming)

    voices = commands.add_parser("voices", help="list the voices that ship, and those published with a model")
    voices.add_argument("--model", help="sesame/csm-1b also has the six voices that were published with it")
    voices.set_defaults(run=_voices)

    mark = commands.add_parser("watermark", help="look for the watermark in a file")
    actions = mark.add_subparsers(dest="action", required=True, metavar="check")
    check = actions.add_parser("check", help="say whether FILE carries the watermark")
    check.add_argument("file")
    check.set_defaults(run=_watermark_check)

    info = commands.add_parser("info", help="print a model's layout, sizes, memory needed and licence")
    info.add_argument("model", nargs="?", help="a preset, a folder, a weight file or a hub id (default nano)")
    info.set_defaults(run=_info)

    convert = commands.add_parser(
        "convert",
        help="write a published model in its other layout or precision, or any model packed",
        description="Write a published model in either layout, or any model's weights packed, as a new folder.",
    )
    convert.add_argument("source", metavar="SRC", help="a folder, a weight file or a hub id")
    convert.add_argument("target", metavar="DST", help="the folder to make")
    convert.add_argument("--layout", choices=["original", "transformers"])
    convert.add_argument("--dtype", choices=["float32", "bfloat16"], help="the language model's (default: as it is)")
    convert.add_argument("--weights", choices=["int4"], help="instead of a layout: packed, for this program on a CPU")
    convert.set_defaults(run=_convert)

    for name, module, text in (
        ("bench", bench, "measure speed on this machine"),
        ("evaluate", evaluate, "measure what the speech is worth"),
        ("train", training, "make speech, train codec and language model"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
