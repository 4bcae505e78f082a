"""The page after a broken connection and before a server that began anew: it goes on by itself; no draft is lost."""

import pytest

from tests.browser import button, cards, expect, generate, needs_chromium, opened, script, status, write

pytestmark = needs_chromium


@pytest.fixture
def page(browser, app):
    page = opened(browser, app)
    yield page
    page.close()


def test_after_a_broken_connection_the_page_goes_on_by_itself_and_says_what_a_new_server_lost(page):
    write(page, "A: One.", max_turn_seconds=1)
    generate(page)
    page.route("**/csm/*", lambda route: route.abort())
    script(page).fill("A: One.\nB: Two.")
    button(page, "Generate").click()
    expect(status(page, "error")).to_contain_text("connection to the server broke off")
    page.unroute("**/csm/*")
    button(page, "Carry on from turn 2").click()
    expect(status(page, "done")).to_contain_text("2 turns")
    assert page.evaluate("window.csm.view.turns.every(turn => turn.chosen !== null)")
    page.evaluate("window.csm.memory.token = '0'.repeat(32)")  # by which no server knows anything
    script(page).fill("A: One.\nB: Two.\nA: Three.")
    expect(status(page, "warning")).to_contain_text("no longer has")
    expect(cards(page, "waiting")).to_have_count(3)
    generate(page)
    page.reload()
    expect(script(page)).to_have_value("A: One.\nB: Two.\nA: Three.")
    expect(cards(page, "waiting")).to_have_count(0)
