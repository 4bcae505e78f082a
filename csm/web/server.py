"""What the app's server offers beside Gradio's page: the routes of its own script, OpenAI's speech routes, and the
functions as MCP tools; and a model that is warm when the first listener comes."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import Any

from csm.generator import Generator
from csm.web.endpoints import default_voices
from csm.web.gpu import for_many, reading_with, warm_up_beside
from csm.web.openai import speech_api
from csm.web.pages import Pages
from csm.web.routes import PageRoutes
from csm.web.ui import build_app, launch_options
from csm.web.waiting import Queue


def server_options(generator: Generator, queue: Queue, pages: Pages) -> dict[str, Any]:
    """Arguments for `Blocks.launch` beside those of `launch_options`: the routes are on Gradio's own server, so
    address, port and Space stay as they are. Without the package `mcp` there are no tools."""
    api = speech_api(generator, reading_with(generator, queue))
    routes = [*api.routes(), *PageRoutes(pages).routes()]
    return {"app_kwargs": {"routes": routes}, "mcp_server": find_spec("mcp") is not None}


def warm_up(generator: Generator) -> threading.Thread | None:
    """Begin to get the model and the usual voices ready, so that the first click is like any other."""
    offered = generator.voices()
    return warm_up_beside(generator, {name: offered[name] for name in default_voices() if name in offered})


def serve(generator: Generator, host: str | None = None, port: int | None = None) -> None:
    """The app over `generator`, until it is stopped. Without `host` and `port` Gradio's environment decides, else it is
    127.0.0.1:7860. Raises `OSError` where the port is taken."""
    generator, queue = for_many(generator)
    pages = Pages(generator, queue)
    app = build_app(generator, queue, pages)
    warm_up(generator)
    options = launch_options() | server_options(generator, queue, pages)
    app.launch(**options, server_name=host, server_port=port)
