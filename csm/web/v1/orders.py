"""A request for speech of `/v1`, checked whole and turned into an order, before any model runs."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from csm.conversation.parsing import MAX_SPEAKERS, Line, speakers
from csm.conversation.session import Session
from csm.conversation.studio import Job
from csm.errors import InputError
from csm.limits import LONGEST_SCRIPT, LONGEST_SPEECH, LONGEST_WHOLE, check_speech
from csm.settings import ABOUT, Settings
from csm.speech.generator import Generator
from csm.speech.voices import Voice, fetched, find_voice, load_prompt, voices_for
from csm.utterance import parts
from csm.web.encoding import FORMATS, check_format
from csm.web.v1.errors import ApiError, misread
from csm.web.v1.forms import Dialogue, Opening, Speech

READER = "Reader"  # who says a text without speakers
MODEL_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
OPENAIS = re.compile(r"(tts|gpt)-[\w.:-]{1,60}", re.ASCII)  # dated names, and those that are not known yet
DATA = re.compile(r"data:[\w/+.-]*;base64,", re.I)

# Which of the shipped voices answers to a name of OpenAI's: a woman for a woman, a man for a man.
VOICE_ALIASES = {
    "alloy": "clb",
    "ash": "rms",
    "ballad": "ksp",
    "cedar": "bdl",
    "coral": "slt",
    "echo": "bdl",
    "fable": "awb",
    "marin": "clb",
    "nova": "slt",
    "onyx": "awb",
    "sage": "clb",
    "shimmer": "slt",
    "verse": "rms",
}
MISSING = {
    "input": "The field input is missing: give the text to speak.",
    "voice": "The field voice is missing: name a voice.",
}
NOT_BASE64 = "ref_audio is not base64: send the recording itself; addresses and paths are not opened."
NO_PLACE = "Times have no place in a file of sound: ask for them with stream_format “sse”, or use /v1/audio/dialogue."


@dataclass(frozen=True)
class Order:
    """A checked request for speech. `stream_format` is `audio`, `sse`, or None: not asked for.

    `times` are the granularities asked for. `recording` is that of the one voice where it came with the request, and
    `ref_text` its words. `warning`: what was taken otherwise than it was asked.
    """

    lines: list[Line]
    voices: dict[str, Voice]
    settings: Settings
    format: str
    stream_format: str | None
    times: frozenset[str] = frozenset()
    recording: bytes = field(default=b"", repr=False)
    ref_text: str = ""
    warning: str = ""

    @property
    def streams(self) -> bool:
        """Whether sound leaves before all of it is made: where it is asked for and the format can, or costs nothing."""
        form = FORMATS[self.format]
        return form.streams or (self.format == "wav" and self.stream_format is not None)

    @property
    def whole(self) -> bool:
        """Whether nothing leaves before all is there."""
        return self.stream_format != "sse" and not self.streams

    @property
    def headers(self) -> dict[str, str]:
        """What its answer says beside the sound."""
        return {"Warning": f'199 - "{self.warning}"'} if self.warning else {}

    def recorded(self, folder: Path) -> Order:
        """With the recording that came, if one did, put into `folder` and checked. Raises `ApiError`."""
        if not self.recording:
            return self
        path = folder / "ref_audio"
        try:
            path.write_bytes(self.recording)
            load_prompt(voice := find_voice(str(path), self.ref_text))
        except InputError as error:
            raise ApiError(str(error), "ref_audio", error.code or "invalid_value") from error
        return replace(self, voices={READER: voice}, recording=b"")

    def job(self, folder: Path, who: str, live: bool = True) -> Job:
        """What is to be spoken."""
        session = Session(self.lines, self.voices, self.settings)
        told = not live or self.whole or self.stream_format == "sse"  # sound that flows has no place for more
        held = live and self.whole
        return Job(session, folder, live=live, held=held, judged=told, who=who, most_seconds=LONGEST_SPEECH)


def voice_for(name: str, offered: Mapping[str, Voice]) -> Voice | None:
    """The offered voice of that name, in any case, or the one that answers to that name of OpenAI's."""
    wanted = name.strip().casefold()
    own = {known.casefold(): voice for known, voice in offered.items()}
    if wanted in own:
        return own[wanted]
    if wanted not in VOICE_ALIASES:
        return None
    voices = list(offered.values())
    return offered.get(VOICE_ALIASES[wanted]) or voices[sorted(VOICE_ALIASES).index(wanted) % len(voices)]


def model_names(generator: Generator) -> list[str]:
    """The model that speaks, and the names of OpenAI's that it answers to."""
    return [generator.model_name, *MODEL_ALIASES]


def check_model(name: Any, generator: Generator) -> None:
    """Raise `ApiError` for a model that is not listed."""
    known = model_names(generator)
    if name not in known:
        sentence = f"The model “{str(name)[:100]}” does not exist here; use one of {', '.join(known)}."
        raise ApiError(sentence, "model", "model_not_found", status=404)


def read_order(body: dict[str, Any], generator: Generator, own: Mapping[str, Voice] | None = None) -> Order:
    """A request for a text, checked; `own` voices are offered beside the model's. Raises `ApiError`."""
    asked, common = _read(Speech, body, generator)
    try:
        if not parts(asked.input):
            raise InputError("There is nothing to say in the input: write some words.")
    except InputError as error:
        raise ApiError(str(error), "input", "invalid_value") from error
    if asked.timestamp_granularities and asked.stream_format != "sse":
        raise ApiError(NO_PLACE, "timestamp_granularities", "unsupported_value")
    lines = [Line(READER, asked.input, 1)]
    if asked.ref_audio is None:
        return Order(lines, {READER: _voice(asked.voice, generator, own, "voice")}, **common)
    if not (asked.ref_text or "").strip():
        told = "ref_text is missing: write exactly what is said in ref_audio."
        raise ApiError(told, "ref_text", "missing_required_parameter")
    return Order(lines, {}, recording=_recording(asked.ref_audio), ref_text=asked.ref_text, **common)


def read_dialogue(body: dict[str, Any], generator: Generator, own: Mapping[str, Voice] | None = None) -> Order:
    """A request for a conversation, checked. Raises `ApiError`."""
    asked, common = _read(Dialogue, body, generator)
    lines = [Line(line.speaker, " ".join(line.text.split()), at) for at, line in enumerate(asked.input, 1)]
    for at, line in enumerate(lines):
        if not any(map(str.isalnum, line.text)):
            raise ApiError(
                "There is nothing to say in this turn: write some words.", f"input[{at}].text", "invalid_value"
            )
    labels = speakers(lines)
    if len(labels) > MAX_SPEAKERS:
        raise ApiError(
            f"At most {MAX_SPEAKERS} speakers can talk, and here are {len(labels)}.", "input", "invalid_value"
        )
    if sum(len(line.text) for line in lines) > LONGEST_SCRIPT:
        told = f"At most {LONGEST_SCRIPT:,} letters are spoken at once; send it in parts."
        raise ApiError(told, "input", "string_above_max_length")
    given = asked.voices or {}
    if strangers := [name for name in given if name not in labels]:
        told = f"“{strangers[0][:60]}” says nothing in the input; the speakers are {', '.join(labels)}."
        raise ApiError(told, f"voices.{strangers[0][:60]}", "invalid_value")
    chosen = {who: _voice(name, generator, own, f"voices.{who}") for who, name in given.items()}
    order = Order(lines, voices_for(labels, chosen), **common)
    try:
        generator.check_lines((f"Turn {line.number}", line.text) for line in lines)
        check_speech(seconds := order.job(Path(), "").speech_seconds)
    except InputError as error:
        raise ApiError(str(error), "input", error.code or "invalid_value") from error
    if order.stream_format is None and seconds > LONGEST_WHOLE:
        told = f"This would come to about {seconds / 60:.0f} minutes of speech, and more than {LONGEST_WHOLE / 60:.0f} "
        raise ApiError(told + "are sent while they are made: ask for that with stream_format.", "input", "too_long")
    return order


def read_opening(body: dict[str, Any], generator: Generator, own: Mapping[str, Voice] | None = None) -> Order:
    """What a stream of text begins with: an order without any lines yet. Raises `ApiError`."""
    asked, common = _read(Opening, body, generator)
    if not FORMATS[common["format"]].streams and common["format"] != "wav":
        told = f"{common['format']} can't be streamed; use pcm, wav, mp3 or opus."
        raise ApiError(told, "response_format", "unsupported_value")
    return Order([], {READER: _voice(asked.voice, generator, own, "voice")}, **common | {"stream_format": "audio"})


def _read(form: type[BaseModel], body: dict[str, Any], generator: Generator) -> tuple[Any, dict[str, Any]]:
    """A body as that form -> what it holds, and what all orders have in common."""
    name, warning = body.get("model"), ""
    if isinstance(name, str) and name not in model_names(generator) and OPENAIS.fullmatch(name):
        warning = f"{name} is not here: the model that is loaded spoke"
    elif name is not None:
        check_model(name, generator)
    try:
        asked: Any = form.model_validate(body)
    except ValidationError as error:
        raise misread(error, body, MISSING) from error
    sound = asked.response_format or ("pcm" if form is Opening else "mp3")
    try:
        check_format(sound)
    except InputError as error:
        raise ApiError(str(error), "response_format", "unsupported_value") from error
    settings = Settings.read({name: getattr(asked, about.json) for name, about in ABOUT.items() if about.json})
    times = frozenset(asked.timestamp_granularities or ())
    common = {"settings": settings, "format": sound, "stream_format": asked.stream_format}
    return asked, common | {"times": times, "warning": warning}


def _voice(name: str | None, generator: Generator, own: Mapping[str, Voice] | None, param: str) -> Voice:
    if name is None:
        raise ApiError(MISSING["voice"], param, "missing_required_parameter")
    offered = generator.voices()
    voice = voice_for(name, offered) or voice_for(name, own or {})
    if voice is None:
        sentence = f"There is no voice “{name[:60]}”; use one of {', '.join([*offered, *VOICE_ALIASES])}."
        raise ApiError(sentence, param, "invalid_value")
    try:
        return fetched(voice)
    except InputError as error:
        raise ApiError(str(error), param, "invalid_value") from error


def _recording(given: str) -> bytes:
    """The bytes of `ref_audio`. Raises `ApiError`."""
    try:
        data = base64.b64decode("".join(DATA.sub("", given, count=1).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(NOT_BASE64, "ref_audio", "invalid_value") from error
    if not data:
        raise ApiError(NOT_BASE64, "ref_audio", "invalid_value")
    return data
