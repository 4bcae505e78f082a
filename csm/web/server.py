"""What the app's server offers beside Gradio's page: the routes of its own script, OpenAI's speech routes, talks, and
the functions as MCP tools; and a model that is warm when the first listener comes."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from typing import Any, cast

from fastapi.exceptions import RequestValidationError
from gradio import Blocks, http_server
from gradio.routes import App
from starlette import status
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from csm.config import Environment
from csm.conversation.studio import Studio
from csm.speech.batching import shared, usual_slots
from csm.speech.generator import Generator
from csm.web.access import Access
from csm.web.doors import Doors, answer_failure, answer_refusal, answer_unreadable
from csm.web.endpoints import default_voices
from csm.web.events import forget, keep_little
from csm.web.gpu import accelerator, on_zerogpu
from csm.web.openai import speech_api
from csm.web.pages import Pages
from csm.web.realtime import Talks
from csm.web.routes import PageRoutes
from csm.web.starting import PatientServer
from csm.web.stopping import GRACE_SECONDS, stop_gently
from csm.web.ui import build_app, launch_options
from csm.web.v1.errors import leftovers
from csm.web.v1.shelf import Shelf
from csm.web.watching import Metrics, Watched, write_log

TIDY_SECONDS = 20.0
TEXTS_SECONDS = 600.0  # how long texts that were read are remembered; a talk's are forgotten with it
logger = logging.getLogger(__name__)
# gradio 6.17.3 uses a name that starlette 1.x has deprecated; set here, it no longer warns at every request.
status.HTTP_422_UNPROCESSABLE_ENTITY = 422
http_server.Server = PatientServer  # type: ignore[misc]


def open_studio(generator: Generator) -> Studio:
    """Where all jobs of the app are spoken, as many at once as the device has slots; one for each loaded model. On
    ZeroGPU each job has a process of its own, and one is served at a time."""
    if on_zerogpu():
        return Studio(generator, accelerator=accelerator)
    slots = usual_slots(generator)
    return Studio(shared(generator, slots), slots, accelerator=accelerator)


def server_options(
    studio: Studio,
    pages: Pages,
    talks: Talks | None = None,
    shelf: Shelf | None = None,
    outermost: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> dict[str, Any]:
    """Arguments for `Blocks.launch` beside those of `launch_options`: the routes are on Gradio's own server, so
    address, port and Space stay as they are. Without the package `mcp` there are no tools. `shelf` is another place for
    the voices that programs bring, `outermost` a layer around all others."""
    talks = talks or Talks.of(studio, Environment.read(), pages)
    metrics = Metrics(studio)
    studio.watch = metrics.watched
    routes = [*speech_api(studio, shelf).routes(), *PageRoutes(pages).routes(), *talks.routes(), *metrics.routes()]
    routes.append(leftovers(routes[:]))
    told = {
        RequestValidationError: answer_unreadable,
        HTTPException: answer_refusal,
        Exception: answer_failure,
    }
    kept = {"routes": routes, "lifespan": lived(pages, talks, metrics, outermost), "exception_handlers": told}
    # Voices of one's own are played from here; the names of their folders are drawn, and nobody is told another's.
    own = [str(pages.place.voices)]
    return {"app_kwargs": kept, "mcp_server": find_spec("mcp") is not None, "allowed_paths": own}


def lived(
    pages: Pages, talks: Talks, metrics: Metrics, outermost: Callable[[ASGIApp], ASGIApp]
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """While the server runs it is tidied by the clock, and all that comes is counted and goes through `Doors`."""

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        # The outermost layer, outside of what Gradio puts around the app it is given.
        assert app.middleware_stack is not None
        doors = Doors(app.middleware_stack, pages.access, pages.calls, pages.place.has_room)
        app.middleware_stack = outermost(Watched(doors, metrics))
        blocks = cast(App, app).get_blocks()
        keep_little(blocks)
        gc.freeze()  # all that is there stays: looking through it again would hold the interpreter for 0.25 s and more
        tidying = asyncio.create_task(_tidied(pages, blocks))
        try:
            yield
        finally:
            gc.unfreeze()
            tidying.cancel()
            talks.close()
            pages.place.close()

    return life


async def _tidied(pages: Pages, blocks: Blocks) -> None:
    due = time.monotonic() + TEXTS_SECONDS
    while True:
        try:
            forget(blocks)
            await asyncio.to_thread(pages.tidy)
            if time.monotonic() > due:
                pages.studio.generator.forget_texts()
                due = time.monotonic() + TEXTS_SECONDS
        except Exception:
            logger.exception("Tidying failed.")
        await asyncio.sleep(TIDY_SECONDS)


def warm_up(studio: Studio) -> threading.Thread | None:
    """Begin to get the model and the usual voices ready, so that the first click is like any other. On ZeroGPU there is
    no accelerator to do it on: None."""
    if on_zerogpu():
        return None
    offered = studio.generator.voices()
    return studio.warm_up({name: offered[name] for name in default_voices() if name in offered})


def serve(generator: Generator, host: str | None = None, port: int | None = None, grace: float = GRACE_SECONDS) -> None:
    """The app over `generator`, until it is stopped; what is spoken then has `grace` seconds to end. Without `host` and
    `port` Gradio's environment decides, else it is 127.0.0.1:7860. Raises `OSError` where the port is taken."""
    environment = Environment.read()
    if environment.access_log:
        write_log(environment.access_log)
    studio = open_studio(generator)
    pages = Pages(studio, access=Access.of(environment, host))
    app = build_app(studio, pages)
    warm_up(studio)
    stop_gently(studio, grace)
    app.launch(**launch_options() | server_options(studio, pages), server_name=host, server_port=port)
