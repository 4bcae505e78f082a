"""Looking inside a clip: rebuilt from its first codebooks, drawn on one time axis, and judged by the model itself."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from base64 import b64decode

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from csm.audio import write_audio
from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.listening.confidence import Confidence, confidence
from csm.listening.layers import rebuilt, steps
from csm.listening.pictures import code_colours, inside, png, spectrogram
from csm.listening.prompt import Ears
from csm.settings import Settings
from csm.speech.voices import shipped_voices
from csm.web import check
from csm.web import inside as inside_tab
from csm.web.inside import InsideTab, build_inside_tab, take_apart
from tests.small import SMALL_LIGHT, SMALL_MIMI, small_generator

SVG = "{http://www.w3.org/2000/svg}"


def some_codes(frames: int = 10, k: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randint(0, size, (frames, k), generator=torch.Generator().manual_seed(1))


def test_the_steps_double_and_end_with_all_codebooks():
    assert steps(32) == [1, 2, 4, 8, 16, 32]
    assert steps(6) == [1, 2, 4, 6]
    assert steps(2) == [1, 2]


@pytest.mark.parametrize("codec", (SMALL_LIGHT, SMALL_MIMI), ids=("light", "mimi"))
def test_both_codecs_rebuild_a_clip_from_its_first_codebooks(codec):
    generator, codes = small_generator(codec), some_codes()
    sounds = rebuilt(generator.codec, codes)
    assert list(sounds) == [1, 2, 4]
    assert all(sound.shape == (len(codes) * FRAME_SIZE,) for sound in sounds.values())
    assert torch.equal(sounds[4], generator.codec.decode(codes).float())
    changed = codes.clone()
    changed[:, 2:] = (changed[:, 2:] + 5) % 32
    others = rebuilt(generator.codec, changed)
    assert torch.equal(others[1], sounds[1]) and torch.equal(others[2], sounds[2])
    assert not torch.allclose(others[4], sounds[4])


def test_the_confidence_is_the_probability_with_which_codes_are_drawn():
    generator = small_generator()
    model, k = generator.engine.model, generator.config.num_codebooks
    context = [Segment(1, "Before.", codes=some_codes(5))]
    codes = generator.generate_codes("Hello.", 0, context, max_audio_length_ms=500, seed=3)
    found = confidence(generator, "Hello.", codes, context)
    assert found.first.shape == found.rest.shape == (len(codes),) and found.context == 1
    # the same probabilities, one frame after the other, from the engine's own states
    memory = generator.engine.new_context()
    generator.engine.prefill(memory, generator.prompt_rows(context))
    generator.engine.prefill(memory, generator.turn_rows("Hello.", 0))
    for index, frame in enumerate(codes):
        first = model.codebook0_head(memory.state).softmax(-1)[0, frame[0]]
        logits = model.depth_logits(memory.state, frame[None])[0].softmax(-1)
        rest = sum(float(logits[number, frame[number + 1]]) for number in range(k - 1)) / (k - 1)
        assert float(found.first[index]) == pytest.approx(float(first), rel=1e-3, abs=1e-6)
        assert float(found.rest[index]) == pytest.approx(rest, rel=1e-3, abs=1e-6)
        from csm.engine.frames import audio_rows

        generator.engine.prefill(memory, audio_rows(frame[None]))


def test_greedy_codes_are_surer_than_other_codes():
    generator = small_generator()
    codes = generator.generate_codes("Hello.", 0, topk=1, max_audio_length_ms=640)
    assert Settings(topk=1).topk == 1
    sure, unsure = (confidence(generator, "Hello.", some, []).first.mean() for some in (codes, (codes + 3) % 32))
    assert sure > unsure


def test_the_oldest_context_is_left_out_when_it_does_not_fit_and_a_clip_too_long_is_refused():
    generator = small_generator(max_positions=100)
    context = [Segment(0, "First.", codes=some_codes(50)), Segment(1, "Second.", codes=some_codes(30))]
    assert confidence(generator, "Third.", some_codes(20), context).context == 1
    with pytest.raises(InputError, match="shorter clip"):
        confidence(generator, "Third.", some_codes(200))
    with pytest.raises(InputError, match="shape"):
        confidence(generator, "Third.", some_codes(5, k=3))


def test_a_png_is_what_it_was_made_of():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


def test_one_code_has_one_colour_and_its_neighbour_another():
    colours = code_colours(np.arange(512))
    assert np.array_equal(colours, code_colours(np.arange(512)))
    assert np.abs(np.diff(colours.astype(int), axis=0)).max(axis=1).min() > 20
    assert colours.mean(axis=1).min() > 40 and colours.mean(axis=1).max() < 215  # neither black nor white


def test_a_tone_is_a_bright_line_at_its_height():
    tone = 0.5 * torch.sin(torch.arange(SAMPLE_RATE) / SAMPLE_RATE * 2 * torch.pi * 1_000)
    heat = spectrogram(tone).astype(int).sum(axis=2).mean(axis=1)
    share = 1 - heat.argmax() / len(heat)
    assert share == pytest.approx(np.log(1_000 / 80) / np.log(11_000 / 80), abs=0.03)


def test_the_picture_has_every_track_on_one_axis_in_seconds():
    codes = some_codes(25)  # two seconds
    wave = torch.randn(25 * FRAME_SIZE) * 0.1
    drawn = ET.fromstring(inside(wave, codes, Confidence(torch.rand(25), torch.rand(25))))
    texts = ["".join(node.itertext()) for node in drawn.iter(f"{SVG}text")]
    for track in ("waveform", "spectrogram", "semantic code", "acoustic codes", "confidence", "seconds"):
        assert track in texts
    assert {"0", "1", "2"} <= set(texts)
    assert drawn.get("role") == "img" and "2.0 seconds" in drawn.get("aria-label", "")
    images = [
        Image.open(io.BytesIO(b64decode(node.get("href", "").partition(",")[2]))) for node in drawn.iter(f"{SVG}image")
    ]
    assert [image.size for image in images[1:]] == [(25, 1), (25, 3)]  # a row of semantic codes, rows of acoustic ones
    assert np.array_equal(np.asarray(images[1])[0], code_colours(codes[:, 0].numpy()))
    lines = [node.get("points", "").split() for node in drawn.iter(f"{SVG}polyline")]
    assert [len(line) for line in lines] == [25, 25]
    colours = set(re.findall(r'(?:fill|stroke)="([^"]+)"', inside(wave, codes)))
    assert colours <= {"currentColor", "none"}, "text and lines take the page's colour, in the dark and in the light"


def tab(generator) -> InsideTab:
    with gr.Blocks():
        text, status, picture = gr.Textbox(), gr.HTML(), gr.HTML()
        players = {n: gr.Audio() for n in steps(generator.config.num_codebooks)}
    return InsideTab(
        generator, type("Nobody", (), {"get": lambda self: Ears()})(),
        lambda *inputs, given_up: take_apart(generator, *inputs), text, status, picture, players,
    )  # fmt: skip


def test_the_tab_opens_a_file_and_a_turn_of_the_last_conversation(tmp_path):
    generator = small_generator()
    page = tab(generator)
    path = tmp_path / "clip.wav"
    write_audio(path, 0.1 * torch.randn(SAMPLE_RATE))
    last = [Segment(0, "Hello there.", codes=some_codes(6)), Segment(1, "Good bye.", codes=some_codes(8))]
    for choice, text, frames in (("file", "Hello.", 13), ("1", "", 8)):
        *_, done = page.look(choice, str(path), text, last)
        assert f"{frames} frames of 4 codes" in done[page.status] and "probability" in done[page.status]
        assert "<svg" in done[page.picture] and "polyline" in done[page.picture]
        for player in page.players.values():
            rate, samples = done[player]
            assert rate == SAMPLE_RATE and samples.dtype == np.int16 and len(samples) == frames * FRAME_SIZE


def test_without_the_words_there_is_a_picture_but_no_confidence(tmp_path):
    page = tab(small_generator())
    path = tmp_path / "clip.wav"
    write_audio(path, 0.1 * torch.randn(SAMPLE_RATE))
    *_, done = page.look("file", str(path), "", [])
    assert "write what is said" in done[page.status] and "polyline" not in done[page.picture]


def test_what_cannot_be_opened_is_told_in_one_sentence(tmp_path):
    page = tab(small_generator())
    silent, text = tmp_path / "silent.wav", tmp_path / "text.wav"
    write_audio(silent, torch.zeros(SAMPLE_RATE))
    text.write_text("no sound")
    for choice, path in (("file", None), ("file", silent), ("file", text), ("7", None), ("x", None)):
        *_, done = page.look(choice, path and str(path), "Hello.", [])
        assert list(done) == [page.status] and 'role="alert"' in done[page.status]


def test_all_tabs_can_be_built_into_one_page():
    with gr.Blocks() as page:
        last = gr.State([])
        with gr.Tab("Look inside"):
            build_inside_tab(small_generator(), last)
        with gr.Tab("Check a file"):
            check.build_check_tab()
    labels = [block.label for block in page.blocks.values() if isinstance(block, gr.Audio)]
    assert labels == ["File", "1 of 4 codebooks", "2 of 4 codebooks", "All 4 codebooks", "File to check"]


def test_the_last_conversation_is_offered_turn_by_turn():
    names = inside_tab.turn_names([Segment(0, "Hello there."), Segment(1, "x" * 90)])
    assert names[0][1] == "file" and names[1] == ("1. Hello there.", "0")
    assert names[2][0].endswith("…") and names[2][1] == "1"


def test_a_file_is_checked_step_by_step_and_a_foreign_one_is_refused(tmp_path):
    pytest.importorskip("perth")
    *_, (status, parts) = check.check_file(str(next(iter(shipped_voices().values())).path))
    assert "No watermark was found" in status and parts == ""
    foreign = tmp_path / "notes.wav"
    foreign.write_text("not sound")
    *_, (status, parts) = check.check_file(str(foreign))
    assert 'role="alert"' in status and "not audio" in status
    *_, (status, _) = check.check_file(None)
    assert "Drop a file" in status
