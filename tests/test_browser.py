"""The page in a real Chromium: what a newcomer sees, presses and hears. Screenshots stay in tests/artifacts."""

import os
import re
import shutil
from pathlib import Path

import pytest

from csm.voices import find_voice
from csm.web.endpoints import EXAMPLE_SCRIPT

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need the package playwright")
expect = sync_api.expect

CHROMIUM = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ARTIFACTS = Path(__file__).parent / "artifacts"
PATIENCE = 60_000  # ms; machines that run tests are slow
WIDTHS = {"wide": (1280, 900), "narrow": (390, 844)}

pytestmark = pytest.mark.skipif(
    shutil.which(CHROMIUM) is None, reason=f"no Chromium at {CHROMIUM}: install it or set CHROMIUM to its path"
)

# Length in seconds and peak of the sound behind a link, as the browser itself decodes it.
DECODE = """async url => {
    const bytes = await (await fetch(url)).arrayBuffer();
    const head = String.fromCharCode(...new Uint8Array(bytes.slice(0, 12)));
    const sound = await new OfflineAudioContext(1, 1, 24000).decodeAudioData(bytes);
    const peak = sound.getChannelData(0).reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
    return {head, seconds: sound.duration, peak};
}"""


# Notes every sentence of the status line, with the milliseconds since the press of Generate; turns may be quick.
WATCH = """() => {
    window.seen = [];
    const read = () => document.querySelector(".csm-status").innerText;
    let last = read();
    const note = () => {
        if (read() === last) return;
        last = read();
        window.seen.push({sentence: last, after: performance.now() - window.pressed});
    };
    document.addEventListener("click", () => window.pressed ??= performance.now(), true);
    new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as playwright:
        yield playwright


def chromium(playwright, *flags):
    return playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])


@pytest.fixture(scope="module")
def browser(playwright):
    with chromium(playwright) as browser:
        yield browser


def opened(browser, app, size="wide", **options):
    width, height = WIDTHS[size]
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.set_default_timeout(20_000)
    expect.set_options(timeout=PATIENCE)
    page.goto(app.url)
    button(page, "Generate").wait_for()
    return page


@pytest.fixture
def page(browser, app):
    page = opened(browser, app)
    yield page
    page.close()


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def status(page, kind):
    return page.locator(f".csm-status[data-kind={kind}]")


def field(page, label):
    """A text field; its accessible name is the label and, where there is one, the hint below it."""
    return page.get_by_label(label).first


def write(page, script, longest_turn=None):
    field(page, "Script").fill(script)
    if longest_turn is not None:
        page.get_by_role("button", name="Settings").first.click()
        field(page, "Longest turn").fill(str(longest_turn))
        field(page, "Longest turn").press("Tab")


def choose_own_voice(page, slot):
    page.get_by_label(f"Voice {slot}", exact=True).click()
    page.get_by_role("option", name="My own voice").click()
    field(page, f"What is said in it ({slot})").wait_for()


def picture(page, name):
    ARTIFACTS.mkdir(exist_ok=True)
    page.wait_for_timeout(600)  # players draw their waveform
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)


@pytest.mark.parametrize("size, scheme", [("wide", "light"), ("narrow", "dark")])
def test_one_click_gives_sound_turn_by_turn(browser, app, size, scheme):
    page = opened(browser, app, size, color_scheme=scheme)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    picture(page, f"start-{size}")
    page.evaluate(WATCH)
    button(page, "Generate").click()
    turns = len(EXAMPLE_SCRIPT.splitlines())
    expect(page.locator("tr[data-state]")).to_have_count(turns)
    expect(status(page, "done")).to_contain_text("real-time factor")
    seen = page.evaluate("window.seen")
    spoken = [s["sentence"] for s in seen if s["sentence"].startswith("Speaking")]
    assert spoken == [f"Speaking turn {turn} of {turns} ({'BA'[turn % 2]}) …" for turn in range(1, turns + 1)]
    print(f"first change {seen[0]['after']:.0f} ms after the click: {seen[0]['sentence']}")
    states = page.locator("tr[data-state]").evaluate_all("rows => rows.map(row => row.dataset.state)")
    assert set(states) <= {"ended", "capped"}
    player = page.get_by_test_id("waveform-Conversation")
    player.wait_for()
    link = page.locator("a[download]").first.get_attribute("href")
    sound = page.evaluate(DECODE, link)
    assert sound["head"].startswith("RIFF") and sound["head"].endswith("WAVE")
    assert sound["seconds"] > 1 and sound["peak"] > 0.01
    expect(button(page, "Generate")).to_be_enabled()
    picture(page, f"done-{size}")
    assert not errors
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    page.close()


def test_the_page_asks_nothing_of_other_servers(browser, app):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(app.url)
    button(page, "Generate").wait_for()
    page.wait_for_timeout(500)
    page.close()
    assert asked and [url for url in asked if not url.startswith((app.url, "data:", "blob:"))] == []


def test_a_shipped_voice_can_be_heard_before_it_is_chosen(page):
    sound = page.evaluate(DECODE, page.locator(".csm-sample audio").first.get_attribute("src"))
    assert sound["seconds"] > 1 and sound["peak"] > 0.01


def test_an_empty_script_gets_one_sentence_and_the_page_stays_usable(page):
    write(page, "", longest_turn=1)
    button(page, "Generate").click()
    expect(page.locator(".csm-note:visible")).to_contain_text("The script is empty")
    expect(status(page, "error")).to_contain_text("The script is empty")
    picture(page, "empty-script")
    field(page, "Script").fill("Anna: Hello.")
    button(page, "Generate").click()
    expect(status(page, "done")).to_contain_text("1 turn")
    expect(page.locator(".csm-note:visible")).to_have_count(0)


def test_an_own_voice_without_transcript_gets_one_sentence_and_nothing_typed_is_lost(page):
    write(page, "A: This must not be lost.", longest_turn=1)
    choose_own_voice(page, "A")
    button(page, "Generate").click()
    expect(page.locator(".csm-note:visible")).to_contain_text("There is no recording yet")
    page.locator("input[type=file]").first.set_input_files(find_voice("awb").path)
    page.get_by_test_id("waveform-Recording for A").wait_for()
    button(page, "Generate").click()
    expect(page.locator(".csm-note:visible")).to_contain_text("The transcript is missing")
    picture(page, "own-voice")
    expect(field(page, "Script")).to_have_value("A: This must not be lost.")
    field(page, "What is said in it (A)").fill(find_voice("awb").transcript)
    button(page, "Generate").click()
    expect(status(page, "done")).to_contain_text("1 turn")
    expect(page.locator("tr[data-state] small")).to_have_text("own voice")


def test_stop_keeps_what_was_spoken(page):
    write(page, "\n".join(["This goes on for longer than anyone wants to listen."] * 20))
    button(page, "Generate").click()
    expect(page.locator("tr[data-state]").first).to_have_attribute("data-state", re.compile("ended|capped"))
    button(page, "Stop").click()
    expect(status(page, "warning")).to_contain_text("Stopped.")
    expect(page.locator("tr[data-state='not spoken']").first).to_be_visible()
    assert page.evaluate(DECODE, page.locator("a[download]").first.get_attribute("href"))["seconds"] > 0.5
    expect(button(page, "Generate")).to_be_enabled()


def test_a_voice_recorded_with_the_microphone_speaks(playwright, app):
    voice = find_voice("rms")
    microphone = [
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={voice.path}",
    ]  # fmt: skip
    with chromium(playwright, *microphone) as browser:
        page = opened(browser, app)
        write(page, "A: Hello.", longest_turn=1)
        choose_own_voice(page, "A")
        field(page, "What is said in it (A)").fill(voice.transcript)
        page.get_by_label("Record audio").first.click()
        button(page, "Record").click()
        page.wait_for_timeout(3_000)
        page.get_by_role("button", name="Stop", exact=True).first.click()
        page.get_by_test_id("waveform-Recording for A").wait_for()
        page.wait_for_timeout(1_000)
        button(page, "Generate").click()
        expect(status(page, "done")).to_contain_text("1 turn")
        picture(page, "recorded")
