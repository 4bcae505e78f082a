"""Packed weights: the same model, nearly the same numbers, in half or a quarter of the memory."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from csm import Segment, load
from csm.cli import main
from csm.config import ModelConfig, SpectralConfig, TransformerConfig
from csm.engine import Engine
from csm.engine.frames import audio_rows
from csm.errors import InputError
from csm.model import CSM, KVCache
from csm.model.packed import (
    PACKINGS,
    FineInt8Linear,
    HalfLinear,
    Int8Linear,
    PackedCSM,
    check_packing,
    packed,
    reading_precision,
    rounded_by_kernels,
    usual_packing,
)
from csm.model.recorded import RecordedCSM, RecordedTransformer
from csm.model.transformer import Transformer
from csm.settings import Settings

if "fbgemm" not in torch.backends.quantized.supported_engines:
    pytest.skip("packed weights are for x86 CPUs", allow_module_level=True)

RECORDED = tuple(packing for packing in PACKINGS if packing != "int4")
DRAWN = Settings(temperature=0.9, topk=50)
SMALL = TransformerConfig(layers=2, dim=64, heads=4, kv_heads=2, mlp_dim=96)
CONFIG = ModelConfig(SMALL, SMALL, SpectralConfig(num_codebooks=4, codebook_size=32), 258, 35, "bytes", 128)


@pytest.fixture(scope="module")
def model() -> CSM:
    return random_model(0)


def random_model(seed: int) -> CSM:
    """With weights large enough to be of an opinion."""
    torch.manual_seed(seed)
    model = CSM(CONFIG).requires_grad_(False).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.15)
    return model


# Inputs have seven bits where a processor lacks VNNI: steps twice as long, so four times the divergence.
INT8_BOUND = 5e-3 if torch.cpu._is_vnni_supported() else 2.5e-2


def divergence(model: CSM, other: CSM) -> torch.Tensor:
    """KL of each of 40 frames' four distributions from one model's to the other's, (40, 4)."""
    codes = torch.randint(0, 32, (40, 4), generator=torch.Generator().manual_seed(1))
    rows = audio_rows(codes)
    logs = []
    with torch.inference_mode():
        for each in (model, other):
            states = each.backbone(each.embed_rows(rows.ids[None], rows.mask[None]))[0]
            first = each.codebook0_head(states)[:, None]
            logs.append(torch.cat([first, each.depth_logits(states, codes)], dim=1).double().log_softmax(-1))
    return (logs[0].exp() * (logs[0] - logs[1])).sum(-1)


def test_float32_packed_says_what_the_model_says(model):
    made = packed(model, "float32", keep=True)
    assert divergence(model, made).abs().max() < 1e-7
    spoken = []
    for each in (model, made):
        engine, noise = Engine(each), torch.Generator().manual_seed(3)
        context = engine.new_context()
        engine.prefill(context, audio_rows(torch.randint(1, 32, (9, 4), generator=torch.Generator().manual_seed(2))))
        spoken.append(torch.stack([engine.step(context, DRAWN, noise) for _ in range(12)]))
    assert torch.equal(*spoken)


@pytest.mark.parametrize(("packing", "bound"), [("bfloat16", 5e-4), ("float16", 1e-5), ("int8", INT8_BOUND)])
def test_a_packed_model_predicts_nearly_the_same_codes(model, packing, bound):
    found = divergence(model, packed(model, packing, keep=True)).mean()
    assert 0 < found < bound
    assert divergence(model, random_model(1)).mean() > 50 * bound, "or the bound says nothing"


@pytest.mark.parametrize("kind", [HalfLinear, Int8Linear, FineInt8Linear])
def test_a_row_s_result_does_not_depend_on_the_rows_beside_it(kind):
    torch.manual_seed(0)
    linear = kind(torch.randn(48, 64))
    x = torch.randn(3, 5, 64) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    together = linear(x)
    assert together.shape == (3, 5, 48) and together.dtype == torch.float32
    alone = torch.stack([linear(row[None])[0] for row in x.flatten(0, 1)]).view(3, 5, 48)
    # Without AVX-512 float16's product takes one or two rows in another order of sums than more.
    rtol, atol = (5e-5, 5e-4) if kind is HalfLinear else (1e-5, 1e-6)
    torch.testing.assert_close(together, alone, rtol=rtol, atol=atol)


def test_int8_is_near_the_exact_product_two_digits_are_nearer_and_zeros_stay_zeros():
    torch.manual_seed(0)
    weight, x = torch.randn(256, 512) * torch.logspace(-3, 3, 256)[:, None], torch.randn(4, 512)
    x[:, 0] = 100  # one number that makes the others small
    off = {}
    for kind in (Int8Linear, FineInt8Linear):
        linear, exact = kind(weight), x @ weight.T
        off[kind] = ((linear(x) - exact).norm(dim=0) / exact.norm(dim=0)).median()
        assert not linear(torch.zeros(1, 512)).any()
    assert off[FineInt8Linear] < 0.01 < 2 * off[FineInt8Linear] + 0.01 < off[Int8Linear] < 0.2


@pytest.mark.parametrize("packing", RECORDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_steps_like_any_other(model, packing, dtype):
    engine = Engine(packed(random_model(0).to(dtype), packing))
    context = engine.new_context()
    codes = torch.randint(1, 32, (9, 4))
    engine.prefill(context, audio_rows(codes))
    frames = [engine.step(context, DRAWN, torch.Generator().manual_seed(k)) for k in range(3)]
    assert all(frame.shape == (4,) and 0 <= int(frame.min()) <= int(frame.max()) < 35 for frame in frames)
    assert context.cache.keys.dtype == torch.float32 and context.length == 12


@torch.inference_mode()
def stepped(model: CSM, rows: int, drawn: Settings = DRAWN) -> list[torch.Tensor]:
    """Codes and states of six frames of `rows` streams whose contexts begin with three positions."""
    noise = torch.Generator().manual_seed(rows)
    like, found = model.projection.weight, []
    cache = KVCache(CONFIG.backbone, 16, rows, like)
    state = model.backbone(torch.randn(rows, 3, SMALL.dim, generator=noise), cache)[:, -1]
    for _ in range(6):
        codes = model.sample_frame(state, drawn, torch.rand(rows, 4, 35, generator=noise) + 0.1)
        state = model.backbone(model.embed_frames(codes, torch.zeros(rows, dtype=torch.int64))[:, None], cache)[:, -1]
        found += [codes, state]
    return found


def recordings(model: CSM) -> list[bool]:
    """Whether sampling a frame and stepping behind it could be recorded; either was tried once."""
    made = [*model.backbone.step.made, *(work for frame in model.frame.values() for work in frame.made)]
    assert len(made) == 2
    return [work is not None for work in made]


@pytest.mark.parametrize("packing", RECORDED)
@pytest.mark.parametrize("drawn", [DRAWN, replace(DRAWN, min_p=0.3)])
def test_recorded_steps_give_what_the_plain_ones_give(packing, drawn, monkeypatch):
    """The same codes; the states to the last bit for one stream, and to rounding for three, who attend one by one."""
    recorded, plain = packed(random_model(0), packing), packed(random_model(0), packing)
    found = [stepped(recorded, rows, drawn) for rows in (1, 3)]
    monkeypatch.setattr(RecordedTransformer, "forward", Transformer.forward)
    monkeypatch.setattr(RecordedCSM, "sample_frame", CSM.sample_frame)
    for rows, ours in zip((1, 3), found):
        for one, other in zip(ours, stepped(plain, rows, drawn)):
            exact = rows == 1 or not one.is_floating_point()
            torch.testing.assert_close(one, other, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5)
    assert not plain.backbone.step.made
    assert all(recordings(recorded)) or packing == "bfloat16"  # whose weights no graph can hold


def test_where_nothing_can_be_recorded_steps_are_taken_as_ever(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("no TorchScript here")

    wanted = stepped(packed(random_model(0), "float32"), 1)
    monkeypatch.setattr(torch.jit, "trace", broken)
    model = packed(random_model(0), "float32")
    assert all(map(torch.equal, stepped(model, 1), wanted)) and not any(recordings(model))


def test_a_step_beyond_the_cache_is_refused_when_recorded_too():
    model = packed(random_model(0), "float32")
    cache = KVCache(CONFIG.backbone, 4, 1, model.projection.weight)
    with torch.inference_mode():
        model.backbone(torch.zeros(1, 3, SMALL.dim), cache)
        model.backbone(torch.zeros(1, 1, SMALL.dim), cache)
        with pytest.raises(IndexError, match="holds 4 positions; 5 were asked for"):
            model.backbone(torch.zeros(1, 1, SMALL.dim), cache)
    assert cache.length == 4


def test_threads_that_step_at_once_share_the_recordings():
    model, wanted = packed(random_model(0), "float32"), stepped(packed(random_model(0), "float32"), 2)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: stepped(model, 2), range(8)):
            assert all(map(torch.equal, found, wanted))
    assert all(recordings(model))


def test_packing_leaves_no_second_copy_behind():
    model = random_model(0)
    made = packed(model, "int8")
    assert {name for name, _ in model.named_parameters() if "norm" not in name} == {
        "text_embeddings.weight",
        "audio_embeddings.weight",
    }
    assert made.text_embeddings.weight is model.text_embeddings.weight


def test_nano_in_int8_says_valid_codes_and_hears_its_prompt(tmp_path):
    generator = load("nano", "cpu", weights="int8")
    prompt = Segment(0, "Hi there.", codes=torch.randint(0, 512, (12, generator.config.num_codebooks)))
    codes = generator.generate_codes("Hello.", 0, context=[prompt], max_audio_length_ms=400, seed=1)
    assert codes.shape[1] == generator.config.num_codebooks
    assert len(codes) and 0 <= int(codes.min()) <= int(codes.max()) < generator.config.audio_vocab_size


def test_weights_can_be_chosen_by_name():
    assert load("nano", "cpu", weights="bfloat16").engine.model.packing == "bfloat16"
    assert load("nano", "cpu", weights="float32").engine.model.packing == "float32"
    assert load("nano", "cpu").engine.model.packing == "float16"  # as it is stored
    assert usual_packing(None) == "float32"
    assert not isinstance(load("nano", "cpu", dtype=torch.bfloat16).engine.model, PackedCSM)


def test_the_environment_can_choose_the_weights(monkeypatch):
    monkeypatch.setenv("CSM_WEIGHTS", "int8")
    assert load("nano", "cpu").engine.model.packing == "int8"


def test_weights_that_do_not_exist_are_refused_in_one_sentence(tmp_path, capsys):
    with pytest.raises(InputError, match="choose float32, bfloat16, float16, int8 or int4"):
        load("nano", "cpu", weights="int3")
    with pytest.raises(InputError, match="x86 CPUs"):
        check_packing("int8", torch.device("cuda"))
    script, out = tmp_path / "script.txt", tmp_path / "out.wav"
    script.write_text("A: Hi.")
    assert main(["generate", "--script", str(script), "--out", str(out), "--model", "nano", "--weights", "odd"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not out.exists()


def test_on_a_gpu_eight_bits_are_the_kernels_business():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert reading_precision("int8", None, gpu) == reading_precision("float8", None, gpu) == torch.bfloat16
    assert rounded_by_kernels("float8", gpu) and not rounded_by_kernels("int8", cpu)
    with pytest.raises(InputError, match="for x86 CPUs"):
        reading_precision("float16", None, gpu)
    with pytest.raises(InputError, match="can't be 'float8'"):
        reading_precision("float8", None, cpu)
