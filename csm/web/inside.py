"""The tab that opens a clip up: its codes as a picture, the clip rebuilt from the first codebooks, and how sure the
model is of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio.components import Component
from torch import Tensor

from csm.audio import inspect_audio, load_audio
from csm.config import FRAME_RATE, SAMPLE_RATE
from csm.conversation.studio import at_once
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.listening.confidence import Confidence, confidence
from csm.listening.layers import first_layers, steps
from csm.listening.pictures import inside, scrolling
from csm.listening.prompt import LazyEars, write_down
from csm.speech.generator import Generator
from csm.watermark import mark
from csm.web import markup
from csm.web.asked import FAILED
from csm.web.listeners import listener

LONGEST = 30.0  # seconds of a file that are looked at
FILE = "file"
HELLO = "Choose a file or a turn of your last conversation, and press Look inside."
INTRODUCTION = "See a clip as the model does, as rows of codes, and hear it rebuilt from the first few of them."
EXPLANATION = """\
The model speaks in frames of 80 ms, and a frame is {count} whole numbers, its
*codes*. Each code points into a *codebook*, a list of {size} vectors that was learnt. Code 0, the *semantic*
one, says mostly what is being said. The first acoustic code names the vector nearest to the sound; the next one
names the vector nearest to what is still missing, the *residual*, and so on: this is *residual vector
quantisation*. So the first codebooks carry the most, and each further one adds a smaller correction. Play the
players from left to right to hear it. In the picture the same colour in a row means the same code. The
confidence is the probability that the model, having read the text and all that came before, gives to the codes
that are there."""

logger = logging.getLogger(__name__)

Changes = dict[Component, Any]
Work = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Insides:
    """A clip taken apart, as plain arrays: `sounds` float32 by the number of codebooks, `codes` int64 (frames, K), and
    the two lines of `Confidence` with what kept them from being drawn."""

    codes: np.ndarray
    sounds: dict[int, np.ndarray]
    sure: tuple[np.ndarray, np.ndarray] | None
    notice: str


def take_apart(generator: Generator, clip: Segment, context: list[Segment]) -> Insides:
    """A clip, its audio or its codes, opened up.

    Without words in its text there is no confidence. Nothing here is refused: `notice` says what could not be done.
    """
    *_, seen = taking_apart(generator, clip, context)
    assert seen is not None
    return seen


def taking_apart(generator: Generator, clip: Segment, context: list[Segment]) -> Iterator[Insides | None]:
    """`take_apart` step by step, so that it can be broken off: what it returns comes last, and None before."""
    codes, embedding = generator.segment_codes(clip), generator.prompts.embedding(clip)
    sounds: dict[int, np.ndarray] = {}
    for n in steps(codes.shape[1]):
        yield None
        sounds[n] = first_layers(generator.codec, codes, n, embedding).numpy()
    yield None
    sure, notice = None, ""
    if not clip.text.strip():
        notice = "The confidence needs the words: write what is said in the clip, and look again."
    else:
        try:
            found = confidence(generator, clip.text, codes, context, clip.speaker)
            sure = (found.first.numpy(), found.rest.numpy())
        except InputError as error:
            notice = str(error)
    yield Insides(codes.numpy(), sounds, sure, notice)


def turn_names(last: list[Segment] | None) -> list[tuple[str, str]]:
    """The clips to choose from: a file, and each segment of the last conversation."""
    turns = [
        (f"{number}. {segment.text[:60]}{'…' if len(segment.text) > 60 else ''}", str(number - 1))
        for number, segment in enumerate(last or [], 1)
    ]
    return [("A file of mine", FILE), *turns]


def sureness(sure: tuple[np.ndarray, np.ndarray] | None) -> str:
    """The mean of both lines in one sentence."""
    if sure is None:
        return ""
    return (
        f"On average the model gives the semantic code a probability of {sure[0].mean():.2f} and the acoustic codes "
        f"{sure[1].mean():.2f}; guessing blindly would give less than 0.01."
    )


@dataclass(frozen=True)
class InsideTab:
    """The components of the tab and what its button does."""

    generator: Generator
    ears: LazyEars
    work: Callable[..., Insides]
    text: gr.Textbox
    status: gr.HTML
    picture: gr.HTML
    players: dict[int, gr.Audio]

    def look(self, choice: str, file: str | None, text: str | None, last: list[Segment] | None) -> Iterator[Changes]:
        """Open the chosen clip up: `choice` is `file` or the number of a segment of the last conversation."""
        yield {self.status: markup.status("Taking the clip apart …", "busy")}
        try:
            yield from self._look(choice, file, text or "", last or [])
        except InputError as error:
            yield {self.status: markup.status(str(error), "error")}
        except Exception:
            logger.exception("Looking inside failed.")
            yield {self.status: markup.status(FAILED, "error")}

    def _look(self, choice: str, file: str | None, text: str, last: list[Segment]) -> Iterator[Changes]:
        changes: Changes = {}
        cut = False
        if choice == FILE:
            if not file:
                raise InputError("There is no file yet: drop or record one.")
            wave = load_audio(file, LONGEST)
            cut = inspect_audio(file).seconds > LONGEST
            if float(wave.abs().max()) < 1e-4:
                raise InputError("The file is silent: choose another one.")
            ears = self.ears.get()
            if not text.strip() and ears.recogniser is not None:
                text = write_down(wave, ears)
                changes[self.text] = text
            seen = self.work(Segment(0, text, audio=wave), [], given_up=listener().gone)
        else:
            segment, before = self._segment(choice, last)
            if segment.codes is None or not len(segment.codes):
                raise InputError("This turn has no sound: choose another one.")
            codes = segment.codes[: int(LONGEST * FRAME_RATE)]
            cut = len(codes) < len(segment.codes)
            seen = self.work(replace(segment, codes=codes), before, given_up=listener().gone)
            wave = torch.from_numpy(seen.sounds[max(seen.sounds)])
        codes = torch.from_numpy(seen.codes)
        sure = Confidence(torch.from_numpy(seen.sure[0]), torch.from_numpy(seen.sure[1])) if seen.sure else None
        label = "Waveform, spectrogram, codes and confidence of the clip; scroll sideways"
        changes[self.picture] = scrolling(inside(wave[: len(codes) * 1_920], codes, sure), label)
        for n, player in self.players.items():
            sound = mark(torch.from_numpy(seen.sounds[n])) if n in seen.sounds else None
            changes[player] = None if sound is None else (SAMPLE_RATE, _sixteen_bits(sound))
        told = f"{len(codes)} frames of {codes.shape[1]} codes, {len(codes) / FRAME_RATE:.1f} s. "
        if cut:
            told += f"Only its first {LONGEST:.0f} s are looked at. "
        kind = "warning" if seen.notice else "done"
        yield {**changes, self.status: markup.status(told + (seen.notice or sureness(seen.sure)), kind)}

    def _segment(self, choice: str, last: list[Segment]) -> tuple[Segment, list[Segment]]:
        if not isinstance(choice, str) or not choice.isdecimal() or int(choice) >= len(last):
            raise InputError("This turn is no longer there: choose another one.")
        return last[int(choice)], last[: int(choice)]


def _sixteen_bits(wave: Tensor) -> np.ndarray:
    return (wave.clamp(-1, 1) * 32_767).round().to(torch.int16).numpy()


def build_inside_tab(
    generator: Generator,
    last: gr.State | None = None,
    ears: LazyEars | None = None,
    on_device: Work = at_once,
) -> None:
    """The tab's components; call it inside a `gr.Tab`.

    `last` holds the segments of the page's last conversation in order, voices first, each with its codes; its
    `change` refreshes the choice. `on_device` puts an accelerator around the function that uses the model.
    """
    last = last or gr.State([])
    levels = steps(generator.config.num_codebooks)
    gr.Markdown(INTRODUCTION)
    with gr.Accordion("What you will see and hear", open=False):
        gr.Markdown(EXPLANATION.format(count=levels[-1], size=generator.config.codec.codebook_size))
    with gr.Row():
        with gr.Column(min_width=320):
            choice = gr.Dropdown(turn_names(None), value=FILE, label="Clip", filterable=False)
            file = gr.Audio(sources=["upload", "microphone"], type="filepath", label="File", buttons=[])
        with gr.Column(min_width=320):
            text = gr.Textbox("", label="What is said in the file", lines=3, info="For the confidence; may stay empty.")
            look = gr.Button("Look inside", variant="primary")
            status = gr.HTML(markup.status(HELLO))
    picture = gr.HTML("")
    players: dict[int, gr.Audio] = {}
    with gr.Row():
        for n in levels:
            label = f"All {n} codebooks" if n == levels[-1] else f"{n} of {levels[-1]} codebooks"
            with gr.Column(min_width=220):
                players[n] = gr.Audio(label=label, interactive=False, buttons=[])

    def work(*inputs: Any) -> Iterator[Insides | None]:
        yield from taking_apart(generator, *inputs)

    tab = InsideTab(generator, ears or LazyEars(), on_device(work), text, status, picture, players)
    look.click(
        tab.look,
        [choice, file, text, last],
        [status, text, picture, *players.values()],
        show_progress="hidden",
        api_visibility="private",
    )

    def offer(segments: list[Segment] | None, chosen: str) -> Any:
        names = turn_names(segments)
        return gr.update(choices=names, value=chosen if chosen in dict(names).values() else FILE)

    last.change(offer, [last, choice], choice, queue=False, show_progress="hidden", api_visibility="private")
    choice.change(
        lambda chosen: (gr.update(visible=chosen == FILE), gr.update(visible=chosen == FILE)),
        choice,
        [file, text],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
