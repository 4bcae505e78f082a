"""What `/v1` is asked and what it answers, as pydantic models: checked on the way in, and told by `/openapi.json`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, create_model

from csm.conversation.parsing import parse_script
from csm.limits import LONGEST_TURN, MOST_TURNS
from csm.settings import ABOUT
from csm.web.encoding import FORMATS

LONGEST_INPUT = 4_096  # characters, as in OpenAI's API
Granularity = Literal["segment", "word"]


def _one_of(names: tuple[str, ...]) -> Any:
    return Literal[names]


def _setting(name: str) -> Any:
    about = ABOUT[name]
    return Annotated[Any, BeforeValidator(about.read), WithJsonSchema(about.schema)]


def _named(given: Any) -> Any:
    """A voice by its name or id, or in the API's form for voices of one's own."""
    if isinstance(given, dict):
        given = given.get("id")
    if given is not None and not isinstance(given, str):
        raise ValueError('A voice is a name, an id or {"id": …}.')
    return given


def _lines(given: Any) -> Any:
    """A list of turns, or a script as the page takes it."""
    if not isinstance(given, str):
        return given
    return [{"speaker": line.speaker, "text": line.text} for line in parse_script(given)]


_ID = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}
VoiceName = Annotated[
    str,
    BeforeValidator(_named),
    WithJsonSchema({"anyOf": [{"type": "string"}, _ID], "description": "a name, an id or an object with the id"}),
]


class _Asked(BaseModel):
    """What all requests for speech have in common, but for the settings. Fields that are not here are ignored."""

    model: str | None = Field(None, description="one of GET /v1/models; other names of OpenAI's mean the same model")
    response_format: _one_of(tuple(FORMATS)) | None = None  # type: ignore[valid-type]
    stream_format: Literal["audio", "sse"] | None = None
    instructions: Any = Field(None, description="tolerated, and without effect on this model")
    timestamp_granularities: list[Granularity] | None = Field(
        None, description="times of turns and words, in the report and in the last event of a stream"
    )


# With the fields that OpenAI's API lacks: the settings that have a name in its manner.
Asked = create_model(
    "Asked",
    __base__=_Asked,
    **{about.json: (_setting(name) | None, None) for name, about in ABOUT.items() if about.json},  # type: ignore
)


class Speech(Asked):  # type: ignore[valid-type, misc]
    """Speak a text. The voice is one that is offered, or that of a recording."""

    input: str = Field(max_length=LONGEST_INPUT, description="each sentence hears those before it")
    voice: VoiceName | None = None
    ref_audio: str | None = Field(None, description="instead of a voice: a recording, as base64 or a data: address")
    ref_text: str | None = Field(None, description="exactly what is said in ref_audio")


class Line(BaseModel):
    """One turn of a dialogue."""

    speaker: str = Field(min_length=1, max_length=60)
    text: str = Field(min_length=1, max_length=LONGEST_TURN)


class Dialogue(Asked):  # type: ignore[valid-type, misc]
    """Speak a conversation, in which every turn hears those before it."""

    input: Annotated[list[Line], BeforeValidator(_lines)] = Field(
        min_length=1, max_length=MOST_TURNS, description="the turns in order, or a script such as “A: Hi.\\nB: Hello.”"
    )
    voices: dict[str, VoiceName] | None = Field(None, description="by speaker; others are given shipped ones")


class Opening(Asked):  # type: ignore[valid-type, misc]
    """`session.config`, the first message of a stream of text."""

    voice: VoiceName | None = None


class Model(BaseModel):
    """A model that speaks, or a name that it answers to."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "csm"


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]
    models: list[Model] = Field([], description="the same, under the name that Open WebUI looks for")


class KnownVoice(BaseModel):
    """A voice to choose. One of one's own has a time at which it is forgotten, unless the host keeps it."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    name: str
    description: str = ""
    licence: str = ""
    own: bool = False
    ref_text: str | None = None
    created_at: int | None = None
    expires_at: int | None = None


class Voices(BaseModel):
    """The voices, and which of them answers to which name of OpenAI's."""

    voices: list[KnownVoice]
    aliases: dict[str, str]


class DeletedVoice(BaseModel):
    """A voice that is no longer known."""

    id: str
    object: Literal["audio.voice.deleted"] = "audio.voice.deleted"
    deleted: Literal[True] = True


class TimedWord(BaseModel):
    """A word and when it is heard, in seconds of the sound; `turn` counts from 0."""

    word: str
    start: float
    end: float
    turn: int


class TimedTurn(BaseModel):
    """A turn and when it is heard, in seconds of the sound."""

    speaker: str
    text: str
    start: float
    end: float


class Subtitles(BaseModel):
    """The same cues in two formats."""

    srt: str
    vtt: str


class Conversation(BaseModel):
    """A dialogue that was spoken: the file in base64, subtitles, and the report that `--json` writes."""

    object: Literal["audio.dialogue"] = "audio.dialogue"
    format: str
    audio: str
    subtitles: Subtitles
    report: dict[str, Any]


class Failure(BaseModel):
    """Why something was refused: one sentence, its kind, and the field that it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failed(BaseModel):
    """OpenAI's shape for it."""

    error: Failure


class Ready(BaseModel):
    """Whether jobs are taken, and what is missing, in one sentence."""

    ready: bool
    missing: str = ""


class Health(BaseModel):
    """That the server is up, and how busy it is."""

    status: Literal["ok"] = "ok"
    model: str
    device: str
    slots: int
    speaking: int
    waiting: int
