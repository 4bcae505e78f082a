"""The web app: a page and named endpoints over one model. The last stop of the sound, a player or a file."""

from starlette import status

from csm.web.pages import Pages
from csm.web.server import open_studio, serve, server_options, warm_up
from csm.web.stopping import stop_gently
from csm.web.ui import build_app, launch_options

# gradio 6.17.3 uses a name that starlette 1.x has deprecated; set here, it no longer warns at every request.
status.HTTP_422_UNPROCESSABLE_ENTITY = 422

__all__ = ["Pages", "build_app", "launch_options", "open_studio", "serve", "server_options", "stop_gently", "warm_up"]
