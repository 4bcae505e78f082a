"""Project files: they play back bit-identically, and nothing bad comes out of a bad one."""

import json
import pickle
import random
import signal
import zipfile

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from csm import InputError
from csm.conversation import project
from csm.conversation.parsing import Line, parse_script
from csm.conversation.project import open_project, save_project
from csm.conversation.session import Session
from csm.limits import LONGEST_TURN, MOST_TURNS_SAVED
from csm.settings import Settings
from csm.speech.voices import shipped_voices
from tests.small import SMALL_MIMI, small_generator

SETTINGS = Settings(seed=1, temperature=0.8, max_turn_seconds=0.48, takes=2)


@pytest.fixture(scope="module")
def session(generator):
    shipped = list(shipped_voices().values())
    session = Session(parse_script("A: Hello there.\nB: How are you?"), {"A": shipped[0], "B": shipped[1]}, SETTINGS)
    for _ in session.speak(generator, live=False):
        pass
    session.keep(0, 1 - session.turns[0].chosen)
    return session


@pytest.fixture
def saved(session, tmp_path):
    save_project(tmp_path / "talk.csm", session)
    return tmp_path / "talk.csm"


def run(events):
    *_, last = events
    return last


def rewritten(path, change=lambda document: None, codes=None, **members):
    """The project again, with a changed document, changed codes or changed members."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(files["project.json"])
    change(document)
    files["project.json"] = json.dumps(document).encode()
    if codes:
        files["codes.safetensors"] = save_tensors(codes(load_tensors(files["codes.safetensors"])))
    files.update({name.replace("__", "."): data for name, data in members.items()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def test_a_project_reopens_and_plays_back_bit_identically(session, generator, saved, tmp_path):
    again = open_project(saved, tmp_path, generator)
    assert torch.equal(again.whole(generator), session.whole(generator))
    assert again.report(generator) == session.report(generator)
    assert (again.settings, again.slots, again.model) == (session.settings, session.slots, session.model)
    for old, new in zip(session.turns, again.turns, strict=True):
        assert (old.speaker, old.text, old.chosen, old.drawn) == (new.speaker, new.text, new.chosen, new.drawn)
        for one, other in zip(old.takes, new.takes, strict=True):
            assert torch.equal(one.codes, other.codes)
            assert {**vars(one), "codes": 0} == {**vars(other), "codes": 0}


def test_a_reopened_project_goes_on_as_the_session_would_have(session, generator, saved, tmp_path):
    again, before = open_project(saved, tmp_path, generator), pickle.loads(pickle.dumps(session))
    assert [again.stale(index) for index in range(2)] == [before.stale(index) for index in range(2)] == [False, True]
    for one in (again, before):
        run(one.redo(generator, 1, live=False))
    assert torch.equal(again.turns[1].take.codes, before.turns[1].take.codes)


def test_the_recordings_of_the_voices_come_along(session, saved, tmp_path):
    folder = tmp_path / "voices"
    folder.mkdir()
    again = open_project(saved, folder)
    for speaker, voice in again.voices.items():
        assert voice.path.parent == folder
        assert voice.path.read_bytes() == session.voices[speaker].path.read_bytes()
        assert voice.transcript == session.voices[speaker].transcript
        assert torch.equal(again.prompts[speaker].codes, session.prompts[speaker].codes)


def test_what_earlier_weights_spoke_opens_without_its_takes_and_says_so(session, saved, tmp_path, generator):
    rewritten(saved, lambda document: document.update(codec="0" * 16))
    again = open_project(saved, tmp_path, generator)
    assert again.unheard == len(session.turns) and [turn.text for turn in again.turns] == [
        turn.text for turn in session.turns
    ]
    assert again.settings == session.settings and set(again.voices) == set(session.voices)
    run(again.speak(generator, live=False))
    assert all(turn.take for turn in again.turns) and again.codec == generator.codec_key


def test_a_script_that_was_not_spoken_yet_can_be_saved_too(tmp_path, generator):
    save_project(tmp_path / "new.csm", Session(parse_script("A: Hello."), {}))
    again = open_project(tmp_path / "new.csm", tmp_path, generator)
    assert [turn.status for turn in again.turns] == ["waiting"] and again.codec is None


def bad_files():
    def set_in(*path, value):
        def change(document):
            for key in path[:-1]:
                document = document[key]
            document[path[-1]] = value

        return lambda file: rewritten(file, change)

    take = ("turns", 0, "takes", 0)
    return {
        "a newer version": (set_in("version", value=99), "newer version"),
        "another program's zip": (set_in("format", value="word"), "not a project"),
        "no version": (set_in("version", value=None), "newer version"),
        "a text file": (lambda file: file.write_text("Hello."), "not a project"),
        "an empty file": (lambda file: file.write_bytes(b""), "not a project"),
        "half a file": (lambda file: file.write_bytes(file.read_bytes()[:2000]), "not a project"),
        "a list for a document": (lambda file: rewritten(file, project__json=b"[1]"), "not a project"),
        "deep JSON": (lambda file: rewritten(file, project__json=b"[" * 200_000), "damaged"),
        "no codes": (lambda file: rewritten(file, codes__safetensors=None), "damaged"),
        "a pickle for codes": (lambda file: rewritten(file, codes__safetensors=pickle.dumps(print)), "damaged"),
        "codes of one dimension": (
            lambda file: rewritten(file, codes=lambda all: {k: v.flatten() for k, v in all.items()}),
            "damaged",
        ),
        "codes that no model knows": (
            lambda file: rewritten(file, codes=lambda all: {k: v + 5_000 for k, v in all.items()}),
            "damaged",
        ),
        "negative codes": (
            lambda file: rewritten(file, codes=lambda all: {k: v - 100 for k, v in all.items()}),
            "damaged",
        ),
        "no turns": (set_in("turns", value=[]), "damaged"),
        "a turn without words": (set_in("turns", 0, "text", value=7), "damaged"),
        "a take that is not there": (set_in("turns", 0, "chosen", value=17), "damaged"),
        "a take longer than its codes": (set_in(*take, "samples", value=10**9), "damaged"),
        "a take in an unknown state": (set_in(*take, "state", value="fine"), "damaged"),
        "an unknown setting": (set_in("settings", "colour", value=1), "damaged"),
        "an impossible setting": (set_in("settings", "takes", value=0), "takes"),
        "a slot too many": (set_in("slots", "Z", value=1), "damaged"),
        "two speakers in one slot": (set_in("slots", value={"A": 0, "B": 0}), "damaged"),
        "a voice outside the file": (set_in("voices", "A", "recording", value="../../secret.wav"), "damaged"),
        "a voice that is a program": (set_in("voices", "A", "recording", value="run.sh"), "damaged"),
        "another model": (
            lambda file: rewritten(file, lambda document: document.update(codec="0" * 16, model="big")),
            "load big first",
        ),
    }


@pytest.mark.parametrize("name", sorted(bad_files()))
def test_a_bad_file_is_refused_in_one_sentence(name, saved, tmp_path, generator):
    spoil, words = bad_files()[name]
    spoil(saved)
    with pytest.raises(InputError) as refused:
        open_project(saved, tmp_path, generator)
    sentence = str(refused.value)
    assert words in sentence and sentence.endswith(".") and "\n" not in sentence


def test_a_file_that_unpacks_to_more_than_a_project_can_need_is_not_unpacked(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(project, "MOST_JSON", 100_000)
    rewritten(saved, lambda document: document.update(padding=" " * 200_000))
    with pytest.raises(InputError, match="too large"):
        open_project(saved, tmp_path)


def test_a_small_file_that_unpacks_to_much_is_refused_before_it_fills_the_memory_or_the_disk(
    saved, tmp_path, monkeypatch
):
    rewritten(
        saved, project__json=b'{"format": "csm-conversation", "version": 1, "x": [' + b"[]," * 5_000_000 + b"[]]}"
    )
    monkeypatch.setattr(project.json, "loads", lambda data: pytest.fail("Five million lists were built."))
    with pytest.raises(InputError, match=r"damaged|too large"):
        open_project(saved, tmp_path)
    assert not list(tmp_path.glob("voice-*"))


def test_one_tensor_is_no_take_many_times_over(saved, tmp_path, generator):
    def same(document):
        for turn in document["turns"]:
            turn["takes"] = turn["takes"][:1] * 20

    rewritten(saved, same)
    with pytest.raises(InputError, match="damaged"):
        open_project(saved, tmp_path, generator)


@pytest.mark.parametrize("turns, letters", [(2_001, 3), (1, LONGEST_TURN), (5_000, 1)])
def test_what_is_saved_opens_however_long_it_is(tmp_path, turns, letters):
    session = Session([Line("A", "a" * letters, number) for number in range(turns)], {})
    save_project(tmp_path / "long.csm", session)
    again = open_project(tmp_path / "long.csm", tmp_path)
    assert [turn.text for turn in again.turns] == [turn.text for turn in session.turns]


@pytest.mark.parametrize("turns, letters", [(MOST_TURNS_SAVED + 1, 1), (1, LONGEST_TURN + 1)])
def test_what_could_not_be_opened_is_not_saved(tmp_path, turns, letters):
    session = Session([Line("A", "a" * letters, number) for number in range(turns)], {})
    with pytest.raises(InputError, match="at most"):
        save_project(tmp_path / "long.csm", session)
    assert list(tmp_path.iterdir()) == []


def test_what_is_saved_opens_whatever_stands_in_it(tmp_path):
    """The same limits on both sides: drawn scripts, odd letters among them."""
    drawn = random.Random(7)
    letters = ["a", "é", "\u0301", "\x00", "\ud800", "😀", '"', "\\", "\u2028", " "]
    for number in range(40):
        lines = [
            Line(drawn.choice("ABCD"), "w" + "".join(drawn.choices(letters, k=drawn.randrange(12))), 1)
            for _ in range(drawn.randrange(1, 8))
        ]
        one, path = Session(lines, {}), tmp_path / f"{number}.csm"
        try:
            save_project(path, one)
        except InputError:
            assert any("\ud800" in line.text for line in lines) and not path.exists()
            continue
        assert [turn.text for turn in open_project(path, tmp_path).turns] == [line.text for line in lines]


def test_another_models_project_is_refused_before_its_codes_are_read(saved, tmp_path):
    rewritten(saved, lambda document: document.update(model="big"))
    with pytest.raises(InputError, match=r"spoken by the model big"):
        open_project(saved, tmp_path, small_generator(SMALL_MIMI))


@pytest.mark.parametrize("name", ["talk.zip", "nowhere/talk.csm"])
def test_a_project_goes_where_its_name_says_or_nowhere(name, session, tmp_path):
    with pytest.raises(InputError):
        save_project(tmp_path / name, session)
    assert list(tmp_path.iterdir()) == []


def test_a_project_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no project file .*talk\.csm"):
        open_project(tmp_path / "talk.csm", tmp_path)


def test_a_long_document_is_read_while_others_go_on(monkeypatch):
    """A handler of signals runs where another thread could: between two steps of Python's, never within one of C's."""
    monkeypatch.setattr(project, "MOST_ASKED", 1_000)
    document = [{"name": [number, None, 0.5, "a", {}]} for number in range(20_000)]
    data, turns = json.dumps(document).encode(), []
    before = signal.signal(signal.SIGVTALRM, lambda *_: turns.append(None))
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.005, 0.005)
    try:
        assert project._document(data) == document
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert len(turns) > 5
