"""Everyone can use the page: axe-core over every tab in use, in light and dark, wide and narrow."""

import re
from pathlib import Path

import pytest

from csm.speech.voices import find_voice
from tests.browser import WIDTHS, button, generate, needs_chromium, opened, picture, write

AXE = Path(__file__).parent / "js" / "node_modules" / "axe-core" / "axe.min.js"
TABS = ("Conversation", "Talk", "Voices", "Look inside", "Check a file")

# What breaks a rule: the rule, its severity, the element and what is wrong with it.
VIOLATIONS = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.flatMap(
    rule => rule.nodes.map(node => [rule.id, rule.impact, node.target.join(" "), node.failureSummary].join(" | ")))"""

pytestmark = [
    needs_chromium,
    pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed: npm install --prefix tests/js"),
]


def panel(page):
    return page.get_by_role("tabpanel").filter(visible=True)


def put_in_use(page, voice):
    """A conversation spoken and one turn of it redone, a voice uploaded and kept, a clip looked at, a file checked."""
    write(page, "Anna: Good morning.\nBen: Hello.\nAnna: Well.", max_turn_seconds=1)
    generate(page)
    button(page, "Redo turn 1").click()
    page.get_by_label("Takes of turn 1", exact=True).wait_for()
    page.get_by_role("tab", name="Voices").click()
    page.get_by_label("Name of the voice").fill("Mine")
    page.get_by_label("What is said in it").first.fill(voice.transcript)
    panel(page).locator("input[type=file][accept^=audio]").set_input_files(voice.path)
    panel(page).locator(".csm-status", has_text=re.compile("fine for a voice|It can")).wait_for()
    button(page, "Keep this voice").click()
    page.get_by_text("“Mine” is kept").wait_for()
    page.get_by_role("tab", name="Look inside").click()
    page.get_by_label("Clip", exact=True).click()
    page.get_by_role("option", name="Good morning.").click()
    button(page, "Look inside").click()
    panel(page).locator("p.csm-status", has_text="codes, ").wait_for()
    page.get_by_role("tab", name="Check a file").click()
    panel(page).locator("input[type=file]").set_input_files(voice.path)
    panel(page).locator(".csm-status", has_text="watermark was found").wait_for()


def show(page, tab):
    """Open a tab, from the menu of those that a phone has no room for, if it is there."""
    shown, more = page.get_by_role("tab", name=tab, exact=True), page.get_by_role("button", name="More tabs")
    shown.or_(more).first.wait_for()
    if not shown.count():
        more.click()
        page.locator(".overflow-dropdown button").get_by_text(tab, exact=True).click()
    else:
        shown.click()


def test_no_tab_breaks_a_rule_of_accessibility(browser, app):
    page = opened(browser, app, color_scheme="light")
    put_in_use(page, find_voice("awb"))
    page.add_script_tag(path=AXE)
    found = {}
    for scheme, size in (("light", "wide"), ("dark", "narrow"), ("dark", "wide"), ("light", "narrow")):
        page.emulate_media(color_scheme=scheme)
        width, height = WIDTHS[size]
        page.set_viewport_size({"width": width, "height": height})
        for tab in TABS:
            show(page, tab)
            picture(page, f"{tab.replace(' ', '-').lower()}-{size}-{scheme}")
            assert ("dark" in page.evaluate("document.body.className")) == (scheme == "dark")
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{tab} scrolls sideways"
            if broken := page.evaluate(VIOLATIONS):
                found[tab, scheme, size] = broken
    assert not found and not page.errors
    page.close()
