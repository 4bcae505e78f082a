"""The outermost layer of the app's server: who may come in, how much they may send, how long they may be silent, and
what every answer says about itself. All doors are behind it: the page, Gradio's functions, `/v1`, MCP."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import secrets
from collections.abc import Callable
from typing import Any

import anyio
from gradio.route_utils import FnIndexInferError
from httpx import InvalidURL
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from csm.limits import LARGEST_UPLOAD, LONGEST_BODY, MB, MOST_ASKED, SILENT_SECONDS, values_in
from csm.web.access import Access, Refused
from csm.web.asked import FAILED, Told
from csm.web.listeners import CALL, REFUSED, Calls

MCP = "/gradio_api/mcp"
EVENTS, STREAMS = "/gradio_api/call/", "/gradio_api/stream/"
NO_EVENT = b'event: error\ndata: "404: Not Found"\n\n'  # Gradio's whole answer about an event that there is not
OURS = "csm_failed"  # in a request's state: the program went wrong, and said so
UPLOADS = ("/gradio_api/upload", "/csm/open", "/csm/read")
FILES = (*UPLOADS, "/v1/audio/voices")  # whose bodies are no JSON
LONGEST_CALL = 16 * MB  # bytes of a call through MCP or for speech, which may bring a recording
HEADER_NAMES = re.compile(r"[\w-]+(?: *, *[\w-]+){0,63}", re.ASCII)
TOO_LONG = "This is more than the server takes at once: send less."
NO_ROOM = "The server keeps as many files as it can: try again in an hour."
UNREADABLE = "The request can't be read: something in it is missing or of another kind."
UNREADABLE_ERRORS = (
    *(LookupError, ValueError, TypeError, AttributeError, RecursionError, MultiPartException),
    FnIndexInferError,  # a function that there is not
    InvalidURL,  # an address to be passed on that is none
)
SAID = {
    404: "There is nothing at this address.",
    405: "This address takes requests of another method.",
}
# Gradio's page is made of inline scripts and builds functions; all of it comes from this server.
POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
logger = logging.getLogger(__name__)


class _TooLongError(Exception):
    pass


class Doors:
    """ASGI around the whole server."""

    def __init__(
        self, app: ASGIApp, access: Access, calls: Calls | None = None, room: Callable[[], bool] = lambda: True
    ) -> None:
        self._app, self._access, self._calls, self._room = app, access, calls or Calls(), room
        frames = "'self' https://huggingface.co" if access.embedded else "'self'"
        rules = POLICY | {"frame-ancestors": frames}
        if access.embedded:  # the hub's frame asks the page how tall it is
            rules["script-src"] += " https://cdnjs.cloudflare.com"
        self._policy = "; ".join(f"{name} {value}" for name, value in rules.items())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path, method = scope["path"], scope.get("method", "GET")
        client = scope.get("client")
        refused = self._access.refused(method, path, headers, client is not None and client[0] in ("127.0.0.1", "::1"))
        before = method == "OPTIONS" and "access-control-request-method" in headers
        if before and refused is not None and refused.status == 401 and self._access.listed(headers.get("origin")):
            refused = None  # a browser asks first whether it may, and shows the key only when it then comes
        if scope["type"] == "websocket":
            if refused is not None:
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": _reason(refused.sentence)})
                return
            await self._app(scope, receive, send)
            return
        send = self._marked(scope, headers, send)
        if refused is None and int(_number(headers.get("content-length"))) > _longest(path):
            refused = Refused(413, TOO_LONG, "body_too_long")
        if refused is None and path.startswith(UPLOADS) and method == "POST" and not self._room():
            refused = Refused(507, NO_ROOM, "no_room")
        if refused is None and before:
            await Response(status_code=204)(scope, receive, send)
        elif refused is not None:
            await told(path, refused)(scope, receive, send)
        else:
            await self._served(scope, receive, send)

    async def _served(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, state = scope["path"], scope.setdefault("state", {})
        began = ended = gone = silent = False
        # Gradio looks for an event after it has begun to tell of it: the head of that answer waits for its body.
        held: Message | None = None

        async def sent(message: Message) -> None:
            nonlocal began, ended, held, silent
            if message["type"] == "http.response.start":
                # Gradio answers a refusal like a failure, and the MCP server what it can't read.
                if message["status"] == 500 and not state.get(OURS) and (path.startswith(MCP) or state.get(REFUSED)):
                    message["status"] = 400
                if path.startswith(EVENTS):
                    held = message
                    return
            if held is not None and message.get("body") == NO_EVENT:
                began, ended, held = True, True, None
                await told(path, Refused(404, SAID[404], "not_found"))(scope, receive, send)
                return
            began = True
            try:
                with anyio.fail_after(SILENT_SECONDS):
                    if held is not None:
                        await send(held)
                        held = None
                    await send(message)
            except TimeoutError:
                silent = True
                raise
            ended = message["type"] == "http.response.body" and not message.get("more_body")

        async def taken() -> Message:
            nonlocal gone
            message = await whole_body()
            gone = gone or message["type"] == "http.disconnect"
            return message

        whole_body, receive = receive, taken
        receive = _bounded(receive, path)
        name = secrets.token_hex(8) if path.startswith(MCP) and CALL.encode() not in dict(scope["headers"]) else ""
        if name:
            scope = {**scope, "headers": [*scope["headers"], (CALL.encode(), name.encode())]}
            receive = self._heard(receive, name)
        try:
            await self._app(scope, receive, sent)
        except _TooLongError:
            if not began:
                await told(path, Refused(413, TOO_LONG, "body_too_long"))(scope, receive, send)
        except Exception as error:
            if silent:  # nobody takes what is sent: the connection is closed
                return
            if not gone and not _unreadable(path, error):
                logger.exception("A request failed.")
            if not began:
                await failed(path, error)(scope, receive, send)
            elif not ended and _unreadable(path, error):  # what Gradio said of it is all
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if name:
                self._calls.end(name)

    def _heard(self, receive: Receive, name: str) -> Receive:
        """`receive` that notices when the client of MCP's call `name` goes, whoever else listens for that."""
        watching: list[asyncio.Task[None]] = []
        self._calls.begin(name)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._calls.end(name)

        async def heard() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                self._calls.end(name)
            elif not message.get("more_body") and not watching:
                watching.append(asyncio.ensure_future(watch()))
            return message

        return heard

    def _marked(self, scope: Scope, asked: Headers, send: Send) -> Send:
        """`send` that puts on what every answer says about itself."""
        origin = asked.get("origin")

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["Content-Security-Policy"] = self._policy
                if self._access.listed(origin):
                    headers["Access-Control-Allow-Origin"] = str(origin)
                    headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, DELETE"
                    wanted = asked.get("access-control-request-headers", "")  # OpenAI's client has many of its own
                    named = wanted if HEADER_NAMES.fullmatch(wanted) else "authorization, content-type"
                    headers["Access-Control-Allow-Headers"] = named
                    headers["Access-Control-Expose-Headers"] = "Warning, Retry-After"
                    headers.add_vary_header("Origin")
                elif "access-control-allow-origin" in headers:  # Gradio's, for sites that may not ask
                    del headers["Access-Control-Allow-Origin"]
                if scope["path"] == "/" and message["status"] == 200 and (cookie := self._access.cookie()):
                    headers.append("Set-Cookie", cookie)
            await send(message)

        return marked


def told(path: str, refused: Refused) -> Response:
    """A refusal in the shape of the door at `path`."""
    sentence, code = refused.sentence, refused.code
    body: dict[str, Any] = {"detail": sentence, "error": sentence}
    if path.startswith("/v1"):
        kind = "server_error" if refused.status >= 500 else "invalid_request_error"
        body = {"error": {"message": sentence, "type": kind, "param": None, "code": code}}
    elif path.startswith("/csm"):
        body = {"error": sentence, "place": "", "code": code}
    elif path.startswith(MCP):
        body = {"jsonrpc": "2.0", "id": None, "error": {"code": -32_000, "message": sentence}}
    return Told(body, refused.status, {"WWW-Authenticate": "Bearer"} if refused.status == 401 else None)


def failed(path: str, error: Exception | None = None) -> Response:
    """What is said where the program itself went wrong, or Gradio's routes could not read what they were asked."""
    if error is not None and _unreadable(path, error):
        if _nothing(error) or (path.startswith(STREAMS) and isinstance(error, KeyError)):
            return told(path, Refused(404, SAID[404], "not_found"))
        return told(path, Refused(400, UNREADABLE, "invalid_request"))
    return told(path, Refused(500, FAILED, "server_error"))


async def answer_failure(request: Request, error: Exception) -> Response:
    """For what no handler knew."""
    if isinstance(error, _TooLongError):
        return told(request.url.path, Refused(413, TOO_LONG, "body_too_long"))
    request.scope["state"][OURS] = True
    return failed(request.url.path, error)


async def answer_refusal(request: Request, error: Exception) -> Response:
    """For what the server itself refuses, such as an address that it doesn't have."""
    assert isinstance(error, HTTPException)
    sentence = SAID.get(error.status_code, str(error.detail))
    answer = told(request.url.path, Refused(error.status_code, sentence, "not_found"))
    answer.headers.update(error.headers or {})
    return answer


async def answer_unreadable(request: Request, error: Exception) -> Response:
    """For a body that is not of the kind that its route takes."""
    return told(request.url.path, Refused(422, UNREADABLE, "invalid_request"))


def _unreadable(path: str, error: Exception) -> bool:
    """Gradio's own routes raise these for what they are asked; our functions behind them let none of them out."""
    of_name = isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR)
    found = of_name or _nothing(error) or isinstance(error, UNREADABLE_ERRORS)
    return found and not path.startswith(("/v1", "/csm"))


def _nothing(error: Exception) -> bool:
    """An event that there is not, which Gradio finds after its answer has begun."""
    return isinstance(error.__cause__, HTTPException) and error.__cause__.status_code == 404


def _reason(sentence: str) -> str:
    """As much of a sentence as fits into a websocket's close frame: 123 bytes (RFC 6455, 5.5.1), in whole letters."""
    return sentence.encode()[:123].decode("utf-8", "ignore")


def _longest(path: str) -> int:
    if path.startswith(UPLOADS):
        return LARGEST_UPLOAD + MB
    return LONGEST_CALL if path.startswith((MCP, "/v1/audio/")) else LONGEST_BODY


def _bounded(receive: Receive, path: str) -> Receive:
    """`receive` that takes no more bytes, and of JSON no more values, than are read at this address."""
    count, values, longest, is_json = 0, 0, _longest(path), not path.startswith(FILES)

    async def bounded() -> Message:
        nonlocal count, values
        message = await receive()
        body = message.get("body", b"")
        count, values = count + len(body), values + (values_in(body) if is_json else 0)
        if count > longest or values > MOST_ASKED:
            raise _TooLongError
        return message

    return bounded


def _number(given: str | None) -> int:
    return int(given) if given is not None and given.isascii() and given.isdigit() and len(given) < 20 else 0
