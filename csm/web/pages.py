"""What the server keeps for each open page: its session, the voices of its own, the files that it plays and saves.

Nothing is shared between pages but the model. A page is known by a token that only it knows; pages that nobody has
used for long are forgotten, and those at rest keep no KV cache.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csm.audio import write_audio
from csm.conversation import exports
from csm.conversation.events import Event, TurnFinished, TurnReport
from csm.conversation.parsing import Line, Reading, read_script
from csm.conversation.positions import PromptLengths
from csm.conversation.project import SUFFIX, open_project, save_project
from csm.conversation.script import BUSY
from csm.conversation.session import Session
from csm.conversation.studio import Job, Studio
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.recent import Recent
from csm.settings import USUAL, Settings
from csm.speech.generator import Generator
from csm.speech.voices import Voice, fetched
from csm.web.casting import Casting
from csm.web.endpoints import RANDOM_SEED, MisplacedError, read_settings
from csm.web.examples import Kept, Remembered

TOKEN = re.compile(r"[0-9a-f]{32}")
FORGOTTEN_AFTER = 3_600.0  # seconds without a call
MOST_PAGES = 256
MOST_AWAKE = 8  # pages that keep a KV cache
OF_PROJECT = " (project)"
MOST_DRAWN, BYTES_OF_BARS = 1 << 15, 512  # pictures of sounds that are remembered, and what one takes

SAVED = {
    "wav": "conversation.wav",
    "mp3": "conversation.mp3",
    "flac": "conversation.flac",
    "stems": "stems.zip",
    "srt": "conversation.srt",
    "vtt": "conversation.vtt",
    "zip": "conversation.zip",
    "csm": f"conversation{SUFFIX}",
}


@dataclass(frozen=True)
class Form:
    """What stands in the page's fields. `voices` names a voice by speaker; without a `seed` one is drawn.

    `as_it_stands`: the script is to be spoken as it is written, whatever it looks like.
    """

    script: str
    voices: dict[str, str]
    settings: Settings
    drawn: bool
    as_it_stands: bool = False

    @classmethod
    def read(cls, data: Any) -> Form:
        """From the JSON of a request. Raises `MisplacedError`."""
        data = data if isinstance(data, dict) else {}
        given, voices = data.get("settings"), data.get("voices")
        given = given if isinstance(given, dict) else {}
        voices = voices if isinstance(voices, dict) else {}
        seed = given.get("seed", USUAL.seed)
        settings = read_settings(given)
        script = data.get("script")
        chosen = {str(speaker): str(name) for speaker, name in voices.items()}
        text, drawn = script if isinstance(script, str) else "", seed in (None, RANDOM_SEED)
        return cls(text, chosen, settings, drawn, data.get("as_it_stands") is True)


@dataclass
class Page:
    """One open page. `lock` is held by whoever changes it; while a `job` is spoken nothing else changes it."""

    pages: Pages
    folder: Path
    session: Session | None = None
    own: dict[str, Voice] = field(default_factory=dict)
    kept: dict[str, Voice] = field(default_factory=dict)
    casting: Casting = field(default_factory=Casting)
    reading: Reading | None = None
    job: Job | None = None
    used: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)
    _marked: tuple[str, Tensor] = ("", torch.zeros(0))
    _example: str = ""
    _happened: list[Event] = field(default_factory=list)

    @property
    def generator(self) -> Generator:
        return self.studio.generator

    @property
    def studio(self) -> Studio:
        return self.pages.studio

    def offered(self) -> dict[str, Voice]:
        """The voices to choose from, by the name shown."""
        return {**self.generator.voices(), **self.kept, **self.own}

    # The form and the session

    def follow(self, form: Form) -> Session:
        """Bring the session to what stands in the form; turns that say the same keep their takes. Raises
        `MisplacedError`, and `InputError` while it is being spoken."""
        with self.lock:
            if self.job is not None:
                raise InputError(BUSY, "busy")
            with placed("script"):
                self.reading = read_script(form.script, form.as_it_stands)
                lines = self.reading.lines
                if self.session is None:
                    self.session = Session(lines, {}, form.settings)
                before, names = [(turn.speaker, turn.text) for turn in self.session.turns], self.voice_names()
                _follow(self.session, lines)
            session = self.session
            self.casting.follow(before, lines, names)
            seed = session.settings.seed if form.drawn else form.settings.seed
            session.settings = replace(form.settings, seed=seed)
            self._cast(session, form.voices)
            return session

    def speak(self, form: Form, index: int | None, again: bool) -> Job:
        """A checked job. Raises `MisplacedError` for what can't be spoken."""
        with self.lock:
            session = self.follow(form)
            if form.drawn and not again and not index:
                session.settings = replace(session.settings, seed=form.settings.seed)
            for speaker in session.speakers:
                with placed(f"voice:{speaker}"):
                    voice = fetched(session.voices[speaker])
                    if voice.codes_for(self.generator.codec_key) is None:
                        PromptLengths().frames(voice)
            for number, turn in enumerate(session.turns):
                with placed(f"turn:{number}"):
                    self.generator.turn_rows(turn.text, session.slots[turn.speaker])
            return Job(session, Path(tempfile.mkdtemp(prefix="job-", dir=self.folder)), index or 0, again)

    def begin(self, job: Job) -> Iterator[Event | Kept]:
        """What happens while the job waits and is spoken; tell each of it to `happened`, and `end` it at last. Raises
        `InputError` while another is spoken."""
        with self.lock:
            if self.job is not None:
                raise InputError(BUSY, "busy")
            self.job, self._example, self._happened = job, self.pages.remembered.name(job), []
        kept = self.pages.remembered.again(job, self._example)
        if kept is None:
            return self.studio.perform(job)
        self._example = ""
        return kept

    def happened(self, event: Event | Kept) -> None:
        """One step of the job at hand."""
        if self._example and not isinstance(event, Kept):
            self._happened.append(event)

    def end(self, job: Job) -> None:
        """The job is over, however it ended."""
        if self.job is job:
            self.pages.remembered.keep(self._example, self._happened)
            self.job, self._example, self._happened = None, "", []

    def halt(self) -> None:
        """Let the job end at its next frame."""
        if (job := self.job) is not None:
            job.stop()

    def keep(self, voices: dict[str, Voice]) -> None:
        """The voices of its own that this page offers now; their recordings are copied."""
        with self.lock:
            known = {voice.path.name: voice for voice in self.kept.values()}
            self.kept = {}
            for name, voice in voices.items():
                place = self.folder / f"own-{voice.path.name}"
                if place.name not in known and voice.path.exists():
                    shutil.copyfile(voice.path, place)
                self.kept[name] = replace(voice, path=place)

    def voice_names(self) -> dict[str, str]:
        """The shown name of each speaker's voice."""
        if self.session is None:
            return {}
        shown = self.offered()
        names = {}
        for speaker in self.session.speakers:
            voice = self.session.voices.get(speaker)
            names[speaker] = next((name for name, one in shown.items() if one == voice), "")
        return names

    def _cast(self, session: Session, chosen: dict[str, str]) -> None:
        offered = self.offered()
        for speaker, name in self.casting.cast(session.speakers, chosen, list(offered)).items():
            if name not in offered:
                sentence = f"There is no voice called “{name}” any more; choose another one for {speaker}."
                raise MisplacedError(sentence, f"voice:{speaker}")
            if session.voices.get(speaker) != offered[name]:
                session.set_voice(speaker, offered[name])
        for gone in set(session.voices) - set(session.speakers):
            del session.voices[gone]

    def segments(self) -> list[Segment]:
        """What the model has heard of the conversation, the voices first, each with its codes."""
        session = self.session
        if session is None:
            return []
        prompts = [
            Segment(session.slots[speaker], prompt.voice.transcript, codes=prompt.codes)
            for speaker in session.speakers
            if (prompt := session.prompts.get(speaker))
        ]
        turns = [
            Segment(session.slots[turn.speaker], turn.take.text, codes=turn.take.codes)
            for turn in session.turns
            if turn.take
        ]
        return [*prompts, *turns]

    # Sound and files

    def bars(self, name: str, draw: Callable[[], list[int]]) -> list[int]:
        """The picture of a sound, drawn once: the page asks for all of them at every pause in typing."""
        if (drawn := self.pages.drawn.get(name)) is None:
            self.pages.drawn.put(name, drawn := draw(), BYTES_OF_BARS)
        return drawn

    def version(self) -> str:
        """A name for the conversation as it sounds now; empty when nothing has been spoken."""
        takes = [(turn.take.key, turn.take.samples) for turn in self.session.turns if turn.take] if self.session else []
        return hashlib.sha256(repr(takes).encode()).hexdigest()[:16] if takes else ""

    def whole(self) -> Tensor:
        """The conversation as it stands, float32 (num_samples,), marked once. Raises `InputError` without any."""
        with self.lock:
            version = self.version()
            if not version or self.session is None:
                raise InputError("Nothing has been spoken yet: press Generate first.")
            if self._marked[0] != version:
                self._marked = (version, self.session.whole(self.generator))
            return self._marked[1]

    def whole_file(self) -> Path:
        """`whole` as a file to be played."""
        with self.lock:
            wave = self.whole()
            path = self.folder / f"whole-{self.version()}.wav"
            if not path.exists():
                for old in self.folder.glob("whole-*.wav"):
                    old.unlink(missing_ok=True)
                write_audio(path, wave)
            return path

    def clip_file(self, key: str) -> Path:
        """A take, marked, as a file to be played; `key` is `Take.key`. Raises `InputError` when there is no such."""
        with self.lock:
            for index, turn in enumerate(self.session.turns if self.session else []):
                for number, take in enumerate(turn.takes):
                    if take.key == key and self.session is not None:
                        path = self.folder / f"take-{key}-{take.samples}.wav"
                        if not path.exists():
                            write_audio(path, self.session.clip(self.generator, index, number))
                        return path
        raise InputError("This take is no longer there: redo the turn.")

    def save(self, kind: str) -> Path:
        """Write one of `SAVED`. Raises `InputError` when nothing has been spoken, or for another kind."""
        if kind not in SAVED:
            raise InputError(f"There is no download “{kind}”: choose one of {', '.join(SAVED)}.")
        with self.lock:
            if self.job is not None:
                raise InputError(BUSY, "busy")
            marked = self.whole()
            assert self.session is not None
            place = Path(tempfile.mkdtemp(prefix="saved-", dir=self.folder)) / SAVED[kind]
            if kind == "csm":
                save_project(place, self.session)
            elif kind in ("srt", "vtt"):
                exports.write_subtitles(place, self.session.spans(), marked)
            elif kind == "zip":
                exports.write_all(place, self.session, self.generator, marked)
            elif kind == "stems":
                exports.write_stems(place.with_suffix(""), marked, self.session.spans())
                shutil.make_archive(str(place.with_suffix("")), "zip", place.with_suffix(""))
            else:
                write_audio(place, marked)
            return place

    def open(self, path: Path) -> Session:
        """Go on with a project file. Raises `InputError`, and then all stays as it was."""
        with self.lock:
            if self.job is not None:
                raise InputError(BUSY, "busy")
            folder = Path(tempfile.mkdtemp(prefix="project-", dir=self.folder))
            session = open_project(path, folder, self.generator)
            offered = self.offered()
            for voice in session.voices.values():
                name = voice.name if voice.name not in offered else voice.name + OF_PROJECT
                while self.own.get(name, voice) != voice:
                    name += "’"
                self.own[name] = voice
            for index, sounds in self.pages.decoded(session).items():
                turn = session.turns[index]
                tensors = {key: torch.from_numpy(sound) for key, sound in sounds.items()}
                session.apply(TurnFinished(index, len(session.turns), NO_REPORT, torch.zeros(0), turn, tensors))
            self.session, self.casting, self.reading = session, Casting(), None
            return session


NO_REPORT = TurnReport("", "", 0.0, 0.0, 0, "ended", 0)


class Pages:
    """All open pages by their tokens."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.remembered = Remembered(studio.generator)
        self.drawn: Recent[list[int]] = Recent(MOST_DRAWN, MOST_DRAWN * BYTES_OF_BARS)
        self.decoded = studio.on_device(lambda session: _decoded(studio.generator, session))
        self._root = tempfile.TemporaryDirectory(prefix="csm-pages-", ignore_cleanup_errors=True)
        self._pages: OrderedDict[str, Page] = OrderedDict()
        self._guard = threading.Lock()

    def page(self, token: Any) -> Page:
        """The page of this token, new if need be. Raises `InputError` for what is none."""
        if not isinstance(token, str) or not TOKEN.fullmatch(token):
            raise InputError("The page has lost its name: reload it.")
        with self._guard:
            if token not in self._pages:
                folder = Path(tempfile.mkdtemp(dir=self._root.name))
                self._pages[token] = Page(self, folder)
            page = self._pages[token]
            page.used = time.monotonic()
            self._pages.move_to_end(token)
            self._forget()
            return page

    def _forget(self) -> None:
        """Drop the oldest pages, and the KV caches of those at rest. Pages that are being spoken stay as they are."""
        now = time.monotonic()
        for token, page in list(self._pages.items())[:-1]:
            if page.job is None and (len(self._pages) > MOST_PAGES or now - page.used > FORGOTTEN_AFTER):
                del self._pages[token]
                shutil.rmtree(page.folder, ignore_errors=True)
        for page in list(self._pages.values())[:-MOST_AWAKE]:
            if page.job is None and page.session is not None:
                page.session.rest()


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Refusals inside are told at `place`: `script`, `settings`, `voice:SPEAKER` or `turn:INDEX`."""
    try:
        yield
    except MisplacedError:
        raise
    except InputError as error:
        raise MisplacedError(str(error), place, error.code) from error


def _follow(session: Session, lines: list[Line]) -> None:
    """Change the session's turns to `lines`: texts that were changed in place keep their earlier takes at hand."""
    now, wanted = [(turn.speaker, turn.text) for turn in session.turns], [(line.speaker, line.text) for line in lines]
    if now == wanted:
        session.direct(lines)
    elif [speaker for speaker, _ in now] == [speaker for speaker, _ in wanted]:
        for index, line in enumerate(lines):
            if session.turns[index].text != line.text:
                session.edit(index, line.text)
        session.direct(lines)
    else:
        session.rewrite(lines)


def _decoded(generator: Generator, session: Session) -> dict[int, dict[str, Any]]:
    """The sounds of all takes, float32 arrays by turn and `Take.key`."""
    return {
        index: {take.key: session.sound(generator, index, number).numpy() for number, take in enumerate(turn.takes)}
        for index, turn in enumerate(session.turns)
    }
