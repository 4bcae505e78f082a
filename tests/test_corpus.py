"""The training speech: who says what, at which level and when; synthesisers are needed for some, and then skipped."""

import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import csm
from csm.training import corpus, sentences
from csm.training.alignment import by_token, time_map
from csm.training.corpus import (
    BASE_SPEAKERS,
    SAMPLE_RATE,
    SHIFTS,
    SPEAKERS,
    Corpus,
    assigned,
    levelled,
    load_engines,
    say,
)
from csm.training.flite import Spoken
from csm.training.rhvoice import RHVoice
from csm.training.sentences import (
    ABBREVIATIONS,
    CONTRACTED,
    phrase,
    pronounceable,
    speakable,
    vocabulary,
    word_mix,
    wording,
)

TEXT = "Hello there, my friend."


class Hummer:
    """A synthesiser that hums for a quarter of a second a word, between two pauses; only of words can it hum."""

    def __init__(self, sample_rate: int = 16_000, loudness: int = 4000) -> None:
        self.sample_rate, self.loudness = sample_rate, loudness

    def speak(self, text: str, voice: str, rate: float = 1.0) -> Spoken:
        spans = [match.span() for match in re.finditer("[A-Za-z]+", text)]
        seconds = 0.25 / rate
        times = [0.3 + i * seconds for i in range(len(spans) + 1)]
        tone = self.loudness * np.sin(np.arange(int(times[-1] * self.sample_rate)) * 0.05)
        tone[: int(0.3 * self.sample_rate)] = 0
        samples = np.concatenate([tone, np.zeros(self.sample_rate // 2)]).astype(np.int16)
        words = [(a, b, begin, end) for (a, b), begin, end in zip(spans, times, times[1:])]
        phones = [("pau", 0.3), *(("m", end) for end in times[1:]), ("pau", times[-1] + 0.5)]
        return Spoken(samples, self.sample_rate, phones if spans else [("pau", 0.5)], words)


def power(wave: np.ndarray, start: float, end: float) -> float:
    return float(np.square(wave[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]).mean())


HUMMERS = {"flite": Hummer(), "rhvoice": Hummer(24_000, 30_000)}


@pytest.fixture(scope="module")
def engines():
    """The real synthesisers; CSM_RHVOICE names the prefix of an RHVoice outside /usr/local."""
    prefix = os.environ.get("CSM_RHVOICE")
    found = load_engines(Path(prefix) if prefix else None, report=lambda _: None)
    if not found:
        pytest.skip("neither Flite nor RHVoice is installed")
    return found


def test_the_synthesisers_timing_fits_their_sound(engines):
    for name in (*BASE_SPEAKERS, "clb*0.82", "awb*1.21"):
        if SPEAKERS[name].engine not in engines:
            continue
        wave, phones, words = say(engines, TEXT, name)
        assert [TEXT[first:last] for first, last, *_ in words] == ["Hello", "there", "my", "friend"]
        assert phones[-1][1] == pytest.approx(len(wave) / SAMPLE_RATE, abs=0.05)
        assert 0.8 < len(wave) / SAMPLE_RATE < 2.5
        inside = wave[int(words[0][2] * SAMPLE_RATE) : int(words[-1][3] * SAMPLE_RATE)]
        assert abs(inside).max() == abs(wave).max() > 0.1


def test_pauses_are_where_the_sound_is_soft(engines):
    """The comma's pause is at least 15 dB below the words around it, in every voice."""
    text = "When the rain had stopped, everybody went outside."
    for name in (name for name, speaker in BASE_SPEAKERS.items() if speaker.engine in engines):
        wave, _, words = say(engines, text, name)
        before, after = words[4], words[5]
        assert (text[before[0] : before[1]], text[after[0] : after[1]]) == ("stopped", "everybody")
        assert after[2] - before[3] > 0.04, name
        assert power(wave, before[3] + 0.01, after[2] - 0.01) < 0.03 * power(wave, words[0][2], words[-1][3]), name


def test_a_shifted_speaker_keeps_the_pace(engines):
    for base in (name for name in ("bdl", "awb") if SPEAKERS[name].engine in engines):
        plain = len(say(engines, TEXT, base)[0])
        for shift in (SHIFTS[0], SHIFTS[-1]):
            assert len(say(engines, TEXT, f"{base}*{shift:.2f}")[0]) == pytest.approx(plain, rel=0.06)


def test_a_missing_rhvoice_is_told_in_one_sentence_with_how_to_get_it(tmp_path):
    with pytest.raises(csm.InputError, match=r"RHVoice is not there: build it .*`scons.* --rhvoice PREFIX") as error:
        RHVoice(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_synthesiser_is_reported_and_the_other_one_used(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "Flite", Hummer)
    reasons: list[str] = []
    assert list(load_engines(tmp_path, reasons.append)) == ["flite"]
    assert len(reasons) == 1 and "RHVoice" in reasons[0]
    with pytest.raises(csm.InputError, match="RHVoice"):
        load_engines(tmp_path)


def test_thirty_speakers_are_six_voices_and_four_shifts_of_each():
    assert len(SPEAKERS) == 30 and {speaker.pitch for speaker in SPEAKERS.values()} == {1.0, *SHIFTS}
    assert SPEAKERS["clb*1.21"] == corpus.Speaker("rhvoice", "clb", 1.21)


def test_a_quarter_of_the_lines_are_shifted_and_a_sentence_is_said_by_two_different_voices():
    texts = [f"This is number {'abcdefghij'[i % 10]} {i}." for i in range(2000)] + ["Oh no."] * 10
    lines = assigned(random.Random(1), texts)
    said: dict[str, list[str]] = {}
    for text, name in lines:
        said.setdefault(text, []).append(name.split("*")[0])
    assert all(len(set(names)) == 2 for text, names in said.items() if text != "Oh no.")
    assert len(said["Oh no."]) == 10
    assert sum("*" in name for _, name in lines) / len(lines) == pytest.approx(0.25, abs=0.03)
    assert len(Counter(name for _, name in lines)) == 30
    assert lines == assigned(random.Random(1), texts)


@pytest.mark.parametrize("loudness", [0.003, 0.1, 0.9])
def test_every_clip_s_speech_is_equally_loud_whatever_its_pauses(loudness):
    tone = loudness * np.sin(np.arange(SAMPLE_RATE) * 0.1).astype(np.float32)
    for pause in (0, SAMPLE_RATE):
        wave = levelled(np.concatenate([tone, np.zeros(pause, np.float32)]))
        assert 20 * np.log10(np.sqrt(np.square(wave[:SAMPLE_RATE]).mean())) == pytest.approx(corpus.LEVEL, abs=0.1)


def test_a_peak_stays_below_full_scale_and_silence_stays_silent():
    click = 0.05 * np.sin(np.arange(SAMPLE_RATE) * 0.1).astype(np.float32)
    click[100] = 1.0
    assert abs(levelled(click)).max() == pytest.approx(corpus.PEAK)
    assert not levelled(np.zeros(SAMPLE_RATE, np.float32)).any()


def test_both_engines_clips_are_trimmed_and_of_one_level():
    for name in ("rms", "slt", "slt*0.82"):
        wave, phones, words = say(HUMMERS, TEXT, name)
        assert len(wave) / SAMPLE_RATE == pytest.approx(4 * 0.25 + 0.04 + 0.10, abs=0.02)
        assert words[0][2] == pytest.approx(0.04, abs=0.005) and words[-1][3] == pytest.approx(1.04, abs=0.01)
        assert 10 * np.log10(power(wave, 0.2, 0.9)) == pytest.approx(corpus.LEVEL, abs=0.5)
        assert phones[-1][1] == pytest.approx(len(wave) / SAMPLE_RATE, abs=0.01)


def test_a_line_with_nothing_to_say_is_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "load_engines", lambda rhvoice: HUMMERS)
    lines = [(TEXT, "slt"), ("::' ::: .:: .:.::.", "slt"), (TEXT, "awb*0.90"), (" ".join(["no"] * 60), "rms")]
    shard, left_out, seconds = corpus._write_shard((tmp_path, 3, lines, None))
    assert (shard, left_out) == (3, 2)
    speech = Corpus(tmp_path)
    assert [(clip.shard, clip.speaker) for clip in speech.utterances] == [(3, "slt"), (3, "awb*0.90")]
    assert sum(clip.samples for clip in speech.utterances) / SAMPLE_RATE == pytest.approx(seconds)
    assert all(abs(speech.audio(clip)).max() > 1000 for clip in speech.utterances)
    assert corpus._write_shard((tmp_path, 3, [], None)) == (3, 0, 0.0), "a whole shard is not made again"


def test_excluded_sentences_are_never_said(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "load_engines", lambda rhvoice: HUMMERS)
    monkeypatch.setattr(corpus, "training_sentences", lambda *_: iter(["We all go home.", "Who has seen the moon?"]))

    class Pool:
        def __init__(self, *_): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        imap_unordered = staticmethod(map)

    monkeypatch.setattr("multiprocessing.pool.Pool", Pool)
    monkeypatch.setattr(corpus.multiprocessing, "get_context", lambda _: type("Context", (), {"Pool": Pool}))
    lines = list(corpus.synthesise(tmp_path, excluded=frozenset([wording("we all go home")])))
    assert len(lines) == 1 and "1 of 1" in lines[0]
    index = (tmp_path / "utterances-000.jsonl").read_text().splitlines()
    assert {json.loads(line)["text"] for line in index} == {"Who has seen the moon?"} and len(index) == 2


def test_times_are_carried_from_one_clip_to_another_of_the_same_text():
    """Five tones, the second clip with other lengths; its own word times are up to 0.1 s early."""
    rng = np.random.default_rng(0)

    def clip(lengths, sample_rate):
        sound, ends = [], np.cumsum(lengths)
        for number, length in enumerate(lengths):
            at = np.arange(round(length * sample_rate)) / sample_rate
            tone = sum(np.sin(2 * np.pi * (300 + 350 * number) * k * at) for k in (1, 2))
            sound.append(4000 * tone + rng.normal(0, 10, len(at)))
        return (np.concatenate(sound).astype(np.int16), sample_rate), ends

    text = "a b c d e"
    source, ends = clip([0.20, 0.30, 0.25, 0.20, 0.30], 16_000)
    target, moved = clip([0.30, 0.25, 0.35, 0.15, 0.40], 24_000)
    spans = [(2 * i, 2 * i + 1) for i in range(5)]
    words = [(*span, start, end) for span, start, end in zip(spans, [0, *ends], ends)]
    early = [(*span, s // 0.1 / 10, e // 0.1 / 10) for span, s, e in zip(spans, [0, *moved], moved)]
    found = np.interp(ends, *time_map(text, source, target, words, early))
    assert np.abs(found - moved).max() < 0.025
    alone = np.interp(ends, *time_map(text, source, target, words, [(0, 9, 0.0, 1.45)]))
    assert np.abs(alone - moved).max() < 0.1, "where the words differ, the sound alone must do"
    at, there = time_map(text, source, target, words, early)
    assert (np.diff(there) >= 0).all() and len(at) == len(there)


def test_parts_of_a_word_count_as_one():
    assert by_token("well-known facts", [(0, 4, 0.1, 0.3), (5, 10, 0.3, 0.6), (11, 16, 0.7, 0.9)]) == {
        1: (0.1, 0.6),
        2: (0.7, 0.9),
    }


def test_repeated_contractions_keep_their_places(engines):
    if "flite" not in engines:
        pytest.skip("Flite is not installed")
    text = "It's not what it's worth, it's what it's for."
    spoken = engines["flite"].speak(text, "slt")
    assert [text[first:last] for first, last, *_ in spoken.words] == re.findall("[A-Za-z']+", text)
    assert all(before[3] <= after[2] + 1e-6 for before, after in zip(spoken.words, spoken.words[1:]))


def test_word_mixes_have_three_to_ten_words_most_of_them_common():
    rng = random.Random(0)
    mixes = [word_mix(rng, ["common"], ["rare"]) for _ in range(2000)]
    words = [wording(mix).split() for mix in mixes]
    assert {len(mix) for mix in words} == set(range(3, 11))
    plain = [word for mix in words for word in mix if word in ("common", "rare")]
    assert np.mean([word == "common" for word in plain]) == pytest.approx(0.7, abs=0.02)
    assert np.mean(["'" in mix for mix in mixes]) == pytest.approx(1 / 6, abs=0.03)
    assert np.mean(["," in mix for mix in mixes]) == pytest.approx(0.3, abs=0.04)
    assert all(re.fullmatch(r"[A-Z][a-z']+(,? [a-zI']+)+[.?!]", mix) for mix in mixes)


@pytest.mark.parametrize("word", ["mr", "xiv", "nfl", "etc", "France", "it's", "a", "extraordinarily", "shit", "cunts"])
def test_what_can_not_be_said_as_a_word_or_to_everybody_is_no_vocabulary(word):
    assert not pronounceable(word)


@pytest.mark.parametrize("word", ["to", "rhythm", "grape", "therapist", "cumulative", "spicy", "class"])
def test_plain_words_are_vocabulary(word):
    assert pronounceable(word)


def test_the_vocabulary_is_everyday_words_and_a_dictionary():
    pytest.importorskip("wordfreq")
    if not sentences.DICTIONARY.exists():
        pytest.skip("there is no dictionary")
    common, rare = vocabulary()
    assert len(common) == len(set(common)) == 10_000 and len(rare) > 30_000
    assert {"breakfast", "tomorrow", "umbrella", "garlic", "neighborhood"} <= set(common)
    assert not ABBREVIATIONS & {*common, *rare} and all(3 <= len(word) <= 9 for word in rare)


def test_a_missing_word_list_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wordfreq", None)
    with pytest.raises(csm.InputError, match="install the PyPI package wordfreq"):
        vocabulary()


def test_phrases_say_an_before_a_vowel():
    rng = random.Random(0)
    phrases = [phrase(rng) for _ in range(5000)]
    assert any(" an " in text for text in phrases)
    assert not [text for text in phrases if re.search(r"\b[Aa] [aeio]", text)]


def test_contractions_are_said_as_people_say_them():
    assert speakable("I didn't think so.") and speakable("We'd go if he's there.")
    assert not speakable("It is plan B.") and not speakable("Vitamin c.")
    rng = random.Random(0)
    phrases = [phrase(rng, CONTRACTED) for _ in range(3000)]
    assert all(speakable(text, most_words=25) for text in phrases)
    said = {word for text in phrases for word in wording(text).split()}
    assert {"didn't", "shouldn't", "she's", "he's", "i'd", "let's", "there's", "who's", "saturday", "o'clock"} <= said
