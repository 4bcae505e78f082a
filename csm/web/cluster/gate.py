"""What front and replicas say to each other in headers, and the layer of a replica's server that believes the front
alone: who asks, and by which name, is what the front saw."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from csm.web.access import Refused
from csm.web.doors import told

SECRET, CLIENT, HOST = b"x-csm-secret", b"x-csm-client", b"x-csm-host"
OURS = (SECRET, CLIENT, HOST)
FORWARDED = (b"x-forwarded-for", b"forwarded")  # the front says who asks
HOP = (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
ASK_THE_FRONT = Refused(403, "This is a part of a cluster: ask its front.", "not_the_front")

Headers = list[tuple[bytes, bytes]]


def onward(headers: Iterable[tuple[bytes, bytes]], client: str, secret: str) -> Headers:
    """The headers of a request for a replica: what was said between client and front stays there."""
    kept, host = [], b""
    for name, value in headers:
        if name == b"host":
            host = value
        elif name not in HOP and name not in OURS and name not in FORWARDED:
            kept.append((name, value))
    return [*kept, (SECRET, secret.encode()), (CLIENT, client.encode()), (HOST, host)]


def back(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers of a replica's answer for the client; the front has a date and a server of its own."""
    lower = ((name.lower(), value) for name, value in headers)
    return [(name, value) for name, value in lower if name not in HOP and name not in (b"date", b"server")]


class Gate:
    """ASGI around a replica's server, which listens at `address`. From other machines only the front comes in."""

    def __init__(self, app: ASGIApp, secret: str, address: str) -> None:
        self._app, self._secret, self._here = app, secret.encode(), (address, "127.0.0.1", "::1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        said = dict(scope["headers"])
        client = (scope.get("client") or ("", 0))[0]
        plain = [(name, value) for name, value in scope["headers"] if name not in OURS and name != b"host"]
        if hmac.compare_digest(said.get(SECRET, b""), self._secret):
            headers = [(b"host", said.get(HOST, b"")), *plain]
            scope = {**scope, "headers": headers, "client": (said.get(CLIENT, b"").decode(), 0)}
        elif client in self._here:  # the app's own: Gradio looks whether it is up, its MCP server asks it
            scope = {**scope, "headers": [(b"host", b"localhost"), *plain], "client": ("127.0.0.1", 0)}
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ASK_THE_FRONT.sentence})
            return
        else:
            await told(scope["path"], ASK_THE_FRONT)(scope, receive, send)
            return
        await self._app(scope, receive, send)
