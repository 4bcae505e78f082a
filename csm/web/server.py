"""What the app's server offers beside Gradio's page: the routes of its own script, OpenAI's speech routes, and the
functions as MCP tools; and a model that is warm when the first listener comes."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import Any

from csm.generator import Generator
from csm.studio import Studio
from csm.web.endpoints import default_voices
from csm.web.gpu import accelerator, on_zerogpu
from csm.web.openai import speech_api
from csm.web.pages import Pages
from csm.web.routes import PageRoutes


def open_studio(generator: Generator, slots: int = 1) -> Studio:
    """Where all jobs of the app are spoken, on the accelerator if there is one; one for each loaded model."""
    return Studio(generator, slots, accelerator=accelerator)


def server_options(studio: Studio, pages: Pages) -> dict[str, Any]:
    """Arguments for `Blocks.launch` beside those of `launch_options`: the routes are on Gradio's own server, so
    address, port and Space stay as they are. Without the package `mcp` there are no tools."""
    routes = [*speech_api(studio).routes(), *PageRoutes(pages).routes()]
    return {"app_kwargs": {"routes": routes}, "mcp_server": find_spec("mcp") is not None}


def warm_up(studio: Studio) -> threading.Thread | None:
    """Begin to get the model and the usual voices ready, so that the first click is like any other. On ZeroGPU there is
    no accelerator to do it on: None."""
    if on_zerogpu():
        return None
    offered = studio.generator.voices()
    return studio.warm_up({name: offered[name] for name in default_voices() if name in offered})
