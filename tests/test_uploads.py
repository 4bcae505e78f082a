"""Recordings that can't be used, dropped on the page in Chromium: one sentence beside them, nothing typed lost, and
the server goes on serving others."""

import re

import numpy as np
import pytest
import soundfile

from csm.audio import load_audio
from csm.speech.voices import find_voice
from tests.browser import button, expect, generate, needs_chromium, opened, script, write

pytestmark = needs_chromium

WORDS = "Typed by hand, and not to be lost."
HOUR = 3_600  # seconds

# What each of them is told where a voice is made, where it is kept, where a clip is looked at and where a file is
# checked; None where it can be used.
SILENT = ("The recording is silent", "is silent", "The file is silent", "No watermark was found")
TEXT, EMPTY = "text.wav is not audio that can be read", "empty.wav is not audio that can be read"
TOLD = {
    "silent": SILENT,
    "text": (TEXT, TEXT, TEXT, TEXT),
    "empty": (EMPTY, EMPTY, EMPTY, EMPTY),
    "short": ("at least 1 s is needed", "at least 1 s is needed", "^[12] frames of", "No watermark was found"),
    "stereo": ("can be used|fine for a voice", None, "^6\\d frames of", "No watermark was found"),
    "hour": ("The recording lasts 60:00", None, "Only its first 30 s", None),
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    voice = load_audio(find_voice("awb").path).numpy()
    low = np.stack([voice[::3], 0.5 * voice[::3]], axis=1)
    soundfile.write(folder / "silent.wav", np.zeros(24_000 * 5), 24_000)
    soundfile.write(folder / "short.wav", voice[12_000:14_400], 24_000)
    soundfile.write(folder / "stereo.wav", low, 8_000)
    soundfile.write(folder / "hour.wav", np.resize(voice[::6], HOUR * 4_000), 4_000, subtype="PCM_U8")
    (folder / "text.wav").write_text("These are words, and no sound.\n" * 40)
    (folder / "empty.wav").touch()
    return {name: folder / f"{name}.wav" for name in TOLD}


@pytest.fixture(scope="module")
def page(browser, app):
    page = opened(browser, app)
    write(page, "A: This must not be lost.")
    yield page
    assert not page.errors
    page.close()


def panel(page):
    return page.get_by_role("tabpanel").filter(visible=True)


def drop(page, tab, path):
    """Open a tab and give it a file in place of the last."""
    page.get_by_role("tab", name=tab).click()
    clear = panel(page).get_by_label("Clear", exact=True)
    if clear.count():
        clear.first.click()
        if tab != "Look inside":
            told(page, "Record or choose|Drop a file")
    panel(page).locator("input[type=file][accept^=audio]").set_input_files(path)


def told(page, sentence):
    expect(panel(page).locator(".csm-status, .csm-empty", has_text=re.compile(sentence)).first).to_be_visible()


@pytest.mark.parametrize("name", TOLD)
def test_a_recording_gets_one_sentence_where_a_voice_is_made_and_nothing_typed_is_lost(page, recordings, name):
    checked, kept, _, _ = TOLD[name]
    page.get_by_role("tab", name="Voices").click()
    page.get_by_label("Name of the voice").fill(f"Voice {name}")
    page.get_by_label("What is said in it").first.fill(WORDS)
    drop(page, "Voices", recordings[name])
    told(page, checked)
    button(page, "Keep this voice").click()
    expect(page.locator("#csm-kept")).to_contain_text(kept or f"“Voice {name}” is kept")
    expect(page.get_by_label("Name of the voice")).to_have_value(f"Voice {name}")
    expect(page.get_by_label("What is said in it").first).to_have_value(WORDS)


@pytest.mark.parametrize("name", TOLD)
def test_a_file_is_looked_at_and_checked_or_refused_in_one_sentence(page, recordings, name):
    *_, looked_at, checked = TOLD[name]
    drop(page, "Look inside", recordings[name])
    panel(page).get_by_test_id("waveform-File").or_(panel(page).get_by_label("Clear", exact=True)).first.wait_for()
    panel(page).get_by_label("What is said in the file").fill(WORDS)
    button(page, "Look inside").click()
    told(page, looked_at)
    expect(panel(page).get_by_label("What is said in the file")).to_have_value(WORDS)
    if checked:
        drop(page, "Check a file", recordings[name])
        told(page, checked)


def test_after_all_that_the_server_serves_another_page_and_the_script_is_still_there(page, browser, app):
    other = opened(browser, app)
    write(other, "A: Hello.", max_turn_seconds=1)
    generate(other)
    other.close()
    page.get_by_role("tab", name="Conversation").click()
    expect(script(page)).to_have_value("A: This must not be lost.")
    page.get_by_label("Voice of A", exact=True).select_option("Voice stereo")
    generate(page)
