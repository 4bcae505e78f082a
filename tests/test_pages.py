"""The routes behind the conversation tab, with a small random model: what a page asks, without a browser."""

import json
import pickle
import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from starlette.applications import Starlette
from starlette.testclient import TestClient

from csm.conversation.judges import LazyJudges
from csm.conversation.studio import Studio
from csm.conversation.takes import Judges
from csm.web.casting import usual_voices
from csm.web.examples import EXAMPLE_SCRIPT
from csm.web.forms import Form
from csm.web.gpu import as_bytes, from_bytes
from csm.web.pages import MOST_AWAKE, Pages
from csm.web.routes import PageRoutes
from tests.small import end_after, small_generator

SCRIPT = "A: One.\nB: Two.\nA: Three."
FAST = {"max_turn_seconds": 0.4}


@pytest.fixture(scope="module")
def pages():
    generator = small_generator(max_positions=2048)
    end_after(generator, 4)
    return Pages(Studio(generator))


@pytest.fixture(scope="module")
def client(pages):
    return TestClient(Starlette(routes=PageRoutes(pages).routes()))


class Visitor:
    """One open page, without its browser."""

    def __init__(self, client, script=SCRIPT, **settings):
        self.client, self.token = client, secrets.token_hex(16)
        self.form = {"token": self.token, "script": script, "voices": {}, "settings": {**FAST, **settings}}

    def ask(self, name, **more):
        return self.client.post(f"/csm/{name}", json={**self.form, **more})

    def plan(self, **more):
        return self.ask("plan", **more).json()

    def speak(self, turn=0, again=False):
        lines = self.ask("speak", turn=turn, again=again).text.split("\n\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def keys(view):
    return [turn["takes"][turn["chosen"]]["key"] for turn in view["turns"]]


@pytest.fixture
def visitor(client):
    return Visitor(client)


@pytest.fixture
def spoken(visitor):
    return visitor, visitor.speak()[-1]["view"]


def test_the_cards_wait_before_anything_is_spoken_and_the_meter_counts_them(visitor):
    view = visitor.plan()
    assert [(turn["speaker"], turn["text"], turn["state"]) for turn in view["turns"]] == [
        ("A", "One.", "waiting"), ("B", "Two.", "waiting"), ("A", "Three.", "waiting"),
    ]  # fmt: skip
    budget = view["budget"]
    assert budget["total"] == budget["prompts"] + budget["coming"] <= budget["limit"] and budget["fits"] == 3


def test_a_run_tells_of_every_turn_its_sound_and_what_it_cost(visitor):
    told = visitor.speak()
    assert [(one["type"], one["index"]) for one in told if one["type"] in ("turn", "spoken")] == [
        (kind, turn) for turn in range(3) for kind in ("turn", "spoken")
    ]
    assert {one["index"] for one in told if one["type"] == "sound"} == {0, 1, 2}
    end = told[-1]
    assert end["type"] == "end" and end["told"]["factor"] > 0 and end["told"]["first"] >= 0
    assert all(turn["state"] == "ended" for turn in end["view"]["turns"])


def test_redoing_a_turn_leaves_those_before_it_and_marks_those_after_it(spoken):
    visitor, before = spoken
    after = visitor.speak(turn=1, again=True)[-1]["view"]
    assert keys(after)[0] == keys(before)[0] and keys(after)[1] != keys(before)[1]
    assert [turn["stale"] for turn in after["turns"]] == [False, False, True] and after["first_open"] == 2
    kept = visitor.ask("keep", turn=1, take=0).json()
    assert keys(kept) == keys(before) and kept["first_open"] is None


def test_a_text_that_is_changed_and_changed_back_has_its_take_again(spoken):
    visitor, before = spoken
    changed = visitor.plan(script=SCRIPT.replace("Two", "Five"))
    assert changed["turns"][1]["state"] == "waiting" and changed["first_open"] == 1
    assert keys(visitor.plan()) == keys(before)


def test_the_players_get_sound_and_every_download_is_a_file(spoken):
    visitor, view = spoken
    whole = visitor.client.get(f"/csm/whole/{visitor.token}/{view['sound']['version']}")
    take = visitor.client.get(f"/csm/take/{visitor.token}/{keys(view)[0]}")
    assert whole.content[:4] == take.content[:4] == b"RIFF" and len(whole.content) > len(take.content)
    heads = {
        "wav": b"RIFF",
        "flac": b"fLaC",
        "zip": b"PK",
        "stems": b"PK",
        "vtt": b"WEBVTT",
        "srt": b"1\n",
        "csm": b"PK",
    }
    for kind, start in heads.items():
        saved = visitor.client.get(f"/csm/save/{visitor.token}/{kind}")
        assert saved.status_code == 200 and saved.content.startswith(start), kind
        assert "attachment" in saved.headers["Content-Disposition"]


def test_a_project_opens_on_another_page_with_the_same_sound(spoken, client):
    visitor, view = spoken
    project = client.get(f"/csm/save/{visitor.token}/csm").content
    other = Visitor(client)
    opened = client.post(f"/csm/open?token={other.token}", content=project).json()
    assert keys(opened) == keys(view) and opened["script"] == SCRIPT
    whole = f"/csm/whole/%s/{view['sound']['version']}"
    assert client.get(whole % other.token).content == client.get(whole % visitor.token).content
    other.form["voices"] = {one["label"]: one["voice"] for one in opened["speakers"]}
    other.form["settings"] = opened["settings"]
    assert other.plan()["first_open"] is None


def test_a_file_that_is_no_project_is_refused_where_it_was_given_and_nothing_is_lost(spoken):
    visitor, view = spoken
    answer = visitor.client.post(f"/csm/open?token={visitor.token}", content=b"nothing of the kind")
    assert answer.status_code == 400 and answer.json()["place"] == "open"
    assert "not a project" in answer.json()["error"] and "opened-" not in answer.json()["error"]
    assert keys(visitor.plan()) == keys(view)


BAD = {
    "an empty script": (dict(script=" \n"), "script", "script is empty"),
    "nine speakers": (dict(script="\n".join(f"{name}: Hi." for name in "ABCDEFGHI")), "script", "at most 8"),
    "a voice that is gone": (dict(voices={"B": "nobody"}), "voice:B", "no voice called “nobody”"),
    "no temperature": (dict(settings={"temperature": 0}), "settings", "temperature"),
    "a word for a number": (dict(settings={"topk": "many"}), "settings", "must be a number"),
    "too many takes": (dict(settings={"takes": 99}), "settings", "number of takes"),
}


@pytest.mark.parametrize("given, place, sentence", BAD.values(), ids=BAD)
def test_bad_input_is_told_where_it_was_given(visitor, given, place, sentence):
    answer = visitor.ask("speak", turn=0, **given)
    assert answer.status_code == 400
    assert answer.json()["place"] == place and sentence.lower() in answer.json()["error"].lower()
    assert visitor.plan()["turns"]


def test_what_is_no_page_and_what_is_no_turn_is_refused_in_one_sentence(client, visitor):
    for answer in (
        client.post("/csm/plan", json={"token": "../../etc"}),
        client.post("/csm/plan", content=b"{"),
        visitor.ask("speak", turn="one"),
        visitor.ask("keep", turn=7, take=0),
        client.get(f"/csm/save/{visitor.token}/exe"),
        client.get(f"/csm/take/{visitor.token}/none"),
        client.get(f"/csm/whole/{visitor.token}/none"),
        client.get(f"/csm/voice/{visitor.token}?name=/etc/passwd"),
    ):
        assert answer.status_code == 400 and answer.json()["error"].endswith((".", "it"))


def test_eight_pages_at_once_get_each_their_own(client):
    scripts = [
        f"{name}: {word}.\nZ: Yes."
        for name, word in zip("ABCDEFGH", ("one two three four five six seven eight").split())
    ]
    alone = [keys(Visitor(client, script).speak()[-1]["view"]) for script in scripts]
    with ThreadPoolExecutor(8) as pool:
        ends = list(pool.map(lambda script: Visitor(client, script).speak()[-1], scripts))
    assert [end["view"]["script"] for end in ends] == scripts
    assert [keys(end["view"]) for end in ends] == alone


def test_a_page_is_asked_to_stop_and_keeps_what_was_made(pages, client):
    visitor = Visitor(client, "\n".join(["A: On and on."] * 8))
    page = pages.page(visitor.token)
    events = []
    job = page.speak(_form(visitor), 0, False)
    for event in page.begin(job):
        events.append(type(event).__name__)
        if events.count("TurnFinished") == 2:
            page.halt()
    assert events[-1] == "Performed" and 2 <= events.count("TurnFinished") <= 3
    page.end(job)
    assert page.job is None and page.version()
    assert visitor.speak(turn=2)[-1]["type"] == "end"


def test_while_a_page_is_spoken_for_nothing_else_changes_it(pages, client):
    visitor = Visitor(client)
    page = pages.page(visitor.token)
    job = page.speak(_form(visitor), 0, False)
    run = page.begin(job)
    next(run)
    refused = visitor.ask("plan", script="A: Other.").json()
    assert "being spoken" in refused["error"] and refused["code"] == "busy"
    assert json.loads(visitor.ask("speak").text.removeprefix("data: "))["code"] == "busy"
    run.close()
    page.end(job)
    assert visitor.ask("plan", script="A: Other.").status_code == 200


def test_of_several_takes_the_card_says_why_one_was_kept(client):
    view = Visitor(client, "A: One.", takes=2).speak()[-1]["view"]
    (turn,) = view["turns"]
    assert len(turn["takes"]) == 2 and "was kept" in turn["takes"][turn["chosen"]]["reason"]


def test_a_drawn_seed_is_told_and_stays_for_what_follows(client):
    visitor = Visitor(client, seed=-1)
    seed = visitor.speak()[-1]["view"]["settings"]["seed"]
    assert seed >= 0 and visitor.plan()["settings"]["seed"] == seed


def test_speakers_take_the_voices_in_turn_and_share_them_when_there_are_too_few():
    offered = ["slt", "bdl", "awb"]
    assert usual_voices(["B", "A"], offered) == {"A": "slt", "B": "bdl"}
    assert usual_voices(["Anna", "Ben", "Cleo", "Dan"], offered) == {
        "Anna": "slt", "Ben": "bdl", "Cleo": "awb", "Dan": "slt",
    }  # fmt: skip


def cast_in(view):
    return {one["label"]: one["voice"] for one in view["speakers"]}


def test_the_voice_of_a_speaker_who_is_renamed_comes_along_with_the_takes(spoken):
    visitor, before = spoken
    visitor.plan(voices={"A": "ksp"})
    renamed = visitor.plan(script=SCRIPT.replace("A:", "Ann:"))
    assert cast_in(renamed) == {"Ann": "ksp", "B": "bdl"}
    assert cast_in(visitor.plan(voices={"Ann": "rms"}, script=SCRIPT.replace("A:", "Ann:")))["Ann"] == "rms"
    assert cast_in(visitor.plan())["A"] == "rms"
    assert keys(visitor.plan(voices={"A": "slt"})) == keys(before)


def test_a_speaker_who_is_renamed_line_by_line_keeps_the_voice_too(visitor):
    visitor.plan(voices={"A": "ksp"})
    half = visitor.plan(script="Ann: One.\nB: Two.\nA: Three.")
    assert cast_in(half)["A"] == "ksp" != cast_in(half)["Ann"]
    assert cast_in(visitor.plan(script="Ann: One.\nB: Two.\nAnn: Three."))["Ann"] == "ksp"


def test_a_voice_does_not_follow_to_somebody_else(visitor):
    visitor.plan(voices={"A": "ksp"})
    assert cast_in(visitor.plan(script="B: One.\nB: Two.\nB: Three."))["B"] == "bdl"
    assert cast_in(visitor.plan(script=SCRIPT))["A"] == "ksp", "who comes back has the voice of before"
    assert cast_in(visitor.plan(script="Tom: Four.\nB: Two.\nTom: Five."))["Tom"] != "ksp"


def test_a_card_tells_of_a_take_that_was_drawn_with_other_settings(spoken):
    visitor, before = spoken
    assert not any(turn["other_settings"] for turn in before["turns"])
    changed = visitor.plan(settings={**FAST, "temperature": 0.5})
    assert all(turn["other_settings"] and not turn["stale"] for turn in changed["turns"])
    redone = visitor.speak(turn=1, again=True)[-1]["view"]
    assert [turn["other_settings"] for turn in redone["turns"]] == [False] * 3


def test_a_session_spoken_in_another_process_comes_back_as_plain_bytes(pages, client):
    here = Visitor(client).speak()[-1]["view"]
    visitor = Visitor(client)
    page = pages.page(visitor.token)
    job = page.speak(_form(visitor), 0, False)
    sent = pickle.loads(pickle.dumps(job))
    updates = list(as_bytes(pages.studio._work)(60, 0, sent))
    assert updates and all(isinstance(update, bytes) for update in updates)
    for update in from_bytes(iter(updates)):
        job.session.apply(update)
    view = visitor.plan()
    assert keys(view) == keys(here) and view["sound"]["version"] == here["sound"]["version"]


def test_pages_at_rest_keep_what_was_said_but_no_cache_and_no_sound_in_memory(pages, client):
    visitor = Visitor(client)
    before = keys(visitor.speak()[-1]["view"])
    page = pages.page(visitor.token)
    heard = page.whole()
    for _ in range(MOST_AWAKE):
        Visitor(client, "A: Hi.").speak()
    assert page.session is not None and page.session._memory is None
    assert not page.session._sounds and not len(page.marked[1])
    assert torch.equal(page.whole(), heard)
    assert keys(visitor.speak(turn=1, again=True)[-1]["view"])[0] == before[0]


def _form(visitor):
    return Form.read(visitor.form)


def test_an_example_is_spoken_once_and_there_at_once_for_the_next_page(pages, client, monkeypatch):
    first = Visitor(client, EXAMPLE_SCRIPT).speak()
    monkeypatch.setattr(pages.studio, "_enter", None)  # the model is not asked again
    again = Visitor(client, EXAMPLE_SCRIPT)
    told = again.speak()
    assert [one["type"] for one in told] == ["kept", *(one["type"] for one in first)]
    assert keys(told[-1]["view"]) == keys(first[-1]["view"]) and told[-1]["view"]["first_open"] is None
    assert told[-1]["told"]["made"] == 0 and told[-1]["view"]["report"]["generation_seconds"] == 0
    monkeypatch.undo()
    redone = again.speak(turn=1, again=True)[-1]["view"]
    assert keys(redone)[0] == keys(first[-1]["view"])[0] and keys(redone)[1] != keys(first[-1]["view"])[1]


def test_while_several_takes_are_made_the_page_is_told_how_far_they_are(pages, client, monkeypatch):
    def slow(audio, text):
        time.sleep(0.5)
        return 0.0

    monkeypatch.setattr(pages.studio, "judges", LazyJudges(lambda: Judges(word_errors=slow)))
    told = Visitor(client, "A: One.", takes=2).speak()
    heard = [one for one in told if one["type"] == "takes"]
    assert heard and all(one["index"] == 0 for one in heard)
    assert heard[-1]["heard"] == 2 and heard[-1]["frames"] >= 4
    assert all(one["seconds"] == pytest.approx(0.08 * one["frames"]) for one in heard)
    assert [one["type"] for one in told if one["type"] != "takes"] == ["turn", "sound", "spoken", "end"]


def test_what_waits_is_told_with_the_seconds_it_should_take(pages, visitor):
    pages.studio.queue.pace = 0.5
    before = visitor.plan()["estimate"]
    assert before["seconds"] > 0 and before["work"] == pytest.approx(before["seconds"] / 2, abs=0.1)
    with pages.studio.queue.join(1.0):
        assert visitor.plan()["estimate"]["ahead"] == 1
    after = visitor.speak()[-1]["view"]["estimate"]
    assert after["seconds"] == after["work"] == 0


def test_the_page_is_told_what_was_understood_and_can_have_the_text_as_it_stands(client):
    visitor = Visitor(client, "JOHN (whispering): Hush [sighs] now.\nMARY: Why?\nJOHN: Listen.")
    view = visitor.plan()
    assert view["understood"] == "Read as 2 speakers, 3 turns, 2 directions left out."
    assert view["turns"][0]["text"] == "Hush now." and view["turns"][0]["directions"] == ["whispering", "sighs"]
    again = Visitor(client, view["script"]).plan()
    assert [(turn["speaker"], turn["text"], turn["directions"]) for turn in again["turns"]] == [
        (turn["speaker"], turn["text"], turn["directions"]) for turn in view["turns"]
    ]
    view = visitor.plan(as_it_stands=True)
    assert view["turns"][0]["text"] == "JOHN (whispering): Hush [sighs] now." and view["understood"] == ""
    assert Visitor(client).plan()["understood"] == ""


def test_directions_are_kept_while_takes_are(client):
    visitor = Visitor(client)
    visitor.speak()
    before = visitor.plan()
    view = visitor.plan(script=SCRIPT.replace("A: One.", "A: [laughs] One."))
    assert keys(view) == keys(before) and view["turns"][0]["directions"] == ["laughs"]


def test_a_long_turn_says_in_how_many_pieces_and_a_dictionary_how_it_is_read(visitor):
    long = "A: " + "We went to Łódź, and it was a fine day. " * 8
    view = visitor.plan(script=long, dictionary="Łódź = woodge", spoken=True)
    (turn,) = view["turns"]
    assert turn["pieces"] > 2 and turn["words"].startswith("we went to woodge, and")
    assert (view["dictionary"], view["spoken"]) == ("Łódź = woodge", True)
    refused = visitor.ask("plan", dictionary="a = b\nb = a").json()
    assert refused["place"] == "settings" and "never ends" in refused["error"]
    refused = visitor.ask("speak", script='A: One.\nB: <prosody rate="slow">Two.</prosody>').json()
    assert refused["place"] == "turn:1" and "<prosody>" in refused["error"]


def test_a_turn_in_doubt_says_so_on_its_card(visitor):
    view = visitor.speak()[-1]["view"]  # four frames each; the second and third have five letters and more
    told = [turn["doubt"] for turn in view["turns"]]
    assert told == [turn["takes"][turn["chosen"]]["doubt"] for turn in view["turns"]]
    long = visitor.plan(script="A: There are a great many words in this turn.")
    assert long["turns"][0]["doubt"] == ""
    visitor.form["script"] = "A: There are a great many words in this turn."
    (turn,) = visitor.speak()[-1]["view"]["turns"]
    assert "times as long as its text should take" in turn["doubt"]


def test_another_dictionary_makes_a_take_one_of_other_settings(visitor):
    visitor.speak()
    view = visitor.plan(dictionary="two = too")
    assert [turn["other_settings"] for turn in view["turns"]] == [False, True, False]


def test_a_script_file_of_any_encoding_becomes_text_and_says_what_was_assumed(client, visitor):
    def read(data, name="talk.txt"):
        return client.post(f"/csm/read?token={visitor.token}&name={name}", content=data).json()

    assert read("A: Grüße.\n".encode("utf-16")) == {"text": "A: Grüße.\n", "note": ""}
    assert "Windows-1252" in read("A: Grüße.\n".encode("cp1252"))["note"]
    refused = read(b"%PDF-1.7", "talk.pdf")
    assert refused["place"] == "open" and refused["error"].startswith("talk.pdf is a PDF")
    assert "too large" in read(b"x" * (1 << 21))["error"]
