"""The recipe, in miniature: data, codec, codes, language model, export, and a model that loads."""

import copy
import json
import random
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import csm
from csm.checkpoint import load_model
from csm.cli import main
from csm.codec.spectral import SpectralCodec
from csm.errors import InputError
from csm.model import CSM
from csm.text import ByteTokenizer
from csm.training import codec as codec_training
from csm.training.codec import PHONES, phones_at, train_codec
from csm.training.codes import Conversations, encode_corpus, frames_of, spoken_text
from csm.training.corpus import Corpus, Utterance
from csm.training.export import export, run_weights, trained_codec
from csm.training.held_out import CONVERSATION, SENTENCES
from csm.training.lm import LMSettings, optimisers, train_lm
from csm.training.plots import read_metrics
from csm.training.recode import carry_over
from csm.training.run import Run, warmup_cosine
from csm.training.sentences import FORTUNES, fortune_sentences, phrase, wording
from csm.training.shapes import keep_shape
from tests.small import small_config

CONFIG = small_config(max_positions=512)
SMALL_SETTINGS = dict(
    steps=12, rate=0.05, positions=128, batch_positions=128, depth_share=0.25, guided_layer=1, every=6
)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Forty hums of two speakers as training speech."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    waves, lines, offset = [], [], 0
    for number in range(40):
        speaker, text = ("slt", "rms")[number % 2], f"Hum number {'abcdefgh'[number % 8]}."
        samples = int(rng.integers(12_000, 24_000))
        wave = (6000 * np.sin(np.arange(samples) * (0.02 + 0.01 * (number % 2)))).astype(np.int16)
        seconds = samples / 24_000
        words = [(0, 3, 0.0, seconds / 2), (4, 10, seconds / 2, seconds)]
        clip = Utterance(0, offset, samples, text, speaker, [("m", seconds / 2), ("ah", seconds)], words)
        waves.append(wave)
        lines.append(json.dumps(vars(clip)))
        offset += samples
    np.save(folder / "audio-000.npy", np.concatenate(waves))
    (folder / "utterances-000.jsonl").write_text("\n".join(lines))
    return folder


def train_small(speech, runs, folder, **changes):
    """The language model of the fixture `runs`, from the same seed."""
    corpus = Corpus(speech)
    train, held_out = (Conversations(corpus, runs / "codes", ByteTokenizer(), CONFIG, held) for held in (False, True))
    torch.manual_seed(1)
    settings = LMSettings(**{**SMALL_SETTINGS, **changes})
    return train_lm(csm.model.CSM(CONFIG).init_weights(), train, held_out, folder, settings)


@pytest.fixture(scope="module")
def runs(speech, tmp_path_factory):
    """Every step of the recipe, a few training steps each."""
    folder = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.setattr(Utterance, "held_out", property(lambda clip: clip.text.startswith("Hum number a")))
    keep_shape(folder / "codec", CONFIG.codec)
    train_codec(speech, folder / "codec", CONFIG.codec, 8, 4, 4, 5, refined_batch=2, refined_frames=5, every=6)
    encode_corpus(Corpus(speech), trained_codec(folder / "codec"), folder / "codes")
    train_small(speech, folder, folder / "lm")
    yield folder
    patch.undo()


def test_both_losses_fall(runs):
    codec, lm = read_metrics(runs / "codec"), read_metrics(runs / "lm")
    assert [record["step"] for record in lm] == [6, 12]
    assert codec[-1]["mel"] < codec[0]["mel"]
    assert lm[-1]["code0"] < lm[0]["code0"]
    assert {"held_out_code0", "held_out_depth", "held_out_guide", "seconds"} <= set(lm[-1])


def test_the_exported_folder_loads_and_speaks(runs, tmp_path):
    export(runs / "lm", trained_codec(runs / "codec"), tmp_path / "model")
    generator = csm.load(str(tmp_path / "model"), "cpu")
    assert generator.generate("Hum.", 0, max_audio_length_ms=400, seed=1).abs().sum() > 0
    assert max(file.stat().st_size for file in (tmp_path / "model").iterdir()) < 10_000_000


def test_an_interrupted_save_loses_nothing(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "lm", tmp_path / "lm")
    before = (tmp_path / "lm" / "state.pt").read_bytes()
    model = csm.model.CSM(CONFIG)
    run = Run(tmp_path / "lm", model, optimisers(model, LMSettings()))

    def torn(value, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError):
        run.save()
    assert (tmp_path / "lm" / "state.pt").read_bytes() == before


def test_packed_conversations_are_what_the_engine_feeds(runs, speech):
    """Every turn of a batch: BOS, slot, text, EOS in the last column; frames; one zero frame."""
    conversations = Conversations(Corpus(speech), runs / "codes", ByteTokenizer(), CONFIG)
    batch = conversations.batch(3, 2, 256)
    ids, mask = batch.ids[0], batch.mask[0]
    starts = [row for row in range(256) if mask[row, -1] and ids[row, -1] == ByteTokenizer.BOS]
    ends = [row for row in range(256) if mask[row, 0] and not ids[row, :-1].any()]
    assert starts[0] == 0 and len(starts) == len(ends) > 2
    for start, end in zip(starts, ends):
        text = ids[start:end, -1][mask[start:end, -1]]
        assert text[-1] == ByteTokenizer.EOS
        assert bytes(text[1:-1].tolist()).decode()[3:].startswith("hum number ")
        assert bytes(text[1:4].tolist()).decode().startswith("[")
        frames = mask[start : end + 1, 0]
        assert frames[len(text) :].all() and not frames[: len(text)].any()
    assert not mask[:, 0].logical_and(mask[:, -1]).any()


def test_the_guide_points_at_the_word_being_spoken():
    clip = Utterance(0, 0, 3 * 24_000, "one two three.", "slt", [], [(0, 3, 0, 1), (4, 7, 1, 2), (8, 13, 2, 3)])
    guide = spoken_text(clip, frames_of(clip), prefix=4) - 4
    middle = int(1.5 / 0.08)
    assert 3 <= guide[middle, 0] <= 5 and 6 <= guide[middle, 1] <= 8
    assert guide[0, 0] == 0 and guide[-1, 1] == len(clip.text)
    assert (np.diff(guide[:, 0]) >= 0).all()


def test_the_teacher_names_the_phone_of_each_moment():
    clip = Utterance(0, 0, 24_000, "", "slt", [("hh", 0.09), ("ay", 0.3), ("pau", 1.0)], [])
    named = [[PHONES[phone] for phone in frame] for frame in phones_at(clip, 0.0, 5).tolist()]
    assert named == [["hh", "hh"], ["ay", "ay"], ["ay", "ay"], ["ay", "ay"], ["pau", "pau"]]


def test_batches_depend_on_seed_and_step_alone(runs, speech):
    build = lambda seed: Conversations(Corpus(speech), runs / "codes", ByteTokenizer(), CONFIG, seed=seed)  # noqa: E731
    assert torch.equal(build(1).batch(5, 2, 128).ids, build(1).batch(5, 2, 128).ids)
    assert not torch.equal(build(1).batch(5, 2, 128).ids, build(1).batch(6, 2, 128).ids)
    assert not torch.equal(build(1).batch(5, 2, 128).ids, build(2).batch(5, 2, 128).ids)


def test_the_schedule_warms_up_and_cools_down():
    factors = [warmup_cosine(step, 1000) for step in (0, 199, 600, 999)]
    assert factors[0] < 0.01 and factors[1] == 1.0 and 0.4 < factors[2] < 0.6 and factors[3] < 0.03


def test_evaluation_sentences_are_short_distinct_and_in_no_training_text():
    texts = [*SENTENCES, *(text for _, text in CONVERSATION)]
    assert len(SENTENCES) >= 60 and len(CONVERSATION) == 10
    assert len({wording(text) for text in texts}) == len(texts)
    assert all(re.fullmatch(r"[A-Za-z ,.?!']+", text) and 4 <= len(text.split()) <= 14 for text in texts)
    rng = random.Random(0)
    trained = {wording(phrase(rng)) for _ in range(20_000)}
    if FORTUNES.exists():
        trained.update(map(wording, fortune_sentences()))
    assert not trained & set(map(wording, texts))


def test_the_evaluation_s_conversation_goes_back_and_forth():
    assert [speaker for speaker, _ in CONVERSATION] == [0, 1] * 5


def test_a_corpus_that_is_not_there_says_what_to_run(tmp_path):
    with pytest.raises(csm.InputError, match="train data"):
        Corpus(tmp_path)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "audio-000.npy").unlink(), "damaged at utterances-000.jsonl"),
        (lambda folder: (folder / "audio-000.npy").write_bytes(b"half"), "damaged at utterances-000.jsonl"),
        (lambda folder: (folder / "utterances-000.jsonl").write_text('{"shard": 0'), "damaged at utterances-000.jsonl"),
        (lambda folder: (folder / "utterances-000.jsonl").write_text('{"shard": 0}'), "damaged at utterances-000"),
        (lambda folder: np.save(folder / "audio-000.npy", np.zeros(20_000, np.int16)), "shard 0 is cut short"),
        (lambda folder: (folder / "utterances-000.jsonl").unlink(), "No training speech"),
    ],
)
def test_damaged_speech_is_refused_in_one_sentence(speech, runs, tmp_path, capsys, damage, complaint):
    shutil.copytree(speech, tmp_path / "speech")
    damage(tmp_path / "speech")
    command = ["train", "codes", "--data", str(tmp_path / "speech"), "--codec", str(runs / "codec")]
    assert main([*command, "--out", str(tmp_path / "codes")]) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


@pytest.mark.parametrize("step", ["codec", "codes", "lm", "export"])
def test_a_step_before_its_turn_says_what_is_missing(step, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", step]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("no config.json" in said if step == "export" else "`python -m csm train" in said)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_t_be_made_is_refused_in_one_sentence(speech, runs, tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["train", "codes", "--data", str(speech), "--codec", str(runs / "codec"), "--out", str(tmp_path / "file")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "can't be written to (File exists)" in said and said.count("\n") == 1


@pytest.mark.parametrize("part", ["-0.1", "1.5", "half", "nan"])
def test_parts_that_are_none_are_refused_in_one_sentence(part, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "lm", "--spliced", part])
    assert stopped.value.code == 2 and "give a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    ["codec --steps 0", "codec --every -1", "codec --seed -1", "lm --seed -1", "lm --every 0", "data --workers x"],
)
def test_numbers_that_mean_nothing_are_refused_in_one_sentence(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *option.split()])
    assert stopped.value.code == 2 and "is no whole number of at least" in capsys.readouterr().err


def test_codec_losses_reward_the_right_sound():
    distance = codec_training.MelDistance()
    wave = torch.sin(torch.arange(24_000) * 0.05)[None]
    assert distance(wave, wave) == 0
    assert distance(0.9 * wave, wave) < distance(0.1 * wave, wave) < distance(torch.zeros_like(wave), wave)


def test_energy_distance_is_least_for_noise_of_the_same_kind_that_differs_from_take_to_take():
    distance = codec_training.EnergyDistance()
    real, made, again = 0.1 * torch.randn(3, 4, 24_000, generator=torch.Generator().manual_seed(0))
    right = distance(real, made, again)
    assert right < 0.95 * distance(real, 0.6 * made, 0.6 * again)
    assert right < 0.95 * distance(real, 1.6 * made, 1.6 * again)
    assert right < 0.6 * distance(real, made, made)  # the same each time, as a hum is
    assert distance(real, real, real) == 0


def test_ripples_tell_a_voice_from_a_whisper_wherever_its_harmonics_are():
    distance = codec_training.EnergyDistance()
    pulses = torch.zeros(3, 24_000)
    for row, period in enumerate((120, 123)):
        pulses[row, ::period] = period**0.5
    pulses[2] = torch.randn(24_000, generator=torch.Generator().manual_seed(0))
    spectra = distance.log_spectrum(pulses, 2048)

    def confusion(views):
        voice, higher, whisper = views
        return (voice - higher).abs().mean() / (voice - whisper).abs().mean()

    assert confusion(distance.ripples(spectra)) < 0.6 * confusion(spectra)


def test_refining_leaves_the_codes_and_changes_the_sound(speech, runs, tmp_path, capsys):
    export(runs / "lm", trained_codec(runs / "codec"), tmp_path / "model")
    command = ["train", "codec", "--init", str(tmp_path / "model"), "--data", str(speech), "--refined", "2"]
    command += ["--adversarial", "1", "--sharpen", "1.1"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert str(tmp_path / "run" / "model") in capsys.readouterr().out
    before, after = (csm.load(str(folder), "cpu").codec for folder in (tmp_path / "model", tmp_path / "run" / "model"))
    wave = 0.1 * torch.randn(9_600, generator=torch.Generator().manual_seed(0))
    codes = before.encode(wave)
    assert torch.equal(after.encode(wave), codes)
    assert not torch.equal(after.decode(codes), before.decode(codes))
    assert {"energy", "fooled", "judgement"} <= set(read_metrics(tmp_path / "run")[-1])


def test_a_codec_goes_on_with_more_blocks_that_change_nothing_at_first(speech, runs, tmp_path, capsys):
    trained = trained_codec(runs / "codec")
    more = SpectralCodec(replace(trained.module.config, decoder_blocks=trained.module.config.decoder_blocks + 2))
    codec_training.grow(more, trained.module)
    codes = torch.randint(0, 8, (1, CONFIG.num_codebooks, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(more.decode_step(codes, None)[0], trained.module.decode_step(codes, None)[0])

    export(runs / "lm", trained, tmp_path / "model")
    command = ["train", "codec", "--init", str(tmp_path / "model"), "--data", str(speech)]
    command += ["--out", str(tmp_path / "on")]
    blocks = str(more.config.decoder_blocks)
    assert main([*command, "--steps", "2", "--refined", "0", "--blocks", blocks, "--shifted", "1"]) == 0
    assert "has learned them" in capsys.readouterr().out
    assert load_model(str(tmp_path / "on" / "model")).codec.module.config == more.config
    assert {"energy", "mel"} <= set(read_metrics(tmp_path / "on")[-1])
    for wrong in (["--blocks", "1"], ["--shifted", "2"], ["--sharpen", "9"]):
        assert main([*command, *wrong]) == 2 and wrong[0] in capsys.readouterr().err


def test_a_language_model_begins_with_the_codes_that_stand_where_its_own_stood(runs, tmp_path):
    """The same codes in another order: after a change of names the model says the same."""
    model = CSM(CONFIG)
    model.load_state_dict(run_weights(runs / "lm"))
    file = sorted((runs / "codes").glob("codes-*.npy"))[0]
    before, size = np.load(file), CONFIG.codec.codebook_size
    names = [np.random.default_rng(book).permutation(size) for book in range(CONFIG.num_codebooks)]
    np.save(tmp_path / file.name, np.stack([names[book][before[:, book]] for book in range(len(names))], axis=1))
    now = copy.deepcopy(model)
    carry_over(now, runs / "codes", tmp_path)
    common = np.bincount(before[:, 0], minlength=size).argmax()
    old, new = (one.codebook0_head.weight[code] for one, code in ((model, common), (now, names[0][common])))
    assert torch.cosine_similarity(old, new, dim=0) > 0.99
    assert not torch.allclose(model.codebook0_head.weight, now.codebook0_head.weight)
    with pytest.raises(InputError, match="no shard in common"):
        carry_over(now, tmp_path / "nothing", tmp_path)


def test_a_turn_of_several_sentences_ends_once(runs, speech):
    """Joined clips: texts with a space, frames without the zero frame between, the guide moved along."""
    conversations = Conversations(Corpus(speech), runs / "codes", ByteTokenizer(), CONFIG)
    turns = [conversations._turn(np.random.default_rng(seed), conversations.clips["slt"]) for seed in range(30)]
    assert {turn.text.count(".") for turn in turns} == {1, 2, 3}
    for turn in turns:
        assert (~turn.codes.any(axis=1)).nonzero()[0].tolist() == [len(turn.codes) - 1]
        assert len(turn.guide) == len(turn.codes)
        assert turn.guide[-1, 1] == turn.text.rindex("number") + len("number") + 1 + 4  # BOS and "[0]" come first
        assert (np.diff(turn.guide[:, 1]) >= -1).all()


def test_what_is_smoother_than_a_recording_is_told_by_its_contrast():
    distance = codec_training.MelDistance()
    noise = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0))
    lively = noise * (1 + 0.9 * torch.sin(torch.arange(24_000) / 600))
    assert distance.contrast(lively, lively) == 0
    assert distance.contrast(noise, lively) > 2 * distance.contrast(lively.flip(1), lively)
