"""What the page and the Gradio client call: requests checked and turned into jobs, before any model runs."""

from __future__ import annotations

import inspect
import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from gradio.utils import get_upload_folder

from csm.audio import inspect_audio, load_audio, write_audio
from csm.conversation.events import Event, Performed
from csm.conversation.parsing import Line, read_script, speakers
from csm.conversation.session import Session
from csm.conversation.studio import LEFT, Job
from csm.errors import InputError
from csm.limits import LONGEST_SPEECH, check_script, check_speech, check_turns
from csm.listening.prompt import LazyEars, check_prompt, write_down
from csm.settings import ABOUT, USUAL, Settings
from csm.speech.generator import Generator
from csm.speech.voices import LONGEST, Voice, fetched, find_voice, load_prompt, shipped_voices
from csm.utterance import PLAIN, Dictionary, Wording
from csm.watermark import detect
from csm.web.asked import FAILED, asker
from csm.web.examples import EXAMPLE_SCRIPT
from csm.web.listeners import listener

SLOTS = ("A", "B")
RANDOM_SEED = -1
LONGEST_LISTENED = 120.0  # seconds of a recording that are listened to
LONGEST_CHECKED = 600.0  # seconds of a file that is checked for the mark
logger = logging.getLogger(__name__)


class MisplacedError(InputError):
    """Input that can't be used, and `place`, where the user gave it: `script`, `A`, `B` or `settings`."""

    def __init__(self, sentence: str, place: str, code: str = "") -> None:
        super().__init__(sentence, code)
        self.place = place


@dataclass(frozen=True)
class Choice:
    """The voice chosen for A or B: a recording with its transcript, or else the name of an offered voice."""

    name: str | None
    recording: str | None = None
    transcript: str | None = None
    own: bool = False

    def voice(self, offered: dict[str, Voice]) -> Voice:
        """The voice, its recording fetched and checked. Raises `InputError`."""
        if self.own and not self.recording:
            raise InputError("There is no recording yet; upload or record one, or choose a shipped voice.")
        if self.recording:
            if not (self.transcript or "").strip():
                raise InputError("The transcript is missing; write exactly what is said in the recording.")
            voice = find_voice(self.recording, self.transcript)
            load_prompt(voice)
            return voice
        if self.name not in offered:  # find_voice would also take a path, and clients have no business with those
            raise InputError(f"There is no voice called “{self.name}”; choose one of {', '.join(offered)}.")
        return fetched(offered[self.name])


@contextmanager
def _given_at(place: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise MisplacedError(str(error), place, error.code) from error


def default_voices() -> tuple[str, str]:
    """Names of the voices for A and B at first: a woman's and a man's where the library has both."""
    voices = list(shipped_voices().values())

    def first(pattern: str, other_than: str = "") -> str:
        named = [voice.name for voice in voices if voice.name != other_than]
        fits = [v.name for v in voices if v.name in named and re.search(pattern, v.description.lower())]
        return (fits or named or [other_than])[0]

    woman = first(r"\b(woman|female)\b")
    return woman, first(r"\b(man|male)\b", other_than=woman)


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Checked settings; a seed of -1 or None draws one. Raises `MisplacedError`."""
    seed = given.get("seed", USUAL.seed)
    drawn = {"seed": secrets.randbelow(2**31)} if seed in (None, RANDOM_SEED) else {}
    with _given_at("settings"):
        return Settings.read({**given, **drawn})


def cast(lines: list[Line], choices: dict[str, Choice], offered: dict[str, Voice] | None = None) -> dict[str, Voice]:
    """Speaker label -> voice, of those `offered` (the shipped ones if not given) or of the speaker's own.

    Speakers called A and B have the voices A and B. Other names take those that are left, in order of their
    first turn, then shipped voices that nobody has. Raises `InputError` for a voice that can't be used and for
    more speakers than voices.
    """
    labels = speakers(lines)
    slots = {label: label for label in labels if label in SLOTS}
    for label in labels:
        free = [slot for slot in SLOTS if slot not in slots.values()]
        if label not in slots and free:
            slots[label] = free[0]
    voices: dict[str, Voice] = {}
    for label, slot in slots.items():
        with _given_at(slot):
            voices[label] = choices[slot].voice(offered or shipped_voices())
    taken = {voice.name for voice in voices.values()}
    spare = [voice for name, voice in shipped_voices().items() if name not in taken]
    for label in labels:
        if label not in voices:
            if not spare:
                raise MisplacedError(
                    f"Speaker “{label}” has no voice; this script has {len(labels)} speakers and there are voices for "
                    f"{len(voices)}, so give the turns of “{label}” to someone else.",
                    "script",
                )
            voices[label] = spare.pop(0)
    return voices


def plan(
    script: str | None,
    choices: dict[str, Choice],
    settings: Settings,
    folder: Path,
    generator: Generator,
    who: str = "",
    wording: Wording = PLAIN,
) -> tuple[Job, str]:
    """A request -> a job, and what was understood of a script that may mean otherwise. Raises `MisplacedError`."""
    with _given_at("script"):
        check_script(script or "")
        understood = read_script(script or "")
        lines = understood.lines
        check_turns([line.text for line in lines])
        generator.check_lines(((f"Line {line.number}", line.text) for line in lines), wording)
    session = Session(lines, cast(lines, choices, generator.voices()), settings, wording)
    job = Job(session, folder, live=False, who=who, most_seconds=LONGEST_SPEECH)
    with _given_at("script"):
        check_speech(job.speech_seconds)
    return job, understood.told if understood.guessed else ""


def read_wording(dictionary: str | None, spelled_out: bool | None) -> Wording:
    """From what somebody typed or sent. Raises `MisplacedError`."""
    with _given_at("settings"):
        return Wording(Dictionary.read(dictionary or ""), spelled_out is True)


def new_folder() -> Path:
    """A folder that no other request uses, where Gradio serves files from and cleans up after an hour."""
    root = Path(get_upload_folder())
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="csm-", dir=root))


@contextmanager
def _told_to_the_client() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        logger.exception("A function for programs failed.")
        raise gr.Error(FAILED, print_exception=False) from error


def _listened_to(recording: str | None) -> float:
    """Seconds of an uploaded recording. Raises `InputError`."""
    if not recording:
        raise InputError("There is no recording; give an audio file.")
    return inspect_audio(recording).seconds


def _in_order() -> dict[str, str]:
    """What `/generate` takes, in its order, which programs rely on: settings that came later stand behind the rest."""
    settings = {name: f"{about.help}; {about.range}" for name, about in ABOUT.items()}
    settings["seed"] += f"; {RANDOM_SEED} draws one, which the report names"
    first = ("seed", "temperature", "topk", "max_turn_seconds")
    return {
        "script": 'one turn a line, "A: text" or "Name: text"; bare lines alternate between the speakers.',
        "voice_a": "an offered voice for speaker A, or for the first name of the script; `/voices` lists them.",
        "voice_b": "an offered voice for speaker B, or for the second name.",
        **{name: settings[name] for name in first},
        "prompt_a": "a recording of a voice of your own for speaker A, instead of `voice_a`.",
        "transcript_a": "exactly what is said in `prompt_a`.",
        "prompt_b": "a recording for speaker B, instead of `voice_b`.",
        "transcript_b": "exactly what is said in `prompt_b`.",
        **{name: told for name, told in settings.items() if name not in first},
        "dictionary": "how words are said, one a line, such as Łódź = woodge.",
        "spoken": "true gives published models figures and abbreviations in words, as nano always reads them.",
    }


GENERATE = _in_order()
# What may be left out, though its field is empty, and whatever stands behind it.
OPTIONAL: dict[str, Any] = {"prompt_a": None, "transcript_a": "", "prompt_b": None, "transcript_b": ""}
OPTIONAL |= {
    name: getattr(USUAL, name) for name in ABOUT if list(GENERATE).index(name) > list(GENERATE).index("prompt_a")
}
OPTIONAL |= {"dictionary": "", "spoken": False}


def _named(work: Callable[..., Any], parameters: dict[str, str]) -> Callable[..., Any]:
    """`work` as a function of these parameters, whose names and meanings Gradio tells clients and assistants."""

    def called(*given: Any) -> Any:
        return work(**dict(zip(parameters, given)))

    kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    named = [inspect.Parameter(name, kind, default=OPTIONAL.get(name, none)) for name in parameters]
    called.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    about = "\n".join(f"    {name}: {told}" for name, told in parameters.items())
    called.__doc__ = f"{(work.__doc__ or '').partition(';')[0]}.\n\nArgs:\n{about}\n"
    called.__name__ = work.__name__
    return called


@dataclass(frozen=True)
class Endpoints:
    """The named functions of the API page. Shares the model's weights between users, and nothing else."""

    generator: Generator
    perform: Callable[[Job], Iterator[Event]]
    ears: LazyEars = field(default_factory=LazyEars)

    def generate(self, **given: Any) -> tuple[str, dict[str, Any]]:
        """Speak a script as a conversation; `GENERATE` says what may be `given`.

        Returns the watermarked conversation as a wav file, and the report that `--json` writes on the command line.
        """
        with _told_to_the_client():
            choices = {
                slot: Choice(given[f"voice_{letter}"], given[f"prompt_{letter}"], given[f"transcript_{letter}"])
                for slot, letter in zip(SLOTS, "ab")
            }
            waits, request = listener(), LocalContext.request.get(None)
            folder = new_folder()
            try:
                who = asker(request) if request is not None else ""
                wording = read_wording(given["dictionary"], given["spoken"])
                settings = read_settings(given)
                job, understood = plan(given["script"], choices, settings, folder, self.generator, who, wording)
                told = {"understood": understood} if understood else {}
                with waits.when_gone(job.stop), closing(self.perform(job)) as events:  # type: ignore[type-var]
                    for event in events:
                        if isinstance(event, Performed) and len(event.audio) and not waits.gone():
                            write_audio(path := folder / "conversation.wav", event.audio)
                            return str(path), event.report | told
                raise InputError(LEFT if waits.gone() else "No turn of the script gave any sound; try another seed.")
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def voices(self) -> list[dict[str, str]]:
        """The voices on offer: name, description, transcript, licence and origin of each."""
        return [
            {
                "name": voice.name,
                "description": voice.description,
                "transcript": voice.transcript,
                "licence": voice.licence,
                "origin": voice.origin,
            }
            for voice in self.generator.voices().values()
        ]

    def transcribe(self, recording: str) -> str:
        """Write down what is said in a recording of one person, offline, to be corrected by hand.

        Args:
            recording: a sound file in any common format, of at most 30 seconds.
        """
        with _told_to_the_client():
            seconds = _listened_to(recording)
            if seconds > LONGEST + 0.05:
                raise InputError(f"The recording is {seconds:.0f} s long; cut it to {LONGEST:.0f} s at most.")
            return write_down(load_audio(recording, LONGEST), self.ears.get())

    def check_prompt(self, recording: str, transcript: str = "") -> dict[str, Any]:
        """Say plainly what is wrong with a recording as a voice: too long, clipped, noisy, two speakers, other words.

        Args:
            recording: a sound file in any common format; its first two minutes are listened to.
            transcript: exactly what is said in it; left empty, it is not compared.

        Returns:
            `usable`, the `findings` with their `kind`, a `sentence` each and whether it is `refused` for that, and in
            `missing` what can't be told on this server.
        """
        with _told_to_the_client():
            _listened_to(recording)
            ears, wave = self.ears.get(), load_audio(recording, LONGEST_LISTENED)
            found = check_prompt(wave, transcript or "", ears.recogniser, ears.speakers, ears.speech)
        usable = not any(finding.refused for finding in found)
        return {"usable": usable, "findings": [asdict(finding) for finding in found], "missing": ears.missing}

    def check_watermark(self, audio: str) -> dict[str, Any]:
        """Whether a sound file carries this program's watermark, with the confidence from 0 to 1.

        Args:
            audio: a sound file in any common format.
        """
        with _told_to_the_client():
            if not audio:
                raise InputError("There is no sound to check; give an audio file.")
            seconds = inspect_audio(audio).seconds
            if seconds > LONGEST_CHECKED:
                raise InputError(f"The file lasts {seconds / 60:.0f} minutes and at most 10 are listened to: cut it.")
            found = detect(load_audio(audio, LONGEST_CHECKED), listener().gone)
        return {"marked": found.marked, "confidence": found.confidence}

    def declare(self) -> None:
        """Name the functions for clients inside the `gr.Blocks` being built.

        Hidden components, not `gr.api`: they check that a file was really uploaded and serve the one returned.
        """
        woman, man = default_voices()
        usual = USUAL.filled(self.generator.config)
        with gr.Row(visible=False):
            fields: dict[str, gr.components.Component] = {
                "script": gr.Textbox(EXAMPLE_SCRIPT, label="Script", lines=4),
                "voice_a": gr.Textbox(woman, label="Voice of A"),
                "voice_b": gr.Textbox(man, label="Voice of B"),
                "prompt_a": gr.Audio(label="Recording for A", type="filepath"),
                "transcript_a": gr.Textbox("", label="Transcript for A"),
                "prompt_b": gr.Audio(label="Recording for B", type="filepath"),
                "transcript_b": gr.Textbox("", label="Transcript for B"),
            }
            for name, about in ABOUT.items():
                precision = 0 if about.whole else None
                fields[name] = gr.Number(getattr(usual, name), label=about.label, precision=precision)
            fields["dictionary"] = gr.Textbox("", label="Pronunciation", lines=2)
            fields["spoken"] = gr.Checkbox(False, label="Figures in words")
            inputs = [fields[name] for name in GENERATE]
            conversation = gr.Audio(label="Conversation", type="filepath")
            report = gr.JSON(label="Report")
            gr.Button("Generate").click(
                _named(self.generate, GENERATE),
                inputs,
                [conversation, report],
                api_name="generate",
                concurrency_limit=None,  # the studio's queue is the only one
            )
            gr.Button("Voices").click(self.voices, None, gr.JSON(label="Voices"), api_name="voices")
            gr.Button("Check").click(
                self.check_watermark,
                gr.Audio(label="Sound", type="filepath"),
                gr.JSON(label="Watermark"),
                api_name="check_watermark",
            )
            recording = gr.Audio(label="Recording", type="filepath")
            gr.Button("Transcribe").click(
                self.transcribe,
                recording,
                gr.Textbox(label="Words"),
                api_name="transcribe",
                concurrency_limit=2,
            )
            gr.Button("Check a prompt").click(
                self.check_prompt,
                [recording, gr.Textbox("", label="Transcript")],
                gr.JSON(label="Findings"),
                api_name="check_prompt",
                concurrency_limit=2,
            )
