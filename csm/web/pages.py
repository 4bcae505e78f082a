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
from csm.config import Environment
from csm.conversation.events import Event, TurnFinished, TurnReport
from csm.conversation.parsing import Line, Reading, read_script
from csm.conversation.positions import PromptLengths
from csm.conversation.project import open_project
from csm.conversation.script import BUSY
from csm.conversation.session import Session
from csm.conversation.studio import Job, Studio
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.limits import KEPT_SECONDS, LONGEST_SPEECH, MOST_PAGES, check_script, check_speech, check_turns
from csm.recent import Recent
from csm.speech.generator import Generator
from csm.speech.voices import Voice, fetched
from csm.web.access import NO_KEY, Access
from csm.web.casting import Casting
from csm.web.downloads import SAVED, only_newest, roomy, write
from csm.web.endpoints import MisplacedError
from csm.web.examples import Kept, Remembered
from csm.web.forms import Form
from csm.web.listeners import Calls
from csm.web.place import Place

TOKEN = re.compile(r"[0-9a-f]{32}")
MOST_AWAKE = 8  # pages that keep a KV cache and, in memory, sound: an hour of it is 345 MB, and as much when marked
OF_PROJECT = " (project)"
MOST_DRAWN, BYTES_OF_BARS = 1 << 15, 512  # pictures of sounds that are remembered, and what one takes
MOST_CLIPS, MOST_SAVED = 64, 3  # files of takes and downloads that a page keeps: the newest
LOST = "The server no longer has this conversation: it keeps one for an hour, and none when it starts anew. The script \
and the voices are still here, so press Generate to have it spoken again."


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
    new: bool = True  # nothing of it was shown yet: its browser may know of takes that are lost
    used: float = field(default_factory=time.monotonic)
    lock: threading.RLock = field(default_factory=threading.RLock)
    marked: tuple[str, Tensor] = ("", torch.zeros(0))  # the conversation, and the version that it is
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
                check_script(form.script)
                self.reading = read_script(form.script, form.as_it_stands)
                lines = self.reading.lines
                check_turns([line.text for line in lines])
                if self.session is None:
                    self.session = Session(lines, {}, form.settings, form.wording)
                before, names = [(turn.speaker, turn.text) for turn in self.session.turns], self.voice_names()
                _follow(self.session, lines)
            session = self.session
            self.casting.follow(before, lines, names)
            seed = session.settings.seed if form.drawn else form.settings.seed
            session.settings, session.wording = replace(form.settings, seed=seed), form.wording
            self._cast(session, form.voices)
            return session

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost with it but a script, which its browser keeps."""
        spoken = self.session is not None and any(turn.takes for turn in self.session.turns)
        return self.job is None and not spoken and not self.kept

    def speak(self, form: Form, index: int | None, again: bool, who: str = "") -> Job:
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
                    self.generator.check_turn(turn.text, session.slots[turn.speaker], session.wording)
            folder = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
            spoken = sum(take.seconds for turn in session.turns for take in turn.takes)
            job = Job(session, folder, index or 0, again, who=who, most_seconds=max(1.0, LONGEST_SPEECH - spoken))
            with placed("script"):
                check_speech(job.speech_seconds)
            return job

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
            prompt.segment(session.slots[speaker])
            for speaker in session.speakers
            if (prompt := session.prompts.get(speaker))
        ]
        turns = [
            Segment(session.slots[turn.speaker], text, codes=codes, embedding=turn.take.embedding)
            for turn in session.turns
            if turn.take
            for text, codes in turn.take.stretches
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
        if self.session is None or not (takes := [turn.take for turn in self.session.turns if turn.take]):
            return ""
        sounds = self.session.settings.speed, [(take.key, take.samples) for take in takes]
        return hashlib.sha256(repr(sounds).encode()).hexdigest()[:16]

    def whole(self) -> Tensor:
        """The conversation as it stands, float32 (num_samples,), marked once. Raises `InputError` without any."""
        with self.lock:
            version = self.version()
            if not version or self.session is None:
                raise InputError("Nothing has been spoken yet: press Generate first.")
            known, wave = self.marked
            if known != version:
                self.marked = version, (wave := self.session.whole(self.generator))
            return wave

    def whole_file(self) -> Path:
        """`whole` as a file to be played."""
        with self.lock:
            path = self.folder / f"whole-{self.version()}.wav"
            if not path.exists():
                wave = self.whole()
                only_newest(self.folder, "whole-*.wav", 0)
                with roomy():
                    write_audio(path, wave)
            return path

    def clip_file(self, key: str) -> Path:
        """A take, marked, as a file to be played; `key` is `Take.key`. Raises `InputError` when there is no such."""
        with self.lock:
            for index, turn in enumerate(self.session.turns if self.session else []):
                for number, take in enumerate(turn.takes):
                    if take.key == key and self.session is not None:
                        path = self.folder / f"take-{key}-{take.samples}-{self.session.settings.speed:g}.wav"
                        if not path.exists():
                            only_newest(self.folder, "take-*.wav", MOST_CLIPS - 1)
                            with roomy():
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
            only_newest(self.folder, "saved-*", MOST_SAVED - 1)
            with roomy():
                place = Path(tempfile.mkdtemp(prefix="saved-", dir=self.folder)) / SAVED[kind]
                write(kind, place, self.session, self.generator, marked)
            return place

    def open(self, path: Path, given_up: Callable[[], bool] = lambda: False, who: str = "") -> Session:
        """Go on with a project file. Raises `InputError`, and then all stays as it was; so it is when it is `given_up`
        on the way."""
        with self.lock:
            if self.job is not None:
                raise InputError(BUSY, "busy")
            with roomy():
                folder = Path(tempfile.mkdtemp(prefix="project-", dir=self.folder))
            try:
                session = open_project(path, folder, self.generator)
                check_turns([turn.text for turn in session.turns])
                check_speech(sum(take.seconds for turn in session.turns for take in turn.takes))
                decoded = self.pages.decoded(session, given_up=given_up, who=who)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._forget_projects(folder)
            offered = self.offered()
            for voice in session.voices.values():
                name = voice.name if voice.name not in offered else voice.name + OF_PROJECT
                while self.own.get(name, voice) != voice:
                    name += "’"
                self.own[name] = voice
            for index, sounds in decoded.items():
                turn = session.turns[index]
                tensors = {key: torch.from_numpy(sound) for key, sound in sounds.items()}
                session.apply(TurnFinished(index, len(session.turns), NO_REPORT, torch.zeros(0), turn, tensors))
            self.session, self.casting, self.reading = session, Casting(), None
            return session

    def adopt(self, session: Session) -> None:
        """Go on with a conversation that was spoken elsewhere, by voices on offer here. Raises `InputError`."""
        with self.lock:
            if self.job is not None:
                raise InputError(BUSY, "busy")
            check_turns([turn.text for turn in session.turns])
            self.session, self.casting, self.reading = session, Casting(), None

    def _forget_projects(self, newest: Path) -> None:
        """Let the voices of all projects go that were opened before the last one."""
        folders = sorted(self.folder.glob("project-*"), key=lambda path: path.stat().st_mtime)
        gone = [path for path in folders if path != newest][:-1]
        self.own = {name: voice for name, voice in self.own.items() if voice.path.parent not in gone}
        for path in gone:
            shutil.rmtree(path, ignore_errors=True)


NO_REPORT = TurnReport("", "", 0.0, 0.0, 0, "ended", 0)


class Pages:
    """All open pages by their tokens."""

    def __init__(self, studio: Studio, place: Place | None = None, access: Access | None = None) -> None:
        self.studio = studio
        self.place, self.calls = place or Place.taken(), Calls()
        self.access = access or Access.of(Environment.read())
        self.remembered = Remembered(studio.generator)
        self.drawn: Recent[list[int]] = Recent(MOST_DRAWN, MOST_DRAWN * BYTES_OF_BARS)

        def decoded(session: Session) -> Iterator[dict[int, dict[str, Any]]]:
            yield from _decoded(studio.generator, session)

        self.decoded = studio.on_device(decoded)
        self._pages: OrderedDict[str, Page] = OrderedDict()
        self._guard = threading.Lock()

    def known(self, token: Any) -> Page | None:
        """The page of this token, if something was done on it. Raises `InputError` for what is no token."""
        if not isinstance(token, str) or not TOKEN.fullmatch(token):
            raise InputError("The page has lost its name: reload it.")
        with self._guard:
            if (page := self._pages.get(token)) is not None:
                page.used = time.monotonic()
                self._pages.move_to_end(token)
            return page

    def page(self, token: Any, new: bool = True) -> Page:
        """The page of this token, a `new` one if need be. Raises `InputError` where there is none, or no room for
        another: pages on which something was spoken don't make room for one on which nothing was."""
        if (page := self.known(token)) is not None:
            return page
        if not new:
            raise InputError(LOST, "lost")
        with self._guard:
            if token not in self._pages:
                self._forget(MOST_PAGES - 1)
                if len(self._pages) >= MOST_PAGES:
                    raise InputError("Too many pages are open on this server: try again later.", "full")
                with roomy():
                    folder = Path(tempfile.mkdtemp(dir=self.place.pages))
                self._pages[token] = Page(self, folder)
                self._let_rest()
            return self._pages[token]

    def blank(self) -> Page:
        """What a page shows on which nothing was done yet."""
        return Page(self, self.place.pages / "nobody")

    def refusal(self, request: Any) -> str:
        """Why a call for one of the functions for programs may not be made; empty when it may."""
        headers = getattr(getattr(request, "request", request), "headers", None)
        return "" if headers is None or self.access.keyed(headers) else NO_KEY

    def tidy(self) -> None:
        """What is to be done by the clock."""
        with self._guard:
            self._forget(MOST_PAGES)
            self._let_rest()
        self.place.tidy()

    def _forget(self, most: int) -> None:
        """Drop pages that nobody has used for an hour, unless they are being spoken, then empty ones beyond `most`."""
        now = time.monotonic()
        for token, page in list(self._pages.items()):
            if page.job is None and now - page.used > KEPT_SECONDS:
                self._drop(token)
        for token in [token for token, page in self._pages.items() if page.empty][: max(0, len(self._pages) - most)]:
            self._drop(token)

    def _let_rest(self) -> None:
        """Drop the KV caches and the sounds of all pages but the newest in use, and those that are being spoken."""
        for page in list(self._pages.values())[:-MOST_AWAKE]:
            if page.job is None and page.session is not None:
                page.session.rest()
                page.marked = ("", torch.zeros(0))

    def _drop(self, token: str) -> None:
        shutil.rmtree(self._pages.pop(token).folder, ignore_errors=True)


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


def _decoded(generator: Generator, session: Session) -> Iterator[dict[int, dict[str, Any]]]:
    """The sounds of all takes, float32 arrays by turn and `Take.key`: yielded at last, and nothing on the way."""
    sounds: dict[int, dict[str, Any]] = {}
    for index, turn in enumerate(session.turns):
        sounds[index] = {}
        for number, take in enumerate(turn.takes):
            sounds[index][take.key] = session.own_pace(generator, index, number).numpy()
            yield {}
    yield sounds
