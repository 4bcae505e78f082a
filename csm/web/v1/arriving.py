"""`ws /v1/audio/speech/stream`: text comes in pieces, and each clause is spoken while the next is still being written.

The client sends `session.config`, `input.text` as often as it likes and `input.done`; it gets one growing file of sound
as binary messages, `audio.start` and `audio.done` around each clause, `session.done` at last or an `error`. A clause is
a turn that hears those before it and waits in the queue by itself: who writes slowly holds up nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

from starlette.requests import Request
from starlette.websockets import WebSocket, WebSocketDisconnect

from csm.config import SAMPLE_RATE
from csm.conversation.events import Event, TurnChunk
from csm.conversation.parsing import Line
from csm.conversation.session import Session
from csm.conversation.studio import Job
from csm.errors import InputError
from csm.limits import LONGEST_BODY, LONGEST_SCRIPT, LONGEST_SPEECH, SILENT_SECONDS
from csm.speech.clauses import Clauses
from csm.speech.generator import Generator
from csm.web.asked import asker, whole
from csm.web.encoding import Encoder
from csm.web.endpoints import new_folder
from csm.web.following import followed
from csm.web.v1.errors import ApiError, broken, check_key, refused
from csm.web.v1.heard import Heard
from csm.web.v1.orders import READER, Order, read_opening
from csm.web.v1.shelf import Shelf, owner_of

POLICY_VIOLATION = 1008
FIRST = "A stream begins with session.config, which names the voice."

logger = logging.getLogger(__name__)


class _Waits:
    """Who waits at the other end, as `followed` knows those who ask."""

    def __init__(self, socket: WebSocket) -> None:
        self.headers, self.client = socket.headers, socket.client
        self.gone = False

    async def is_disconnected(self) -> bool:
        return self.gone


class TextStream:
    """The socket's handler, over one model and what performs jobs with it."""

    def __init__(
        self,
        generator: Generator,
        perform: Callable[[Job], Iterator[Event]],
        shelf: Shelf,
        key: str | None = None,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._generator, self._perform, self._shelf, self._key = generator, perform, shelf, key
        self._silent = silent_seconds

    async def serve(self, socket: WebSocket) -> None:
        """One stream, from its opening to its end."""
        await socket.accept()
        reading: asyncio.Task[None] | None = None
        try:
            check_key(socket, self._key)
            opening = await self._message(socket)
            if opening.pop("type", None) != "session.config":
                raise ApiError(FIRST, "type", "invalid_value")
            order = read_opening(opening, self._generator, self._shelf.offered(owner_of(socket)))
            waits, clauses = _Waits(socket), asyncio.Queue[str | ApiError | None]()
            reading = asyncio.create_task(self._read(socket, waits, clauses))
            await self._speak(socket, order, waits, clauses)
            await socket.close()
        except ApiError as error:
            await _refuse(socket, error)
        except InputError as error:
            await _refuse(socket, refused(error))
        except WebSocketDisconnect:
            pass
        except Exception:
            logger.exception("A stream of text broke off.")
            await _refuse(socket, broken())
        finally:
            if reading is not None:
                reading.cancel()

    async def _speak(
        self, socket: WebSocket, order: Order, waits: _Waits, clauses: asyncio.Queue[str | ApiError | None]
    ) -> None:
        session, lines = Session([], order.voices, order.settings), list[Line]()
        encoder, heard = Encoder(order.format), Heard()
        while (clause := await clauses.get()) is not None:
            if isinstance(clause, ApiError):
                raise clause
            index = len(lines)
            lines.append(Line(READER, clause, index + 1))
            session.rewrite(lines)
            left = LONGEST_SPEECH - heard.seconds
            most = max(1.0, left)
            job = Job(session, new_folder(), index, judged=False, who=asker(socket), most_seconds=most)
            await socket.send_json(
                {"type": "audio.start", "sentence_index": index, "sentence_text": clause, "format": order.format}
            )
            async for event in followed(cast(Request, waits), self._perform(job), job):
                heard.take(event)
                if isinstance(event, TurnChunk) and (data := encoder.write(event.audio.numpy())):
                    await socket.send_bytes(data)
            if waits.gone:
                return
            span = heard.spans[-1]
            times = {"start": round(span.start / SAMPLE_RATE, 3), "end": round(span.end / SAMPLE_RATE, 3)}
            await socket.send_json({"type": "audio.done", "sentence_index": index, **times})
        if lines and (data := encoder.finish()):
            await socket.send_bytes(data)
        await socket.send_json({"type": "session.done", "total_sentences": len(lines), "usage": heard.usage})

    async def _read(self, socket: WebSocket, waits: _Waits, clauses: asyncio.Queue[str | ApiError | None]) -> None:
        """Put what comes into `clauses`, None behind the last; then wait for the client to go."""
        cutter, letters = Clauses(), 0
        try:
            while (message := await self._message(socket)).get("type") != "input.done":
                if message.get("type") != "input.text":
                    raise ApiError("Messages are input.text and input.done.", "type", "invalid_value")
                if not isinstance(text := message.get("text"), str):
                    raise ApiError("input.text carries a text.", "text", "missing_required_parameter")
                if (letters := letters + len(text)) > LONGEST_SCRIPT:
                    told = f"At most {LONGEST_SCRIPT:,} letters are spoken in one stream."
                    raise ApiError(told, "text", "string_above_max_length")
                for clause in cutter.push(text):
                    clauses.put_nowait(clause)
            for clause in cutter.finish():
                clauses.put_nowait(clause)
            clauses.put_nowait(None)
            while (await socket.receive())["type"] != "websocket.disconnect":
                pass
            waits.gone = True
        except ApiError as error:
            clauses.put_nowait(error)
        except WebSocketDisconnect:
            waits.gone = True
            clauses.put_nowait(None)

    async def _message(self, socket: WebSocket) -> dict[str, Any]:
        """The next message. Raises `ApiError` for what is none, and where none comes for long."""
        try:
            received = await asyncio.wait_for(socket.receive(), self._silent)
        except asyncio.TimeoutError as error:
            raise ApiError(f"Nothing came for {self._silent:.0f} seconds.", None, "silent", 408) from error
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code", 1005))
        data = received.get("text")
        if data is not None and len(data) > LONGEST_BODY:
            raise ApiError("The message is too long.", code="body_too_long", status=413)
        try:
            message = whole(json.loads(data or ""))
        except (ValueError, RecursionError) as error:
            raise ApiError("The message is not JSON that can be read.", code="invalid_json") from error
        if not isinstance(message, dict):
            raise ApiError("A message is a JSON object with a type.", code="invalid_json")
        return message


async def _refuse(socket: WebSocket, error: ApiError) -> None:
    try:
        await socket.send_json({"type": "error", **error.body})
        await socket.close(POLICY_VIOLATION, error.body["error"]["code"])
    except (RuntimeError, WebSocketDisconnect):  # nobody is there any more
        pass
