"""The Talk tab in Chromium: a microphone that plays a recording, an answer that is heard, a script that comes of it."""

import pytest

from csm.conversation.studio import Studio
from csm.errors import InputError
from csm.speech.batching import shared
from tests.browser import CHROMIUM, FLAGS, PATIENCE, WIDTHS, button, cards, expect, needs_chromium, picture
from tests.small import end_after, small_generator
from tests.talking import Script, ScriptedEars

pytestmark = needs_chromium
SAYS = "What is the time?"
ANSWER = "It is ten past nine, as far as I know."


@pytest.fixture(scope="module")
def model():
    return Script([])


@pytest.fixture(scope="module")
def url(model):
    from csm.web import Pages, build_app, launch_options, server_options
    from csm.web.realtime import Talks

    generator = small_generator(max_positions=1_000)
    end_after(generator, 12)
    studio = Studio(shared(generator, 2), 2)
    pages = Pages(studio)
    talks = Talks(studio, ScriptedEars([SAYS]), {model.name: model}, pages)
    app = build_app(studio, pages)
    options = launch_options() | server_options(studio, pages, talks)
    _, url, _ = app.launch(**options, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield url
    app.close()


@pytest.fixture(scope="module")
def speaking(playwright):
    """Chromium with a microphone that beeps every second."""
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    fake += ["--autoplay-policy=no-user-gesture-required"]
    with playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *fake]) as browser:
        yield browser


def tab(browser, url, size="wide", **options):
    width, height = WIDTHS[size]
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(url)
    cards(page).first.wait_for()
    page.get_by_role("tab", name="Talk", exact=True).click()
    page.locator("#csm-talk[data-ready=true]").wait_for(state="attached")
    return page


def turns(page):
    return page.locator("#csm-talk-cards .csm-card")


def test_what_is_said_with_the_space_bar_held_is_answered_and_becomes_a_script(speaking, url, model):
    model.answers = [[ANSWER]]
    page = tab(speaking, url)
    page.get_by_label("The end of your turn is found by itself").uncheck()
    button(page, "Begin to talk").click()
    expect(button(page, "End the talk")).to_be_visible()
    hold = page.get_by_role("button", name="Hold to speak")
    hold.focus()
    page.keyboard.down("Space")
    expect(hold).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("document.querySelector('#csm-talk-level').getAttribute('aria-valuenow') > 10")
    page.keyboard.up("Space")
    expect(turns(page)).to_have_count(2)
    expect(turns(page).first).to_contain_text(SAYS)
    expect(turns(page).last).to_contain_text(ANSWER)
    expect(turns(page).last).to_contain_text("first sound after")
    expect(page.locator("#csm-talk-budget")).to_contain_text("of 1000 positions")
    picture(page, "talk")
    expect(page.locator("#csm-talk-status[data-state=listening]")).to_be_visible()  # what was not heard is forgotten
    button(page, "Make a script of it").click()
    expect(page.get_by_label("Script", exact=True)).to_have_value(f"You: {SAYS}\nVoice: {ANSWER}")
    expect(page.locator("#csm-cards .csm-card[data-state=ended]")).to_have_count(2)
    assert page.errors == []


def test_what_is_written_is_answered_without_a_microphone_on_a_phone_s_width(browser, url, model):
    model.answers = [[ANSWER]]
    page = tab(browser, url, "narrow")
    page.get_by_label("Write instead").fill("Good morning.")
    page.get_by_label("Write instead").press("Enter")
    expect(turns(page)).to_have_count(2)
    expect(turns(page).last).to_contain_text(ANSWER)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(page, "talk-narrow")
    assert page.errors == []


def test_a_refused_microphone_is_told_in_plain_words(browser, url):
    page = tab(browser, url)
    refused = "() => Promise.reject(new DOMException('', 'NotAllowedError'))"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {refused}; }}")
    button(page, "Begin to talk").click()
    expect(page.locator("#csm-talk-status[data-kind=error]")).to_contain_text("was not allowed to use the microphone")


def test_a_language_model_that_fails_is_told_in_the_tab_and_the_talk_goes_on(browser, url, model):
    model.answers = [[InputError("The language model is down.", "language_model_down")], [ANSWER]]
    page = tab(browser, url)
    page.get_by_label("Write instead").fill("Good morning.")
    button(page, "Say").click()
    expect(page.locator("#csm-talk-status[data-kind=error]")).to_contain_text("The language model is down.")
    page.get_by_label("Write instead").fill("And now?")
    button(page, "Say").click()
    expect(turns(page).last).to_contain_text(ANSWER)
