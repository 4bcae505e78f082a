"""A talk with nothing put in the place of anything: Chromium's microphone plays a voice, Moonshine and Silero hear it,
SmolLM2 finds words, `nano` speaks them; and the voice goes on, whether it was answered or not."""

import re

import numpy as np
import pytest
import soundfile
import soxr

from csm.bench.talk import halves
from csm.config import SAMPLE_RATE
from csm.listening import recogniser
from csm.speech.voices import load_prompt, shipped_voices
from csm.talk import embedded
from csm.talk.hearing import Ears
from tests.browser import CHROMIUM, FLAGS, button, expect, needs_chromium, picture
from tests.test_talk_tab import tab, turns

pytestmark = [
    needs_chromium,
    pytest.mark.skipif("moonshine-tiny" not in recogniser.available(), reason="no recogniser is installed"),
    pytest.mark.skipif(Ears()._activity is None, reason="silero-vad is not installed"),
    pytest.mark.skipif(not embedded.available(), reason="the embedded language model is not installed"),
]


ANSWERED = re.compile("first sound after|interrupted")


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    """A question, and silence behind it in which an answer begins; over and over."""
    question = halves(load_prompt(shipped_voices()["bdl"]).numpy())[1]
    wave = np.concatenate([np.zeros(SAMPLE_RATE), question, np.zeros(5 * SAMPLE_RATE)])
    path = tmp_path_factory.mktemp("microphone") / "question.wav"
    soundfile.write(path, soxr.resample(wave, SAMPLE_RATE, 48_000), 48_000, subtype="PCM_16")
    return path


def test_a_voice_is_heard_answered_interrupts_and_becomes_a_script(playwright, app, microphone):
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    fake += [f"--use-file-for-fake-audio-capture={microphone}", "--autoplay-policy=no-user-gesture-required"]
    with playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *fake]) as browser:
        page = tab(browser, app.url)
        button(page, "Begin to talk").click()
        expect(turns(page).first).to_contain_text("accordion")
        expect(turns(page).nth(1)).to_contain_text(ANSWERED)
        expect(turns(page).nth(2)).to_contain_text("accordion")
        expect(turns(page).nth(3)).to_contain_text(ANSWERED)
        picture(page, "talk-real")
        button(page, "End the talk").click()
        button(page, "Make a script of it").click()
        expect(page.locator("#csm-cards .csm-card").nth(3)).to_be_visible()
        written = page.get_by_label("Script", exact=True).input_value().splitlines()
        assert [line.partition(":")[0] for line in written[:4]] == ["You", "Voice", "You", "Voice"]
        assert page.errors == []
