"""Training a Mimi from nothing: a miniature learns to hum, and what is trained is what is saved and loaded."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from moshi.quantization.core_vq import EuclideanCodebook

import csm
from csm.audio import load_audio
from csm.checkpoint import load_model
from csm.cli import main
from csm.codec.mimi import build_mimi
from csm.config import FRAME_SIZE, PRESETS, MimiConfig, SpectralConfig
from csm.model import CSM
from csm.training import mimi as training
from csm.training.corpus import Corpus, Utterance
from csm.training.export import export, folded, trained_codec
from csm.training.mimi import (
    BYPASS,
    MimiRecipe,
    MimiTrainer,
    quantised,
    random_depths,
    start_codebooks,
    train_mimi,
    trainable_mimi,
    unquantised,
)
from csm.training.shapes import CODECS, codec_shape, keep_shape, kept_codec, model_shape, with_codec
from csm.training.teacher import FeatureLesson, PhoneLesson, Teacher, choose_lesson, load_teacher
from tests.published import write_tokenizer
from tests.small import small_config

CONFIG = MimiConfig(
    num_codebooks=4,
    codebook_size=16,
    total_codebooks=4,
    dim=16,
    filters=2,
    codebook_dim=8,
    layers=1,
    heads=2,
    mlp_dim=32,
)
RECIPE = MimiRecipe(steps=42, batch=4, frames=3, rate=4e-3, warm_up=14, adversarial_from=28, channels=4, every=14)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Hums of two pitches, each with the phone that is its pitch."""
    folder = tmp_path_factory.mktemp("speech")
    waves, lines, offset = [], [], 0
    for number in range(24):
        samples, high = 12_000, number % 2
        wave = 8000 * np.sin(np.arange(samples) * (0.03 + 0.03 * high) + number)
        clip = Utterance(0, offset, samples, f"Hum {'abcdefghijkl'[number // 2]}.", "slt", [(("m", "ah")[high], 1.0)])
        waves.append(wave.astype(np.int16))
        lines.append(json.dumps(vars(clip)))
        offset += samples
    np.save(folder / "audio-000.npy", np.concatenate(waves))
    (folder / "utterances-000.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module", autouse=True)
def impatience():
    """Codes count as dead as soon as they are rarer than half of the mean, or so short a run would see none die."""
    build, patch = training.trainable_mimi, pytest.MonkeyPatch()

    def impatient(config):
        mimi = build(config)
        for module in mimi.modules():
            if isinstance(module, EuclideanCodebook):
                module.threshold_usage_ratio = 0.5
        return mimi

    patch.setattr(training, "trainable_mimi", impatient)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def run(speech, tmp_path_factory):
    """The folder of a finished run, and the Mimi that it returned."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train_mimi(speech, folder, CONFIG, RECIPE)


def metrics(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "held_out_mel" in record]


def hum(frames=6, batch=2):
    return 0.25 * torch.sin(torch.arange(frames * FRAME_SIZE) * 0.03 + torch.arange(batch)[:, None])


def test_every_loss_falls(run):
    warm, started, judged = metrics(run[0])
    assert started["mel"] < warm["mel"] and judged["mel"] < warm["mel"]
    assert judged["held_out_mel"] < warm["held_out_mel"]
    assert judged["phone_accuracy"] > warm["phone_accuracy"]
    assert "critic" not in started and judged["critic"] < 2.0
    assert 0 < judged["commitment"] < 1


def test_a_stopped_run_ends_where_an_unbroken_one_ends(run, speech, tmp_path, monkeypatch):
    """Stopped within quantised training and started again: same curve, same weights."""
    loop = training.Run.loop
    monkeypatch.setattr(training.Run, "loop", lambda self, steps, *rest: loop(self, 21, *rest))
    train_mimi(speech, tmp_path / "run", CONFIG, replace(RECIPE, every=7))
    monkeypatch.undo()
    mimi = train_mimi(speech, tmp_path / "run", CONFIG, RECIPE)
    assert [record["step"] for record in metrics(tmp_path / "run")] == [7, 14, 21, 28, 42]
    for name in ("mel", "critic", "feature", "phone_accuracy", "held_out_mel"):
        assert metrics(tmp_path / "run")[-1][name] == metrics(run[0])[-1][name]
    for (name, a), b in zip(mimi.state_dict().items(), run[1].state_dict().values()):
        assert torch.equal(a, b), name


def test_the_result_decodes_as_the_module_in_training_did(run):
    """Folding the weight norms in changes nothing."""
    folder, mimi = run
    trainer = MimiTrainer(CONFIG, PhoneLesson(CONFIG.dim), RECIPE.channels)
    trainer.load_state_dict(torch.load(folder / "state.pt", weights_only=True)["module"])
    assert any("parametrizations" in name for name in trainer.codec.state_dict())
    assert set(mimi.state_dict()) == set(build_mimi(CONFIG).state_dict())
    wave = hum()[:, None]
    with torch.no_grad():
        codes = mimi.encode(wave)
        assert torch.equal(codes, trainer.eval().codec.encode(wave))
        assert len(codes.unique()) > 4
        assert torch.allclose(mimi.decode(codes), trainer.codec.decode(codes), atol=1e-6)
        whole = trainer(wave[:, 0], torch.full((2,), CONFIG.total_codebooks))[0]
        assert torch.allclose(mimi.decode(codes)[:, 0], whole, atol=1e-5)


def test_it_streams_what_it_decodes_whole(run):
    codec = trained_codec(run[0])
    codes = codec.encode(hum(batch=1)[0])
    stream = codec.stream()
    pushed = torch.cat([stream.push(codes[:1]), stream.push(codes[1:4]), stream.push(codes[4:]), stream.flush()])
    whole = codec.decode(codes)
    assert whole.abs().max() > 0.01
    assert torch.allclose(pushed, whole, atol=1e-5)


def test_a_run_gives_back_the_codec_it_trained(run):
    """Of the shape that the run says itself."""
    codec, mimi = trained_codec(run[0]), run[1]
    assert codec.config == kept_codec(run[0]) == CONFIG
    assert all(torch.equal(tensor, mimi.state_dict()[name]) for name, tensor in codec.module.state_dict().items())


def test_from_speech_to_speech_through_a_mimi_of_its_own(speech, tmp_path, capsys):
    """Every step as a user gives it: codec, codes, language model, export, and a script spoken."""
    transformers = small_config(max_positions=512)
    (tmp_path / "codec.json").write_text(json.dumps(vars(CONFIG)))
    (tmp_path / "model.json").write_text(json.dumps(transformers.to_dict()))
    (tmp_path / "script.txt").write_text("A: Hum.\nB: Hum, hum.\n")

    def step(name, **options):
        given = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        assert main(["train", name, *given]) == 0, capsys.readouterr().err

    codec, codes, lm, model = (tmp_path / name for name in ("codec", "codes", "lm", "model"))
    step("codec", config=tmp_path / "codec.json", data=speech, out=codec, steps=8, adversarial_from=7, every=4)
    step("codes", data=speech, codec=codec, out=codes)
    step("lm", preset=tmp_path / "model.json", data=speech, codes=codes, out=lm, steps=4, every=2, positions=128,
         batch_positions=128, device="cpu")  # fmt: skip
    step("export", codec=codec, lm=lm, out=model)

    loaded = load_model(str(model))
    assert loaded.model.config == replace(transformers, codec=CONFIG, audio_vocab_size=16 + 3)
    made = np.load(codes / "codes-000.npy")
    assert made.shape == (24 * 7, 4) and len(np.unique(made)) > 4
    wave = Corpus(speech).audio(Corpus(speech).utterances[0]).astype(np.float32) / 32768
    assert torch.equal(trained_codec(codec).encode(torch.from_numpy(wave)), torch.from_numpy(made[:7]).long())
    spoken = ["--script", str(tmp_path / "script.txt"), "--voice", "A=slt", "--voice", "B=rms"]
    spoken += ["--out", str(tmp_path / "talk.wav"), "--max-turn-seconds", "1", "--device", "cpu"]
    assert main(["generate", "--model", str(model), *spoken]) == 0
    assert load_audio(tmp_path / "talk.wav").abs().max() > 0


def test_a_model_with_llama_s_tokenizer_and_a_mimi_of_its_own_is_exported_in_the_published_layout(run, tmp_path):
    config = with_codec(replace(small_config(CONFIG), tokenizer="llama3", text_vocab_size=300), CONFIG)
    model = CSM(config).init_weights()
    keep_shape(tmp_path / "lm", config)
    torch.save({"module": model.state_dict()}, tmp_path / "lm" / "state.pt")
    with pytest.raises(csm.InputError, match="no tokenizer.json"):
        export(tmp_path / "lm", trained_codec(run[0]), tmp_path / "model")
    write_tokenizer(tmp_path / "lm")
    export(tmp_path / "lm", trained_codec(run[0]), tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    assert loaded.model.config == config
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in loaded.model.state_dict().items())
    assert all(torch.equal(t, run[1].state_dict()[name]) for name, t in loaded.codec.module.state_dict().items())
    with pytest.raises(csm.InputError, match="exists already"):
        export(tmp_path / "lm", trained_codec(run[0]), tmp_path / "model")


def test_a_language_model_is_not_packed_with_another_codec(run, tmp_path, capsys):
    keep_shape(tmp_path / "lm", small_config())

    def export_fails(codec, lm):
        command = ["train", "export", "--codec", str(codec), "--lm", str(lm), "--out", str(tmp_path / "out")]
        assert main(command) == 2 and not (tmp_path / "out").exists()
        return capsys.readouterr().err

    said = export_fails(run[0], tmp_path / "lm")
    assert "another codec (spectral, 4 codebooks of 32) than this one (mimi, 4 codebooks of 16)" in said
    assert "lm/config.json describes no codec" in export_fails(tmp_path / "lm", tmp_path / "lm")
    assert "config.json describes no language model" in export_fails(run[0], run[0])
    assert "has no config.json" in export_fails(run[0], tmp_path / "nothing")


def test_a_codec_whose_codebooks_have_not_begun_encodes_nothing(speech, tmp_path):
    train_mimi(speech, tmp_path / "run", CONFIG, replace(RECIPE, steps=2, every=2))
    with pytest.raises(csm.InputError, match="no codes yet"):
        trained_codec(tmp_path / "run")


def test_codes_of_two_shapes_don_t_get_into_one_folder(run, speech, tmp_path, capsys):
    keep_shape(tmp_path / "codes", replace(CONFIG, num_codebooks=3))
    command = ["train", "codes", "--data", str(speech), "--codec", str(run[0]), "--out", str(tmp_path / "codes")]
    assert main(command) == 2
    assert "another folder" in capsys.readouterr().err


def test_few_steps_have_all_stages_too():
    assert (MimiRecipe.of(400).warm_up, MimiRecipe.of(400).adversarial_from) == (100, 200)
    assert MimiRecipe.of(MimiRecipe.steps, every=7) == MimiRecipe(every=7)
    assert MimiRecipe.of(400, 400).adversarial_from == 400


def test_sound_keeps_its_loudness_through_every_layer_of_an_untrained_mimi():
    """What PyTorch's own start doesn't give: 1e-4 of the signal is left."""
    torch.manual_seed(0)
    config = replace(CONFIG, filters=8, dim=64)
    levels = []
    mimi = trainable_mimi(config)
    for part in (mimi.encoder, mimi.decoder):
        for layer in list(part.model)[:-1]:
            layer.register_forward_hook(lambda module, inputs, output: levels.append(output.square().mean().sqrt()))
    noise = 0.1 * torch.randn(2, 1, 4 * FRAME_SIZE)
    with torch.no_grad():
        latents = mimi.encode_to_latent(noise, quantize=False)
        (x,) = mimi.decoder_transformer(mimi.upsample(latents))
        made = mimi.decoder(x)
    assert len(levels) == 28 and all(0.5 < level < 3 for level in levels)
    assert 0.5 < latents.std() < 3 and 0.03 < made.std() < 0.5


def test_every_parameter_learns():
    trainer = MimiTrainer(CONFIG)
    trainer.train()
    start_codebooks(trainer.quantizer, torch.randn(1, CONFIG.dim, 400), 8)
    made, _, commitment = trainer(hum(), torch.tensor([4, BYPASS]))
    (made.square().mean() + commitment).backward()
    for name, parameter in trainer.codec.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    quantizer = trainable_mimi(CONFIG).quantizer
    start_codebooks(quantizer, torch.randn(1, CONFIG.dim, 400), 16)
    return quantizer


def test_codebooks_start_from_what_the_ones_before_leave(quantizer):
    """Every code is in use, and each codebook brings the sum nearer."""
    latents = torch.randn(1, CONFIG.dim, 400)
    start_codebooks_of = [quantizer.rvq_rest.vq.layers[i]._codebook for i in range(3)]
    assert all(codebook.initialized and (codebook.cluster_usage > 0).all() for codebook in start_codebooks_of)
    assert start_codebooks_of[0].cluster_usage.sum().item() == pytest.approx(16)
    quantizer.eval()
    with torch.no_grad():
        target = quantizer.rvq_rest.output_proj(quantizer.rvq_rest.input_proj(latents))
        semantic = quantised(quantizer, latents, torch.tensor([1]))[0]
        errors = [
            (quantised(quantizer, latents, torch.tensor([depth]))[0] - semantic - target).square().mean().item()
            for depth in (2, 3, 4)
        ]
    assert errors[0] < target.square().mean() and errors == sorted(errors, reverse=True)


def test_each_clip_gets_its_own_number_of_codebooks(quantizer):
    """As many as moshi's own decoder would hear from that many codes."""
    latents = torch.randn(5, CONFIG.dim, 6)
    quantizer.eval()
    with torch.no_grad():
        vectors, semantic, _ = quantised(quantizer, latents, torch.tensor([1, 2, 4, BYPASS, 3]))
        codes = quantizer.encode(latents)
        for row, depth in ((0, 1), (1, 2), (2, 4), (4, 3)):
            assert torch.allclose(vectors[row], quantizer.decode(codes[row : row + 1, :depth])[0], atol=1e-5)
            assert torch.allclose(semantic[row], quantizer.decode(codes[row : row + 1, :1])[0], atol=1e-5)
        assert torch.allclose(vectors[3], unquantised(quantizer, latents)[0][3], atol=1e-5)


def test_the_quantiser_passes_gradients_as_if_it_was_not_there(quantizer):
    latents = torch.randn(3, CONFIG.dim, 6, requires_grad=True)
    weights = torch.randn(3, CONFIG.dim, 6)
    through = quantised(quantizer, latents, torch.tensor([4, BYPASS, 1]))
    (gradient,) = torch.autograd.grad((through[0] * weights).sum(), latents)
    (plain,) = torch.autograd.grad((unquantised(quantizer, latents)[0] * weights).sum(), latents)
    (first,) = torch.autograd.grad((unquantised(quantizer, latents)[1] * weights).sum(), latents)
    assert torch.allclose(gradient[:2], plain[:2], atol=1e-5)
    assert torch.allclose(gradient[2], first[2], atol=1e-5)


def test_codebooks_follow_their_vectors_and_dead_codes_come_back(quantizer):
    codebook = quantizer.rvq_first.vq.layers[0]._codebook
    far = 5 + 0.1 * torch.randn(4, CONFIG.dim, 40)
    before = quantised(quantizer, far, torch.full((4,), 4))[2]
    with torch.no_grad():
        for step in range(300):
            training._search_dead_codes(quantizer, step)
            after = quantised(quantizer, far, torch.full((4,), 4))[2]
    assert after < 0.01 * before
    assert (codebook.cluster_usage > 0.05 * codebook.cluster_usage.mean()).all()


def test_depths_are_spread_over_all_codebooks_and_half_of_the_clips_bypass_them():
    depths = random_depths(np.random.default_rng(0), 4_000, 8, 0.5)
    counts = torch.bincount(depths + 1, minlength=10)
    assert counts[0] == pytest.approx(2_000, rel=0.1) and counts[1] == 0
    assert all(count == pytest.approx(250, rel=0.3) for count in counts[2:])


def test_folding_knows_transposed_convolutions_too():
    mimi = trainable_mimi(CONFIG)
    state = folded(mimi.state_dict())
    for name, module in mimi.named_modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            assert torch.equal(state[f"{name}.weight"], module.weight), name


def test_a_shape_is_a_name_or_a_file(tmp_path):
    file = tmp_path / "codec.json"
    for config in (CONFIG, SpectralConfig(num_codebooks=6)):
        file.write_text(json.dumps(vars(config)))
        assert codec_shape(str(file)) == config
    assert codec_shape("mimi") == MimiConfig() and codec_shape("nano") == PRESETS["nano"].codec
    MimiTrainer(CODECS["mimi-small"])
    file.write_text(json.dumps(small_config().to_dict()))
    assert model_shape(str(file)) == small_config() and model_shape("tiny") == PRESETS["tiny"]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"dims": 5}, "describes no codec.*dims"),
        ({"dim": 0}, "dim is 0"),
        ({"layers": "two"}, "layers is 'two'"),
        ({"layers": True}, "layers is True"),
        ({"kind": "opus"}, "describes no codec.*opus"),
        ({"dim": 20, "heads": 4}, "no even multiple"),
        ({"num_codebooks": 33}, "num_codebooks is 33"),
        ({"kind": "spectral", "num_codebooks": 1}, "at least 2"),
        ([1], "describes no codec"),
    ],
)
def test_a_codec_that_cannot_be_is_refused_in_one_sentence(fields, complaint, tmp_path):
    (tmp_path / "codec.json").write_text(json.dumps(fields))
    with pytest.raises(csm.InputError, match=complaint):
        codec_shape(str(tmp_path / "codec.json"))
    with pytest.raises(csm.InputError, match="There is no codec 'nothing'"):
        codec_shape("nothing")


@pytest.mark.parametrize(
    ("part", "fields", "complaint"),
    [
        (None, {"tokenizer": "words"}, "tokenizer is 'words'"),
        (None, {"max_positions": 0}, "max_positions is 0"),
        (None, {"mood": "glad"}, "describes no language model.*mood"),
        (None, {"codec": "mimi"}, "describes no language model"),
        ("backbone", {"heads": 3}, "no multiple of its kv_heads"),
        ("decoder", {"dim": 17}, "no even multiple of its heads"),
        ("decoder", {"layers": 1.5}, "layers is 1.5"),
        ("codec", {"codebook_size": -1}, "codebook_size is -1"),
    ],
)
def test_a_language_model_that_cannot_be_is_refused_in_one_sentence(part, fields, complaint, tmp_path):
    values = small_config().to_dict()
    (values[part] if part else values).update(fields)
    (tmp_path / "model.json").write_text(json.dumps(values))
    with pytest.raises(csm.InputError, match=complaint):
        model_shape(str(tmp_path / "model.json"))
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(csm.InputError, match="model.json can't be read"):
        model_shape(str(tmp_path / "model.json"))


def test_llama_s_tokenizer_needs_mimi():
    with pytest.raises(csm.InputError, match="speaks through Mimi"):
        with_codec(PRESETS["tiny"], PRESETS["nano"].codec)
    assert with_codec(PRESETS["tiny"], MimiConfig()) == PRESETS["tiny"]
    assert with_codec(PRESETS["nano"], PRESETS["nano"].codec) == PRESETS["nano"]


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    """A folder with a small random WavLM."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.WavLMConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wavlm")
    transformers.WavLMModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 16_000}))
    return folder


def test_a_teacher_s_features_lie_on_the_codec_s_frames(wavlm):
    teacher = load_teacher(str(wavlm))
    assert teacher.normalise and teacher.dim == 32
    wave = 0.01 * torch.randn(2, 8 * FRAME_SIZE)
    features = teacher.features(wave)
    assert features.shape == (2, 8, 32) and not features.requires_grad
    assert torch.allclose(features, teacher.features(5 * wave), atol=1e-3)  # do_normalize


def test_pooling_is_centred_on_the_frame():
    """A teacher that gives the loudness of each 20 ms: a knock in the middle of a frame is loudest there, as loud in
    one neighbour as in the other, and unheard in the rest."""

    class Loudness(torch.nn.Module):
        def forward(self, wave):
            return type("Output", (), {"last_hidden_state": wave.unfold(1, 400, 320).square().sum(2, keepdim=True)})

    wave = torch.zeros(1, 6 * FRAME_SIZE)
    middle = 5 * FRAME_SIZE // 2
    wave[0, middle - 60 : middle + 60] = torch.hann_window(120)
    heard = Teacher(Loudness(), 1, False).features(wave)[0, :, 0]
    assert heard.argmax() == 2 and heard[1] < 0.6 * heard[2]
    assert heard[1].item() == pytest.approx(heard[3].item(), rel=0.05)
    assert (heard[[0, 4, 5]] < 1e-3 * heard[2]).all()


def test_code_0_learns_what_the_teacher_hears(wavlm, speech, tmp_path):
    recipe = replace(RECIPE, steps=24, warm_up=8, adversarial_from=100, every=8)
    train_mimi(speech, tmp_path / "run", CONFIG, recipe, load_teacher(str(wavlm)))
    curve = [record["likeness"] for record in metrics(tmp_path / "run")]
    assert curve[-1] > curve[0] + 0.05
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["module"]
    assert "lesson.project.weight" in saved and not any("teacher" in name for name in saved)


def test_without_a_teacher_it_says_what_stands_in(speech, wavlm):
    clip = Utterance(0, 0, 24_000, "Hum.", "slt", [("m", 1.0)])
    silent = replace(clip, phones=[])
    lesson, line = choose_lesson(8, [clip], load_teacher(str(wavlm)))
    assert isinstance(lesson, FeatureLesson) and "teacher" in line
    lesson, line = choose_lesson(8, [clip], None)
    assert isinstance(lesson, PhoneLesson) and "phones" in line
    for clips in ([], [silent], [clip, silent]):
        lesson, line = choose_lesson(8, clips, None)
        assert lesson is None and line.startswith("Code 0 is not made semantic") and "\n" not in line


@pytest.mark.parametrize("name", ["nobody/nothing", "missing-folder"])
def test_a_teacher_that_is_not_there_is_refused_in_one_sentence(name):
    with pytest.raises(csm.InputError, match="There is no teacher"):
        load_teacher(name)


def test_a_teacher_that_reads_text_is_refused_in_one_sentence(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(16, 16, 1, 2, 16)).save_pretrained(tmp_path)
    with pytest.raises(csm.InputError, match="does not listen"):
        load_teacher(str(tmp_path))


def test_a_run_of_another_shape_is_not_carried_on(run, speech, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    with pytest.raises(csm.InputError, match="another folder"):
        train_mimi(speech, tmp_path / "run", replace(CONFIG, dim=32), RECIPE)
    with pytest.raises(csm.InputError, match="has no config.json"):
        trained_codec(tmp_path / "nothing")
    (tmp_path / "run" / "state.pt").write_bytes(b"half")
    with pytest.raises(csm.InputError, match="damaged"):
        trained_codec(tmp_path / "run")
    (tmp_path / "run" / "state.pt").unlink()
    with pytest.raises(csm.InputError, match="train it first"):
        trained_codec(tmp_path / "run")
