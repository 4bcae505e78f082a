"""Files that users saved with an earlier version open in this one, with the same codes and the same sound.

`files/` was written by version 1 of both formats, before anything here was rebuilt; don't write them again.
"""

from pathlib import Path

import pytest
import torch

from csm import load
from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.conversation.project import open_project
from csm.conversation.takes import codes_key
from csm.speech.voices import load_prompt, read_voice

FILES = Path(__file__).parent / "files"
TAKES = [
    ["a64a7d7758b1861c", "89ec9ae8c14ed057"],
    ["c461051bf53a34cc", "aba0a357afb7d4a8", "999b1da33c6f83cc", "c2b9086e9d7e2c98"],
    ["c30a704da9eba5f9", "5798b9ed60ea8983", "48ca2a6b20caca7b"],
    ["fd18bbf4fc22a965", "c0672e21c3d96231"],
]
ANNA = "da0baa17c0e20f1e"  # the codes of her recording


@pytest.fixture(scope="module")
def nano():
    return load("nano", "cpu")


@pytest.fixture
def talk(nano, tmp_path):
    return open_project(FILES / "talk.csm", tmp_path, nano)


def test_a_project_has_its_script_its_voices_its_settings_and_every_take(talk):
    assert [(turn.speaker, turn.text) for turn in talk.turns] == [
        ("Anna", "Good morning! Did you sleep well?"),
        ("Ben", "Like a stone, thank you."),
        ("Anna", "The rain has stopped."),
        ("Ben", "Then we can go for a walk."),
    ]
    assert [[take.key for take in turn.takes] for turn in talk.turns] == TAKES
    assert [turn.chosen for turn in talk.turns] == [1, 2, 2, None]
    assert {speaker: voice.name for speaker, voice in talk.voices.items()} == {"Anna": "slt", "Ben": "rms"}
    assert talk.prompts["Anna"].key == ANNA
    settings = talk.settings
    assert (settings.seed, settings.temperature, settings.topk) == (11, 0.3, 40)
    assert (settings.max_turn_seconds, settings.takes) == (6.0, 2)


def test_it_still_knows_which_take_was_said_after_what_and_how_it_was_drawn(talk):
    assert talk.histories() == [
        "7f2c53ffab1e6475", "b3c9e5a1194c7ed5", "a56052de0f440150", "84e6e66bf6813a31", "",
    ]  # fmt: skip
    assert [talk.stale(index) for index in range(4)] == [False, True, False, False]
    assert not any(talk.other_settings(index) for index in range(4))
    assert talk.first_open == 1


def test_it_sounds_as_it_did(talk, nano):
    for index, turn in enumerate(talk.turns[:3]):
        sound = talk.sound(nano, index)
        assert len(sound) == turn.take.samples and float(sound.abs().max()) > 0.05
    assert talk.report(nano)["audio_seconds"] == 4.96
    assert torch.equal(talk.sound(nano, 0), nano.decode(talk.turns[0].take.codes)[: 25 * FRAME_SIZE])


def test_it_goes_on_from_the_first_turn_that_waits(talk, nano):
    before = [[take.key for take in turn.takes] for turn in talk.turns[:3]]
    for _ in talk.speak(nano, 3, live=False):
        pass
    assert [[take.key for take in turn.takes] for turn in talk.turns[:3]] == before
    assert talk.turns[3].take.text == "Then we can go for a walk." and talk.turns[3].take.samples > 0
    recording = load_prompt(talk.voices["Ben"])
    assert torch.equal(talk.turns[3].take.embedding, nano.codec.embed(recording)), "in the voice of the recording"


def test_a_voice_has_its_words_its_recording_and_its_codes(nano, tmp_path):
    voice = read_voice(FILES / "anna.voice", tmp_path)
    assert (voice.name, voice.transcript) == ("Anna-s", "My grandmother always baked apple pies on Sundays.")
    assert (voice.description, voice.licence, voice.origin) == ("my own", "CC0", "a test")
    assert len(load_prompt(voice)) == round(3.16 * SAMPLE_RATE)
    assert codes_key(voice.codes_for(nano.codec_key)) == ANNA
