"""The web app: a page and named endpoints over one model. The last stop of the sound, a player or a file."""

from csm.web.ui import build_app, launch_options

__all__ = ["build_app", "launch_options"]
