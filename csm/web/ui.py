"""The page: script and voices on one side, the conversation on the other, filled turn by turn as it is spoken."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from csm.config import ModelConfig
from csm.errors import InputError
from csm.generator import Generator
from csm.studio import Settings, TurnStarted
from csm.voices import Voice, fetched, shipped_voices
from csm.web import markup
from csm.web.endpoints import (
    EXAMPLE_SCRIPT,
    MODEL_QUEUE,
    SLOTS,
    Choice,
    Endpoints,
    MisplacedError,
    default_voices,
    new_folder,
    plan,
    read_settings,
    updates,
)
from csm.web.gpu import Conversation, Job, TurnDone, speaking_with

OWN_VOICE = "own"
KEEP_FILES_SECONDS = 3_600
LONGEST_QUEUE = 32
FAILED = "Something went wrong in the program, not in what you typed; please press Generate again."

logger = logging.getLogger(__name__)

Changes = dict[Component, Any]


@dataclass(frozen=True)
class VoicePanel:
    """How the voice of A or B is chosen; `note` is where trouble with it is told."""

    name: gr.Dropdown
    recording: gr.Audio
    transcript: gr.Textbox
    note: gr.HTML

    @property
    def inputs(self) -> list[Component]:
        return [self.name, self.recording, self.transcript]


@dataclass(frozen=True)
class Page:
    """The components that handlers read and change, and the functions behind the buttons."""

    endpoints: Endpoints
    offered: dict[str, Voice]
    script: gr.Textbox
    script_note: gr.HTML
    panels: dict[str, VoicePanel]
    settings: list[Component]
    settings_note: gr.HTML
    generate: gr.Button
    stop: gr.Button
    status: gr.HTML
    audio: gr.Audio
    turns: gr.HTML
    report: gr.JSON
    job: gr.State

    @property
    def notes(self) -> dict[str, gr.HTML]:
        return {
            "script": self.script_note,
            **{slot: panel.note for slot, panel in self.panels.items()},
            "settings": self.settings_note,
        }

    def prepare(
        self,
        script: str,
        name_a: str,
        recording_a: str | None,
        transcript_a: str,
        name_b: str,
        recording_b: str | None,
        transcript_b: str,
        seed: float | None,
        temperature: float,
        topk: float,
        max_turn_seconds: float,
    ) -> Iterator[Changes]:
        """Check the request at once, before it waits for the model, and show what is wrong where it is wrong."""
        choices = {
            "A": _choice(name_a, recording_a, transcript_a),
            "B": _choice(name_b, recording_b, transcript_b),
        }
        cleared: Changes = {note: gr.update(value="", visible=False) for note in self.notes.values()}
        try:
            settings = read_settings(seed, temperature, topk, max_turn_seconds)
            job = plan(script, choices, settings, new_folder(), self.offered)
        except MisplacedError as error:
            beside: Changes = {self.notes[error.place]: gr.update(value=markup.note(str(error)), visible=True)}
            yield {**cleared, **beside, self.status: markup.status(f"Nothing was generated. {error}", "error")}
            raise gr.Error(str(error), visible=False, print_exception=False) from error
        yield {
            **cleared,
            self.job: job,
            self.status: markup.status("Waiting for the model …", "busy"),
            self.turns: markup.turns(_waiting(job, self.offered)),
            self.generate: gr.update(interactive=False),
            self.stop: gr.update(interactive=True),
        }

    def perform(self, job: Job) -> Iterator[Changes]:
        """Speak the job, a change of the page for each turn that starts or is done."""
        table = _waiting(job, self.offered)
        if job.stop_file.exists():
            yield {self.status: markup.status("Stopped before anything was spoken.", "warning")}
            return
        try:
            for update in updates(self.endpoints.speak, job):
                if isinstance(update, TurnStarted):
                    speaker = job.lines[update.index].speaker
                    table[update.index] = replace(table[update.index], state="speaking")
                    sentence = f"Speaking turn {update.index + 1} of {update.total} ({speaker}) …"
                    yield {self.status: markup.status(sentence, "busy"), self.turns: markup.turns(table)}
                elif isinstance(update, TurnDone):
                    seconds = update.turn.end - update.turn.start
                    table[update.index] = replace(table[update.index], state=update.turn.state, seconds=seconds)
                    yield {self.turns: markup.turns(table)}
                elif isinstance(update, Conversation):
                    yield self._finished(update, table)
        except InputError as error:
            yield {self.status: markup.status(f"Nothing was generated. {error}", "error"), self.turns: markup.turns([])}
        except Exception:
            logger.exception("A performance failed.")
            yield {self.status: markup.status(FAILED, "error"), self.turns: markup.turns([])}

    def _finished(self, done: Conversation, table: list[markup.TurnRow]) -> Changes:
        report = done.report
        left = [replace(row, state="not spoken") if row.state in ("waiting", "speaking") else row for row in table]
        sentence, kind = markup.summary(report), "done"
        if "notice" in report:
            sentence, kind = f"{report['notice']} {sentence}", "warning"
        elif any(turn["state"] == "stopped" for turn in report["turns"]):
            sentence, kind = f"Stopped. {sentence}", "warning"
        changes: Changes = {self.status: markup.status(sentence, kind), self.turns: markup.turns(left)}
        changes[self.report] = report
        if done.path:
            changes[self.audio] = str(done.path)
        return changes

    def halt(self, job: Job | None) -> Changes:
        """Ask the running performance to stop at its next frame; what was spoken by then is kept."""
        if job is not None:
            job.stop_file.touch()
        return {self.status: markup.status("Stopping …", "busy"), self.stop: gr.update(interactive=False)}

    def ready(self) -> Changes:
        """Give the buttons back after a performance, however it ended."""
        return {self.generate: gr.update(interactive=True), self.stop: gr.update(interactive=False)}

    def connect(self) -> None:
        """Bind the buttons. None of these events is for clients: they have the named endpoints."""
        inputs = [self.script, *(part for panel in self.panels.values() for part in panel.inputs), *self.settings]
        buttons: list[Component] = [self.generate, self.stop]
        shown: list[Component] = [self.status, self.turns]
        prepared = self.generate.click(
            self.prepare,
            inputs,
            [*self.notes.values(), self.job, *shown, *buttons],
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        performed = prepared.success(
            self.perform,
            self.job,
            [*shown, self.audio, self.report],
            concurrency_id=MODEL_QUEUE,
            concurrency_limit=1,
            show_progress="hidden",
            api_visibility="private",
        )
        performed.then(self.ready, None, buttons, queue=False, show_progress="hidden", api_visibility="private")
        self.stop.click(
            self.halt,
            self.job,
            [self.status, self.stop],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def _choice(name: str, recording: str | None, transcript: str) -> Choice:
    own = name == OWN_VOICE
    return Choice(name, recording if own else None, transcript if own else None, own)


def _title(voice: Voice) -> str:
    """`slt: woman, American`: the name and the description as far as its first parenthesis."""
    described = voice.description.partition(" (")[0]
    return f"{voice.name}: {described}" if described else voice.name


def _playable(voice: Voice) -> Voice:
    """The voice with its recording where Gradio serves files from. Raises `InputError` if it can't be fetched."""
    here = fetched(voice)
    if here is voice:
        return voice
    path = new_folder() / f"{voice.name}.wav"
    shutil.copyfile(here.path, path)
    return replace(here, path=path)


def _waiting(job: Job, offered: dict[str, Voice]) -> list[markup.TurnRow]:
    known = {(voice.name, voice.origin) for voice in offered.values()}  # a recording of one's own has no origin
    names = {
        label: voice.name if (voice.name, voice.origin) in known else "own voice" for label, voice in job.voices.items()
    }
    return markup.rows(job.lines, names)


def _voice_panel(slot: str, chosen: str, voices: dict[str, Voice]) -> VoicePanel:
    """The choice for speaker A or B, with room for a voice of one's own that shows when it is asked for."""
    choices = [(_title(voice), voice.name) for voice in voices.values()]
    with gr.Column(min_width=220):
        name = gr.Dropdown(
            [*choices, ("My own voice …", OWN_VOICE)], value=chosen, label=f"Voice {slot}", filterable=False
        )
        sample = gr.HTML(markup.sample(slot, voices[chosen]))
        with gr.Column(visible=False) as own:
            recording = gr.Audio(
                sources=["upload", "microphone"], type="filepath", label=f"Recording for {slot}", buttons=[]
            )
            transcript = gr.Textbox(
                label=f"What is said in it ({slot})",
                info="Every word. One person, 5 to 15 quiet seconds; use only a voice that you have the right to use.",
                lines=2,
            )
        note = gr.HTML("", visible=False)

    def show(chosen: str) -> Changes:
        changes: Changes = {own: gr.update(visible=chosen == OWN_VOICE), sample: gr.update(visible=False)}
        if chosen in voices:
            try:
                shown = markup.sample(slot, _playable(voices[chosen]))
            except InputError as error:
                shown = markup.note(str(error))
            changes[sample] = gr.update(visible=True, value=shown)
        return changes

    name.change(show, name, [own, sample], queue=False, show_progress="hidden", api_visibility="private")
    return VoicePanel(name, recording, transcript, note)


def _settings(model: ModelConfig) -> list[Component]:
    """Seed, temperature, top-k, longest turn: in the order in which `Page.prepare` takes them."""
    usual = Settings()
    with gr.Row():
        seed = gr.Number(
            usual.seed,
            label="Seed",
            info="The same seed gives the same sound; -1 draws one.",
            precision=0,
            min_width=200,
        )
        longest = gr.Number(
            usual.max_turn_seconds, label="Longest turn", info="In seconds; longer turns are cut.", min_width=200
        )
    with gr.Row():
        temperature = gr.Slider(
            0.1, 1.5, model.temperature, step=0.05, label="Temperature", info="Lower is calmer.", min_width=200
        )
        topk = gr.Slider(1, 200, model.topk, step=1, label="Top-k", info="How many codes compete.", min_width=200)
    return [seed, temperature, topk, longest]


def build_app(generator: Generator) -> gr.Blocks:
    """The whole app over one loaded model; start it with `launch(**launch_options())`."""
    endpoints = Endpoints(generator, speaking_with(generator))
    offered = generator.voices()
    with gr.Blocks(
        title="Conversational speech", analytics_enabled=False, delete_cache=(KEEP_FILES_SECONDS, KEEP_FILES_SECONDS)
    ) as app:
        gr.Markdown(
            "# A script goes in, a conversation comes out\n"
            f"The model **{generator.model_name}** speaks, on {generator.device}. Every voice is synthetic, "
            "and every file carries an inaudible watermark that says so."
        )
        with gr.Row():
            with gr.Column(min_width=320):
                script = gr.Textbox(
                    EXAMPLE_SCRIPT,
                    label="Script",
                    info="One turn a line: “A: Hello.” or “Anna: Hello.” "
                    "The first two speakers have voices A and B, more of them the other shipped voices.",
                    lines=7,
                    max_lines=14,
                )
                script_note = gr.HTML("", visible=False)
                with gr.Row():
                    names = zip(SLOTS, default_voices(), strict=True)
                    panels = {slot: _voice_panel(slot, name, offered) for slot, name in names}
                with gr.Accordion("Settings", open=False):
                    settings = _settings(generator.config)
                settings_note = gr.HTML("", visible=False)
                with gr.Row():
                    generate = gr.Button("Generate", variant="primary", size="lg", scale=3, min_width=120)
                    stop = gr.Button("Stop", variant="stop", size="lg", scale=1, min_width=80, interactive=False)
                status = gr.HTML(markup.status("Ready. Press Generate to hear the script."))
            with gr.Column(min_width=320):
                audio = gr.Audio(
                    label="Conversation", type="filepath", format="wav", interactive=False, buttons=["download"]
                )
                turns = gr.HTML(markup.turns([]))
                with gr.Accordion("Report", open=False):
                    report = gr.JSON(label="Report", show_label=False)
        page = Page(
            endpoints=endpoints,
            offered=offered,
            script=script,
            script_note=script_note,
            panels=panels,
            settings=settings,
            settings_note=settings_note,
            generate=generate,
            stop=stop,
            status=status,
            audio=audio,
            turns=turns,
            report=report,
            job=gr.State(None),
        )
        page.connect()
        endpoints.declare()
    app.queue(max_size=LONGEST_QUEUE)
    return app


def launch_options() -> dict[str, Any]:
    """Arguments for `Blocks.launch`; address and port stay with `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT`."""
    samples = {str(voice.path.parent) for voice in shipped_voices().values()}
    return {
        # Names of fonts that every system has: the page asks nothing of other servers.
        "theme": gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css_paths": [Path(__file__).with_name("style.css")],
        "allowed_paths": sorted(samples),
        "ssr_mode": False,
    }
