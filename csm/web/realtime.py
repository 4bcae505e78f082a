"""The websocket of a talk: OpenAI's Realtime API at `/v1/realtime`, and the same for the page at `/csm/talk`."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from csm.config import Environment
from csm.conversation.studio import Studio
from csm.errors import InputError
from csm.limits import SILENT_SECONDS
from csm.speech.voices import Voice
from csm.talk import embedded
from csm.talk.events import Event
from csm.talk.hearing import Ears
from csm.talk.language import LanguageModel, configured
from csm.talk.options import MOST_TALKS, TalkOptions
from csm.talk.script import as_script
from csm.talk.talk import Talk
from csm.web.asked import FAILED, Told, asker, whole
from csm.web.endpoints import default_voices
from csm.web.gpu import on_zerogpu
from csm.web.pages import Pages
from csm.web.wire import (
    LONGEST_MESSAGE,
    SERVER,
    Sent,
    Teller,
    error_view,
    item_view,
    read_item,
    read_options,
    read_sound,
    session_view,
)

PROTOCOL = "realtime"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
FULL = "Too many talks go on at this server: try again in a while."
AWAY = "Talking needs a model that stays loaded, and this server asks for its accelerator anew each time."
TAKEN = "A talk called “{}” goes on already, so this one has a name of its own."
UNREADABLE = "This is no event that can be read: send JSON with a field type."
TOO_LONG = "This event has {:,} letters and at most {:,} are taken: send the sound in smaller pieces."

logger = logging.getLogger(__name__)


@dataclass
class Talks:
    """All talks of one server: what they share, and which names they go by."""

    studio: Studio
    ears: Ears = field(default_factory=Ears)
    models: Mapping[str, LanguageModel] = field(default_factory=dict)
    pages: Pages | None = None
    open: dict[str, Talk] = field(default_factory=dict)

    @classmethod
    def of(cls, studio: Studio, environment: Environment, pages: Pages | None = None) -> Talks:
        """With the language models that the environment names, and the embedded one where it is installed."""
        models: dict[str, LanguageModel] = {model.name: model for model in configured(environment)}
        if embedded.available():
            models[embedded.NAME] = embedded.Embedded()
        return cls(studio, models=models, pages=pages)

    def keep(self, talk: Talk, token: Any) -> None:
        """Have the page called `token` show a talk as its script. Raises `InputError`."""
        if self.pages is None:
            raise InputError("There is no page here that could take a script.", "no_page")
        voices = self.voices()
        session = as_script(talk.memory.items, voices[talk.options.voice], voices, self.studio.generator)
        self.pages.page(token).adopt(session)

    def close(self) -> None:
        """The server ends."""
        for model in self.models.values():
            if isinstance(model, embedded.Embedded):
                model.close()

    def voices(self) -> dict[str, Voice]:
        """Those to choose from, the page's usual one first."""
        offered = self.studio.generator.voices()
        first = [name for name in default_voices() if name in offered]
        return {name: offered[name] for name in dict.fromkeys([*first, *offered])}

    def routes(self) -> list[BaseRoute]:
        """What to mount on the app's server."""
        return [
            WebSocketRoute("/v1/realtime", self.talk),
            WebSocketRoute("/csm/talk", self.talk),
            Route("/csm/talk/offers", self.offers, methods=["GET"]),
        ]

    async def offers(self, request: Request) -> Response:
        """What the page can choose from, and what is missing for a talk, in one sentence."""
        missing = AWAY if on_zerogpu() else ""
        try:
            if not missing:
                await asyncio.to_thread(self.ears.load)
        except InputError as error:
            missing = str(error)
        if not missing and not self.models:
            missing = f"There is no language model to talk with: set CSM_LLM_URL, or run `{embedded.INSTALL}`."
        shown = {name: model.shown for name, model in self.models.items()}
        return Told({"missing": missing, "models": shown, "voices": list(self.voices())})

    async def talk(self, socket: WebSocket) -> None:
        """One talk, from its beginning to its end."""
        offered = socket.scope.get("subprotocols") or []
        await socket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
        refused = AWAY if on_zerogpu() else FULL if len(self.open) >= MOST_TALKS else ""
        if refused:
            await socket.send_text(_json(error_view(refused, "server_error")))
            await socket.close(1013)
            return
        voices = self.voices()
        options = TalkOptions(next(iter(voices)), model=_asked_model(socket, self), turns=SERVER)
        line = Line(socket, self, options, voices)
        name = socket.query_params.get("session", "")
        if name in self.open:
            line.send(error_view(TAKEN.format(name[:64]), "session_exists"))
        if name in self.open or not NAME.fullmatch(name):
            name = f"sess_{secrets.token_hex(12)}"
        self.open[name] = line.talk
        try:
            await line.follow(name)
        finally:
            del self.open[name]
            await line.talk.close()


class Line:
    """One client's connection: its events read in order, what happens told as fast as it is taken."""

    def __init__(self, socket: WebSocket, talks: Talks, options: TalkOptions, voices: dict[str, Voice]) -> None:
        self._socket, self._talks, self._voices = socket, talks, voices
        self._teller = Teller()
        self._out: asyncio.Queue[str] = asyncio.Queue()
        self._name = ""
        who = asker(socket)
        self.talk = Talk(talks.studio, talks.ears, talks.models, voices, options, self._happened, who)

    def send(self, event: Sent) -> None:
        """Tell the client."""
        self._out.put_nowait(_json(event))

    async def follow(self, name: str) -> None:
        """Until either side hangs up."""
        self._name = name
        self.send({"type": "session.created", "session": self._session()})
        self.talk.begin()
        sending = asyncio.create_task(self._sent())
        try:
            reading = asyncio.create_task(self._read())
            await asyncio.wait({sending, reading}, return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _sent(self) -> None:
        try:
            while True:
                await asyncio.wait_for(self._socket.send_text(await self._out.get()), SILENT_SECONDS)
        except (asyncio.TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            return  # nobody takes it

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            asked: Any = None
            try:
                event = _event(message.get("text"))
                asked = event.get("event_id")
                await self._handled(event)
            except InputError as error:
                self.send(error_view(str(error), error.code, asked))
            except Exception:
                logger.exception("An event of a talk failed.")
                self.send(error_view(FAILED, "server_error", asked))

    async def _handled(self, event: dict[str, Any]) -> None:
        talk, kind = self.talk, event["type"]
        if kind == "session.update":
            talk.configure(read_options(event.get("session"), talk.options, self._voices))
            self.send({"type": "session.updated", "session": self._session()})
        elif kind == "input_audio_buffer.append":
            talk.append(read_sound(event.get("audio")))
        elif kind == "input_audio_buffer.commit":
            talk.commit()
        elif kind == "input_audio_buffer.clear":
            talk.clear()
            self.send({"type": "input_audio_buffer.cleared"})
        elif kind == "conversation.item.create":
            talk.add(read_item(event.get("item")), event.get("previous_item_id"))
        elif kind == "conversation.item.delete":
            await talk.delete(event.get("item_id"))
        elif kind == "conversation.item.retrieve":
            item = talk.memory.find(event.get("item_id"))
            self.send({"type": "conversation.item.retrieved", "item": item_view(item)})
        elif kind == "conversation.item.truncate":
            await talk.truncate(event.get("item_id"), _milliseconds(event.get("audio_end_ms")))
        elif kind == "response.create":
            asked = event.get("response") or {}
            if isinstance(asked, dict) and asked.get("conversation") == "none":
                raise InputError("Answers beside the conversation are not given here: leave it out.", "invalid_value")
            talk.answer(read_options(asked, talk.options, self._voices))
        elif kind == "response.cancel":
            talk.cancel(event.get("response_id"))
        elif kind == "csm.keep":
            await asyncio.to_thread(self._talks.keep, talk, event.get("token"))
            self.send({"type": "csm.kept"})
        elif kind == "output_audio_buffer.clear":
            pass  # what was sent is with the client
        else:
            raise InputError(f"There is no event “{str(kind)[:80]}” here.", "unknown_event")

    def _happened(self, event: Event) -> None:
        for told in self._teller.tell(event):
            self.send(told)

    def _session(self) -> Sent:
        shown = {name: model.shown for name, model in self._talks.models.items()}
        return session_view(self._name, self.talk.options, shown)


def _asked_model(socket: WebSocket, talks: Talks) -> str:
    name = socket.query_params.get("model", "")
    return name if name in talks.models else next(iter(talks.models), "")


def _event(text: Any) -> dict[str, Any]:
    if not isinstance(text, str):
        raise InputError(UNREADABLE, "invalid_json")
    if len(text) > LONGEST_MESSAGE:
        raise InputError(TOO_LONG.format(len(text), LONGEST_MESSAGE), "message_too_long")
    try:
        event = whole(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InputError(UNREADABLE, "invalid_json") from error
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise InputError(UNREADABLE, "invalid_json")
    return event


def _milliseconds(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1e9:
        raise InputError("audio_end_ms must be a number of milliseconds.", "invalid_value")
    return float(given)


def _json(event: Sent) -> str:
    return json.dumps({"event_id": f"event_{secrets.token_hex(8)}", **event})
