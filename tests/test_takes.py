"""Takes: trailing silence, expected lengths, which take wins and the sentence that says why."""

import pickle

import pytest
import torch

from csm.audio import load_audio
from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.conversation.judges import installed_judges
from csm.conversation.takes import (
    Judges,
    Pace,
    Scores,
    Take,
    judge,
    letters,
    level_of,
    output_sound,
    rank,
    trimmed_length,
)
from csm.speech.voices import shipped_voices


def tone(seconds, level=0.3):
    return level * torch.sin(torch.arange(int(seconds * SAMPLE_RATE)) * 0.1)


def take(frames=20, state="ended", text="Some words to say.", seed=1, scores=None):
    return Take(seed, text, torch.full((frames, 4), seed), state, frames * FRAME_SIZE, "", scores=scores)


def test_at_most_150_ms_of_silence_stay_behind_the_last_sound():
    wave = torch.cat([tone(1.0), torch.zeros(SAMPLE_RATE)])
    assert abs(trimmed_length(wave) - 1.15 * SAMPLE_RATE) < 100


def test_nothing_louder_than_45_db_below_the_level_is_ever_cut():
    soft = 10 ** (-44 / 20)
    torch.manual_seed(0)
    for tail in (tone(0.4, 0.3 * soft), torch.randn(9_600) * 0.01, tone(0.05, 0.01)):
        wave = torch.cat([tone(1.0), torch.zeros(12_000), tail, torch.zeros(SAMPLE_RATE)])
        kept = trimmed_length(wave)
        assert kept >= SAMPLE_RATE + 12_000 + len(tail) - 100
        assert float(wave[kept:].abs().max()) < level_of(wave) * 10 ** (-45 / 20)
    assert trimmed_length(torch.cat([tone(1.0), tone(1.0, 0.3 * 10 ** (-50 / 20))])) < 1.2 * SAMPLE_RATE


@pytest.mark.parametrize("wave", [torch.zeros(0), torch.zeros(5_000), tone(0.5)])
def test_silence_alone_and_sound_to_the_end_stay_as_long_as_they_are(wave):
    assert trimmed_length(wave) == len(wave)


def test_the_cut_is_faded_and_the_rest_untouched():
    wave = torch.cat([tone(0.5), 1e-4 * torch.ones(SAMPLE_RATE)])
    out = output_sound(wave, trimmed_length(wave))
    assert torch.equal(out[:-120], wave[: len(out) - 120])
    assert float(out[-1]) == 0.0


def test_letters_count_what_is_said_and_not_what_is_written():
    assert letters("Hi!") == letters("hi...") == 2
    assert letters("12") == len("twelve")
    assert letters("…") == 1


def test_the_expected_length_is_learned_and_one_odd_recording_does_not_spoil_it():
    words = "These are forty letters, more or less it is."
    slow = Pace.learned([(words, 70), (words, 74), (words, 500)])
    quick = Pace.learned([(words, 30), (words, 32), (words, 3)])
    usual = Pace.learned([])
    assert quick.expected_frames(words) < usual.expected_frames(words) < slow.expected_frames(words) < 90


def test_a_take_that_ended_beats_one_that_did_not_whatever_else_it_is():
    ended, capped = Scores(True, 2.5, 0.9, 0.1), Scores(False, 1.0, 0.0, 1.0)
    best, takes = rank([take(scores=capped), take(scores=ended, seed=2)])
    assert best == 1
    assert "it ended by itself" in takes[1].reason and "did not end by itself" in takes[0].reason


@pytest.mark.parametrize(
    "better,worse,said",
    [
        (Scores(True, 1.1), Scores(True, 2.4), "its length is 1.1 times the expected, the other's 2.4 times"),
        (Scores(True, 0.9), Scores(True, 0.3), "its length is 0.9 times the expected, the other's 0.3 times"),
        (Scores(True, 1, 0.0), Scores(True, 1, 0.25), "0 % of its words were heard wrong, 25 % of the other's"),
        (Scores(True, 1, 0, 0.9), Scores(True, 1, 0, 0.7), "its likeness to the voice is 0.90, the other's 0.70"),
        (Scores(True, 1), Scores(True, 1), "it is as good as the next best and came first"),
    ],
)
def test_the_sentence_names_what_decided(better, worse, said):
    best, takes = rank([take(scores=better), take(scores=worse, seed=2)])
    assert best == 0 and said in takes[0].reason
    assert takes[0].reason.startswith("Take 1 of 2 was kept: ") and takes[0].reason.endswith(".")
    best, takes = rank([take(scores=worse), take(scores=better, seed=2)])
    assert best == (0 if better == worse else 1)
    assert takes[1 - best].reason.startswith(f"Take {2 - best} of 2 was not kept: ")


def test_a_little_longer_or_shorter_than_expected_costs_nothing():
    assert rank([take(scores=Scores(True, 1.3)), take(scores=Scores(True, 1.0), seed=2)])[0] == 0


def test_what_could_not_be_compared_is_said():
    scores = Scores(True, 1.0)
    pair = [take(scores=scores), take(scores=scores, seed=2)]
    _, takes = rank(pair)
    assert "(the words and the likeness to the voice could not be compared here)" in takes[0].reason
    _, takes = rank(pair, Judges(lambda audio, text: 0.0, lambda audio, prompt: 1.0))
    assert "could not" not in takes[0].reason


def test_judges_hear_the_sound_and_a_take_without_any_has_no_word_right():
    heard = []
    judges = Judges(lambda audio, text: heard.append((len(audio), text)) or 0.5, lambda audio, prompt: 0.8)
    scores = judge(take(), tone(1.6), Pace(), tone(1.0), judges)
    assert heard == [(len(tone(1.6)), "Some words to say.")]
    assert (scores.ended, scores.word_errors, scores.likeness) == (True, 0.5, 0.8)
    silent = judge(take(frames=0), torch.zeros(0), Pace(), tone(1.0), judges)
    assert (silent.ended, silent.word_errors, silent.likeness) == (False, 1.0, None)
    assert judge(take(), tone(1.6), Pace(), None, Judges()).word_errors is None


def test_a_take_survives_pickling_without_tensors():
    one = take()
    again = pickle.loads(pickle.dumps(one))
    assert torch.equal(one.codes, again.codes) and again.key == one.key
    assert b"torch" not in pickle.dumps(one)


def test_the_installed_judges_tell_the_right_words_and_the_right_voice():
    pytest.importorskip("moonshine_voice")
    pytest.importorskip("resemblyzer")
    judges = installed_judges()
    assert judges.word_errors and judges.likeness
    one, other = (shipped_voices()[name] for name in ("slt", "rms"))
    wave, foreign = load_audio(one.path), load_audio(other.path)
    assert judges.word_errors(wave, one.transcript) < 0.3 < 0.7 < judges.word_errors(wave, "Nothing of the kind.")
    assert judges.likeness(wave[:48_000], wave) > judges.likeness(foreign, wave)
    assert judges.word_errors(wave, "...") is None
