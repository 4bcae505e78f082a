"""Pronunciation: the lists are balanced, the judge hears what was asked for, and chance is told from context."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.evaluation.judges import Judges
from csm.evaluation.keeping import Store
from csm.evaluation.mixed import mixed_lines
from csm.evaluation.pronunciation import measures, tellers
from csm.evaluation.pronunciation.aligner import Aligner, chosen
from csm.evaluation.pronunciation.lists import continuations, homographs, words_of
from csm.evaluation.pronunciation.measures import continuation, estimated, judge_accuracy
from csm.evaluation.pronunciation.phones import ESPEAK, IPA, unstressed, written
from csm.training.held_out import asked


def test_two_hundred_sentences_of_fifteen_words_ask_for_both_readings_equally_often():
    choices = homographs()
    assert len(choices) >= 200 and len({choice.text for choice in choices}) == len(choices)
    assert min(len(words_of(choice.text)) for choice in choices) >= 15
    assert set(Counter((choice.word, choice.right) for choice in choices).values()) == {5}
    assert len({choice.word for choice in choices}) >= 15
    for choice in choices:
        assert words_of(choice.text).count(choice.word) == 1


def test_training_leaves_out_what_is_asked_for_here():
    told = [choice.text for choice in homographs()]
    told += [text for pair in continuations() for text in (pair.context.text, pair.turn.text)]
    assert {*told, *(spelt for _, spelt in mixed_lines())} <= {*asked()}


def test_the_first_so_many_sentences_are_balanced_and_spread_over_the_words():
    first = homographs(42)
    assert len({(choice.word, choice.right) for choice in first}) == 42


def test_every_context_and_its_turn_say_the_word_once_in_both_ways():
    pairs = continuations()
    assert len({pair.turn.word for pair in pairs}) == 10
    assert Counter(pair.turn.right for pair in pairs) == {0: 20, 1: 20}
    for pair in pairs:
        assert words_of(pair.context.text).count(pair.turn.word) == words_of(pair.turn.text).count(pair.turn.word) == 1


def test_one_way_of_writing_phones_reaches_judge_and_tellers():
    assert unstressed("M IH1 N AH0 T") == "M IH N AH T"
    assert written("M AY0 N UW1 T", IPA) == "maɪnˈuːt" and written("S UW1 ER0", ESPEAK) == "s'u:3"
    with pytest.raises(ValueError, match="no phone"):
        written("K1", IPA)
    for choice in homographs():
        assert all(written(way, IPA) and written(way, ESPEAK) for way in choice.ways)


def test_a_judge_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pocketsphinx", None)
    with pytest.raises(InputError, match="pip install"):
        Aligner()


@pytest.fixture(scope="module")
def aligner():
    pytest.importorskip("pocketsphinx")
    return Aligner()


def test_the_judge_knows_every_word_of_the_lists(aligner):
    texts = [choice.text for choice in homographs()]
    texts += [part.text for pair in continuations() for part in (pair.context, pair.turn)]
    assert [word for text in texts for word in words_of(text) if not aligner.knows([word])] == []


def test_the_judge_hears_which_way_a_word_was_said(aligner):
    teller = _teller()
    live = next(choice for choice in homographs() if choice.word == "live")
    assert [chosen(aligner.margin(teller.say(live.said(way)), live)) for way in (0, 1)] == [0, 1]
    assert aligner.margin(torch.zeros(10), live) is None


def _teller():
    try:
        return tellers.teller()
    except InputError as error:
        pytest.skip(str(error))


class Told:
    """A teller whose sound is a number: the way that was asked for, and 0.5 for a text without the word."""

    name = "told"

    def say(self, choice, voice=0):
        return torch.full((SAMPLE_RATE,), float(choice.right))

    def read(self, text, voice=0):
        return torch.full((SAMPLE_RATE,), 0.5)


class Margin:
    """A judge that hears such sounds, and is deaf to one of the words."""

    name = "margin"

    def __init__(self, deaf=""):
        self.deaf = deaf

    def margin(self, wave, choice):
        return None if choice.word == self.deaf else float(wave[0]) - 0.25


def _desk(generator):
    store = Store()
    desk = SimpleNamespace(generator=generator, voices={"x": None}, judges=Judges(None), store=store)
    desk.speech, desk.prompt = SimpleNamespace(seed=7), lambda name: name
    desk.once = lambda key, what, make, *arguments: store.once(key, lambda: make(desk, *arguments))
    return desk


def test_the_judges_accuracy_is_counted_both_ways_and_through_the_codec():
    """A codec that says everything the second way leaves a judge who is right half of the time."""
    codec = SimpleNamespace(
        encode=lambda wave: wave, decode=lambda wave, speaker: torch.ones_like(wave), embed=lambda wave: None
    )
    desk = _desk(SimpleNamespace(codec=codec, device="cpu"))
    found = judge_accuracy(desk, Margin(), Told(), homographs(6))
    assert found["as_it_is"]["right"] == 1 and found["after_codec"]["right"] == 0.5
    assert found["as_it_is"]["judged"] == 12 and len(found["words"]) == 3


def test_a_turn_that_follows_its_context_is_told_from_one_that_does_not(monkeypatch):
    for follows, right in ((True, 1.0), (False, 0.5)):
        desk = _desk(SimpleNamespace(conversation=lambda context, seed: context[0].audio))
        desk.speak = lambda talk, text, slot, key, f=follows: ({"text": text}, talk if f else torch.ones(SAMPLE_RATE))
        found = continuation(desk, Margin(), Told(), continuations(8))
        assert found["right"] == right and found["judge"]["right"] == 1
        assert found["said_the_first_way_after_the_first"] == (1.0 if follows else 0.0)
        assert found["said_the_first_way_after_the_second"] == 0.0


def test_a_homograph_that_could_not_be_judged_does_not_count():
    desk = _desk(SimpleNamespace(conversation=lambda context, seed: None))
    desk.speak = lambda talk, text, slot, key: ({"text": text}, torch.ones(SAMPLE_RATE))
    found = measures.homographs(desk, Margin(deaf="lead"), homographs(6), accuracy=0.9)
    assert found["sentences"] == 6 and found["judged"] == 4 and found["right"] == 0.5
    assert found["words"]["lead"] is None and found["said_the_first_way"] == 0.0
    low, high = found["interval"]
    assert 0 < low < 0.5 < high < 1


def test_the_estimate_takes_the_judges_errors_out():
    assert estimated(0.9, 0.9) == 1.0 and estimated(0.5, 0.9) == pytest.approx(0.5)
    assert estimated(0.82, 0.9) == pytest.approx(0.9)
    assert estimated(0.8, 0.5) is None and estimated(None, 0.9) is None
