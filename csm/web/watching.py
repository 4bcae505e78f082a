"""How the server does, for whoever runs it: `/health`, `/ready`, `/metrics` and a log of requests without a text.

What is counted is counted where it happens: requests at the outermost layer, jobs as they are performed.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import closing

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from csm.config import SAMPLE_RATE
from csm.conversation.events import Event, Performed, TurnChunk, TurnStarted
from csm.conversation.studio import Job, Studio
from csm.conversation.waiting import QueueFull
from csm.errors import InputError
from csm.web.asked import Told, asker
from csm.web.traces import JobSpan
from csm.web.v1.forms import Health, Ready

SECONDS = (0.03, 0.05, 0.08, 0.12, 0.2, 0.35, 0.6, 1, 2, 4, 8, 15, 30, 60, 120)
FACTORS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1, 1.5, 2.5, 5)
# Paths whose last part names something of somebody's, such as a page or a voice: what stands behind is not shown.
NAMED = ("/v1/audio/voices", "/v1/models", "/csm/script", "/csm/voice", "/csm/whole", "/csm/take", "/csm/save")
KNOWN = (
    *("/", "/health", "/ready", "/metrics", "/docs", "/openapi.json", "/config", "/gradio_api/mcp"),
    *("/v1/audio/speech", "/v1/audio/speech/schema", "/v1/audio/speech/stream", "/v1/audio/dialogue"),
    *(
        "/v1/audio/models",
        "/v1/realtime",
        "/csm/view",
        "/csm/plan",
        "/csm/keep",
        "/csm/speak",
        "/csm/stop",
        "/csm/open",
    ),
)
log = logging.getLogger("csm.access")


class Metrics:
    """The figures of one server."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        to = self.registry = CollectorRegistry()
        self.requests = Counter("csm_requests", "Requests answered.", ["method", "route", "status"], registry=to)
        self.jobs = Counter("csm_jobs", "Jobs: done, stopped, refused, left or failed.", ["outcome"], registry=to)
        self.sound = Counter("csm_sound_seconds", "Seconds of sound that were made.", registry=to)
        self.waits = Histogram("csm_queue_seconds", "Seconds in the queue.", buckets=SECONDS, registry=to)
        self.first = Histogram("csm_first_sound_seconds", "Seconds to the first sound.", buckets=SECONDS, registry=to)
        self.factor = Histogram("csm_real_time_factor", "Work for a second of sound.", buckets=FACTORS, registry=to)
        queue = studio.queue
        Gauge("csm_slots", "Jobs that are spoken side by side.", registry=to).set(queue.slots)
        Gauge("csm_slots_busy", "Jobs that are spoken now.", registry=to).set_function(lambda: queue.counts()[0])
        Gauge("csm_queue_waiting", "Jobs that wait.", registry=to).set_function(lambda: queue.counts()[1])

    def watched(self, job: Job, events: Iterator[Event]) -> Iterator[Event]:
        """`events` of that job, counted on their way."""
        began, started, sounded, outcome = time.perf_counter(), False, False, "left"
        span, spent = JobSpan(1 if job.again else len(job.session.turns) - job.index), job.session.spent
        seconds, samples = spent.seconds, spent.samples
        try:
            with closing(events):  # type: ignore[type-var]
                for event in events:
                    if isinstance(event, TurnStarted) and not started:
                        started = True
                        self.waits.observe(passed := time.perf_counter() - began)
                        span.note(queue_seconds=passed)
                    elif isinstance(event, TurnChunk) and not sounded:
                        sounded = True
                        self.first.observe(passed := time.perf_counter() - began)
                        span.note(first_sound_seconds=passed)
                    elif isinstance(event, Performed):
                        outcome = "stopped" if job.stopped() else "done"
                    yield event
        except InputError as error:
            outcome = "turned away" if isinstance(error, QueueFull) else "refused"
            raise
        except Exception:
            outcome = "failed"
            raise
        finally:
            self.jobs.labels(outcome).inc()
            spent = job.session.spent
            made = (spent.samples - samples) / SAMPLE_RATE
            span.note(outcome=outcome, sound_seconds=made)
            span.end()
            if made > 0:
                self.sound.inc(made)
                if (work := spent.seconds - seconds) > 0:
                    self.factor.observe(work / made)

    def routes(self) -> list[BaseRoute]:
        """What to mount on the app's server."""
        return [Route("/health", self.health), Route("/ready", self.ready), Route("/metrics", self.told)]

    async def health(self, request: Request) -> Response:
        """That the server is up."""
        speaking, waiting = self._studio.queue.counts()
        generator, slots = self._studio.generator, self._studio.queue.slots
        health = Health(
            model=generator.model_name, device=str(generator.device), slots=slots, speaking=speaking, waiting=waiting
        )
        return Told(health.model_dump())

    async def ready(self, request: Request) -> Response:
        """Whether jobs should be sent here: the model is warm, and the server is not about to stop."""
        missing = self._studio.unready()
        return Told(Ready(ready=not missing, missing=missing).model_dump(), 503 if missing else 200)

    async def told(self, request: Request) -> Response:
        """All figures, in Prometheus' text format."""
        return Response(generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class Watched:
    """ASGI around the whole server: counts requests and, where somebody listens to `csm.access`, tells of each."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        began, status, size = time.perf_counter(), 0, 0

        async def sent(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            size += len(message.get("body") or message.get("bytes") or b"")
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            method = scope.get("method", "WEBSOCKET")
            route = route_of(scope["path"])
            self._metrics.requests.labels(method if method in METHODS else "OTHER", route, str(status)).inc()
            if log.isEnabledFor(logging.INFO):
                told = {"time": round(time.time(), 3), "method": method, "route": route, "status": status}
                told |= {"seconds": round(time.perf_counter() - began, 4), "bytes": size}
                log.info(json.dumps(told | {"who": asker(HTTPConnection(scope))}))


METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "WEBSOCKET")


def route_of(path: str) -> str:
    """What of a path is told: nothing that names a page, a voice or a file of somebody's."""
    if path in KNOWN or path in NAMED:
        return path
    for named in NAMED:
        if path.startswith(f"{named}/"):
            return f"{named}/…"
    return f"/{path.split('/')[1]}/…" if path.startswith(("/gradio_api/", "/csm/", "/assets/", "/static/")) else "other"


def write_log(place: str) -> None:
    """Have every request told in the file `place`, a line of JSON each; `-` is standard error. Raises `InputError`."""
    try:
        handler: logging.Handler = logging.StreamHandler(sys.stderr) if place == "-" else logging.FileHandler(place)
    except OSError as error:
        raise InputError(f"The log {place} can't be written: choose another place in CSM_ACCESS_LOG.") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
