"""The app's tabs: the conversation and the talk, which their own scripts fill (`page/page.js`, `page/talk.js`), and
beside them Gradio's components."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import gradio as gr

from csm.config import Environment, ModelConfig
from csm.conversation.studio import Studio
from csm.engine.frames import Segment
from csm.limits import KEPT_SECONDS, LARGEST_UPLOAD
from csm.listening.prompt import LazyEars
from csm.settings import ABOUT, UNBOUNDED, USUAL
from csm.speech.generator import Generator
from csm.speech.voices import Voice
from csm.talk.options import INSTRUCTIONS
from csm.version import __version__
from csm.web.check import build_check_tab
from csm.web.endpoints import RANDOM_SEED, Endpoints
from csm.web.events import MOST_CALLS, MOST_SESSIONS
from csm.web.examples import EXAMPLES
from csm.web.inside import build_inside_tab
from csm.web.listeners import Attended
from csm.web.pages import Pages
from csm.web.voices import build_voices_tab

PAGE = Path(__file__).parent / "page"
TOKEN = "(...inputs) => [...inputs.slice(0, -1), window.csm ? window.csm.token : '']"  # the page's name, put last


def build_app(studio: Studio, pages: Pages | None = None) -> gr.Blocks:
    """The whole app over the studio of one loaded model; start it with
    `launch(**launch_options(), **server_options(studio, pages))`."""
    pages = pages or Pages(studio)
    Environment.upload_to(str(pages.place.uploads))
    generator, ears, on_device = studio.generator, LazyEars(), studio.on_device
    endpoints = Endpoints(generator, studio.perform, ears)

    def keep(kept: dict[str, Voice], token: str) -> None:
        if token:
            pages.page(token).keep(kept or {})

    def segments(token: str) -> list[Segment]:
        return page.segments() if token and (page := pages.known(token)) else []

    private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    kept_seconds = int(KEPT_SECONDS)
    with Attended(
        title="Conversational speech", analytics_enabled=False, delete_cache=(kept_seconds, kept_seconds)
    ) as app:
        gr.HTML(head(generator), apply_default_css=False)
        token = gr.Textbox("", visible=False)
        last = gr.State([])
        with gr.Tabs():
            with gr.Tab("Conversation", render_children=True):
                gr.HTML(conversation(generator.config), apply_default_css=False)
            with gr.Tab("Talk", render_children=True):
                gr.HTML(talk(), apply_default_css=False)
            with gr.Tab("Voices"):
                kept = build_voices_tab(generator, ears, on_device, pages.place.voices)
            with gr.Tab("Look inside") as inside:
                build_inside_tab(generator, last, ears, on_device)
            with gr.Tab("Check a file"):
                build_check_tab()
        kept.change(keep, [kept, token], None, js=TOKEN, **private).then(
            None, None, None, js="() => { window.csm && window.csm.refresh(); }", **private
        )
        inside.select(segments, token, last, js=TOKEN, **private)
        endpoints.declare()
    app.calls, app.refusal = pages.calls, pages.refusal
    app.queue(max_size=MOST_CALLS)  # who waits for the model does so in the studio's queue, where all are counted
    return app


def head(generator: Generator) -> str:
    """The title, and the line that says who speaks."""
    return (
        '<header class="csm-title"><h1>A script goes in, a conversation comes out</h1>'
        f"<p>The model <b>{escape(generator.model_name)}</b> speaks, on {escape(str(generator.device))}. Every voice "
        "is synthetic, and every file carries an inaudible watermark that says so.</p></header>"
    )


def conversation(model: ModelConfig) -> str:
    """The tab that `page.js` fills, with the `model`'s own sampling to begin with."""
    examples = escape(json.dumps(list(EXAMPLES.items())))
    html = Template((PAGE / "page.html").read_text(encoding="utf-8"))
    return html.substitute(examples=examples, settings=settings_fields(model))


def talk() -> str:
    """The tab that `talk.js` fills."""
    html = Template((PAGE / "talk.html").read_text(encoding="utf-8"))
    return html.substitute(instructions=escape(INSTRUCTIONS))


def settings_fields(model: ModelConfig) -> str:
    """A number to set for each of the settings, with the `model`'s own to begin with."""
    usual, fields = USUAL.filled(model), []
    for name, about in ABOUT.items():
        step = about.step or (1 if about.whole else "any")
        least = about.least + (about.step or 0) if about.above else about.least
        least, more = (RANDOM_SEED, f"; {RANDOM_SEED} draws one") if name == "seed" else (least, "")
        most = f' max="{about.most:g}"' if about.most < UNBOUNDED else ""
        help = escape(about.help[0].upper() + about.help[1:] + more)
        fields.append(
            f"<label>{escape(about.label)}\n"
            f'<input class="csm-input" type="number" name="{name}" min="{least:g}"{most} '
            f'step="{step}" value="{getattr(usual, name):g}" '
            f'aria-describedby="csm-{name}-help">\n'
            f'<span id="csm-{name}-help" class="csm-hint">{help}.</span></label>'
        )
    return "\n".join(fields)


def launch_options() -> dict[str, Any]:
    """Arguments for `Blocks.launch`; address and port stay with `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT`."""
    return {
        "theme": theme(),
        "css_paths": [PAGE / "style.css"],
        "head": f'<script type="module" src="csm/script/page.js?{__version__}"></script>',
        "ssr_mode": False,
        "max_file_size": LARGEST_UPLOAD,
        "state_session_capacity": MOST_SESSIONS,
    }


def theme() -> gr.themes.Base:
    """Gradio's own components in the colours of `style.css`: quiet greys, and teal for what is to be pressed."""
    # Names of fonts that every system has: the page asks nothing of other servers.
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    plain = {f"block_{part}_background_fill{shade}": "none" for part in ("title", "label") for shade in ("", "_dark")}
    plain |= {
        f"block_{part}_text_color{shade}": "*body_text_color" for part in ("title", "label") for shade in ("", "_dark")
    }
    return gr.themes.Soft(primary_hue="teal", secondary_hue="teal", neutral_hue="stone", **fonts).set(
        **plain,
        body_text_color_subdued="#6b645e",
        body_text_color_subdued_dark="#a8a29e",
        block_title_padding="0",
        block_label_border_width="0px",
        block_label_border_width_dark="0px",
        block_label_shadow="none",
        block_radius="14px",
        input_radius="10px",
        button_large_radius="10px",
        button_large_text_size="*text_md",
        button_large_padding="0.55rem 1.1rem",
        background_fill_secondary_dark="#1c1917",
        block_background_fill_dark="*body_background_fill",
        input_background_fill_dark="#1c1917",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover_dark="#1c1917",
        block_shadow="none",
        block_border_width="1px",
        input_shadow="none",
        input_border_width="1px",
        input_border_color="*border_color_primary",
        input_border_color_dark="*border_color_primary",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#2dd4bf",
        button_primary_background_fill_hover_dark="#5eead4",
        button_primary_text_color_dark="#042f2e",
        button_primary_shadow="none",
        button_secondary_shadow="none",
        button_secondary_border_color="*border_color_primary",
        button_border_width="1px",
    )
