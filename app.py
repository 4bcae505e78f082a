"""The web app's entry point, here and on a Space: `python app.py` serves on 127.0.0.1:7860."""

import spaces  # noqa: F401  ZeroGPU patches torch, so this comes before anything that imports it

# isort: split
import csm
from csm.web import Pages, build_app, launch_options, open_studio, server_options, stop_gently, warm_up

studio = open_studio(csm.load())  # one model, one queue: the page and programs wait in the same
pages = Pages(studio)
demo = build_app(studio, pages)

if __name__ == "__main__":
    warm_up(studio)
    stop_gently(studio)
    demo.launch(**launch_options(), **server_options(studio, pages))
