"""`/v1/audio/speech` and its neighbours: OpenAI's speech API on the app's own server, for programs that know it.

A request is checked whole, waits in the queue that the page waits in, and gets its sound, marked,
while it is made. What the API has and this model has not (instructions, extras) is ignored as documented.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute

from csm.config import Environment
from csm.conversation.events import Event, Performed, TurnChunk
from csm.conversation.studio import Job, Studio, at_once
from csm.errors import InputError
from csm.limits import LARGEST_VOICE
from csm.listening.library import with_codes
from csm.listening.timing import WordTimes as Finder
from csm.speech.generator import Generator
from csm.speech.voices import Voice, find_voice, load_prompt, voice_name
from csm.web.asked import Told, asker
from csm.web.encoding import FORMATS, Encoder
from csm.web.endpoints import new_folder
from csm.web.following import attended, followed
from csm.web.v1.arriving import TextStream
from csm.web.v1.errors import ApiError, body_of, guarded, refused
from csm.web.v1.forms import Conversation, DeletedVoice, KnownVoice, Model, Models, Speech, Subtitles, Voices
from csm.web.v1.heard import Heard, WordTimes, both_formats, timed
from csm.web.v1.orders import (
    VOICE_ALIASES,
    Order,
    check_model,
    model_names,
    read_dialogue,
    read_order,
    voice_for,
)
from csm.web.v1.papers import PAGE, openapi
from csm.web.v1.sending import in_bytes, in_events
from csm.web.v1.shelf import Shelf, ShelvedVoice, owner_of

LONGEST_SPEECH_BODY = 16 << 20  # bytes: a recording of 30 s may come with it, in base64
DOUBT = "X-CSM-Doubt"  # the header that says what may have gone wrong
REFUSALS = ("", "0", "false", "no", "none", "null")
CONSENT = "State in “consent” that the person whose voice this is agrees to its use here: without, no voice is kept."


@dataclass(frozen=True)
class SpeechApi:
    """The routes' handlers, over one model and what performs jobs with it. `key` None asks for none.

    `encode` gives a voice its codes, where the model is; `shelf` keeps the voices that programs bring; `word_times`
    finds the words in a turn's sound.
    """

    generator: Generator
    perform: Callable[[Job], Iterator[Event]]
    key: str | None = field(default=None, repr=False)
    encode: Callable[..., Voice] | None = None
    shelf: Shelf | None = None
    word_times: WordTimes = field(default_factory=Finder)

    def __post_init__(self) -> None:
        if self.shelf is None:
            object.__setattr__(self, "shelf", Shelf(self.generator.codec_key))
        if self.encode is None:
            object.__setattr__(self, "encode", at_once(lambda voice: with_codes(self.generator, voice)))

    def routes(self) -> list[BaseRoute]:
        """What to mount on the app's server."""
        texts = TextStream(self.generator, self.perform, self._shelf, self.key)
        guards = {
            ("/v1/audio/speech", "POST"): self.speech,
            ("/v1/audio/speech/schema", "GET"): self.schema,
            ("/v1/audio/dialogue", "POST"): self.dialogue,
            ("/v1/audio/voices", "GET"): self.voices,
            ("/v1/audio/voices", "POST"): self.add_voice,
            ("/v1/audio/voices/{id}", "GET"): self.voice,
            ("/v1/audio/voices/{id}", "DELETE"): self.remove_voice,
            ("/v1/audio/models", "GET"): self.models,
            ("/v1/models", "GET"): self.models,
            ("/v1/models/{name:path}", "GET"): self.model,
        }
        routes: list[BaseRoute] = [
            Route(path, guarded(handler, self.key), methods=[method]) for (path, method), handler in guards.items()
        ]
        routes.append(WebSocketRoute("/v1/audio/speech/stream", texts.serve))
        return [*routes, Route("/openapi.json", self.papers), Route("/docs", self.page)]

    async def papers(self, request: Request) -> Response:
        """All routes and what they take, as OpenAPI 3.1."""
        return Told(openapi())

    async def page(self, request: Request) -> Response:
        """A page on which they can be tried."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    async def models(self, request: Request) -> Response:
        """The model, and the names that it answers to."""
        found = [Model(id=name) for name in model_names(self.generator)]
        return _told(Models(data=found, models=found))

    async def model(self, request: Request) -> Response:
        """One of them."""
        check_model(request.path_params["name"], self.generator)
        return _told(Model(id=request.path_params["name"]))

    async def voices(self, request: Request) -> Response:
        """The voices, one's own among them, and which of them answers to which name of OpenAI's."""
        offered = self.generator.voices()
        known = [
            KnownVoice(id=voice.name, name=voice.name, description=voice.description, licence=voice.licence)
            for voice in offered.values()
        ]
        own = [_shelved(kept) for kept in self._shelf.of(owner_of(request))]
        aliases = {alias: voice.name for alias in VOICE_ALIASES if (voice := voice_for(alias, offered))}
        return _told(Voices(voices=[*known, *own], aliases=aliases))

    async def voice(self, request: Request) -> Response:
        """One of one's own voices."""
        return _told(_shelved(self._own(request)))

    async def add_voice(self, request: Request) -> Response:
        """Keep a voice: `audio_sample` (a sound file), `ref_text`, `name` and `consent`, as a form."""
        given = await _form(request)
        if given.get("consent", "").strip().casefold() in REFUSALS:
            raise ApiError(CONSENT, "consent", "consent_missing")
        for name in ("name", "ref_text"):
            if not given.get(name, "").strip():
                raise ApiError(f"The field {name} is missing.", name, "missing_required_parameter")
        if not given["audio_sample"]:
            raise ApiError(
                "The field audio_sample is missing: send a sound file.", "audio_sample", "missing_required_parameter"
            )
        own = {kept.voice.name: kept.voice for kept in self._shelf.of(owner_of(request))}
        try:
            name = voice_name(given["name"], self.generator.voices() | own)
        except InputError as error:
            raise refused(error, "name") from error
        folder = Path(tempfile.mkdtemp(prefix="csm-voice-"))
        try:
            (path := folder / "recording").write_bytes(given["audio_sample"])

            def checked() -> Voice:
                load_prompt(voice := find_voice(str(path), given["ref_text"]))
                return voice

            try:
                voice = await asyncio.to_thread(checked)
            except InputError as error:
                raise ApiError(str(error).replace(path.name, "recording"), "audio_sample", "invalid_value") from error
            encode, given_voice = self.encode, voice
            assert encode is not None
            voice = await attended(request, lambda given_up: encode(given_voice, given_up=given_up))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        voice = changed(voice, name=name, path=Path(), description=given.get("description", "")[:400])
        return _told(_shelved(self._shelf.add(owner_of(request), voice)))

    async def remove_voice(self, request: Request) -> Response:
        """Forget one of one's own voices."""
        kept = self._own(request)
        self._shelf.remove(kept.owner, kept.id)
        return _told(DeletedVoice(id=kept.id))

    async def schema(self, request: Request) -> Response:
        """What the body of a request for speech may hold."""
        return Told(Speech.model_json_schema())

    async def speech(self, request: Request) -> Response:
        """Speak a text."""
        order = read_order(await body_of(request, LONGEST_SPEECH_BODY), self.generator, self._offered(request))
        order, folder = await self._placed(order)
        return await self._sent(request, order, order.job(folder, asker(request)), report=False)

    async def dialogue(self, request: Request) -> Response:
        """Speak a conversation: all of it as JSON or, with `stream_format`, sound while it is made."""
        order = read_dialogue(await body_of(request, LONGEST_SPEECH_BODY), self.generator, self._offered(request))
        job = order.job(new_folder(), asker(request), live=order.stream_format is not None)
        if order.stream_format is not None:
            return await self._sent(request, order, job, report=True)
        done: Performed | None = None
        async for event in followed(request, self.perform(job), job):
            done = event if isinstance(event, Performed) else done
        if done is None or not len(done.audio):
            raise ApiError("The input gave no sound; try another seed.", "input", "no_sound")
        return Told(await asyncio.to_thread(self._conversation, order, job, done), headers=order.headers)

    @property
    def _shelf(self) -> Shelf:
        assert self.shelf is not None
        return self.shelf

    def _offered(self, request: Request) -> Mapping[str, Voice]:
        return self._shelf.offered(owner_of(request))

    def _own(self, request: Request) -> ShelvedVoice:
        """The voice that the path names. Raises `ApiError` where it is nobody's, or somebody else's."""
        kept = self._shelf.find(owner_of(request), request.path_params["id"])
        if kept is None:
            raise ApiError("There is no such voice of yours.", "id", "voice_not_found", 404)
        return kept

    async def _placed(self, order: Order) -> tuple[Order, Path]:
        """An order with a folder of its own, and in it the recording that came with it."""
        folder = new_folder()
        try:
            return await asyncio.to_thread(order.recorded, folder), folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    async def _sent(self, request: Request, order: Order, job: Job, report: bool) -> Response:
        """What a job gives, on its way as it was asked for; with `report`, the last event has that and subtitles."""
        events = followed(request, self.perform(job), job)
        encoder, headers = Encoder(order.format), order.headers
        media_type = FORMATS[order.format].media_type
        heard = Heard(self.word_times if "word" in order.times else None)
        try:
            began = await _begun(events)
            if order.whole:
                waves = []
                async for event in began:
                    await asyncio.to_thread(heard.take, event)
                    if isinstance(event, TurnChunk):
                        waves.append(event.audio.numpy())
                data = await asyncio.to_thread(encoder.whole, np.concatenate(waves))
                doubt = {DOUBT: "; ".join(heard.doubts)} if heard.doubts else {}
                return Response(data, media_type=media_type, headers=headers | doubt)
        except InputError as error:
            raise refused(error) from error

        def more() -> dict[str, Any]:
            told: dict[str, Any] = {"segments": heard.turns()} if order.times or report else {}
            if "word" in order.times:
                told["words"] = heard.words
            if report:
                told["subtitles"] = heard.subtitles()
                told["report"] = heard.report(job.session.report(self.generator))
            return told

        if order.stream_format == "sse":
            lines = in_events(began, encoder, order.streams, heard, more)
            return StreamingResponse(lines, media_type="text/event-stream", headers=headers)
        return StreamingResponse(in_bytes(began, encoder), media_type=media_type, headers=headers)

    def _conversation(self, order: Order, job: Job, done: Performed) -> dict[str, Any]:
        """All that is known of a finished dialogue."""
        spans, report = job.session.spans(), dict(done.report)
        if "word" in order.times:
            report["words"] = [
                word
                for span in spans
                for word in timed(
                    self.word_times, span.text, done.audio[span.start : span.end], span.index,
                    span.start / self.generator.sample_rate,
                )
            ]  # fmt: skip
        written = Subtitles(**both_formats(spans, done.audio))
        audio = base64.b64encode(Encoder(order.format).whole(done.audio.numpy())).decode()
        return Conversation(format=order.format, audio=audio, subtitles=written, report=report).model_dump()


async def _begun(events: AsyncGenerator[Event, None]) -> AsyncIterator[Event]:
    """`events` from the first sound on, once that is there; what came before was waiting. Raises `ApiError`."""
    async for first in events:
        if isinstance(first, TurnChunk):
            return _behind(first, events)
    raise ApiError("The input gave no sound; try another seed.", "input", "no_sound")


async def _behind(first: Event, rest: AsyncGenerator[Event, None]) -> AsyncIterator[Event]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()


async def _form(request: Request) -> dict[str, Any]:
    """The fields of a form; `audio_sample` is the bytes of the one file in it. Raises `ApiError`."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError("Send the voice as a form (multipart/form-data).", code="invalid_body")
    try:
        async with request.form(max_files=1, max_fields=16, max_part_size=65_536) as form:
            given: dict[str, Any] = {"audio_sample": b""}
            for name, value in form.multi_items():
                if not isinstance(value, UploadFile):
                    given[name] = value
                elif (value.size or 0) > LARGEST_VOICE:
                    raise ApiError(
                        "The recording is too large: 30 seconds are enough.", "audio_sample", "too_long", 413
                    )
                else:
                    given["audio_sample"] = await value.read()
            given.setdefault("ref_text", given.get("transcript", ""))
            if not isinstance(given.get("audio_sample"), bytes):
                raise ApiError("audio_sample must be a sound file.", "audio_sample", "invalid_value")
            return given
    except HTTPException as error:
        raise ApiError("The form can't be read.", code="invalid_body") from error


def _shelved(kept: ShelvedVoice) -> KnownVoice:
    return KnownVoice(
        id=kept.id,
        name=kept.voice.name,
        description=kept.voice.description,
        own=True,
        ref_text=kept.voice.transcript,
        created_at=int(kept.created),
        expires_at=None if kept.expires is None else int(kept.expires),
    )


def _told(answer: BaseModel) -> Response:
    return Told(answer.model_dump(exclude_none=True))


def speech_api(studio: Studio, shelf: Shelf | None = None) -> SpeechApi:
    """The API with the key of the environment, and its folder for voices or another `shelf`."""
    environment, generator = Environment.read(), studio.generator
    encode = studio.on_device(lambda voice: with_codes(generator, voice))
    shelf = shelf or Shelf(generator.codec_key, Path(environment.voices) if environment.voices else None)
    return SpeechApi(generator, studio.perform, environment.api_key, encode, shelf, Finder())
