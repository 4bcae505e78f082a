"""Who speaks: a codec whose decoder is told so, from the prompt's embedding to the saved project, and how it learns."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from csm.checkpoint import load_model, save_folder
from csm.cli import main
from csm.codec import build_codec, codec_key, decoded_again
from csm.conversation.parsing import parse_script
from csm.conversation.project import open_project, save_project
from csm.conversation.session import Session
from csm.conversation.takes import Take
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.settings import Settings
from csm.speech.sound import Sounding, TurnSound
from csm.speech.voices import shipped_voices
from csm.training import kokoro, pairs, speakers
from csm.training.corpus import Corpus, Utterance, levelled, pcm_of
from csm.training.dubbing import AFTER, BEFORE, EARLY, FRAMES, LAST, MELODY, Dubber, boundaries, merged
from csm.training.kokoro import DURATIONS, Style, Styles
from csm.training.parts import Part
from csm.training.plots import read_metrics
from tests.small import SMALL_LIGHT, fill_codebooks, say_best, small_generator

TOLD = replace(SMALL_LIGHT, speaker_dim=10, speaker_blocks=1)


def told_codec():
    torch.manual_seed(3)
    codec = build_codec(TOLD)
    fill_codebooks(codec.module)
    return codec


def recording(seed, hertz=130.0, seconds=1.0):
    """Harmonics at a pitch, and some noise: float32 (num_samples,)."""
    at = torch.arange(int(24_000 * seconds)) / 24_000
    tone = sum(torch.sin(2 * torch.pi * hertz * n * at) / n for n in range(1, 9))
    return 0.05 * tone + 0.005 * torch.randn(len(at), generator=torch.Generator().manual_seed(seed))


def codes_of(frames, seed=0):
    return torch.randint(0, 32, (frames, 4), generator=torch.Generator().manual_seed(seed))


def alike(made, whole):
    """But for rounding: random weights are loud."""
    return made.shape == whole.shape and float((made - whole).abs().max()) < 1e-2 * float(whole.abs().max())


def test_the_same_codes_sound_like_whoever_speaks():
    codec = told_codec()
    one, other = codec.embed(recording(1)), codec.embed(recording(2, 220))
    assert one.shape == (TOLD.speaker_dim,) and bool(one.isfinite().all()) and not torch.equal(one, other)
    codes = codes_of(6)
    sounds = [codec.decode(codes, speaker) for speaker in (one, other, None)]
    assert all(len(sound) == 6 * 1920 for sound in sounds)
    assert not torch.equal(sounds[0], sounds[1]) and not torch.equal(sounds[0], sounds[2])
    assert torch.equal(sounds[2], codec.decode(codes, torch.zeros(TOLD.speaker_dim))), "zeros are nobody"
    assert torch.equal(decoded_again(codec, recording(1)), codec.decode(codec.encode(recording(1)), one))


def test_silence_and_the_shortest_recording_have_an_embedding_too():
    codec = told_codec()
    for wave in (torch.zeros(24_000), torch.zeros(100), recording(1, seconds=0.08)):
        assert bool(codec.embed(wave).isfinite().all())


def test_a_codec_that_is_not_told_has_no_embeddings():
    generator = small_generator()
    assert generator.codec.speaker_dim == 0 and generator.codec.embed(recording(1)) is None
    prompt = Segment(0, "Hello.", recording(1))
    assert generator.prompts.embedding(prompt) is None
    assert generator.conversation([prompt], 1).say("Hm.", 0, 400).pieces[0].embedding is None


def test_streams_of_several_speakers_side_by_side_are_what_each_is_alone():
    codec = told_codec()
    tellings = [codec.embed(recording(1)), None, codec.embed(recording(2, 220))]
    codes = [codes_of(5, seed) for seed in range(3)]
    alone = [codec.decode(own, speaker) for own, speaker in zip(codes, tellings)]
    streams = [codec.stream(speaker) for speaker in tellings]
    made = [[], [], []]
    for start, end in ((0, 2), (2, 5)):
        for own, wave in zip(made, codec.push_side_by_side(streams, [one[start:end] for one in codes])):
            own.append(wave)
    for own, stream, whole in zip(made, streams, alone):
        assert alike(torch.cat([*own, stream.flush()]), whole)


def test_each_speaker_of_a_conversation_is_heard_in_the_prompt_s_voice():
    generator = small_generator(TOLD)
    prompts = [Segment(0, "Hello there.", recording(1)), Segment(1, "Good day.", recording(2, 220))]
    talk = generator.conversation(prompts, 1)
    turns = [talk.say("Hm.", slot, 800, marked=False) for slot in (0, 1, 5)]
    embeddings = [turn.pieces[0].embedding for turn in turns]
    assert torch.equal(embeddings[0], generator.codec.embed(prompts[0].audio))
    assert torch.equal(embeddings[1], generator.codec.embed(prompts[1].audio))
    assert embeddings[2] is None, "who has no prompt is nobody in particular"
    for turn, embedding in zip(turns, embeddings):
        assert torch.equal(turn.audio, generator.decode(turn.codes, embedding))
    kept = say_best(talk, "Hm.", 1, [3, 4], lambda turns: 1, Settings(max_turn_seconds=0.4))
    assert all(torch.equal(piece.embedding, embeddings[1]) for piece in kept)


def test_a_prompt_of_codes_alone_is_heard_in_what_they_sound_like():
    generator = small_generator(TOLD)
    codes = codes_of(12)
    found = generator.prompts.embedding(Segment(0, "Hello.", codes=codes))
    assert torch.equal(found, generator.codec.embed(generator.codec.decode(codes)))
    given = torch.ones(TOLD.speaker_dim)
    assert generator.prompts.embedding(Segment(0, "Hello.", codes=codes, embedding=given)) is given


def test_what_was_spoken_is_saved_with_who_spoke_and_sounds_the_same_again(tmp_path):
    generator = small_generator(TOLD, 2_048)
    first, second, *_ = shipped_voices().values()
    script = parse_script("A: One.\nB: Two.\nA: Three.")
    session = Session(script, {"A": first, "B": second}, Settings(max_turn_seconds=0.4))
    for _ in session.speak(generator, live=False):
        pass
    takes = [turn.take for turn in session.turns]
    assert torch.equal(takes[0].embedding, takes[2].embedding) and not torch.equal(
        takes[0].embedding, takes[1].embedding
    )
    save_project(tmp_path / "talk.csm", session)
    again = open_project(tmp_path / "talk.csm", tmp_path, generator)
    for index, take in enumerate(takes):
        assert torch.equal(again.turns[index].take.embedding, take.embedding)
        assert again.turns[index].take.key == take.key
        assert torch.equal(again.sound(generator, index), session.sound(generator, index))
    assert torch.equal(again.prompts["B"].embedding, session.prompts["B"].embedding)


def test_the_same_codes_in_another_voice_are_another_sound():
    codes = codes_of(3)
    made = [Take(1, "Hm.", codes, "ended", 5_760, "", embedding=one) for one in (None, torch.ones(4), torch.zeros(4))]
    assert len({take.key for take in made}) == 3


def test_turns_that_sound_at_the_same_moment_keep_their_voices():
    generator = small_generator(TOLD)
    sounding = Sounding(generator.codec, generator.engine, together=True)
    tellings = [generator.codec.embed(recording(1)), generator.codec.embed(recording(2, 220))]
    turns = [TurnSound(sounding, False, embedding=one) for one in tellings]
    for number, turn in enumerate(turns):
        turn.frames += list(codes_of(4, number))
    turns[0].decoded()
    for number, (turn, speaker) in enumerate(zip(turns, tellings)):
        turn.finished()
        assert alike(turn.unmarked, generator.decode(codes_of(4, number), speaker))


@pytest.fixture
def speech(tmp_path):
    """Hums of two people, and the pairs of another voice's codes for them."""
    folder = tmp_path / "speech"
    folder.mkdir()
    waves, told, offset = [], [], 0
    for number in range(12):
        wave = recording(number, (110.0, 210.0)[number % 2], 1.0 + 0.05 * number)
        pcm = (wave * 32767).round().clamp(-32768, 32767).to(torch.int16).numpy()
        seconds = len(pcm) / 24_000
        clip = Utterance(0, offset, len(pcm), f"Hum {'abcdef'[number % 6]}.", f"s{number % 2}", [("m", seconds)], [])
        told.append(json.dumps(vars(clip)))
        waves.append(pcm)
        offset += len(pcm)
    np.save(folder / "audio-000.npy", np.concatenate(waves))
    (folder / "utterances-000.jsonl").write_text("\n".join(told))
    return folder


def test_a_codec_learns_speakers_and_keeps_its_codes(speech, tmp_path, capsys, monkeypatch):
    small = small_generator()
    save_folder(tmp_path / "model", small.engine.model, small.codec.module)
    corpus, frames = Corpus(speech), [-(-clip.samples // 1920) for clip in Corpus(speech).utterances]
    frames[3] = 0  # one that nobody could say
    made = {"codes": codes_of(sum(frames)).numpy().astype(np.int16), "frames": np.array(frames)}
    (tmp_path / "pairs").mkdir()
    np.savez(tmp_path / "pairs" / "pairs-000.npz", **made, speeds=np.full(len(frames), 1.25, np.float32))
    dubbed = np.concatenate([corpus.audio(clip) for clip in corpus.utterances])
    np.save(tmp_path / "pairs" / "pairs-000.npy", np.resize(dubbed, sum(frames) * 1920))
    found = pairs.read_pairs(corpus, tmp_path / "pairs")
    assert len(found) == 11 and {pair.speaker for pair in found} == {"s0*1.250", "s1*1.250"}
    assert all(len(pair.dubbed) == len(pair.codes) * 1920 for pair in found)
    assert all(abs(len(pair.natural(corpus)) - pair.clip.samples / 1.25) < 9 for pair in found), "played faster"

    command = ["train", "speakers", "--init", str(tmp_path / "model"), "--natural", str(speech), "--data", str(speech)]
    command += ["--pairs", str(tmp_path / "pairs"), "--out", str(tmp_path / "run"), "--steps", "1", "--frames", "5"]
    command += ["--refined", "1"]
    command += ["--batch", "2", "--numbers", "12", "--blocks", str(SMALL_LIGHT.decoder_blocks + 1), "--every", "2"]
    assert main(command) == 0
    assert str(tmp_path / "run" / "model") in capsys.readouterr().out
    before, after = small.codec, load_model(str(tmp_path / "run" / "model")).codec
    learned = read_metrics(tmp_path / "run")[-1]
    assert {"mel", "unlike", "apart", "energy", "held_out_energy"} <= set(learned)
    assert after.speaker_dim == 12 and after.config.decoder_blocks == SMALL_LIGHT.decoder_blocks + 1
    wave = recording(7)
    assert torch.equal(after.encode(wave), before.encode(wave))
    assert not torch.equal(after.decode(codes_of(5), after.embed(wave)), after.decode(codes_of(5)))
    before = load_model(str(tmp_path / "model")).codec
    assert codec_key(after) == codec_key(before), "what was spoken with it before can still be heard"
    assert main([*command, "--stress", "2"]) == 0  # nothing is left to learn
    more = load_model(str(tmp_path / "run" / "model")).codec
    assert torch.equal(more.decode(codes_of(5)), after.decode(codes_of(5))), "nobody stays nobody"
    assert not torch.equal(more.decode(codes_of(5), more.embed(wave)), after.decode(codes_of(5), after.embed(wave)))
    capsys.readouterr()
    for wrong, said in (
        (["--sharpen", "9"], "--sharpen"),
        (["--stress", "0"], "--stress"),
        (["--pairs", str(speech)], "train pairs"),
    ):
        assert main([*command, *wrong]) == 2 and said in capsys.readouterr().err


def test_a_batch_of_more_clips_than_there_are_speakers_is_made_and_natural_ones_are_always_told(speech, monkeypatch):
    corpus, codec = Corpus(speech), told_codec()
    dubbed = np.zeros(12 * 1920, np.int16)
    found = [pairs.Pair(clip, 1.0, codes_of(12).numpy(), dubbed) for clip in corpus.utterances]
    monkeypatch.setattr(speakers, "NOBODY", 1.0)
    made = speakers.Speech(corpus, found, corpus, False)
    for seed in range(8):
        waves, codes, heard, _ = made.batch(codec.module, np.random.default_rng(seed), 6, 5)
        assert waves.shape == (6, 5 * 1920) and codes.shape == (6, 5, 4) and heard.shape[:2] == (2, 6)
    monkeypatch.setattr(speakers, "NATURAL", 1.0)
    assert bool(made.batch(codec.module, np.random.default_rng(0), 6, 5)[3].all())
    monkeypatch.setattr(speakers, "NATURAL", 0.0)
    assert not bool(made.batch(codec.module, np.random.default_rng(0), 6, 5)[3].any())


def test_a_spoilt_recording_is_still_a_recording():
    mel = torch.rand(50, 100) - 2
    spoilt = [speakers.spoilt(mel.clone(), np.random.default_rng(seed)) for seed in range(30)]
    assert all(one.shape == mel.shape and bool(one.isfinite().all()) for one in spoilt)
    assert len({float(one.sum()) for one in spoilt}) > 20


def test_phones_that_two_say_meet_and_one_that_only_one_says_shares_the_time_of_its_neighbours():
    def ending(names, *ends):
        return list(zip(names.split(), ends))

    theirs = ending("pau k ae t s pau", 0.1, 0.2, 0.4, 0.5, 0.7, 0.9)
    ours = ending("pau k ae t s pau", 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
    every = [0.2, 0.3, 0.4, 0.5, 0.6], [0.1, 0.2, 0.4, 0.5, 0.7]
    assert boundaries(ours, theirs) == every
    assert boundaries(ours, [("pau", 0.1), ("g", 0.2), ("eh", 0.4), *theirs[3:]]) == every
    more = ending("pau k ae pau t s pau", 0.2, 0.3, 0.4, 0.45, 0.5, 0.6, 0.8)
    assert boundaries(more, theirs) == ([0.2, 0.3, 0.5, 0.6], [0.1, 0.2, 0.5, 0.7]), "a pause the recipe's doesn't make"
    fewer = ending("pau k ae s pau", 0.2, 0.3, 0.4, 0.6, 0.8)
    assert boundaries(fewer, theirs) == ([0.2, 0.3, 0.4, 0.6], [0.1, 0.2, pytest.approx(0.45), 0.7]), "half each"
    assert boundaries(ours[:1], theirs) == ([], [])
    closed = ending("pau k ae t s pau pau", 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.8)
    assert merged(closed) == ours, "a closing mark and the silence behind it are one pause"
    assert boundaries(merged(closed), theirs) == every


@pytest.fixture
def dubber(monkeypatch):
    """A teacher whose network says of every token that it lasts 0.2 s and is sung at 100 Hz; its sound is both."""
    onnx = pytest.importorskip("onnx", reason="the teacher alone needs it")
    pytest.importorskip("kokoro_onnx")
    node, floats = onnx.helper.make_node, onnx.TensorProto.FLOAT
    nodes = [
        node("Cast", ["tokens"], ["numbers"], to=floats),
        node("Mul", ["numbers", "no"], ["none"]),
        node("MatMul", ["style", "nobody"], ["manner"]),
        node("Mul", ["none", "speed"], ["still"]),
        node("Mul", ["still", "manner"], ["nothing"]),
        node("Add", ["nothing", "frames"], [DURATIONS]),
        node("Tile", ["nothing", "twice"], ["line"]),
        node("Add", ["line", "hertz"], [MELODY]),
        node("Concat", [DURATIONS, MELODY], ["audio"], axis=1),
    ]
    values = {"no": np.float32(0), "frames": np.float32(8), "hertz": np.float32(100), "twice": np.array([1, 16])}
    values["nobody"] = np.zeros((256, 1), np.float32)
    inputs = {"tokens": onnx.TensorProto.INT64, "style": floats, "speed": floats}
    graph = onnx.helper.make_graph(
        nodes,
        "toy",
        [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()],
        [onnx.helper.make_tensor_value_info("audio", floats, None)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    monkeypatch.setattr(kokoro, "read_model", lambda folder: model.SerializeToString())
    return Dubber(Path())


class Sound:
    """The second half of the teacher's network, which is asked for a sound of some frames."""

    def run(self, outputs, feed):
        self.asked = feed
        return [np.ones((1, int(600 * feed["durations"].sum())), np.float32)]


def test_the_teacher_is_given_the_times_and_the_melody_of_the_recipe(dubber, monkeypatch):
    given = {"durations": np.ones((1, 3), np.float32), "melody": np.full((1, 2), 7, np.float32)}
    assert dubber._sound.run(None, given)[0].tolist() == [[1, 1, 1, 7, 7]], "behind the cuts counts what it is given"
    sound = Sound()
    monkeypatch.setattr(dubber, "_sound", sound)
    monkeypatch.setattr(dubber, "phonemes", lambda text, british: "kˈæt.")
    style = Style("somebody", False, np.zeros((30, 256), np.float32))
    phones = [("pau", 0.1), ("k", 0.3), ("ae", 0.7), ("t", 0.8), ("pau", 1.0)]
    for speed in (1.0, 1.25):
        wave = dubber.dub("Cat.", style, phones, np.array([100.0, 200.0]), 1.0, speed)
        assert len(wave) == 24_000 and set(sound.asked) == {"tokens", "style", "durations", "melody"}
        frames, sung = sound.asked["durations"][0], sound.asked["melody"][0]
        assert frames.sum() == round((BEFORE + speed + AFTER) * FRAMES) == len(sung) / 2
        ends = np.cumsum(frames) / FRAMES - BEFORE  # of silence, k, the mark of stress, ae, t, full stop, silence
        wanted = np.array([0.1, 0.3, 0.7, 0.8]) * speed + [EARLY, EARLY, EARLY, LAST]
        assert np.abs(ends[[0, 1, 3, 4]] - wanted).max() <= 0.5 / FRAMES + 1e-6, "to the frame, and the last one longer"
        assert abs(np.log2(sung).mean() - np.log2(100)) < 1e-3, "in the teacher's register"
        assert sung[-1] / sung[0] == pytest.approx(2, rel=1e-3), "an octave up, as the recipe's"
    with pytest.raises(ValueError, match="other phones"):
        dubber.dub("Cat.", style, [("pau", 0.1), ("m", 0.5), ("pau", 1.0)], np.array([100.0]), 1.0)


def test_a_mixed_speaker_is_found_again_by_what_its_clips_say_of_it(tmp_path):
    (tmp_path / "voices").mkdir()
    for number, name in enumerate(("af_one", "bm_two", "am_three", "ff_four")):
        rows = np.random.default_rng(number).normal(size=(4, 256)).astype(np.float32)
        rows.tofile(tmp_path / "voices" / f"{name}.bin")
    styles = Styles(tmp_path)
    for number in range(12):
        style = styles.draw(number, 1)
        again = styles.of(style.origin)
        assert again.british == style.british and np.abs(again.rows - style.rows).max() < 0.05, style.origin
    for origin, said in (("af_one:0.50+af_nobody:0.50|af_one:1.00", "af_nobody"), ("", "anew")):
        with pytest.raises(InputError, match=said):
            styles.of(origin)


class Dubbing:
    """A teacher that hums for as long as it is asked to, every text in another pitch."""

    def dub(self, text, style, phones, hertz, seconds, speed):
        if text == "Hum c.":
            raise ValueError("There is no voice in it.")
        assert style == "of somebody" and abs(np.median(hertz) / 110 - 1) < 0.05 and phones == [("m", 1.0)]
        return 0.2 * recording(2, 150.0 + 30 * (ord(text[4]) % 7), seconds).numpy()


class Strangers:
    def of(self, origin):
        return "of somebody"


def test_pairs_are_made_shard_by_shard_and_a_clip_that_cannot_be_said_is_left_out(speech, tmp_path, monkeypatch):
    def said(engines, text, source):
        if text == "Hum b.":
            raise ValueError("Nothing to say.")
        return recording(1, 110, 1.0).numpy(), [("m", 1.0)], []

    monkeypatch.setattr(pairs, "say", said)
    corpus, codec, folder = Corpus(speech), small_generator().codec, tmp_path / "pairs"
    makers = {}, Dubbing(), Strangers(), codec
    told = list(pairs.make_pairs(corpus, *makers, folder))
    assert told == ["shard 0: 8 pairs, 4 clips left out; 1 of 1"]
    assert list(pairs.make_pairs(corpus, *makers, folder)) == [], "what is there is kept"
    assert list(pairs.make_pairs(corpus, *makers, tmp_path / "more", part=Part(2, 2))) == []
    with pytest.raises(InputError, match="dubbed"):
        list(pairs.make_pairs(corpus, *makers, folder, seed=2))
    found = pairs.read_pairs(corpus, folder)
    assert len(found) == 8 and len({pair.speaker for pair in found}) == 4, "each of the two is two, at other speeds"
    for pair in found:
        own = levelled(Dubbing().dub(pair.clip.text, "of somebody", [("m", 1.0)], np.array([110.0]), 1.0, 1.0))
        assert np.abs(pair.dubbed[:24_000] - pcm_of(own)).max() <= 1 and not pair.dubbed[24_000:].any()
        assert np.array_equal(pair.codes, codec.encode(recording(1, 110, 1.0)).numpy())
    sound = folder / "pairs-000.npy"
    sound.write_bytes(sound.read_bytes()[:-1920])
    with pytest.raises(InputError, match="damaged"):
        pairs.read_pairs(corpus, folder)
    sound.unlink()
    assert len(list(pairs.make_pairs(corpus, *makers, folder))) == 1, "codes without their sound are made again"
    assert len(pairs.read_pairs(corpus, folder)) == 8
