"""A long evaluation: it goes on where it stopped, says beforehand what it can't measure, and becomes one page."""

import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from csm.audio import load_audio
from csm.errors import InputError
from csm.evaluation import command, full
from csm.evaluation.context import Speech
from csm.evaluation.desk import ends_turns, lost_last, slipped_first
from csm.evaluation.full import Sizes
from csm.evaluation.judges import Judges
from csm.evaluation.keeping import RESULTS, Store
from csm.evaluation.metrics import interval
from csm.evaluation.progress import Progress
from csm.evaluation.published.dialogue import cp_similarity, cp_word_error_rate
from csm.evaluation.report.page import told, write_report
from csm.evaluation.report.plots import bars, lines
from csm.evaluation.talks import drift, figures, pairs
from csm.listening import recogniser as recognisers
from csm.speech.voices import shipped_voices
from tests.small import end_after, small_generator

SPEECH = Speech(max_turn_seconds=0.4)


@pytest.fixture(scope="module")
def voices():
    return dict(list(shipped_voices().items())[:2])


@pytest.fixture(scope="module")
def generator():
    made = small_generator(max_positions=2048)
    end_after(made, 3)
    return made


def test_what_was_done_is_not_done_again_and_a_line_that_was_cut_off_is(tmp_path):
    store, made = Store(tmp_path, {"model": "a"}), []
    for key in ("one", "two"):
        store.once(key, lambda: {"made": made.append(1)})
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"key": "thr')
    again = Store(tmp_path, {"model": "a"})
    for key in ("one", "two", "three"):
        again.once(key, lambda: {"made": made.append(1)})
    assert len(made) == 3
    assert list(Store(tmp_path, {"model": "a"}).records) == ["one", "two", "three"]


def test_clips_of_another_model_are_not_mixed_in(tmp_path):
    Store(tmp_path, {"model": "a"})
    with pytest.raises(InputError, match="another model or with other settings"):
        Store(tmp_path, {"model": "b"})
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another for --out"):
        Store(tmp_path / "file", {})


def test_progress_counts_and_says_how_long_it_takes():
    out = io.StringIO()
    progress = Progress(4, out)
    progress.step("sentences", kept=True)
    progress.step("sentences")
    line = progress.line("sentences", progress._start + 10)
    assert line.startswith(f"[{'#' * 15}{' ' * 15}] 2/4 sentences, 20 s left")
    progress.step("sentences")
    progress.step("sentences")
    assert "4/4 sentences" in out.getvalue(), "where nobody watches, the last line is written all the same"


def test_a_model_that_never_ends_is_found_out_before_the_first_clip(generator, voices, tmp_path):
    endless = small_generator(max_positions=2048)
    voice = next(iter(voices.values()))
    assert not ends_turns(endless, voice, SPEECH) and ends_turns(generator, voice, SPEECH)
    said: list[str] = []
    sizes = Sizes(sentences=1, talks=0, homographs=0, continuations=0)
    found, _ = full.full(endless, voices, Judges(None), SPEECH, sizes, None, report=said.append)
    assert any("without the end frame" in line for line in said) and found["sentences"]["ended"] is None
    assert any("no recogniser is installed" in line for line in said)
    assert found["sentences"]["clips"] == 1 and found["sentences"]["real_time_factor"] > 0


def test_everything_that_can_be_measured_stands_in_one_page_with_its_sound(generator, voices, tmp_path):
    """And a second run, into the same folder, speaks nothing."""
    similarity = SimpleNamespace(embed=lambda wave: np.array([1.0, 0.0]))
    judges = Judges(SimpleNamespace(name="ear", transcribe=lambda wave: "how are you"), similarity)
    sizes = Sizes(sentences=2, talks=1, turns=3, homographs=0, continuations=0)
    found, store = full.full(generator, voices, judges, SPEECH, sizes, tmp_path / "clips", report=lambda line: None)
    assert found["talks"]["turns"] == 3 and found["talks"]["ended"] == 1 and len(found["talks"]["by_turn"]["own"]) == 3
    assert found["sentences"]["clips"] == 2 and found["left_out"] == []
    page = tmp_path / "report.html"
    write_report(page, found, full.players(store), tmp_path / "clips")
    text = page.read_text()
    assert text.count("<audio") == 5 and text.count("<figure>") >= 3 and 'id="talks"' in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text), "the page needs nothing but itself"
    assert json.loads(re.search(r'id="figures">(.*?)</script>', text)[1])["model"] == "small"
    assert "Long conversations" in "\n".join(full.lines(found))
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "clips").glob("*.flac")}
    again, _ = full.full(generator, voices, judges, SPEECH, sizes, tmp_path / "clips", report=lambda line: None)
    assert again == found
    assert files and {file: file.stat().st_mtime_ns for file in files} == files
    assert len(load_audio(next(iter(files)))) == 3 * 1920


def turn(voice, text, heard, own=0.9, other=0.5, **more):
    usual = {"state": "ended", "first_seconds": 0.1, "silence_seconds": 0.2}
    return {"voice": voice, "text": text, "heard": heard, "own": own, "others": [other], **usual, **more}


def test_slips_endings_and_drift_are_counted_by_turn():
    record = {
        "voices": ["a", "b"],
        "turns": [
            turn("a", "Good morning.", "food morning", own=0.9),
            turn("b", "Hello there.", "hello there", own=0.8),
            turn("a", "How are you?", "how are", own=0.7, state="capped"),
        ],
    }
    found = figures(SimpleNamespace(ends=True), [record])
    assert found["slipped_first_turns"] == 1 and found["slipped_later_turns"] == 0
    assert found["drift_in_ten_turns"] == pytest.approx(-1.0)
    assert found["ended"] == pytest.approx(2 / 3, abs=1e-4) and found["last_word_lost"] == pytest.approx(
        1 / 3, abs=1e-4
    )
    assert found["cp_word_error_rate"] == pytest.approx(2 / 7, abs=1e-4)
    assert found["cp_similarity"] == pytest.approx(0.8)


def test_a_turn_in_the_other_speakers_voice_costs_its_words():
    """cpWER sorts what is heard by whose voice it is in."""
    record = {
        "voices": ["a", "b"],
        "turns": [turn("a", "one two", "one two"), turn("b", "three four", "three four", own=0.5, other=0.9)],
    }
    assert figures(SimpleNamespace(ends=True), [record])["cp_word_error_rate"] == 1.0


def test_figures_of_dialogues_pair_speakers_as_well_as_can_be():
    assert cp_word_error_rate(["a b c", "d e"], ["d e", "a b c"]) == 0
    assert cp_word_error_rate(["a b c", "d e"], ["a b c d e", ""]) == pytest.approx(4 / 5)
    assert cp_word_error_rate(["a"], [None]) is None
    assert cp_similarity([[0.1, 0.9], [0.8, 0.2]]) == pytest.approx(0.85)
    assert cp_similarity([[None, 0.9], [None, None]]) == pytest.approx(0.45) and cp_similarity([[None]]) is None
    with pytest.raises(ValueError, match="1 speakers"):
        cp_word_error_rate(["a"], ["a", "b"])


def test_first_and_last_words_are_compared_as_words():
    assert slipped_first({"text": "OK, then.", "heard": "okay then"}) is False
    assert lost_last({"text": "See you.", "heard": "see"}) is True and lost_last({"text": "x", "heard": None}) is None
    assert drift([0.5]) is None and drift([None, 1.0, 1.1]) == pytest.approx(1.0)


def test_every_voice_talks_with_every_other():
    assert len(set(map(frozenset, pairs("abcd", 6)))) >= 5 and all(one != other for one, other in pairs("abcd", 12))


def test_plots_leave_gaps_where_nothing_is_known_and_escape_names():
    plot = lines("Likeness", "turn", {"<own>": [0.9, None, 0.8, 0.7]})
    assert plot.count("<polyline") == 2 and "&lt;own&gt;" in plot
    assert lines("Likeness", "turn", {"own": [None]}) == "" == bars("By word", {"lead": None})
    assert "chance" in bars("By word", {"lead": 1.0}, 0.5)


def test_figures_read_as_people_write_them():
    assert [told(None, "percent"), told(0.5, "percent"), told([0.1, 0.2], "percent"), told(1.234, "seconds")] == [
        "–", "50.0 %", "10.0 to 20.0 %", "1.23 s",
    ]  # fmt: skip
    assert interval(0, 0) is None and interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)


def test_a_recogniser_that_is_asked_for_by_name_must_be_there(monkeypatch):
    monkeypatch.setattr(recognisers, "_package_missing", lambda: True)
    said: list[str] = []
    assert Judges.load(report=said.append).recogniser is None
    assert any("whatever takes a recogniser" in line for line in said)
    with pytest.raises(InputError, match="pip install moonshine-voice"):
        Judges.load("moonshine-tiny", report=said.append)


def test_two_things_at_once_are_refused(tmp_path):
    from tests.test_evaluation import _arguments

    with pytest.raises(InputError, match="--all and --cmos are two things"):
        command.run(_arguments("--all", "--cmos", "x.html"))
    with pytest.raises(InputError, match="--html is the report of --all"):
        command.run(_arguments("--html", "x.html"))
    with pytest.raises(InputError, match="in a folder that exists"):
        command.run(_arguments("--all", "--html", str(tmp_path / "none" / "x.html")))
