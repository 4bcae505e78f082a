"""The page in a real Chromium: what a newcomer sees, presses and hears. Screenshots stay in tests/artifacts."""

import re

import pytest

from csm.conversation.events import Comparing
from csm.speech.voices import find_voice
from csm.web.examples import EXAMPLES
from csm.web.views import event_view
from tests.browser import (
    CHROMIUM,
    FLAGS,
    PATIENCE,
    button,
    cards,
    expect,
    generate,
    needs_chromium,
    opened,
    picture,
    script,
    setting,
    status,
    text,
    write,
)
from tests.test_foreign import record

pytestmark = needs_chromium

# Length in seconds and peak of the sound behind a link, as the browser itself decodes it.
DECODE = """async url => {
    const bytes = await (await fetch(url)).arrayBuffer();
    const head = String.fromCharCode(...new Uint8Array(bytes.slice(0, 12)));
    const sound = await new OfflineAudioContext(1, 1, 24000).decodeAudioData(bytes);
    const peak = sound.getChannelData(0).reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
    return {head, seconds: sound.duration, peak};
}"""


# Notes every sentence of the status line: whether it came in the click itself, however late the machine is, and how
# many milliseconds after it.
WATCH = """() => {
    window.seen = [];
    const line = document.getElementById("csm-status");
    const note = () => window.seen.push({
        sentence: line.textContent, atOnce: window.inClick, after: performance.now() - window.pressed,
    });
    document.addEventListener("click", () => {
        [window.pressed, window.inClick] = [performance.now(), true];
        setTimeout(() => { window.inClick = false; });
    }, true);
    new MutationObserver(note).observe(line, {subtree: true, childList: true, characterData: true});
}"""

# What the status line says after each of some events, of which a quick server may tell none.
TELL = """async events => {
    const {Run} = await import(new URL("csm/script/run.js", document.baseURI));
    const said = [];
    async function* happenings() {
        for (const event of events) {
            yield event;
            said.push(document.getElementById("csm-status").textContent);
        }
    }
    await new Run(window.csm).follow(happenings());
    return said;
}"""

# Sound as the server streams it, put on an offline clock by the page's own player as it would come, and rendered.
JOINS = """async body => {
    const {LivePlayer, decodePcm, RATE} = await import(new URL("csm/script/live.js", document.baseURI));
    const asked = {...body, token: crypto.randomUUID().replaceAll("-", "")};
    const answer = await fetch("csm/speak", {method: "POST", body: JSON.stringify(asked)});
    const events = (await answer.text()).split("\\n\\n").filter(Boolean).map(line => JSON.parse(line.slice(6)));
    const context = new OfflineAudioContext(1, 30 * RATE, RATE);
    let now = 0;
    const player = new LivePlayer(context, () => (now += 0.05));
    const turns = [];
    for (const event of events) {
        if (event.type === "turn") { turns.push([]); player.begin(event.index, 2); }
        if (event.type === "sound") {
            const wave = decodePcm(event.pcm);
            turns.at(-1).push(...wave);
            player.push(wave);
        }
        if (event.type === "spoken") player.finish();
    }
    const heard = (await context.startRendering()).getChannelData(0);
    return turns.map((turn, number) => {
        const pieces = player.log.filter(piece => piece.turn === number);
        const start = pieces[0].at;
        const added = pieces.slice(1).map((piece, n) => piece.at - pieces[n].at - pieces[n].length);
        const off = turn.reduce((worst, sample, n) => Math.max(worst, Math.abs(sample - heard[start + n])), 0);
        const peak = turn.reduce((peak, sample) => Math.max(peak, Math.abs(sample)), 0);
        return {pieces: pieces.length, added, off, peak, seconds: turn.length / RATE};
    });
}"""

# Samples between the end of a piece and the start of the next one of its turn, as they were put on the sound card.
LIVE = """() => {
    const {log, gaps} = window.csm.sound.live;
    const inside = log.slice(1).map((piece, n) => [piece, log[n]]).filter(([piece, last]) => piece.turn === last.turn);
    const breaks = inside.filter(([piece, last]) => piece.at !== last.at + last.length).length;
    return {gaps, breaks, turns: new Set(log.map(piece => piece.turn)).size};
}"""

NAMELESS = """() => [...document.querySelectorAll("#csm-app :is(button, input, select, textarea)")]
    .filter(one => !one.getAttribute("aria-label") && !one.labels?.length && !one.textContent.trim())
    .map(one => one.outerHTML)"""


@pytest.fixture
def page(browser, app):
    page = opened(browser, app)
    yield page
    assert not page.errors
    page.close()


def keys(page):
    return page.evaluate("window.csm.view.turns.map(turn => turn.takes[turn.chosen].key)")


@pytest.mark.parametrize(
    "size, scheme, pressed, words",
    [
        ("wide", "light", "Generate", EXAMPLES["Over coffee"]),
        ("narrow", "dark", "Hear the example “At the door”", EXAMPLES["At the door"]),
    ],
)
def test_one_click_gives_sound_turn_by_turn(browser, app, size, scheme, pressed, words):
    page = opened(browser, app, size, color_scheme=scheme)
    picture(page, f"start-{size}")
    page.evaluate(WATCH)
    button(page, pressed).click()
    turns = len(words.splitlines())
    page.locator(".csm-card:not([data-state=waiting])").first.wait_for()  # a page that is late may see it ended
    picture(page, f"speaking-{size}")
    expect(status(page, "done")).to_contain_text("real-time factor")
    seen = page.evaluate("window.seen")
    assert seen[0]["sentence"] == "Starting …" and seen[0]["atOnce"]
    spoken = [s["sentence"] for s in seen if s["sentence"].startswith("Speaking")]
    assert spoken == [f"Speaking turn {turn} of {turns} ({'BA'[turn % 2]}) …" for turn in range(1, turns + 1)]
    assert cards(page, "ended").count() + cards(page, "capped").count() == turns
    live = page.evaluate(LIVE)
    assert live["turns"] == turns and live["breaks"] == live["gaps"]
    sound = page.evaluate(DECODE, page.evaluate("window.csm.files.player.source"))
    assert sound["head"].startswith("RIFF") and sound["head"].endswith("WAVE")
    assert sound["seconds"] > 1 and sound["peak"] > 0.01
    picture(page, f"done-{size}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    assert page.evaluate(NAMELESS) == []
    assert not page.errors
    page.close()


def test_live_sound_has_neither_gaps_nor_clicks_where_its_pieces_join(page):
    body = {"script": "A: Good morning! Did you sleep well?\nB: Hello.", "turn": 0, "settings": {"max_turn_seconds": 3}}
    turns = page.evaluate(JOINS, body)
    assert len(turns) == 2 and turns[0]["pieces"] > 2
    for turn in turns:
        assert set(turn["added"]) <= {0}, "silence was added inside a turn"
        assert turn["off"] < 1e-4 < 0.01 < turn["peak"], "what is rendered is not what was sent"


def test_the_page_asks_nothing_of_other_servers(browser, app):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(app.url)
    cards(page).first.wait_for()
    page.wait_for_timeout(500)
    page.close()
    assert asked and [url for url in asked if not url.startswith((app.url, "data:", "blob:"))] == []


def test_the_script_and_the_cards_are_two_views_of_one_thing(page):
    write(page, "A: One apple.\nB: Two pears.")
    before = page.locator("#csm-budget").inner_text()
    text(page, 2).fill("Two pears and three very ripe plums.")
    expect(script(page)).to_have_value("A: One apple.\nB: Two pears and three very ripe plums.")
    text(page, 2).press("Enter")
    expect(page.locator("#csm-budget")).not_to_have_text(before)
    page.get_by_label("Speaker of turn 2", exact=True).select_option("C")
    expect(script(page)).to_have_value("A: One apple.\nC: Two pears and three very ripe plums.")
    expect(page.get_by_label("Voice of C", exact=True)).to_be_visible()
    script(page).fill("Anna: One apple.\nBen: No, two.\nAnna: Well.")
    expect(cards(page)).to_have_count(3)
    expect(text(page, 2)).to_have_value("No, two.")
    expect(page.get_by_label("Speaker of turn 3", exact=True)).to_have_value("Anna")


def test_a_chosen_voice_follows_a_speaker_who_is_renamed(page):
    write(page, "A: One.\nB: Two.\nA: Three.")
    page.get_by_label("Voice of A", exact=True).select_option("ksp")
    script(page).fill("Ann: One.\nB: Two.\nA: Three.")
    expect(page.get_by_label("Voice of Ann", exact=True)).to_be_visible()
    script(page).fill("Ann: One.\nB: Two.\nAnn: Three.")
    expect(page.get_by_label("Voice of A", exact=True)).to_have_count(0)
    expect(page.get_by_label("Voice of Ann", exact=True)).to_have_value("ksp")


def test_a_card_shows_its_text_after_it_was_drawn_unseen(page):
    write(page, "A: These words must be there when the tab is opened again.")
    page.get_by_role("tab", name="Voices").click()
    page.evaluate("window.csm.refresh()")
    page.get_by_role("tab", name="Conversation").click()
    expect(text(page, 1)).to_be_visible()
    assert text(page, 1).evaluate("one => one.clientHeight >= one.scrollHeight && one.clientHeight > 20")


def test_a_turn_is_redone_and_an_earlier_take_kept_again(page):
    lines = "A: How was your journey?\nB: Long, but the mountains were lovely.\nA: Tell me about it over dinner."
    write(page, lines, max_turn_seconds=2)
    generate(page)
    first = keys(page)
    button(page, "Redo turn 2").click()
    expect(page.get_by_label("Takes of turn 2", exact=True)).to_be_visible()
    expect(cards(page).nth(2)).to_have_attribute("data-stale", "true")
    redone = keys(page)
    assert redone[0] == first[0] and redone[1] != first[1]
    picture(page, "redone")
    page.get_by_role("button", name="Carry on from here").click()
    expect(cards(page).nth(2)).to_have_attribute("data-stale", "false")
    expect(status(page, "done")).to_contain_text("real-time factor")
    assert keys(page)[:2] == redone[:2]  # a calm model may well say the third turn as before
    page.get_by_label("Takes of turn 2", exact=True).select_option("0")
    button(page, "Keep this take of turn 2").click()
    expect(status(page, "done")).to_contain_text("Take 1 of turn 2 is kept")
    assert keys(page)[1] == first[1]
    page.reload()
    expect(cards(page)).to_have_count(3)
    expect(page.get_by_label("Takes of turn 2", exact=True)).to_be_visible()
    assert keys(page)[1] == first[1], "a reload lost the takes"


def test_of_several_takes_the_card_says_why_one_won(page):
    write(page, "A: One, two, three.", max_turn_seconds=2, takes=2)
    page.evaluate(WATCH)
    generate(page)
    assert "Speaking turn 1 of 1 (A), 2 takes together …" in [seen["sentence"] for seen in page.evaluate("window.seen")]
    expect(page.locator(".csm-why")).to_contain_text("was kept")
    picture(page, "takes")
    setting(page, "seed", 8)
    expect(page.locator(".csm-state")).to_contain_text("drawn with other settings")
    setting(page, "seed", 7)
    expect(page.locator(".csm-state")).not_to_contain_text("drawn with other settings")
    begun = {"type": "turn", "index": 0, "total": 1, "speaker": "A"}
    news = [event_view(None, Comparing(0, 12)), event_view(None, Comparing(0, 25, heard=1))]
    assert page.evaluate(TELL, [begun, *news]) == [
        "Speaking turn 1 of 1 (A), 2 takes together …",
        "Speaking turn 1 of 1 (A), 2 takes together … 12 frames of each so far, 1.0 s.",
        "Listening to take 1 of 2 of turn 1 of 1 (A) …",
    ]


def test_downloads_come_and_a_project_opens_again_with_the_same_sound(page, browser, app, tmp_path):
    write(page, "A: One.\nB: Two.", max_turn_seconds=1)
    generate(page)
    heads = {"WAV": b"RIFF", "MP3": (b"ID3", b"\xff"), "FLAC": b"fLaC", "Stems": b"PK", "SRT": b"1", "VTT": b"WEBVTT"}
    heads |= {"All as zip": b"PK", "Project": b"PK"}
    for name, head in heads.items():
        with page.expect_download() as download:
            button(page, f"Download {name}").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        assert path.read_bytes().startswith(head), name
    other = opened(browser, app)
    other.get_by_label("Open a project …").set_input_files(tmp_path / "conversation.csm")
    expect(status(other, "done")).to_contain_text("conversation.csm is open: 2 turns")
    expect(script(other)).to_have_value("A: One.\nB: Two.")
    assert keys(other) == keys(page)
    content = "async () => [...new Uint8Array(await (await fetch(window.csm.files.player.source)).arrayBuffer())]"
    assert other.evaluate(content) == page.evaluate(content)
    (tmp_path / "text.csm").write_text("This is no project.")
    other.get_by_label("Open a project …").set_input_files(tmp_path / "text.csm")
    expect(other.locator("#csm-open-note")).to_contain_text("not a project")
    expect(script(other)).to_have_value("A: One.\nB: Two.")
    other.close()


def test_a_script_file_takes_the_script_s_place_and_a_dictionary_shows_on_the_cards(page, tmp_path):
    (tmp_path / "talk.txt").write_bytes("A: Off to Łódź.\nB: Good.".encode("utf-16"))
    (tmp_path / "talk.pdf").write_bytes(b"%PDF-1.7")
    page.get_by_label("Open a script …").set_input_files(tmp_path / "talk.txt")
    expect(script(page)).to_have_value("A: Off to Łódź.\nB: Good.")
    expect(cards(page)).to_have_count(2)
    page.get_by_label("Open a script …").set_input_files(tmp_path / "talk.pdf")
    expect(page.locator("#csm-open-note")).to_contain_text("talk.pdf is a PDF")
    expect(script(page)).to_have_value("A: Off to Łódź.\nB: Good.")
    page.locator("#csm-settings summary").click()
    page.get_by_label("Pronunciation").fill("Łódź = woodge")
    page.get_by_label("Pronunciation").blur()
    expect(cards(page).first).to_contain_text("Read as: off to woodge.")
    page.get_by_label("Pronunciation").fill("a = b\nb = a")
    page.get_by_label("Pronunciation").blur()
    expect(page.locator("#csm-settings-note")).to_contain_text("never ends")
    page.get_by_label("Pronunciation").fill("")
    page.get_by_label("Pronunciation").blur()
    script(page).fill("A: " + "We went to the sea, and it was a fine day. " * 6)
    expect(cards(page).first).to_contain_text("Spoken in 6 pieces")


def test_an_empty_script_gets_one_sentence_and_the_page_stays_usable(page):
    write(page, "A: Hi.", max_turn_seconds=1)
    script(page).fill("")
    button(page, "Generate").click()
    expect(page.locator("#csm-script-note")).to_contain_text("The script is empty")
    expect(status(page, "error")).to_contain_text("The script is empty")
    picture(page, "empty-script")
    script(page).fill("Anna: Hello.")
    generate(page)
    expect(page.locator(".csm-note:visible")).to_have_count(0)


def test_an_example_gives_back_the_script_whose_place_it_took(page):
    write(page, "A: I wrote this myself.")
    button(page, "Hear the example “At the door”").click()
    expect(script(page)).to_have_value(EXAMPLES["At the door"])
    expect(status(page, "done")).to_contain_text("first sound")
    button(page, "Back to my script").click()
    expect(script(page)).to_have_value("A: I wrote this myself.")
    expect(button(page, "Back to my script")).to_be_hidden()


def test_a_duplicated_tab_has_a_conversation_of_its_own(page):
    write(page, "A: One.", max_turn_seconds=1)
    generate(page)
    with page.expect_popup() as opening:  # a new tab with a copy of what this one remembers, as a duplicate has
        page.evaluate("() => { window.open(location.href); }")
    other = opening.value
    other.set_default_timeout(PATIENCE)
    expect(script(other)).to_have_value("A: One.")
    expect(status(other, "quiet")).to_contain_text("copy of another")
    assert other.evaluate("window.csm.token") != page.evaluate("window.csm.token")
    write(other, "Ben: Quite another thing.", max_turn_seconds=1)
    generate(other)
    assert page.evaluate("window.csm.refresh().then(() => window.csm.view.script)") == "A: One."
    assert len(keys(page)) == 1 and keys(page) != keys(other)
    other.close()


def test_a_long_turn_is_told_to_be_spoken_in_pieces_and_a_long_script_is_not(page):
    line = "this is a very long line that goes on and on until the listener has fallen asleep "
    write(page, "\n".join(f"{'AB'[turn % 2]}: {line * 5}" for turn in range(7)))
    expect(page.locator("#csm-budget")).to_contain_text("forgets the oldest turns")
    expect(page.locator(".csm-fit:visible")).to_have_count(0)
    write(page, f"A: Good morning.\nB: {line * 30}")
    expect(cards(page).nth(1)).to_contain_text("pieces, one after the other")
    expect(cards(page).nth(0)).not_to_contain_text("pieces")
    expect(page.locator(".csm-fit:visible")).to_have_count(0)
    expect(text(page, 2)).to_have_value((line * 30).strip())


def test_a_wrong_setting_is_told_beside_the_settings_and_nothing_typed_is_lost(page):
    write(page, "A: This must not be lost.")
    setting(page, "temperature", 0)
    button(page, "Generate").click()
    expect(page.locator("#csm-settings-note")).to_contain_text("temperature")
    expect(script(page)).to_have_value("A: This must not be lost.")
    text(page, 1).fill("")
    text(page, 1).press("Tab")
    setting(page, "temperature", 0.9)
    expect(page.locator(".csm-note:visible")).to_contain_text("nothing to say in this turn")


def test_stop_is_heard_at_once_and_keeps_what_was_spoken(page):
    write(page, "\n".join(["A: This goes on for longer than anyone wants to listen."] * 60), max_turn_seconds=20)
    button(page, "Generate").click()
    cards(page, "speaking").nth(0).wait_for()
    page.wait_for_function("window.csm.view.turns[0].chosen !== null")
    page.evaluate(WATCH)
    button(page, "Stop").click()
    assert page.evaluate("window.csm.sound.live") is None
    expect(status(page, "warning")).to_contain_text("Stopped.")
    seen = page.evaluate("window.seen")
    assert next(said for said in seen if said["sentence"] == "Stopping …")["atOnce"]
    print(f"stopped after {seen[-1]['after']:.0f} ms")
    assert seen[-1]["after"] < 30_000  # 1 s where nothing else runs; the whole script takes minutes
    expect(cards(page, "waiting").first).to_be_visible()
    assert page.evaluate(DECODE, page.evaluate("window.csm.files.player.source"))["seconds"] > 0.5
    expect(page.get_by_role("button", name="Start over")).to_be_enabled()


def test_a_voice_of_ones_own_speaks(page):
    voice = find_voice("awb")
    page.get_by_role("tab", name="Voices").click()
    page.get_by_label("Name of the voice").fill("Mine")
    page.locator("input[type=file][accept^=audio]").first.set_input_files(voice.path)
    page.get_by_test_id("waveform-Recording").first.wait_for()
    page.locator(".csm-status", has_text=re.compile("fine for a voice|It can")).first.wait_for()
    picture(page, "voices")
    page.get_by_label("What is said in it").first.fill(voice.transcript)
    button(page, "Keep this voice").click()
    page.get_by_text("“Mine” is kept").wait_for()
    page.get_by_role("tab", name="Conversation").click()
    write(page, "A: Hello.", max_turn_seconds=1)
    page.get_by_label("Voice of A", exact=True).select_option("Mine")
    generate(page)
    report = page.evaluate("window.csm.view.speakers")
    assert report == [{"label": "A", "voice": "Mine"}]
    page.get_by_role("tab", name="Look inside").click()
    page.get_by_label("Clip", exact=True).click()
    page.get_by_role("option", name="Hello.").click()
    button(page, "Look inside").click()
    page.locator("p.csm-status", has_text="codes, ").wait_for()
    picture(page, "inside")


def test_a_voice_recorded_with_the_microphone_speaks(playwright, app):
    voice = find_voice("rms")
    microphone = [
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={voice.path}",
    ]  # fmt: skip
    with playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *microphone]) as browser:
        page = opened(browser, app)
        page.get_by_role("tab", name="Voices").click()
        page.get_by_label("Name of the voice").fill("Recorded")
        page.get_by_label("Record audio").first.click()
        button(page, "Record").click()
        page.wait_for_timeout(4_000)
        button(page, "Stop").click()
        page.get_by_test_id("waveform-Recording").first.wait_for()
        page.locator(".csm-status", has_text=re.compile("fine for a voice|It can")).first.wait_for()
        page.get_by_label("What is said in it").first.fill(voice.transcript)
        button(page, "Keep this voice").click()
        page.get_by_text("“Recorded” is kept").wait_for()
        page.get_by_role("tab", name="Conversation").click()
        write(page, "A: Hello.", max_turn_seconds=1)
        page.get_by_label("Voice of A", exact=True).select_option("Recorded")
        generate(page)


def test_the_page_works_by_keyboard(page):
    write(page, "A: Hello.", max_turn_seconds=1)
    script(page).focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "csm-generate":
            break
    page.keyboard.press("Enter")
    expect(status(page, "done")).to_contain_text("real-time factor")
    assert page.locator("#csm-status").get_attribute("aria-live") == "polite"
    play = page.get_by_role("button", name="Play the conversation")
    play.focus()
    page.keyboard.press("Space")
    page.wait_for_function("window.csm.sound.deck.audio.currentTime > 0")


def test_the_page_is_there_soon_and_the_tabs_follow(browser, app):
    page = opened(browser, app)
    ready = page.evaluate("performance.getEntriesByType('mark').find(mark => mark.name === 'csm-ready').startTime")
    print(f"interactive after {ready:.0f} ms")
    assert ready < 20_000  # 3 s where nothing else runs
    page.get_by_role("tab", name="Check a file").click()
    page.get_by_text("Drop a file to have it checked").first.wait_for()
    picture(page, "check")
    page.get_by_role("tab", name="Conversation").click()
    expect(cards(page)).to_have_count(4)
    page.close()


def test_a_pasted_script_is_told_as_it_was_understood_and_taken_as_it_stands_at_a_click(browser, app):
    page = opened(browser, app)
    script(page).fill("1\n00:00:01,000 --> 00:00:04,000\nHello there. [laughs]\n")
    told = page.locator("#csm-understood-told")
    expect(told).to_have_text("Read as SubRip subtitles: 1 speaker, 1 turn, 1 direction left out.")
    expect(text(page, 1)).to_have_value("Hello there.")
    expect(page.locator(".csm-directions").first).to_have_text("[laughs]")
    button(page, "Take the text as it stands").click()
    expect(text(page, 3)).to_have_value("Hello there. [laughs]")
    button(page, "Read it as a script").click()
    text(page, 1).fill("Hello, you.")
    text(page, 1).press("Enter")
    expect(script(page)).to_have_value("A: [laughs] Hello, you.")
    script(page).fill("A: Hi.")
    expect(page.locator("#csm-understood")).to_be_hidden()
    assert page.errors == []
    page.close()


@pytest.mark.parametrize(
    "name, container, codec",
    [("voice.m4a", "ipod", "aac"), ("film.mp4", "mp4", "aac"), ("recording.webm", "webm", "libopus")],
)
def test_a_voice_is_taken_in_whatever_file_it_comes(browser, app, tmp_path, name, container, codec):
    record(tmp_path / name, container, codec, seconds=3)
    page = opened(browser, app)
    page.get_by_role("tab", name="Check a file").click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    field = panel.locator("input[type=file][accept*='.m4a']")
    field.set_input_files(tmp_path / name)
    expect(panel.locator(".csm-status")).to_contain_text("watermark was found")
    assert not page.errors
    page.close()
