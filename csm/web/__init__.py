"""The web app: a page and named endpoints over one model. The last stop of the sound, a player or a file.

What it lists is imported when it is first asked for: a part of a cluster that needs no page has no Gradio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csm.web.pages import Pages
    from csm.web.server import open_studio, serve, server_options, warm_up
    from csm.web.stopping import stop_gently
    from csm.web.ui import build_app, launch_options

__all__ = ["Pages", "build_app", "launch_options", "open_studio", "serve", "server_options", "stop_gently", "warm_up"]
_HOMES = {
    "Pages": "pages",
    "build_app": "ui",
    "launch_options": "ui",
    "open_studio": "server",
    "serve": "server",
    "server_options": "server",
    "stop_gently": "stopping",
    "warm_up": "server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'csm.web' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"csm.web.{_HOMES[name]}"), name)
    return found
