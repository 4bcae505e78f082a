"""Text that is still being written is cut at the ends of clauses, and spoken meanwhile."""

import pytest
import torch

from csm.speech.clauses import LONGEST, Clauses, clauses

TEXT = (
    'Good morning! "Did you sleep well?" asked Anna. Dr. Brown said, while he was looking for his keys, that the '
    "rain had stopped... It costs 3.50, or a bit more\nA new line without a stop\n\nThe end"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1_000])
def test_where_a_text_is_cut_does_not_depend_on_the_pieces_in_which_it_comes(size):
    pieces = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    assert list(clauses(pieces)) == [
        "Good morning!",
        '"Did you sleep well?"',
        "asked Anna.",
        "Dr. Brown said, while he was looking for his keys,",
        "that the rain had stopped...",
        "It costs 3.50, or a bit more",
        "A new line without a stop",
        "The end",
    ]


def test_a_clause_is_given_as_soon_as_it_is_known_to_have_ended():
    cutter = Clauses()
    assert cutter.push("Good morning!") == [] and cutter.push(" ") == ["Good morning!"]
    assert cutter.push("It is 3.") == [] and cutter.push("5 o'clock. ") == ["It is 3.5 o'clock."]
    assert cutter.finish() == []


def test_what_never_ends_is_cut_between_words_and_what_says_nothing_is_left_out():
    found = list(clauses(["word " * 100]))
    assert len(found) == 3 and all(len(piece) <= LONGEST and piece.endswith("word") for piece in found)
    assert list(clauses(["…! ", "— ", "\n"])) == [] and list(clauses(["x" * 450])) == ["x" * 200, "x" * 200, "x" * 50]


def test_a_conversation_speaks_an_iterator_while_it_is_still_being_written(generator):
    written = []

    def writing():
        for piece in ("Good mor", "ning! And", " how are you", "?"):
            written.append(piece)
            yield piece

    conversation = generator.conversation(seed=3)
    sound = conversation.stream(writing(), 0, max_audio_length_ms=240)
    first = next(sound)
    assert len(written) == 2 and len(first)
    whole = torch.cat([first, *sound])
    assert [turn.text for turn in conversation.turns] == ["Good morning!", "And how are you?"]
    again = generator.conversation(seed=3)
    said = [again.say(text, 0, 240).audio for text in ("Good morning!", "And how are you?")]
    assert torch.equal(whole, torch.cat(said))


def test_stopping_ends_the_clause_and_what_would_follow(generator):
    conversation = generator.conversation(seed=3)
    list(conversation.stream(iter(["One. Two. ", "Three."]), 0, max_audio_length_ms=240, stop=lambda: True))
    assert [turn.state for turn in conversation.turns] == ["stopped"]
