"""The web app: a page and named endpoints over one model. The last stop of the sound, a player or a file."""

import warnings

from csm.web.ui import build_app, launch_options

# gradio 6.17.3 names a status code that starlette 1.x has renamed; without this every request prints a warning.
warnings.filterwarnings("ignore", message=".*HTTP_422_UNPROCESSABLE_ENTITY.*")

__all__ = ["build_app", "launch_options"]
