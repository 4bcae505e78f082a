"""`/v1/audio/speech` and its neighbours: OpenAI's speech API on the app's own server, for programs that know it.

A request is checked whole, waits in the queue that the page waits in, and gets its sound, marked,
while it is made. What the API has and this model has not (speeds, instructions) is refused or ignored as documented.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema, create_model
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from csm.config import Environment
from csm.conversation.events import Event, TurnChunk, TurnFinished
from csm.conversation.studio import Job, Studio, reading
from csm.conversation.waiting import QueueFull
from csm.errors import InputError
from csm.settings import ABOUT, Settings
from csm.speech.generator import Generator
from csm.speech.voices import Voice, fetched
from csm.utterance import parts
from csm.web.asked import BodyTooLongError, Told, asker, read_json
from csm.web.encoding import FORMATS, Encoder, check_format
from csm.web.endpoints import new_folder
from csm.web.following import followed

LONGEST_INPUT = 4_096  # characters, as in OpenAI's API
LONGEST_BODY = 65_536  # bytes
DOUBT = "X-CSM-Doubt"  # the header that says what may have gone wrong
BROKEN = "Something went wrong in the program, not in the request; please try again."
OWN_PACE = "This model speaks at its own pace: leave speed out or set it to 1.0."
MODEL_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")

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

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class ApiError(Exception):
    """A refusal in the shape of OpenAI's errors; `sentence` says what is wrong and what to do."""

    def __init__(
        self,
        sentence: str,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after
        self.body = {"error": {"message": sentence, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Told(self.body, self.status, headers)


@dataclass(frozen=True)
class Order:
    """A checked request for speech. `stream_format` is `audio`, `sse`, or None: not asked for."""

    text: str
    voice: Voice
    settings: Settings
    format: str
    stream_format: str | None

    @property
    def streams(self) -> bool:
        """Whether sound leaves before all of it is made: where it is asked for and the format can, or costs nothing."""
        form = FORMATS[self.format]
        return form.streams or (self.format == "wav" and self.stream_format is not None)


def voice_for(name: str, offered: dict[str, Voice]) -> Voice | None:
    """The offered voice of that name, in any case, or the one that answers to that name of OpenAI's."""
    wanted = name.strip().casefold()
    own = {known.casefold(): voice for known, voice in offered.items()}
    if wanted in own:
        return own[wanted]
    if wanted not in VOICE_ALIASES:
        return None
    voices = list(offered.values())
    return offered.get(VOICE_ALIASES[wanted]) or voices[sorted(VOICE_ALIASES).index(wanted) % len(voices)]


def _one_of(names: tuple[str, ...]) -> Any:
    return Literal[names]


def _setting(name: str) -> Any:
    about = ABOUT[name]
    return Annotated[Any, BeforeValidator(about.read), WithJsonSchema(about.schema)]


def _own_pace(speed: Any) -> Any:
    if speed is None or (not isinstance(speed, bool) and speed == 1):
        return speed
    raise ValueError(OWN_PACE)


class _Voice(BaseModel):
    """The API's form for voices of one's own."""

    id: str


class _Speech(BaseModel):
    """The body of a request, but for the settings."""

    model: str | None = None
    input: Annotated[str, Field(max_length=LONGEST_INPUT)]
    voice: str | _Voice
    response_format: _one_of(tuple(FORMATS)) | None = None  # type: ignore[valid-type]
    stream_format: Literal["audio", "sse"] | None = None
    speed: Annotated[Any, BeforeValidator(_own_pace)] = None
    instructions: Any = None


# With the fields that OpenAI's API lacks: the settings that have a name in its manner.
Speech = create_model(
    "Speech",
    __base__=_Speech,
    **{about.json: (_setting(name) | None, None) for name, about in ABOUT.items() if about.json},  # type: ignore
)
MISSING = {
    "input": "The field input is missing: give the text to speak.",
    "voice": "The field voice is missing: name a voice.",
}


def read_order(body: Any, generator: Generator) -> Order:
    """The JSON of a request, checked. Raises `ApiError`."""
    if not isinstance(body, dict):
        raise ApiError("The body must be a JSON object with the fields model, input and voice.", code="invalid_body")
    _check_model(body.get("model"), generator)
    try:
        asked: Any = Speech.model_validate(body)
    except ValidationError as error:
        raise _refusal(error.errors()[0], body) from error
    try:
        if not parts(asked.input):
            raise InputError("There is nothing to say in the input: write some words.")
    except InputError as error:
        raise ApiError(str(error), "input", "invalid_value") from error
    form = asked.response_format or "mp3"
    try:
        check_format(form)
    except InputError as error:
        raise ApiError(str(error), "response_format", "unsupported_value") from error
    settings = Settings.read({name: getattr(asked, about.json) for name, about in ABOUT.items() if about.json})
    name = asked.voice if isinstance(asked.voice, str) else asked.voice.id
    return Order(asked.input, _read_voice(name, generator), settings, form, asked.stream_format)


def _refusal(error: Any, body: dict[str, Any]) -> ApiError:
    """What pydantic found first, in one sentence."""
    name = str(error["loc"][0])
    value: Any = body.get(name)
    if error["type"] == "string_too_long":
        told = f"The input has {len(value)} characters and at most {LONGEST_INPUT} are spoken; send it in parts."
        return ApiError(told, name, "string_above_max_length")
    if name in MISSING:
        return ApiError(MISSING[name], name, "missing_required_parameter")
    if "error" in error.get("ctx", {}):  # one of our own sentences
        told = str(error["ctx"]["error"])
    else:
        told = f"{name} can't be “{value}”; use one of {error.get('ctx', {}).get('expected', 'those documented')}."
    return ApiError(told, name, "invalid_value")


def _check_model(name: Any, generator: Generator) -> None:
    known = model_names(generator)
    if name is not None and name not in known:
        sentence = f"The model “{name}” does not exist here; use one of {', '.join(known)}."
        raise ApiError(sentence, "model", "model_not_found", status=404)


def model_names(generator: Generator) -> list[str]:
    """The model that speaks, and the names of OpenAI's that it answers to."""
    return [generator.model_name, *MODEL_ALIASES]


def _read_voice(name: str, generator: Generator) -> Voice:
    offered = generator.voices()
    voice = voice_for(name, offered)
    if voice is None:
        sentence = f"There is no voice “{name}”; use one of {', '.join([*offered, *VOICE_ALIASES])}."
        raise ApiError(sentence, "voice", "invalid_value")
    try:
        return fetched(voice)
    except InputError as error:
        raise ApiError(str(error), "voice", "invalid_value") from error


@dataclass(frozen=True)
class SpeechApi:
    """The routes' handlers, over one model and what performs jobs with it. `key` None asks for none."""

    generator: Generator
    perform: Callable[[Job], Iterator[Event]]
    key: str | None = field(default=None, repr=False)

    def routes(self) -> list[BaseRoute]:
        """What to mount on the app's server."""
        return [
            Route("/v1/audio/speech", self._guarded(self.speech), methods=["POST"]),
            Route("/v1/audio/speech/schema", self._guarded(self.schema), methods=["GET"]),
            Route("/v1/audio/voices", self._guarded(self.voices), methods=["GET"]),
            Route("/v1/models", self._guarded(self.models), methods=["GET"]),
            Route("/v1/models/{name:path}", self._guarded(self.model), methods=["GET"]),
        ]

    async def models(self, request: Request) -> Response:
        return Told({"object": "list", "data": [_model(name) for name in model_names(self.generator)]})

    async def model(self, request: Request) -> Response:
        _check_model(request.path_params["name"], self.generator)
        return Told(_model(request.path_params["name"]))

    async def voices(self, request: Request) -> Response:
        """The voices, and which of them answers to which name of OpenAI's."""
        offered = self.generator.voices()
        known = [
            {"id": voice.name, "name": voice.name, "description": voice.description, "licence": voice.licence}
            for voice in offered.values()
        ]
        aliases = {alias: voice.name for alias in VOICE_ALIASES if (voice := voice_for(alias, offered))}
        return Told({"voices": known, "aliases": aliases})

    async def schema(self, request: Request) -> Response:
        """What the body of a request for speech may hold."""
        return Told(Speech.model_json_schema())

    async def speech(self, request: Request) -> Response:
        order = read_order(await _json(request), self.generator)
        held = order.stream_format != "sse" and not order.streams  # nobody hears it before all is there
        job = reading(order.text, order.voice, order.settings, new_folder(), asker(request), held)
        events = followed(request, self.perform(job), job)
        encoder = Encoder(order.format)
        media_type = FORMATS[order.format].media_type
        headers: dict[str, str] = {}
        try:
            waves = [await _first_sound(events)]
            if held:
                async for event in events:
                    if isinstance(event, TurnChunk):
                        waves.append(event.audio.numpy())
                    elif isinstance(event, TurnFinished) and event.turn.doubt:
                        headers[DOUBT] = event.turn.doubt
        except QueueFull as full:
            told = ApiError(str(full), None, "server_overloaded", 503, "server_error", full.seconds)
            raise told from full
        except InputError as error:
            raise ApiError(str(error), code="invalid_value") from error
        if order.stream_format == "sse":
            return StreamingResponse(_events(waves[0], events, encoder, order.streams), media_type="text/event-stream")
        if order.streams:
            return StreamingResponse(_bytes(waves[0], events, encoder), media_type=media_type)
        whole = await asyncio.to_thread(encoder.whole, np.concatenate(waves))
        return Response(whole, media_type=media_type, headers=headers)

    def _guarded(self, handler: Handler) -> Handler:
        """`handler` behind the key, its refusals and failures told in the API's shape."""

        async def answer(request: Request) -> Response:
            try:
                self._check_key(request)
                return await handler(request)
            except ApiError as error:
                return error.response()
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            except InputError as error:
                return ApiError(str(error), code=error.code or "invalid_value").response()
            except Exception:
                logger.exception("A request for speech failed.")
                return ApiError(BROKEN, status=500, kind="server_error", code="server_error").response()

        return answer

    def _check_key(self, request: Request) -> None:
        if self.key is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.key.encode()):
            raise ApiError("The API key is missing or wrong: send it as a bearer token.", None, "invalid_api_key", 401)


async def _first_sound(events: AsyncIterator[Event]) -> np.ndarray:
    """The first that is heard, float32 (num_samples,); what came before it was waiting. Raises `ApiError`."""
    async for event in events:
        if isinstance(event, TurnChunk):
            return event.audio.numpy()
    raise ApiError("The input gave no sound; try another seed.", "input", "no_sound")


async def _bytes(first: np.ndarray, rest: AsyncIterator[Event], encoder: Encoder) -> AsyncIterator[bytes]:
    yield encoder.write(first)
    async for event in rest:
        if isinstance(event, TurnChunk):
            yield encoder.write(event.audio.numpy())
    yield encoder.finish()


async def _events(
    first: np.ndarray, rest: AsyncIterator[Event], encoder: Encoder, streams: bool
) -> AsyncIterator[bytes]:
    """OpenAI's events: `speech.audio.delta` with base64 of the sound, `speech.audio.done` with what was used."""
    text = frames = 0
    told: dict[str, str] = {}
    waves = [first]
    try:
        if streams:
            yield _delta(encoder.write(first))
        async for event in rest:
            if isinstance(event, TurnFinished):
                text, frames = text + event.text_positions, frames + event.turn.frames
                told = {"doubt": event.turn.doubt} if event.turn.doubt else {}
            elif isinstance(event, TurnChunk) and streams:
                yield _delta(encoder.write(event.audio.numpy()))
            elif isinstance(event, TurnChunk):
                waves.append(event.audio.numpy())
        yield _delta(encoder.finish() if streams else await asyncio.to_thread(encoder.whole, np.concatenate(waves)))
    except InputError as error:
        yield _event(ApiError(str(error), code="invalid_value").body)
        return
    except Exception:
        logger.exception("A stream of speech broke off.")
        yield _event(ApiError(BROKEN, kind="server_error", code="server_error").body)
        return
    usage = {"input_tokens": text, "output_tokens": frames, "total_tokens": text + frames}
    yield _event({"type": "speech.audio.done", "usage": usage, **told})


def _delta(data: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}) if data else b""


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "csm"}


async def _json(request: Request) -> Any:
    try:
        return await read_json(request, LONGEST_BODY)
    except BodyTooLongError as error:
        raise ApiError("The body is too long.", code="body_too_long", status=413) from error
    except ValueError as error:
        raise ApiError("The body is not JSON that can be read.", code="invalid_json") from error


def speech_api(studio: Studio) -> SpeechApi:
    """The API with the key of the environment."""
    return SpeechApi(studio.generator, studio.perform, Environment.read().api_key)
