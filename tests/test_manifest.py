"""A folder of one's own recordings: every row is checked, counted and named before anything is trained."""

import csv
import json

import numpy as np
import pytest
import soundfile

from csm import InputError
from csm.text import ByteTokenizer, LlamaTokenizer
from csm.training.manifest import ManifestOptions, check_manifest, has_manifest, unspeakable
from tests.published import write_tokenizer

POSITIONS = 256


def tone(path, seconds=1.0, rate=24_000, channels=1, level=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(np.arange(int(seconds * rate)) * 0.05)
    soundfile.write(path, np.stack([wave] * channels, axis=1), rate)


def write_csv(folder, rows, columns=("file", "text", "speaker")):
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_jsonl(folder, rows):
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def check(folder, on_bad="refuse", **options):
    return check_manifest(folder, ByteTokenizer(), POSITIONS, ManifestOptions(on_bad=on_bad, **options))


GOOD = ["a.wav", "Hello, there.", "ann"]


@pytest.fixture
def folder(tmp_path):
    tone(tmp_path / "a.wav")
    return tmp_path


def test_a_good_manifest_is_read_as_it_stands(folder):
    tone(folder / "deep" / "b.flac", 2.0)
    write_csv(folder, [GOOD, ["deep/b.flac", 'He said: "Come, now."', "ben"]])
    made = check(folder)
    assert has_manifest(folder)
    assert [(r.name, r.text, r.speaker, r.seconds) for r in made.recordings] == [
        ("a.wav", "Hello, there.", "ann", 1.0),
        ("deep/b.flac", 'He said: "Come, now."', "ben", 2.0),
    ]
    assert made.lines() == ["manifest.csv: 2 recordings, 0.1 minutes, 2 speakers"]


def test_jsonl_says_the_same_as_csv(folder):
    keys = ("file", "text", "speaker", "conversation", "order")
    row = [*GOOD, "talk", 2]
    write_csv(folder, [row], keys)
    from_csv = check(folder).recordings
    (folder / "manifest.csv").unlink()
    write_jsonl(folder, [dict(zip(keys, row))])
    assert check(folder).recordings == [type(from_csv[0])(**{**vars(from_csv[0]), "line": 1})]


def test_other_rates_and_channels_are_taken_and_counted(folder):
    tone(folder / "b.wav", rate=44_100)
    tone(folder / "c.wav", rate=8_000, channels=2)
    tone(folder / "d.wav", rate=44_100)
    write_csv(folder, [GOOD, *([f"{name}.wav", "Hello.", "ann"] for name in "bcd")])
    made = check(folder)
    assert len(made.recordings) == 4
    assert made.lines()[1:] == [
        "resampled to 24000 Hz: 2 from 44100 Hz, 1 from 8000 Hz",
        "mixed down to one channel: 1",
    ]


def broken(folder):
    """One row of every kind that can't be used, and what is said of it."""
    tone(folder / "silent.wav", level=0.0005)
    tone(folder / "blip.wav", 0.1)
    tone(folder / "long.wav", 31.0, rate=8_000)
    tone(folder / "crowded.wav", 15.0, rate=8_000)
    tone(folder / "empty.wav", 0.0)
    (folder / "notes.wav").write_text("not sound at all")
    flac = folder / "cut.flac"
    soundfile.write(flac, np.random.default_rng(0).normal(0, 0.1, 48_000), 24_000)
    flac.write_bytes(flac.read_bytes()[:20_000])
    tone(folder / "b.wav")
    tone(folder / "dull.wav", rate=5_000)
    tone(folder.parent / "elsewhere.wav")
    return [
        (["gone.wav", "Hello.", "ann"], "no such file"),
        (["silent.wav", "Hello.", "ann"], "silent"),
        (["blip.wav", "Hello.", "ann"], "shorter than 0.2 s"),
        (["long.wav", "Hello.", "ann"], "longer than 30 s"),
        (["crowded.wav", "Hello. " * 12, "ann"], "longer than 256 positions"),
        (["empty.wav", "Hello.", "ann"], "no sound"),
        (["notes.wav", "Hello.", "ann"], "not audio that can be read"),
        (["cut.flac", "Hello.", "ann"], "not audio that can be read|cut short"),
        (["b.wav", "你好.", "ann"], "characters that the model can't speak, such as 你"),
        (["b.wav", "...", "ann"], "no text"),
        (["b.wav", "Hello.", " "], "no speaker"),
        (["", "Hello.", "ann"], "no file named"),
        (["dull.wav", "Hello.", "ann"], "a rate below 6000 Hz"),
        (["../elsewhere.wav", "Hello.", "ann"], "outside the folder"),
        (["/etc/hostname", "Hello.", "ann"], "outside the folder"),
        (["./a.wav", "Hello again.", "ann"], "listed twice"),
        (["b.wav", "Hello.", "ann", "talk", "first"], "an order that is no number"),
        (["b.wav", "Hello.", "ann", "talk", "1", "more"], "not a row of these columns"),
    ]


COLUMNS = ("file", "text", "speaker", "conversation", "order")


@pytest.mark.parametrize("number", range(18))
def test_a_row_that_can_t_be_used_refuses_the_manifest_in_one_sentence(folder, number):
    row, reason = broken(folder)[number]
    write_csv(folder, [GOOD, row], COLUMNS)
    with pytest.raises(InputError, match=reason) as error:
        check(folder)
    said = str(error.value)
    assert "line 3" in said and (row[0].strip() in said) and said.endswith("--on-bad skip.") and "\n" not in said


def test_a_name_that_no_file_can_have_is_no_such_file(folder):
    write_csv(folder, [GOOD, [f"{'b' * 300}.wav", "Hello.", "ann"]])
    with pytest.raises(InputError, match="no such file"):
        check(folder)


def test_rows_that_can_t_be_used_are_skipped_counted_and_named_on_request(folder):
    rows = [row for row, _ in broken(folder)]
    write_csv(folder, [GOOD, *rows, ["gone2.wav", "Hi.", "ann"], ["gone3.wav", "Hi.", "b"], ["gone4.wav", "Hi.", "b"]],
              COLUMNS)  # fmt: skip
    made = check(folder, "skip")
    assert [recording.name for recording in made.recordings] == ["a.wav"]
    assert len(made.bad) == len(rows) + 3
    said = "\n".join(made.lines())
    assert "skipped, no such file: gone.wav (line 3), gone2.wav (line 21), gone3.wav (line 22) and 1 more" in said
    assert all(row[0] in said for row in rows)


def test_the_refusal_counts_the_other_rows(folder):
    write_csv(folder, [["x.wav", "Hi.", "a"], ["y.wav", "Hi.", "a"], ["a.wav", "", "a"]])
    with pytest.raises(InputError, match=r"x.wav \(line 2\).* 2 more can't \(2 no such file, 1 no text in all\)"):
        check(folder)


def test_nothing_left_is_an_error_even_when_skipping(folder):
    write_csv(folder, [["gone.wav", "Hi.", "a"]])
    with pytest.raises(InputError, match=r"no recording that can be used \(1 no such file\)"):
        check(folder, "skip")
    write_csv(folder, [])
    with pytest.raises(InputError, match="no recording that can be used: add rows"):
        check(folder)


def test_only_the_chosen_speakers_are_taken(folder):
    tone(folder / "b.wav")
    write_csv(folder, [GOOD, ["b.wav", "Hi.", "ben"]])
    made = check(folder, speakers=("ben",))
    assert [recording.name for recording in made.recordings] == ["b.wav"]
    assert "of other speakers, left out: 1" in made.lines()
    with pytest.raises(InputError, match="no speaker 'eve': choose among ann, ben"):
        check(folder, speakers=("ben", "eve"))
    assert "speakers that aren't there: eve" in check(folder, "skip", speakers=("ben", "eve")).lines()
    with pytest.raises(InputError, match="no speaker 'eve'"):
        check(folder, "skip", speakers=("eve",))


def test_a_ninth_speaker_of_a_conversation_has_no_slot(folder):
    rows = []
    for number in range(10):
        tone(folder / f"{number}.wav")
        rows.append([f"{number}.wav", "Hi.", f"s{min(number, 8)}", "talk", number])
    write_csv(folder, rows, COLUMNS)
    made = check(folder, "skip")
    assert [bad.name for bad in made.bad] == ["8.wav", "9.wav"]
    assert "more than 8 speakers" in made.bad[0].reason


@pytest.mark.parametrize(
    "text,words",
    [
        ("file;text;speaker\na.wav;Hi.;ann\n", "no 'file' among its columns .* it needs file, text, speaker"),
        ("file,text\na.wav,Hi.\n", "no 'speaker'"),
        ("", "no 'file' among its columns"),
        ("file,text,speaker,mood\na.wav,Hi.,ann,glad\n", "the column 'mood', which means nothing here"),
        ('file,text,speaker\na.wav,"Hi.,ann\n', "can't be read .*save it as UTF-8"),
        (b"file,text,speaker\na.wav,caf\xe9,ann\n", "can't be read .*save it as UTF-8"),
    ],
)
def test_a_manifest_that_is_none_is_refused_in_one_sentence(folder, text, words):
    (folder / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words) as error:
        check(folder)
    assert "\n" not in str(error.value)


def test_columns_that_mean_nothing_are_passed_over_on_request(folder):
    write_csv(folder, [[*GOOD, "glad"]], ("File", " text", "speaker", "mood"))
    made = check(folder, "skip")
    assert len(made.recordings) == 1 and "columns passed over: mood" in made.lines()


def test_lines_of_jsonl_that_are_no_rows_are_named(folder):
    (folder / "manifest.jsonl").write_text('{"file": "a.wav", "text": "Hi.", "speaker": 1}\n\nnot json\n[1]\n'
                                           '{"file": "a2.wav", "text": {"en": "Hi."}, "speaker": "x"}\n')  # fmt: skip
    made = check(folder, "skip")
    assert [(bad.line, bad.reason) for bad in made.bad] == [(n, "not a row of these columns") for n in (3, 4, 5)]
    assert made.recordings[0].speaker == "1"


def test_a_folder_without_a_manifest_says_what_to_write(folder, tmp_path):
    with pytest.raises(InputError, match=r"no manifest.csv or manifest.jsonl: .*columns file, text, speaker"):
        check(folder)
    with pytest.raises(InputError, match="no folder"):
        check(folder / "nowhere")
    write_csv(folder, [GOOD])
    write_jsonl(folder, [])
    with pytest.raises(InputError, match="both manifest.csv and manifest.jsonl"):
        check(folder)


def test_accents_are_spoken_and_other_scripts_only_by_models_that_know_them(tmp_path):
    text = "Café “naïve” — $5 + 5 € (*) ∮ 日本 ☺"
    assert unspeakable(ByteTokenizer(), text) == ["∮", "日", "本"]
    write_tokenizer(tmp_path)
    assert unspeakable(LlamaTokenizer(tmp_path / "tokenizer.json"), text) == []
