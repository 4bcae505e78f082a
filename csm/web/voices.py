"""The tab of one's own voices: record or upload, have it checked and written down, cut, name, keep, export, import.

Kept voices belong to one browser page: they live in its `gr.State` and in a folder that goes with it. Nobody else
sees them, and closing or reloading the page forgets them; a `.voice` file is how to keep one for good.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from csm.audio import inspect_audio, load_audio
from csm.config import SAMPLE_RATE
from csm.conversation.studio import at_once
from csm.errors import InputError
from csm.listening.library import codes_fit, cut, with_codes
from csm.listening.marks import clock
from csm.listening.prompt import Finding, LazyEars, check_prompt, write_down
from csm.listening.speech import sounding_edges
from csm.speech.generator import Generator
from csm.speech.voices import LONGEST, VOICE_SUFFIX, Voice, own_voice, read_voice, save_voice, voice_name
from csm.web import markup
from csm.web.asked import FAILED
from csm.web.listeners import listener

LONGEST_READ = 120.0  # seconds of a recording that can be chosen from
MOST_VOICES = 20
HELLO = "Record or choose a recording of one person, 5 to 15 quiet seconds."

logger = logging.getLogger(__name__)

Changes = dict[Component, Any]
Kept = dict[str, Voice]
Work = Callable[[Callable[..., Any]], Callable[..., Any]]


def findings(found: list[Finding], missing: str = "") -> str:
    """What a check says, as HTML: a list of sentences, or that all is well; `missing` is what it could not tell."""
    aside = f'<p class="csm-empty">{escape(missing)}</p>' if missing else ""
    if not found:
        return markup.status("The recording is fine for a voice.", "done") + aside
    items = "".join(f'<li data-kind="{escape(one.kind)}">{escape(one.sentence)}</li>' for one in found)
    refused = any(one.refused for one in found)
    head = "It can't be used as it is:" if refused else "It can be used, but would be better otherwise:"
    kind = "error" if refused else "warning"
    return f'<div class="csm-status" data-kind="{kind}" role="status">{head}<ul>{items}</ul></div>{aside}'


def longer(seconds: float) -> str:
    """What to do with a recording of `seconds` that is longer than a voice, as HTML; empty for one that fits."""
    if seconds <= LONGEST:
        return ""
    read = "" if seconds <= LONGEST_READ else f" of its first {LONGEST_READ:.0f} s"
    sentence = f"The recording lasts {clock(seconds)}: choose by From and To which {LONGEST:.0f} s{read} are the voice."
    return f'<p class="csm-empty">{escape(sentence)}</p>'


def forget(kept: Kept | None) -> None:
    """Delete the recordings of a page that was closed."""
    for voice in (kept or {}).values():
        shutil.rmtree(voice.path.parent, ignore_errors=True)


@dataclass(frozen=True)
class VoicesTab:
    """The components of the tab and what its buttons do."""

    generator: Generator
    ears: LazyEars
    folder: Path
    encode: Callable[..., Voice]
    kept: gr.State
    recording: gr.Audio
    start: gr.Number
    end: gr.Number
    transcript: gr.Textbox
    heard: gr.State
    told: gr.HTML
    own: gr.Dropdown
    player: gr.Audio
    words: gr.Textbox
    kept_note: gr.HTML
    note: gr.HTML

    def hear(self, recording: str | None, transcript: str | None, heard_before: str) -> Changes:
        """A new recording: find where it sounds, write down what is said unless somebody typed it, and check it."""
        if not recording:
            return {self.told: markup.status(HELLO), self.kept_note: "", self.start: 0, self.end: 0}
        wave = load_audio(recording, LONGEST_READ)
        begin, end = sounding_edges(wave)
        end = min(end or len(wave), begin + int(LONGEST * SAMPLE_RATE))
        changes: Changes = {self.start: round(begin / SAMPLE_RATE, 2), self.end: round(end / SAMPLE_RATE, 2)}
        ears = self.ears.get()
        transcript = transcript or ""
        if transcript.strip() in ("", heard_before) and ears.recogniser is not None:
            transcript = write_down(wave[begin:end], ears)
            changes |= {self.transcript: transcript, self.heard: transcript}
        return {
            **changes,
            self.kept_note: "",
            self.told: self._checked(wave[begin:end], transcript) + longer(inspect_audio(recording).seconds),
        }

    def check(self, recording: str | None, start: float, end: float, transcript: str | None) -> Changes:
        """Check the chosen part again."""
        return {self.told: self._checked(self._part(recording, start, end), transcript or "")}

    def write(self, recording: str | None, start: float, end: float) -> Changes:
        """Write down what is said in the chosen part."""
        part = self._part(recording, start, end)
        heard = write_down(part, self.ears.get())
        if not heard:
            raise InputError("No words were heard in it: type what is said.")
        return {self.transcript: heard, self.heard: heard, self.told: self._checked(part, heard)}

    def add(
        self, recording: str | None, start: float, end: float, transcript: str | None, name: str | None, kept: Kept
    ) -> Changes:
        """Keep the chosen part as a voice of this page."""
        part = self._part(recording, start, end)
        self._room(kept)
        wanted = voice_name(name or "", {**self.generator.voices(), **kept})
        with self._new_folder() as folder:
            try:
                voice = self._encoded(own_voice(folder, wanted, part, transcript or ""))
            except InputError as error:  # its file has a name of ours, which nobody knows
                raise InputError(re.sub(rf"{re.escape(wanted)}-\w+\.wav", f"“{wanted}”", str(error))) from error
        sentence = f"“{wanted}” is kept while this page is open: choose it for a speaker of the conversation."
        return {self.kept_note: markup.status(sentence, "done"), **self._shown({**kept, wanted: voice}, wanted)}

    def take_in(self, path: str | None, kept: Kept) -> Changes:
        """Keep the voice of a `.voice` file, under its own name or, where that is taken, with a number behind it."""
        if not path:
            return {self.note: ""}
        if Path(path).suffix.lower() != VOICE_SUFFIX:
            raise InputError(f"{Path(path).name} is not a {VOICE_SUFFIX} file: choose one that was exported here.")
        self._room(kept)
        with self._new_folder() as folder:
            voice = self._encoded(read_voice(path, folder))
        taken = {known.casefold() for known in {**self.generator.voices(), **kept}}
        name, number = voice.name, 2
        while name.casefold() in taken:
            name, number = f"{voice.name[:36]} {number}", number + 1
        voice = replace(voice, name=name)
        return {
            self.note: markup.status(f"“{name}” came out of the file.", "done"),
            **self._shown({**kept, name: voice}, name),
        }

    def choose(self, name: str | None, kept: Kept) -> Changes:
        """Show a kept voice."""
        voice = kept.get(name or "")
        return {self.player: str(voice.path) if voice else None, self.words: voice.transcript if voice else ""}

    def export(self, name: str | None, kept: Kept) -> str:
        """Write the chosen voice into a file to be downloaded."""
        voice = self._chosen(name, kept)
        path = voice.path.with_name(f"{voice.name}{VOICE_SUFFIX}")
        save_voice(path, voice)
        return str(path)

    def remove(self, name: str | None, kept: Kept) -> Changes:
        """Forget the chosen voice."""
        voice = self._chosen(name, kept)
        rest = {known: one for known, one in kept.items() if known != voice.name}
        forget({voice.name: voice})
        return {
            self.note: markup.status(f"“{voice.name}” is forgotten.", "done"),
            **self._shown(rest, next(iter(rest), None)),
        }

    def _part(self, recording: str | None, start: float, end: float) -> Any:
        if not recording:
            raise InputError("There is no recording yet: record or choose one.")
        inspect_audio(recording)
        return cut(load_audio(recording, LONGEST_READ), _seconds(start), _seconds(end))

    def _checked(self, wave: Any, transcript: str) -> str:
        ears = self.ears.get()
        return findings(check_prompt(wave, transcript, ears.recogniser, ears.speakers, ears.speech), ears.missing)

    def _encoded(self, voice: Voice) -> Voice:
        return voice if codes_fit(self.generator, voice) else self.encode(voice, given_up=listener().gone)

    @contextmanager
    def _new_folder(self) -> Iterator[Path]:
        """A folder for one voice, gone again when the voice is refused."""
        folder = Path(tempfile.mkdtemp(prefix="voice-", dir=self.folder))
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _room(self, kept: Kept) -> None:
        if len(kept) >= MOST_VOICES:
            raise InputError(f"{MOST_VOICES} voices are kept already: remove one first.")

    def _chosen(self, name: str | None, kept: Kept) -> Voice:
        if not name or name not in kept:
            raise InputError("There is no voice of your own yet: keep or import one first.")
        return kept[name]

    def _shown(self, kept: Kept, name: str | None) -> Changes:
        return {
            self.kept: kept,
            self.own: gr.update(choices=list(kept), value=name),
            **self.choose(name, kept),
        }


def _seconds(given: float | None) -> float:
    """A time in a recording, 0 where none was given. Raises `InputError` for a number that is none."""
    try:
        return float(given or 0)
    except (OverflowError, TypeError, ValueError) as error:
        raise InputError("Begin and end are seconds of the recording: give numbers such as 2.5.") from error


def _safely(act: Callable[..., Changes], place: gr.HTML, busy: str = "") -> Callable[..., Iterator[Changes]]:
    """The handler: `busy` is told at once, and what is refused in its one sentence, at `place`."""

    def handler(*inputs: Any) -> Iterator[Changes]:
        try:
            if busy:
                yield {place: markup.status(busy, "busy")}
            yield act(*inputs)
        except InputError as error:
            yield {place: markup.status(str(error), "error")}
        except Exception:
            logger.exception("The voice library failed.")
            yield {place: markup.status(FAILED, "error")}

    return handler


def build_voices_tab(
    generator: Generator,
    ears: LazyEars | None = None,
    on_device: Work = at_once,
    folder: Path | None = None,
) -> gr.State:
    """The tab's components; call it inside a `gr.Tab`. -> the state of the page's own voices, `dict[str, Voice]` by
    name, empty at first: listen to its `change` to offer them elsewhere.

    `on_device` puts an accelerator around a function that encodes; its inputs and results can be pickled. The voices
    are kept in `folder`.
    """
    return lay_out(generator, ears or LazyEars(), on_device, folder).kept


def lay_out(generator: Generator, ears: LazyEars, on_device: Work = at_once, folder: Path | None = None) -> VoicesTab:
    """The tab with its buttons bound; none of these events is for clients."""
    folder = folder or Path(tempfile.mkdtemp(prefix="csm-voices-"))
    kept = gr.State({}, delete_callback=forget)
    gr.Markdown(
        "A voice is a short recording of one person, 1 to 30 seconds cut from at most two minutes, and exactly what is "
        "said in it. Use only voices that you have the right to use. Your voices stay on this page, up to "
        f"{MOST_VOICES}, and are forgotten when you close or reload it: export them to use them again."
    )
    with gr.Row():
        with gr.Column(min_width=320):
            recording = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Recording", buttons=[])
            with gr.Row():
                start = gr.Number(0, label="From second", minimum=0, step=0.1, min_width=120)
                end = gr.Number(0, label="To second", minimum=0, step=0.1, min_width=120)
            transcript = gr.Textbox(
                "", label="What is said in it", info="Every word; correct what was written down for you.", lines=3
            )
            with gr.Row():
                write = gr.Button("Write it down", min_width=120)
                check = gr.Button("Check", min_width=120)
            told = gr.HTML(markup.status(HELLO))
            with gr.Row(elem_classes="csm-beside"):
                name = gr.Textbox("", label="Name of the voice", max_lines=1, scale=2, min_width=200)
                keep = gr.Button("Keep this voice", variant="primary", scale=1, min_width=170)
            kept_note = gr.HTML("", elem_id="csm-kept")
        with gr.Column(min_width=320):
            own = gr.Dropdown([], label="Your voices", filterable=False)
            player = gr.Audio(label="How it sounds", type="filepath", interactive=False, buttons=[])
            words = gr.Textbox("", label="What is said in it", interactive=False, lines=3)
            with gr.Row():
                export = gr.Button("Export", min_width=100)
                remove = gr.Button("Remove", min_width=100)
            file = gr.File(label="Exported voice", interactive=False, visible=False)
            upload = gr.UploadButton("Import a voice", file_types=[VOICE_SUFFIX], type="filepath")
            note = gr.HTML("")

    heard = gr.State("")

    def encode(voice: Voice) -> Voice:
        return with_codes(generator, voice)

    tab = VoicesTab(
        generator, ears, folder, on_device(encode), kept, recording, start, end, transcript, heard, told,
        own, player, words, kept_note, note,
    )  # fmt: skip

    def exported(wanted: str | None, voices: Kept) -> Changes:
        return {file: gr.update(value=tab.export(wanted, voices), visible=True), note: ""}

    part: list[Component] = [recording, start, end]
    shown: list[Component] = [kept, own, player, words]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 2}
    listening = "Listening to the recording …"
    recording.change(
        _safely(tab.hear, told, listening),
        [recording, transcript, heard],
        [start, end, transcript, heard, told, kept_note],
        **quiet,
    )
    check.click(_safely(tab.check, told, listening), [*part, transcript], [told], **quiet)
    write.click(_safely(tab.write, told, listening), part, [transcript, heard, told], **quiet)
    keep.click(
        _safely(tab.add, kept_note, "Keeping the voice …"),
        [*part, transcript, name, kept],
        [*shown, kept_note],
        **quiet,
    )
    upload.upload(_safely(tab.take_in, note, "Reading the file …"), [upload, kept], [*shown, note], **quiet)
    own.input(_safely(tab.choose, note), [own, kept], [player, words, note], **quiet)
    export.click(_safely(exported, note), [own, kept], [file, note], **quiet)
    remove.click(_safely(tab.remove, note), [own, kept], [*shown, note], **quiet)
    return tab
