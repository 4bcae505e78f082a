"""The front: ASGI that gives every request to a replica, keeps what belongs together together, and tells how all do."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from html import escape
from http.cookies import CookieError, SimpleCookie
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from csm.web.access import Access, Refused
from csm.web.asked import Told
from csm.web.cluster.figures import merged, own_figures
from csm.web.cluster.passing import Body, BrokeOff, Unreachable, client, pass_on, pass_socket
from csm.web.cluster.roster import READY, Asked, Balance, Figures, Standing
from csm.web.doors import told
from csm.web.v1.forms import Ready

COOKIE = "csm_replica"
LEARN_SECONDS = 0.25
SCRAPE_SECONDS = 2.0
TRY_AGAIN_LATER = 1013  # websockets
NOBODY = Refused(503, "No replica can take this at the moment: try again in a few seconds.", "no_replica")
ENDED = Refused(502, "The replica that was asked has ended: please ask again.", "replica_ended")
# What may be asked twice: nothing is kept of it, and with a seed its answer is the same.
TWICE = ("/v1/audio/speech", "/v1/audio/dialogue")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>Replicas</title><style>body {{ font: 1rem system-ui; margin: 2rem; color-scheme: light dark }}
td, th {{ padding: .3rem .8rem; text-align: left; vertical-align: top }}</style>
<h1>Replicas</h1><p>{speaking} of {slots} slots speak, {waiting} wait.</p>
<table><thead><tr><th>replica<th>state<th>speaks<th>waits<th>slots<th>what it runs<th>trouble</tr></thead>
<tbody>{rows}</tbody></table></html>"""
logger = logging.getLogger(__name__)


class Register(Protocol):
    """Who knows all replicas."""

    async def standings(self) -> list[Standing] | None: ...

    async def secret(self) -> str: ...


class Front:
    """ASGI over the replicas that `register` knows. For one event loop."""

    def __init__(self, register: Register, access: Access) -> None:
        self._register, self._access = register, access
        self._balance, self._asker = Balance(), client()
        self._secret, self._learning = "", None  # type: tuple[str, asyncio.Task[None] | None]
        self._first = asyncio.Lock()
        self.registry = CollectorRegistry()
        self.repeated = Counter("csm_cluster_repeated", "Requests given to another replica.", registry=self.registry)
        self.broken = Counter("csm_cluster_broken", "Answers that a replica's end broke off.", registry=self.registry)
        self._routes: dict[str, Callable[[], Awaitable[Response]]] = {
            "/health": self.health, "/ready": self.ready, "/metrics": self.metrics, "/cluster": self.page
        }  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lives(receive, send)
            return
        await self._begun()
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        path, headers = scope["path"], Headers(scope=scope)
        if scope["method"] in ("GET", "HEAD") and (answer := self._routes.get(path)):
            here = (scope.get("client") or ("",))[0] in ("127.0.0.1", "::1")
            refused = self._access.refused(scope["method"], path, headers, here)
            response = told(path, refused) if refused else await answer()
            await response(scope, receive, send)
            return
        await self._passed(scope, receive, send)

    def standings(self) -> list[Standing]:
        """All replicas, as far as they are known."""
        return self._balance.standings()

    async def health(self) -> Response:
        """That the front is up, one queue's figures for all, and every replica."""
        there = self._balance.standings()
        figures, models = Figures.of(there), [one for one in there if one.state == READY] or there
        about = {"model": models[0].model if models else "", "device": models[0].device if models else ""}
        return Told({"status": "ok", **about, **vars(figures), "replicas": [one.told() for one in there]})

    async def ready(self) -> Response:
        """Whether any replica takes requests."""
        missing = "" if self._balance.ready() else NOBODY.sentence
        return Told(Ready(ready=not missing, missing=missing).model_dump(), 503 if missing else 200)

    async def metrics(self) -> Response:
        """The figures of all replicas, each with its name, and the front's own."""
        there = self._balance.ready()
        texts = await asyncio.gather(*(self._scraped(one) for one in there))
        named = {one.id: text for one, text in zip(there, texts) if text}
        own = generate_latest(self.registry) + own_figures(self._balance.standings())
        return Response(own + merged(named), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def page(self) -> Response:
        """The same to look at."""
        there = self._balance.standings()
        cells = [(o.id, o.state, o.speaking, o.waiting, o.slots, o.speaks, o.trouble) for o in there]
        rows = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in row) + "</tr>" for row in cells)
        return HTMLResponse(PAGE.format(rows=rows, **vars(Figures.of(there))))

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked, body, tried = self._asked(scope), Body(receive), set[str]()
        await body.read()
        twice = scope["method"] in ("GET", "HEAD") or scope["path"] in TWICE
        while not body.gone:
            replica = self._balance.choose(asked, tried)
            if replica is None:
                await _answer(told(scope["path"], NOBODY), scope, receive, send, retry=True)
                return
            more = [] if not asked.stays or asked.cookie == replica.id else [self._cookie(replica.id)]
            try:
                with self._balance.sent(replica.id, asked):
                    await pass_on(self._asker, replica.url, self._secret, scope, body, send, more)
                return
            except Unreachable as error:
                self._balance.broke(replica.id)
                tried.add(replica.id)
                if (error.asked and not twice) or not body.again:
                    self.broken.inc()
                    await _answer(told(scope["path"], ENDED), scope, receive, send, retry=True)
                    return
                self.repeated.inc()
            except BrokeOff:
                self._balance.broke(replica.id)
                self.broken.inc()
                logger.warning("Replica %s ended in the middle of an answer.", replica.id)
                return  # a file without its end: the server breaks the connection off

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked, tried = self._asked(scope), set[str]()
        await receive()  # that it asks to be let in
        while (replica := self._balance.choose(asked, tried)) is not None:
            try:
                with self._balance.sent(replica.id, asked):
                    await pass_socket(replica.url, self._secret, scope, receive, send)
                return
            except Unreachable:
                self._balance.broke(replica.id)
                tried.add(replica.id)
                self.repeated.inc()
        await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": NOBODY.sentence})

    def _asked(self, scope: Scope) -> Asked:
        headers = Headers(scope=scope)
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            found = None
        host = (scope.get("client") or ("",))[0]
        who = hashlib.sha256(f"{host} {headers.get('authorization', '')}".encode()).hexdigest()
        return Asked(scope["path"], found.value if found else "", who)

    def _cookie(self, id: str) -> tuple[bytes, bytes]:
        rules = "SameSite=None; Secure; Partitioned" if self._access.embedded else "SameSite=Lax"
        return b"set-cookie", f"{COOKIE}={id}; Path=/; HttpOnly; {rules}".encode()

    async def _scraped(self, replica: Standing) -> str:
        headers = {"x-csm-secret": self._secret, "x-csm-client": "127.0.0.1", "x-csm-host": "localhost"}
        if self._access.key:
            headers["authorization"] = f"Bearer {self._access.key}"
        with suppress(Exception):
            return (await self._asker.get(f"{replica.url}/metrics", headers=headers, timeout=SCRAPE_SECONDS)).text
        return ""

    async def _begun(self) -> None:
        """What is done before the first request: not every server tells ASGI when it starts."""
        if self._learning is None:
            async with self._first:
                if self._learning is None:
                    self._secret = await self._register.secret()
                    self._balance.learn(await self._register.standings() or [])
                    self._learning = asyncio.create_task(self._learns())

    async def _learns(self) -> None:
        answers = True
        while True:
            try:
                if (there := await self._register.standings()) is not None:
                    self._balance.learn(there)
                answers = True
            except Exception as error:  # it is being started again
                if answers:
                    logger.warning("The register does not answer (%s): those known are asked.", type(error).__name__)
                answers = False
            await asyncio.sleep(LEARN_SECONDS)

    async def _lives(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.living():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """While the block lasts it knows who is there."""
        await self._begun()
        try:
            yield
        finally:
            assert self._learning is not None
            self._learning.cancel()
            await self._asker.aclose()


async def _answer(response: Response, scope: Scope, receive: Receive, send: Send, retry: bool = False) -> None:
    if retry:
        response.headers["Retry-After"] = "5"
    await response(scope, receive, send)
