"""What `evaluate --unseen` finds of models that follow a prompt, and of one that has a voice of its own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from csm.errors import InputError
from csm.evaluation import unseen
from csm.evaluation.context import Speech
from csm.evaluation.judges import Judges
from csm.evaluation.unseen import LONG, MAKERS, Unseen, measure_unseen, unseen_lines, unseen_speakers
from csm.speech.voices import Voice
from csm.training.held_out import SENTENCES
from csm.training.kokoro import KEPT_FOR_TESTS
from csm.training.sentences import wording

SOUND = 6_000  # samples


class Model:
    """Speaks in the voice of the speaker's prompt or, stubborn, in the first of its prompts' or of all."""

    def __init__(self, stubborn: bool) -> None:
        self.stubborn, self.said = stubborn, []
        self.device = torch.device("cpu")
        self.codec = SimpleNamespace(
            encode=lambda wave: wave, decode=lambda codes, speaker: codes, embed=lambda wave: None
        )

    def conversation(self, prompts, seed):
        def say(text, speaker, max_audio_length_ms, marked):
            assert not marked
            self.said.append((text, max_audio_length_ms))
            own = next(prompt.audio for prompt in prompts if prompt.speaker == speaker)
            return SimpleNamespace(audio=torch.zeros(SOUND) if self.stubborn else own, state="ended")

        return SimpleNamespace(say=say)

    @staticmethod
    def embed(wave):
        """One direction a voice, which is what every sample of it says."""
        return np.eye(len(MAKERS) + 2)[int(wave[0])]


@pytest.fixture
def speakers(monkeypatch):
    made = [
        Unseen(maker.name, "Words.", torch.full((SOUND,), float(number)), Model.embed(torch.tensor([number])))
        for number, maker in enumerate(MAKERS)
    ]
    monkeypatch.setattr(unseen, "unseen_speakers", lambda teacher, judges: made)
    monkeypatch.setattr(unseen, "load_prompt", lambda voice: torch.full((SOUND,), float(len(MAKERS))))
    return made


@pytest.mark.parametrize(("stubborn", "share"), [(False, 1.0), (True, 1 / 11)])
def test_who_follows_the_prompt_is_told_from_who_does_not(speakers, tmp_path, stubborn, share):
    model = Model(stubborn)
    voices = {"known": Voice("known", tmp_path / "known.wav", "I was heard.")}
    judges = Judges(None, SimpleNamespace(embed=Model.embed))
    found = measure_unseen(
        model, tmp_path, voices, SENTENCES[:11], judges, Speech(), tmp_path / "out", report=lambda line: None
    )
    assert found["codec"]["decoded"]["likeness"] == 1 and found["codec"]["decoded"]["nearest_is_own"] == 1
    for part in ("sentences", "without_closing_mark"):
        assert found[part]["clips"] == 11 and found[part]["nearest_is_own"] == pytest.approx(share, abs=1e-3)
    assert (found["behind_others"]["nearer_to_own"] == 1) is not stubborn
    assert found["drift"]["change"] == 0 and len(found["drift"]["by_turn"]) == 10
    long = [(text, limit) for text, limit in model.said if len(text) > 120]
    assert len(long) == len(LONG) * len(MAKERS) and all(len(text) <= 500 for text, _ in long)
    assert max(limit for _, limit in long) == 500 / 8 * 1000
    assert any(not text.endswith((".", "?", "!")) for text, _ in model.said)
    assert len(list((tmp_path / "out").glob("*.wav"))) == found["sentences"]["clips"] * 2 + 44 + 22 + 40
    assert any(line.startswith("sentences") for line in unseen_lines(found))


def test_the_speakers_are_of_voices_that_no_training_hears_and_say_what_it_does_not():
    assert {voice for maker in MAKERS for voice, _ in maker.shares} == KEPT_FOR_TESTS
    assert len({maker.name for maker in MAKERS}) == len(MAKERS) == len(unseen.PROMPTS)
    assert not {wording(text) for text in unseen.PROMPTS} & {wording(text) for text in SENTENCES}


def test_a_voice_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(unseen, "Kokoro", lambda folder: None)
    with pytest.raises(InputError, match="af_sarah is not in .*kokoro-js"):
        unseen_speakers(tmp_path, Judges(None))
