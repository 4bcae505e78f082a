"""What the browser tests share: Chromium, the page opened in it, and its parts by the names a user knows them by."""

import os
import shutil
from pathlib import Path

import pytest

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

needs_chromium = pytest.mark.skipif(
    shutil.which(CHROMIUM) is None, reason=f"no Chromium at {CHROMIUM}: install it or set CHROMIUM to its path"
)


def opened(browser, app, size="wide", color_scheme=None):
    """The page in a tab of its own, in the one profile of the browser: what never changes is fetched and read once."""
    profile = browser.contexts[0] if browser.contexts else browser.new_context()
    width, height = WIDTHS[size]
    page = profile.new_page()
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=color_scheme)
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(app.url)
    cards(page).first.wait_for()
    return page


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def cards(page, state=None):
    return page.locator(".csm-card" if state is None else f".csm-card[data-state={state}]")


def status(page, kind):
    """What the page says; `done` also with a warning, as of a turn that was cut off to be short."""
    kinds = ("done", "warning") if kind == "done" else (kind,)
    return page.locator(", ".join(f"#csm-status[data-kind={one}]" for one in kinds))


def script(page):
    return page.get_by_label("Script", exact=True)


def text(page, number):
    return page.get_by_label(f"Text of turn {number}", exact=True)


def setting(page, name, value):
    page.locator("#csm-settings").evaluate("details => { details.open = true; }")
    page.locator(f"#csm-settings input[name={name}]").fill(str(value))
    page.locator(f"#csm-settings input[name={name}]").press("Tab")


def write(page, words, **settings):
    for name, value in {"max_turn_seconds": 1.5, **settings}.items():
        setting(page, name, value)
    script(page).fill(words)
    expect(cards(page)).to_have_count(len(words.splitlines()))


def generate(page):
    button(page, "Generate").click()
    expect(status(page, "done")).to_contain_text("real-time factor")


def picture(page, name):
    ARTIFACTS.mkdir(exist_ok=True)
    page.wait_for_timeout(400)
    page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)
