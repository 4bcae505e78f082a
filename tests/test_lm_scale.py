"""Training the language model at scale: over several processes, how much memory it takes, any preset and codec."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
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
from csm.training.codes import encode_corpus
from csm.training.corpus import Corpus, Utterance
from csm.training.distributed import Processes
from csm.training.export import export, model_codec
from csm.training.lm import LMSettings, train_lm
from csm.training.plan import plan
from csm.training.run import Run
from csm.training.shapes import keep_shape, kept_model
from tests import nodes
from tests.letters import CONFIG, CURVES, SETTINGS, curve, new_model, weights
from tests.published import write_tokenizer, write_transformers
from tests.small import SMALL_LIGHT, SMALL_MIMI, fill_codebooks

TOP = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A small random model in a folder that --init takes."""
    folder = tmp_path_factory.mktemp("start")
    codec = build_codec(CONFIG.codec)
    fill_codebooks(codec.module)
    save_folder(folder, new_model(), codec.module)
    return folder


def options(start, speech, folder, steps) -> list:
    """Of `csm train` with a save at every fourth step."""
    return [
        *("lm", "--init", start, "--data", speech, "--codes", speech, "--out", folder, "--positions", 128),
        *("--batch-positions", 256, "--device", "cpu", "--precision", "float32", "--voice-guide", 0.3),
        *("--rate", 0.01, "--warmup", 2, "--steps", steps, "--every", 4, "--log-every", 1),
    ]


@pytest.fixture(scope="module")
def two(start, speech, tmp_path_factory):
    """A run of eight steps on two processes."""
    folder = tmp_path_factory.mktemp("two")
    nodes.ended(nodes.torchrun(options(start, speech, folder, 8)))
    return folder


def assert_equal_curves(folder, other, steps):
    """Up to rounding in float32: 1e-4 of each value over eight steps."""
    one, two = np.array(curve(folder)), np.array(curve(other))
    assert one.shape == two.shape == (steps, len(CURVES)) and one.all() and one[-1, 0] < one[0, 0]
    assert np.abs(two / one - 1).max() < 1e-4 * (steps / 8) ** 2


def test_two_processes_with_fsdp2_have_the_loss_curve_of_one(start, speech, talk, two, tmp_path):
    """The same four conversations a step: two batches on one process, one batch on each of two. Then each is resumed
    the other way."""
    exact = replace(SETTINGS, steps=8, every=4, precision="float32", optimiser="adamw", guided_layer=2, voice_layer=4)

    def alone(folder, steps):
        train_lm(load_model(str(start)).model, talk, None, folder, replace(exact, steps=steps, accumulate=2))

    alone(tmp_path / "one", 8)
    shutil.copytree(two, tmp_path / "two")
    assert_equal_curves(tmp_path / "one", two, 8)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(second[name], first[name], atol=1e-4) for name in first)
    assert json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[0])["processes"] == 2
    made = load_model(str(tmp_path / "two" / "model")).model.state_dict()  # what --init leaves behind, in float16
    assert all(torch.allclose(made[name], second[name], atol=1e-3) for name in made)
    alone(tmp_path / "two", 12)
    nodes.ended(nodes.torchrun(options(start, speech, tmp_path / "one", 12)))
    assert_equal_curves(tmp_path / "one", tmp_path / "two", 12)


@pytest.mark.slow
def test_two_nodes_have_the_loss_curve_of_one_though_one_was_killed(start, speech, two, tmp_path):
    """The second node dies after the save at the fourth step, the first ends by itself, and the same command on both
    goes on."""
    command, program = options(start, speech, tmp_path / "run", 8), tmp_path / "dying.py"
    program.write_text(nodes.DYING)
    with ExitStack() as both:
        try:
            names = both.enter_context(nodes.two_nodes())
        except OSError as error:
            pytest.skip(f"no network namespaces can be made here: {error}")
        first, second = nodes.torchrun(command, names, 0), nodes.torchrun(command, names, 1, [program])
        second.communicate(timeout=300)
        assert second.returncode < 0
        first.communicate(timeout=300)
        assert first.returncode > 0 and 4 <= len(curve(tmp_path / "run")) < 8
        nodes.ended(*(nodes.torchrun(command, names, number) for number in (0, 1)))
    assert_equal_curves(two, tmp_path / "run", 8)


class Apart(Processes):
    """One of several processes, whose machines don't see the same folder."""

    def alike(self, value: int) -> bool:
        return False


def test_machines_with_folders_of_their_own_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(csm.InputError, match="saved at another step on another machine"):
        Run(tmp_path, torch.nn.Linear(1, 1), [], {}, Apart())


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
        mask = torch.zeros(rows, length, PRESETS["nano"].num_codebooks + 1, dtype=torch.bool)
        mask[:, 0, -1] = mask[:, 1:, :-1] = True
        ids = torch.randint(1, 258, mask.shape, generator=torch.Generator().manual_seed(step)) * mask
        return Batch.of(ids, mask, guide=torch.full((rows, length, 2), 3), voice=torch.full((rows, length, 2), 2))

torch.set_num_threads(1)
settings = LMSettings(steps=2, every=2, log_every=1, positions=256, depth_share=float(sys.argv[2]), precision="float32")
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
        made = plan(PRESETS["nano"], LMSettings(positions=256, depth_share=share, precision="float32"))
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


def test_adapters_need_gradients_and_moments_of_their_own_only(capsys):
    pytest.importorskip("peft")
    assert main(["train", "lm", "--preset", "tiny", "--plan", "--lora", "16", "--optimiser", "adamw"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])["bytes"]
    assert made["gradients"] < made["weights"] / 50 and made["optimiser"] == 2 * made["gradients"]
    assert made["total"] < 18e9


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
    encode_corpus(corpus, built, tmp_path / "codes", report=lambda line: None)
    codes = np.load(tmp_path / "codes" / "codes-000.npy")
    alone = [built.encode(torch.from_numpy(corpus.audio(clip).astype(np.float32) / 32768)) for clip in clips]
    assert np.array_equal(codes, torch.cat(alone).numpy())


def test_a_model_that_learned_another_s_codes_is_exported_with_its_codec(tmp_path):
    """In the published layout, as whatever reads Llama 3's tokenizer and speaks through Mimi."""
    source = load_model(str(write_transformers(tmp_path / "source")))
    config = source.model.config
    config = replace(config, backbone=replace(config.backbone, layers=4))
    model = CSM(config).init_weights()
    keep_shape(tmp_path / "run", config)
    write_tokenizer(tmp_path / "run")
    torch.save({"module": model.state_dict()}, tmp_path / "run" / "state.pt")
    codec = model_codec(str(tmp_path / "source"))
    export(tmp_path / "run", codec, tmp_path / "made")
    loaded = load_model(str(tmp_path / "made"))
    assert loaded.model.config == config
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in loaded.model.state_dict().items())
    theirs = source.codec.module.state_dict()
    assert all(torch.equal(t, theirs[name]) for name, t in loaded.codec.module.state_dict().items())
    (tmp_path / "run" / "config.json").write_text(json.dumps(source.model.config.to_dict()))
    with pytest.raises(csm.InputError, match="run in run"):  # of another shape
        export(tmp_path / "run", codec, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_preset_is_trained_for_the_codes_it_is_given(start, speech, tmp_path, capsys):
    """nano's transformers with the four small codebooks of these codes; with Llama's tokenizer they don't go."""
    command = ["train", "lm", "--data", str(speech), "--out", str(tmp_path / "run"), "--device", "cpu", "--steps", "1"]
    assert main([*command, "--codes", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
    shutil.copytree(speech, tmp_path / "codes")
    keep_shape(tmp_path / "codes", CONFIG.codec)
    command += ["--codes", str(tmp_path / "codes"), "--positions", "128", "--batch-positions", "128"]
    assert main([*command, "--preset", "tiny"]) == 2
    assert "speaks through Mimi" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*command, "--preset", "small?"]) == 2
    assert "There is no shape 'small?'" in capsys.readouterr().err
    assert main(command) == 0
    assert kept_model(tmp_path / "run") == replace(PRESETS["nano"], codec=CONFIG.codec, audio_vocab_size=35)
