"""A request on its way from the front to a replica and its answer back, piece by piece: HTTP, streams, websockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.frames import CloseCode

from csm.web.cluster.gate import Headers, back, onward
from csm.web.doors import LONGEST_CALL

CONNECT_SECONDS = 2.0
KEPT_SECONDS = 3.0  # for which an idle connection is kept: replicas end theirs after 5
LARGEST_MESSAGE = 64 << 20  # bytes; the replica has its own, smaller budget
BROKE = "The replica that spoke has ended; what it made until now is all there is, so please ask again."
PENDING = 1012  # websockets: the service restarts
NO_STATUS = (1005, 1006, 1015)  # never sent


class Unreachable(Exception):
    """The replica did not begin to answer; `asked`: it may have begun to do what it was asked."""

    def __init__(self, asked: bool) -> None:
        super().__init__("The replica did not answer.")
        self.asked = asked


class BrokeOff(Exception):
    """The replica ended in the middle of its answer. A stream of events has been told so."""


@dataclass
class Body:
    """What a request brings. It is read ahead as far as `LONGEST_CALL`, so that it can be sent again."""

    receive: Receive
    ahead: bytes = b""
    complete: bool = False
    gone: bool = False
    passed_on: bool = field(default=False, init=False)

    async def read(self) -> None:
        """Read it ahead."""
        parts, size = [], 0
        while not self.complete and not self.gone and size <= LONGEST_CALL:
            parts.append(await self._part())
            size += len(parts[-1])
        self.ahead = b"".join(parts)

    @property
    def again(self) -> bool:
        """Whether it can be sent once more."""
        return self.complete or not self.passed_on

    async def parts(self) -> AsyncIterator[bytes]:
        """All of it."""
        yield self.ahead
        while not self.complete and not self.gone:
            self.passed_on = True
            yield await self._part()

    async def left(self) -> None:
        """Wait until the client goes."""
        while not self.gone:
            if not self.complete:  # it is being sent still: whoever sends it notices
                await asyncio.sleep(0.1)
            elif (await self.receive())["type"] == "http.disconnect":
                self.gone = True

    async def _part(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            return b""
        self.complete = not message.get("more_body", False)
        return message.get("body", b"")


def client() -> httpx.AsyncClient:
    """What asks the replicas, for as long as a front lives."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEPT_SECONDS),
        trust_env=False,
    )


def path_of(scope: Scope) -> bytes:
    """Path and query as they were asked."""
    path = (scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0]
    return path + (b"?" + scope["query_string"] if scope.get("query_string") else b"")


async def pass_on(
    asker: httpx.AsyncClient, url: str, secret: str, scope: Scope, body: Body, send: Send, more: Headers
) -> None:
    """Have the replica at `url` answer; `more` are headers for its answer. Raises `Unreachable` before the answer has
    begun, `BrokeOff` when the client knows that it has. Returns when the client has gone, too: then the replica is told
    by the end of its connection."""
    headers = onward(scope["headers"], (scope.get("client") or ("", 0))[0], secret)
    if not body.complete and b"content-length" not in dict(headers):
        headers.append((b"transfer-encoding", b"chunked"))
    target = httpx.URL(url).copy_with(raw_path=path_of(scope))
    request = httpx.Request(
        scope["method"], target, headers=headers, content=body.ahead if body.complete else body.parts()
    )
    await _until_either(_answered(asker, request, send, more), body.left())


async def _until_either(replica: Coroutine[Any, Any, None], client: Coroutine[Any, Any, None]) -> None:
    """Until the replica's side or the client's has ended, which ends the other. Raises what the replica's raised."""
    tasks = [asyncio.ensure_future(replica), asyncio.ensure_future(client)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answered(asker: httpx.AsyncClient, request: httpx.Request, send: Send, more: Headers) -> None:
    try:
        answer = await asker.send(request, stream=True)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise Unreachable(asked=False) from error
    except httpx.TransportError as error:
        raise Unreachable(asked=True) from error
    try:
        headers = [*back(answer.headers.raw), *more]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        try:
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except httpx.TransportError as error:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                await send({"type": "http.response.body", "body": _last_event(request.url.path)})
            raise BrokeOff from error
        await send({"type": "http.response.body", "body": b""})
    finally:
        await answer.aclose()


def _last_event(path: str) -> bytes:
    """What ends a stream of events whose replica has ended, in the shape of its door."""
    told: dict[str, Any] = {"type": "error", "error": BROKE, "code": "broken"}
    if path.startswith("/v1"):
        told = {"error": {"message": BROKE, "type": "server_error", "param": None, "code": "server_error"}}
    return f"data: {json.dumps(told)}\n\n".encode()


async def pass_socket(url: str, secret: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Join a client's websocket, which asks to be let in, with one to the replica at `url`. Raises `Unreachable`."""
    headers = onward(scope["headers"], (scope.get("client") or ("", 0))[0], secret)
    own = [
        (name.decode(), value.decode("latin-1")) for name, value in headers if not name.startswith(b"sec-websocket-")
    ]
    target = url.replace("http://", "ws://", 1) + path_of(scope).decode()
    offered = scope.get("subprotocols") or None
    try:
        joined = await connect(
            target, additional_headers=own, subprotocols=offered, user_agent_header=None, compression=None, proxy=None,
            max_size=LARGEST_MESSAGE, open_timeout=CONNECT_SECONDS * 5, ping_interval=None,
        )  # fmt: skip
    except InvalidHandshake:  # it refused
        await send({"type": "websocket.close", "code": int(CloseCode.POLICY_VIOLATION), "reason": ""})
        return
    except (OSError, TimeoutError) as error:
        raise Unreachable(asked=False) from error
    await send({"type": "websocket.accept", "subprotocol": joined.subprotocol})
    try:
        await _until_either(_from_replica(joined, send), _from_client(receive, joined))
    finally:
        await joined.close()


async def _from_client(receive: Receive, joined: ClientConnection) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        data = message.get("text")
        await joined.send(data if data is not None else message.get("bytes") or b"")


async def _from_replica(joined: ClientConnection, send: Send) -> None:
    try:
        while True:
            data = await joined.recv()
            kind = "text" if isinstance(data, str) else "bytes"
            await send({"type": "websocket.send", kind: data})
    except ConnectionClosed as closed:
        code, reason = 1000, ""
        if closed.rcvd is None:  # it did not say goodbye
            told = {"message": BROKE, "type": "server_error", "param": None, "code": "server_error"}
            await send({"type": "websocket.send", "text": json.dumps({"type": "error", "error": told})})
            code, reason = PENDING, BROKE[:100]
        elif closed.rcvd.code not in NO_STATUS:
            code, reason = closed.rcvd.code, closed.rcvd.reason
        await send({"type": "websocket.close", "code": code, "reason": reason})
