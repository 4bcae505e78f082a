"""Exports: formats, stems, subtitles, and all of it in one zip, marked once."""

import io
import itertools
import json
import re
import zipfile

import pytest
import soundfile
import torch

import csm
from csm import InputError, watermark
from csm.audio import load_audio
from csm.cli import main
from csm.conversation import exports, judges
from csm.conversation.parsing import parse_script
from csm.conversation.project import open_project
from csm.conversation.script import Span
from csm.conversation.session import Session
from csm.conversation.takes import NOBODY
from csm.settings import Settings
from csm.speech.voices import shipped_voices

SPANS = [
    Span(0, "A", "Tom & Ann <both>.", 0, 24_000),
    Span(1, "B", "Well.", 24_000, 24_000),
    Span(2, "Dr. C", "Yes.", 24_000, 36_001),
    Span(3, "A", "Late.", 36_001, 24_000 * 3_725),
]


@pytest.fixture(scope="module")
def session(generator):
    shipped = list(shipped_voices().values())
    lines = parse_script("A: Hello there.\nB: How are you?\nA: Very well.")
    session = Session(lines, {"A": shipped[0], "B": shipped[1]}, Settings(seed=1, max_turn_seconds=0.48))
    for _ in session.speak(generator, live=False):
        pass
    return session


def test_stems_are_as_long_as_the_whole_silent_elsewhere_and_add_up_to_it(session, generator):
    whole = session.whole(generator)
    parts = dict(exports.stems(whole, session.spans()))
    assert list(parts) == ["A", "B"]
    assert torch.equal(parts["A"] + parts["B"], whole)
    for span in session.spans():
        other = "B" if span.speaker == "A" else "A"
        assert torch.equal(parts[span.speaker][span.start : span.end], whole[span.start : span.end])
        assert not parts[other][span.start : span.end].any()


def test_stems_of_speech_carry_the_mark():
    voices = list(shipped_voices().values())[:2]
    waves = [load_audio(voice.path)[:72_000] for voice in voices]
    cuts = [0, 36_000, 72_000, 108_000, 144_000]
    pieces = [waves[0][:36_000], waves[1][:36_000], waves[0][36_000:], waves[1][36_000:]]
    spans = [Span(i, "AB"[i % 2], "Words.", begin, end) for i, (begin, end) in enumerate(itertools.pairwise(cuts))]
    parts = dict(exports.stems(watermark.mark(torch.cat(pieces)), spans))
    assert [watermark.detect(part).marked for part in parts.values()] == [True, True]


def test_srt_has_the_exact_times():
    lines = exports.subtitles(SPANS, ".srt").split("\n\n")
    assert lines[0] == "1\n00:00:00,000 --> 00:00:01,000\nA: Tom & Ann <both>."
    assert lines[1] == "2\n00:00:01,000 --> 00:00:01,500\nDr. C: Yes."
    assert lines[2] == "3\n00:00:01,500 --> 01:02:05,000\nA: Late.\n"


def test_vtt_names_the_voices_and_escapes_the_text():
    blocks = exports.subtitles(SPANS, ".vtt").split("\n\n")
    assert blocks[0] == "WEBVTT"
    assert blocks[1] == "1\n00:00:00.000 --> 00:00:01.000\n<v A>Tom &amp; Ann &lt;both&gt;."
    assert len(blocks) == 4


def test_subtitles_say_when_each_turn_is_heard(session, generator, tmp_path):
    path = tmp_path / "talk.srt"
    exports.write_subtitles(path, session.spans())
    report = session.report(generator)["turns"]
    times = re.findall(r"(\d\d):(\d\d):(\d\d),(\d\d\d)", path.read_text())
    seconds = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times]
    assert seconds == pytest.approx([turn[key] for turn in report for key in ("start", "end")], abs=6e-4)


def test_file_names_are_safe_and_differ():
    names = exports.file_names(["A", "a", "../x", "Dr. No", "…"])
    assert names == ["A", "a_2", "x", "Dr_No", "speaker_5"]


def test_everything_is_in_one_zip_and_marked_once(session, generator, tmp_path, monkeypatch):
    marked = []
    mark = watermark.mark
    monkeypatch.setattr(watermark, "mark", lambda wave: marked.append(len(wave)) or mark(wave))
    exports.write_all(tmp_path / "talk.zip", session, generator)
    assert marked == [session.spans()[-1].end]
    with zipfile.ZipFile(tmp_path / "talk.zip") as archive:
        assert set(archive.namelist()) == {
            *(f"conversation.{kind}" for kind in ("wav", "mp3", "flac", "srt", "vtt", "csm")),
            *("report.json", "stems/A.wav", "stems/B.wav"),
        }
        for kind in ("wav", "mp3", "flac"):
            with soundfile.SoundFile(io.BytesIO(archive.read(f"conversation.{kind}"))) as sound:
                assert sound.samplerate == 24_000 and sound.format == kind.upper()
                assert abs(sound.frames - marked[0]) < (3_000 if kind == "mp3" else 1)
        assert json.loads(archive.read("report.json"))["turns"][0]["speaker"] == "A"
        project = tmp_path / "again.csm"
        project.write_bytes(archive.read("conversation.csm"))
    assert torch.equal(open_project(project, tmp_path, generator).whole(generator), session.whole(generator))
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_what_cannot_be_written_is_refused_in_one_sentence(session, generator, tmp_path):
    (tmp_path / "file").write_text("")
    silent = Session(parse_script("A: Hi."), {})
    for ask in (
        lambda: exports.write_stems(tmp_path / "file", torch.zeros(9), []),
        lambda: exports.write_stems(tmp_path / "no" / "stems", torch.zeros(9), []),
        lambda: exports.write_subtitles(tmp_path / "talk.txt", SPANS),
        lambda: exports.write_subtitles(tmp_path / "no" / "talk.srt", SPANS),
        lambda: exports.write_all(tmp_path / "no" / "talk.zip", session, generator),
        lambda: exports.write_all(tmp_path / "talk.zip", silent, generator),
    ):
        with pytest.raises(InputError) as refused:
            ask()
        assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def command(generator, tmp_path, monkeypatch):
    """`python -m csm generate` in `tmp_path` with the small model."""
    monkeypatch.setattr(csm, "load", lambda *_, **__: generator)
    monkeypatch.setattr(judges, "installed_judges", lambda: NOBODY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.txt").write_text("A: Hello there.\nB: How are you?\n")
    start = ["generate", "--script", "script.txt", "--voice", "A=slt", "--voice", "B=rms", "--max-turn-seconds", "0.48"]
    return lambda *more: main([*start, *more])


def test_generate_writes_sound_stems_subtitles_and_a_project_in_one_go(command, generator, tmp_path, capsys):
    more = ("--takes", "2", "--stems", "stems", "--subtitles", "talk.vtt", "--project", "talk.csm", "--json", "-")
    assert command("--out", "talk.flac", *more) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert "of 2 was kept" in printed.err and report["turns"][0]["takes"] == 2
    whole, _ = soundfile.read("talk.flac", dtype="float32")
    stems = [soundfile.read(f"stems/{name}.wav", dtype="float32")[0] for name in "AB"]
    assert abs(sum(stems) - whole).max() < 1e-4 and len(whole) == round(report["audio_seconds"] * 24_000)
    assert (tmp_path / "talk.vtt").read_text().startswith("WEBVTT")
    again = open_project("talk.csm", tmp_path, generator).whole(generator)
    assert abs(again.numpy() - whole).max() < 1e-4


@pytest.mark.parametrize(
    "option,value", [("--takes", "0"), ("--stems", "no/stems"), ("--subtitles", "talk.txt"), ("--project", "talk.zip")]
)
def test_generate_refuses_what_it_cannot_write_before_it_speaks(option, value, command, tmp_path, capsys):
    assert command("--out", "talk.wav", option, value) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["script.txt"]
