"""Training the language model: amortised, accumulated, resumed, sharded, and how much memory it takes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import csm
from csm.checkpoint import load_model, save_folder
from csm.cli import main
from csm.codec import build_codec
from csm.config import PRESETS
from csm.model import CSM
from csm.text import ByteTokenizer
from csm.training.codes import Batch, Conversations, OneByOne, encode_corpus
from csm.training.corpus import Corpus, Utterance
from csm.training.distributed import Processes
from csm.training.lm import LMSettings, Objective, choose_frames, train_lm
from csm.training.plan import plan
from csm.training.plots import read_metrics
from tests.small import SMALL_LIGHT, SMALL_MIMI, fill_codebooks, small_config

TOP = Path(__file__).parent.parent
CONFIG = small_config(max_positions=512)
CONFIG = replace(CONFIG, backbone=replace(CONFIG.backbone, layers=3))
SETTINGS = LMSettings(
    steps=12, rate=0.01, warmup=2, positions=128, batch_positions=256, guided_layer=1, every=6, log_every=1
)
CURVES = ("code0", "depth", "guide", "gradient_norm")


def new_model() -> CSM:
    torch.manual_seed(1)
    return CSM(CONFIG).init_weights()


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A hundred clips of two speakers: no sound, and codes that follow the letters of the text."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    lines, codes, offset = [], [], 0
    for number in range(100):
        text = "".join(rng.choice(list("abcdefgh"), 6)) + " " + "".join(rng.choice(list("abcdefgh"), 5)) + "."
        frames = len(text)
        words = [(0, 6, 0.0, frames * 0.04), (7, 12, frames * 0.04, frames * 0.08)]
        lines.append(json.dumps(vars(Utterance(0, offset, frames * 1920, text, ("slt", "rms")[number % 2], [], words))))
        letters = np.array([ord(letter) % 32 for letter in text])
        codes.append(np.stack([(letters + k * (number % 2 + 1)) % 32 for k in range(4)], axis=1))
        offset += frames * 1920
    (folder / "utterances-000.jsonl").write_text("\n".join(lines))
    np.save(folder / "audio-000.npy", np.zeros(1, np.int16))
    np.save(folder / "codes-000.npy", np.concatenate(codes).astype(np.int16))
    return folder


@pytest.fixture(scope="module")
def talk(speech):
    return Conversations(Corpus(speech), speech, ByteTokenizer(), CONFIG)


@pytest.fixture(scope="module")
def run(talk, tmp_path_factory):
    """Twelve unbroken steps."""
    folder = tmp_path_factory.mktemp("lm")
    train_lm(new_model(), talk, talk, folder, SETTINGS)
    return folder


def curve(folder):
    return [[record[name] for name in CURVES] for record in read_metrics(folder)]


def weights(folder):
    return torch.load(folder / "state.pt", weights_only=True)["module"]


def test_a_run_writes_its_settings_its_metrics_and_a_plot(run):
    first, *records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert first["settings"]["depth_share"] == 1 / 16 and first["settings"]["seed"] == 1
    assert {"torch", "csm", "python"} <= set(first["versions"])
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[-1]["code0"] < records[0]["code0"]
    assert {"held_out_code0", "held_out_depth", "peak_bytes", "step_seconds"} <= set(records[-1])
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_run_says_so_in_one_line_and_goes_on(talk, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, steps=2))
    assert capsys.readouterr().out.count("matplotlib") == 1
    assert not (tmp_path / "loss.png").exists() and (tmp_path / "state.pt").exists()


def test_a_resumed_run_has_bit_for_bit_the_curve_and_weights_of_an_unbroken_one(run, talk, tmp_path, monkeypatch):
    """Killed after 9 of 12 steps, with the last save at 6: the three lost steps come out the same again."""
    forward, calls = Objective.forward, 0

    def dies(*arguments):
        nonlocal calls
        calls += 1
        if calls > 9 + 4:  # four of them to validate
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(Objective, "forward", dies)
    with pytest.raises(KeyboardInterrupt):
        train_lm(new_model(), talk, talk, tmp_path, SETTINGS)
    assert [record["step"] for record in read_metrics(tmp_path)][-1] == 9
    monkeypatch.setattr(Objective, "forward", forward)
    train_lm(new_model(), talk, talk, tmp_path, SETTINGS)
    assert curve(tmp_path) == curve(run)
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 13))
    unbroken, resumed = weights(run), weights(tmp_path)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_the_seed_decides_the_curve(run, talk, tmp_path):
    train_lm(new_model(), talk, None, tmp_path / "same", replace(SETTINGS, steps=12, every=12))
    train_lm(new_model(), talk, None, tmp_path / "other", replace(SETTINGS, steps=12, every=12, seed=2))
    assert curve(tmp_path / "same") == curve(run) != curve(tmp_path / "other")


def test_a_run_of_another_model_is_refused_in_one_sentence(run, talk, tmp_path):
    shutil.copytree(run, tmp_path / "lm")
    other = CSM(replace(CONFIG, audio_vocab_size=40)).init_weights()
    with pytest.raises(csm.InputError, match="doesn't go with these settings"):
        train_lm(other, talk, None, tmp_path / "lm", SETTINGS)


def test_accumulated_batches_count_every_frame_alike(talk, tmp_path):
    """Two batches of one conversation teach what one batch of both does, whatever their numbers of frames."""

    class Both:
        def batch(self, step, rows, length):
            pair = [talk.batch(2 * step + i, 1, length) for i in range(2)]
            return Batch(*(torch.cat([getattr(part, name) for part in pair]) for name in ("ids", "mask", "guide")))

    exact = replace(SETTINGS, precision="float32", optimiser="adamw", code_noise=0.0)
    settings = replace(exact, steps=1, depth_share=1.0, warmup=1)
    train_lm(new_model(), Both(), None, tmp_path / "one", settings)
    train_lm(new_model(), talk, None, tmp_path / "two", replace(settings, accumulate=2, batch_positions=128))
    assert np.allclose(curve(tmp_path / "one"), curve(tmp_path / "two"), rtol=1e-5)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_the_depth_decoder_learns_a_random_sixteenth_of_the_frames(talk):
    mask = talk.batch(0, 4, 128).mask
    audio = mask[..., 0]
    chosen = [choose_frames(mask, 1 / 16, (1, step)) for step in range(200)]
    assert all(int(frames.sum()) == round(int(audio.sum()) / 16) for frames in chosen)
    assert not any((frames & ~audio).any() for frames in chosen)
    assert not torch.equal(chosen[0], chosen[1])
    assert torch.stack(chosen).any(0)[audio].float().mean() > 0.99
    assert torch.equal(choose_frames(mask, 1.0, (1, 0)), audio)
    assert choose_frames(mask, 1e-9, (1, 0)).sum() == 1


def test_guidance_adds_a_loss_and_changes_nothing_in_what_is_computed(talk):
    model, batch = new_model(), talk.batch(0, 1, 128)
    frames = choose_frames(batch.mask, 1.0, (0,))
    first, depth, guide = Objective(model, SETTINGS)(batch.ids, batch.mask, batch.guide, frames)
    plain = model.losses(batch.ids, batch.mask, frames)
    assert torch.allclose(torch.stack([first, depth]), torch.stack(plain), atol=1e-5)
    assert guide > 0


def test_no_guide_is_computed_where_it_counts_for_nothing(talk):
    batch = talk.batch(0, 1, 128)
    assert Objective(new_model(), SETTINGS).guides(batch)
    assert not Objective(new_model(), replace(SETTINGS, guide_weight=0.0)).guides(batch)
    assert not Objective(new_model(), replace(SETTINGS, guided_layer=7)).guides(batch)
    unknown = replace(batch, guide=torch.full_like(batch.guide, -1))
    assert not Objective(new_model(), SETTINGS).guides(unknown)


def test_what_does_not_require_a_gradient_stays_as_it_is(talk, tmp_path):
    model = new_model()
    model.backbone.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_lm(model, talk, None, tmp_path, replace(SETTINGS, steps=2))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if not name.startswith("backbone.")}


def test_activation_checkpointing_computes_the_same(run, talk, tmp_path):
    model = train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, checkpointing=True))
    assert np.allclose(curve(tmp_path), curve(run), rtol=1e-6)
    assert all("forward" not in vars(layer) for layer in model.backbone.layers)


def test_weights_stay_float32_under_bfloat16(run):
    state = torch.load(run / "state.pt", weights_only=True)
    assert {tensor.dtype for tensor in state["module"].values()} == {torch.float32}
    moments = [value for part in state["optimisers"] for values in part["state"].values() for value in values.values()]
    assert {value.dtype for value in moments} == {torch.float32}


def test_every_batch_has_the_same_number_of_rows_whatever_the_length_of_its_conversations():
    shapes, shares = LMSettings().shapes()
    assert shapes == [(8, 256), (4, 512), (2, 1024), (1, 2048)] and sum(shares) == pytest.approx(1)
    assert shares[-1] == pytest.approx(0.03)
    assert LMSettings(positions=64).shapes() == ([(32, 64)], [1])


def test_diverged_training_stops_in_one_sentence_with_the_last_good_weights(talk, tmp_path, monkeypatch):
    losses = CSM.losses

    def broken(self, *arguments):
        return tuple(loss * torch.nan for loss in losses(self, *arguments))

    train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, steps=6))
    monkeypatch.setattr(CSM, "losses", broken)
    with pytest.raises(csm.InputError, match="diverged"):
        train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, steps=60, every=50))
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


@pytest.mark.parametrize("change", [{"steps": 0}, {"depth_share": 0.0}, {"rate": 2.0}, {"accumulate": 0}])
def test_settings_that_mean_nothing_are_refused(change):
    with pytest.raises(csm.InputError):
        LMSettings(**change)


def test_more_positions_than_the_model_has_are_refused(talk, tmp_path):
    with pytest.raises(csm.InputError, match="512 positions"):
        train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, positions=1024))


def test_codes_of_another_codec_are_refused(speech):
    config = replace(CONFIG, codec=replace(CONFIG.codec, num_codebooks=3))
    with pytest.raises(csm.InputError, match="another codec"):
        Conversations(Corpus(speech), speech, ByteTokenizer(), config)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A small random model in a folder that --init takes."""
    folder = tmp_path_factory.mktemp("start")
    codec = build_codec(CONFIG.codec)
    fill_codebooks(codec.module)
    save_folder(folder, new_model(), codec.module)
    return folder


def test_two_processes_with_fsdp2_have_the_loss_curve_of_one(start, speech, talk, tmp_path):
    """The same four conversations a step: two batches on one process, one batch on each of two. In float32 the curves
    differ by rounding alone: at most 1e-4 of each value over eight steps. Then each is resumed the other way.
    """
    exact = replace(SETTINGS, steps=8, every=4, precision="float32", optimiser="adamw", guided_layer=2)

    def alone(folder, steps):
        train_lm(load_model(str(start)).model, talk, None, folder, replace(exact, steps=steps, accumulate=2))

    def together(folder, steps):
        command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node", 2, "-m", "csm"]
        command += ["train", "lm", "--init", start, "--data", speech, "--codes", speech, "--out", folder]
        command += ["--positions", 128, "--batch-positions", 256, "--device", "cpu", "--precision", "float32"]
        command += ["--rate", 0.01, "--warmup", 2, "--steps", steps, "--every", 4, "--log-every", 1]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOP)}
        done = subprocess.run(list(map(str, command)), cwd=TOP, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def assert_equal_curves(steps):
        one, two = np.array(curve(tmp_path / "one")), np.array(curve(tmp_path / "two"))
        assert one.shape == two.shape == (steps, len(CURVES)) and one.all() and one[-1, 0] < one[0, 0]
        assert np.abs(two / one - 1).max() < 1e-4 * (steps / 8) ** 2

    alone(tmp_path / "one", 8)
    together(tmp_path / "two", 8)
    assert_equal_curves(8)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(second[name], first[name], atol=1e-4) for name in first)
    assert json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[0])["processes"] == 2
    alone(tmp_path / "two", 12)
    together(tmp_path / "one", 12)
    assert_equal_curves(12)


def test_muon_on_several_processes_is_refused(talk, tmp_path):
    with pytest.raises(csm.InputError, match="adamw"):
        train_lm(new_model(), talk, None, tmp_path, SETTINGS, Processes(count=2))


MEASURE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from csm.config import PRESETS
from csm.model import CSM
from csm.training.codes import Batch
from csm.training.lm import LMSettings, train_lm

class Noise:
    def batch(self, step, rows, length):
        mask = torch.zeros(rows, length, 7, dtype=torch.bool)
        mask[:, 0, -1] = mask[:, 1:, :-1] = True
        ids = torch.randint(1, 258, mask.shape, generator=torch.Generator().manual_seed(step)) * mask
        return Batch(ids, mask, torch.full((rows, length, 2), 3))

torch.set_num_threads(1)
settings = LMSettings(steps=2, every=2, log_every=1, positions=256, depth_share=float(sys.argv[2]))
train_lm(CSM(PRESETS["nano"]).init_weights(), Noise(), None, Path(sys.argv[1]), settings)
"""


def test_the_computed_memory_is_within_a_fifth_of_what_is_measured_on_nano(tmp_path):
    """Peak resident memory of a process of its own, above what it held before the first step."""
    measured, planned = {}, {}
    # The allocator gives everything back at once, so that what is resident is what is in use.
    environment = {**os.environ, "PYTHONPATH": str(TOP), "MALLOC_MMAP_THRESHOLD_": "65536"}
    for share in (1 / 16, 1.0):
        folder = tmp_path / str(share)
        command = [sys.executable, "-c", MEASURE, str(folder), str(share)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        first, *records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        made = plan(PRESETS["nano"], LMSettings(positions=256, depth_share=share))
        measured[share] = max(record["peak_bytes"] for record in records) - first["resident_bytes"] + made.weights
        planned[share] = made.total
        assert measured[share] == pytest.approx(planned[share], rel=0.2)
    assert measured[1.0] - measured[1 / 16] == pytest.approx(planned[1.0] - planned[1 / 16], rel=0.2)


def test_a_plan_shows_where_amortisation_saves_memory_and_sharding_and_checkpointing_too():
    settings = LMSettings(optimiser="adamw", guide_weight=0.0)
    tiny = plan(PRESETS["tiny"], settings)
    everything = plan(PRESETS["tiny"], replace(settings, depth_share=1.0))
    assert tiny.weights == 4 * 1_552_791_552 and tiny.optimiser == 2 * tiny.weights
    assert everything.depth_activations > 10 * tiny.depth_activations
    assert everything.backbone_activations == tiny.backbone_activations
    assert everything.total > 1.5 * tiny.total
    assert plan(PRESETS["tiny"], settings, processes=8).weights == tiny.weights // 8
    assert (
        plan(PRESETS["tiny"], replace(settings, checkpointing=True)).backbone_activations
        < tiny.backbone_activations / 5
    )


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_s_plan_is_printed_without_speech_or_weights(preset, capsys):
    assert main(["train", "lm", "--preset", preset, "--plan", "2", "--data", "nowhere"]) == 0
    *lines, figures = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{preset} on each of 2 processes, 1 x 2048 rows a batch")
    assert json.loads(figures)["bytes"]["total"] < json.loads(figures)["bytes_all_frames"]["total"]


def test_more_positions_than_2048_are_refused_before_anything_is_read(capsys):
    assert main(["train", "lm", "--positions", "4096", "--plan"]) == 2
    assert "2048 positions" in capsys.readouterr().err


def test_amortisation_is_compared_with_all_frames_by_one_command(start, speech, tmp_path, capfd):
    command = ["train", "--threads", "1", "amortisation", "--init", start, "--data", speech, "--codes", speech]
    command += ["--out", tmp_path, "--positions", 128, "--batch-positions", 256, "--steps", 4, "--every", 2]
    assert main([*map(str, command), "--log-every", "1", "--device", "cpu"]) == 0
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert figures == json.loads((tmp_path / "amortisation.json").read_text())
    share, everything = figures["share"], figures["all"]
    assert (share["depth_share"], everything["depth_share"]) == (1 / 16, 1.0)
    assert share["steps"] == everything["steps"] == 4
    assert figures["depth_loss_ratio"] == share["held_out_depth"] / everything["held_out_depth"]
    assert 0.8 < figures["depth_loss_ratio"] < 1.2
    tiny = figures["computed"][1]
    assert tiny["model"] == "tiny"
    assert tiny["bytes"]["depth_activations"] < tiny["bytes_all_frames"]["depth_activations"] / 3
    assert (tmp_path / "amortisation.png").read_bytes().startswith(b"\x89PNG")
    first = json.loads((tmp_path / "all" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["settings"]["seed"] == 1 and first["settings"]["depth_share"] == 1.0


def test_a_comparison_of_all_frames_with_all_frames_is_refused(capsys):
    assert main(["train", "amortisation", "--depth-share", "1"]) == 2
    assert "below 1" in capsys.readouterr().err


@pytest.mark.parametrize("codec", [SMALL_LIGHT, SMALL_MIMI], ids=["light", "mimi"])
def test_any_model_s_codec_gives_the_codes_to_train_on(codec, tmp_path):
    """Clips of any length, padded together, get the codes that each gets alone."""
    built = build_codec(codec)
    fill_codebooks(built.module)
    rng = np.random.default_rng(0)
    samples = [15_000, 24_000, 9_601]
    clips = [Utterance(0, sum(samples[:i]), n, "A hum.", "slt") for i, n in enumerate(samples)]
    (tmp_path / "utterances-000.jsonl").write_text("\n".join(json.dumps(vars(clip)) for clip in clips))
    np.save(tmp_path / "audio-000.npy", rng.integers(-9000, 9000, sum(samples)).astype(np.int16))
    corpus = Corpus(tmp_path)
    encode_corpus(corpus, OneByOne(built), tmp_path / "codes", report=lambda line: None)
    codes = np.load(tmp_path / "codes" / "codes-000.npy")
    alone = [built.encode(torch.from_numpy(corpus.audio(clip).astype(np.float32) / 32768)) for clip in clips]
    assert np.array_equal(codes, torch.cat(alone).numpy())
