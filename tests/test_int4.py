"""Weights in four bits: rounded in groups, computed as one graph a step, and nearly the same model."""

import warnings
from dataclasses import replace

import pytest
import torch

from csm import Segment, load
from csm.engine import Engine
from csm.engine.frames import audio_rows
from csm.errors import InputError
from csm.model import CSM, KVCache, SideBySide, in_graph
from csm.model.int4 import group_for, rounded_to_int4
from csm.model.packed import packed
from tests.test_packed import CONFIG, DRAWN, SMALL, divergence, random_model, stepped

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def made() -> CSM:
    return packed(random_model(0), "int4")


@torch.inference_mode()
def as_rounded() -> CSM:
    """The same numbers as in int4, in plain torch."""
    model = random_model(0)
    for stack in (model.backbone, model.decoder):
        for linear in stack.modules():
            if isinstance(linear, torch.nn.Linear):
                group = group_for(linear.in_features)
                linear.weight.copy_(rounded_to_int4(linear.weight, group).wide())
    model.projection.weight.copy_(rounded_to_int4(model.projection.weight, 32).wide())
    return model


@pytest.mark.parametrize("group", [32, 128])
def test_numbers_that_four_bits_hold_come_back_exactly_and_others_nearly(group):
    torch.manual_seed(0)
    steps = torch.randint(-8, 8, (6, 256 // group, group)).float()
    steps[..., 0] = -8
    exact = (steps * torch.rand(6, 256 // group, 1)).flatten(1)
    exact[0] = 0
    torch.testing.assert_close(rounded_to_int4(exact, group).wide(), exact)
    weight = torch.randn(64, 256)
    made = rounded_to_int4(weight, group)
    off = (made.wide() - weight).norm() / weight.norm()
    assert made.shape == (64, 256) and made.nbytes == 64 * 256 // 2 + 64 * 256 // group * 4
    assert 0.05 < off < {32: 0.09, 128: 0.12}[group]


def test_a_row_that_no_group_divides_is_refused_by_name():
    assert group_for(704) == 32 and group_for(1088) == 64 and group_for(2048) == 128 and group_for(40) is None
    with pytest.raises(ValueError, match="Rows of 40 don't divide by 32"):
        rounded_to_int4(torch.zeros(2, 40), 32)


def test_graphs_compute_the_model_whose_numbers_they_were_given(made):
    """What is left is the inputs' rounding to eight bits, far less than that of the weights."""
    rounding = divergence(random_model(0), as_rounded()).mean()
    assert divergence(as_rounded(), made).mean() < rounding / 10
    assert (
        divergence(random_model(0), made).mean()
        < 1.2 * rounding
        < divergence(random_model(0), random_model(1)).mean() / 5
    )


@torch.inference_mode()
def test_one_by_one_or_at_once_positions_are_the_same(made):
    torch.manual_seed(0)
    x = torch.randn(2, 7, SMALL.dim)
    whole = made.backbone(x)
    cache = KVCache(SMALL, 16, 2, x)
    parts = [made.backbone(x[:, start:end], cache) for start, end in ((0, 3), (3, 4), (4, 5), (5, 6), (6, 7))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0.02, atol=0.02)
    assert cache.length == 7
    with pytest.raises(IndexError, match="holds 16 positions; 17 were asked for"):
        made.backbone(torch.zeros(2, 10, SMALL.dim), cache)


@torch.inference_mode()
def test_streams_side_by_side_say_what_each_says_alone(made):
    torch.manual_seed(0)
    x = torch.randn(2, 1, SMALL.dim)
    caches, alone = [[KVCache(SMALL, 16, 1, x) for _ in range(2)] for _ in range(2)]
    for pair in (caches, alone):
        for length, cache in zip((3, 5), pair):
            made.backbone(torch.ones(1, length, SMALL.dim), cache)
    together = made.backbone(x, SideBySide(caches))
    assert torch.equal(together, torch.cat([made.backbone(row, own) for row, own in zip(x.split(1), alone)]))
    assert [cache.length for cache in caches] == [4, 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_int4_steps_like_any_other(dtype):
    model = packed(random_model(0).to(dtype), "int4")
    engine = Engine(model)
    context = engine.new_context()
    engine.prefill(context, audio_rows(torch.randint(1, 32, (9, 4))))
    frames = [engine.step(context, DRAWN, torch.Generator().manual_seed(k)) for k in range(3)]
    assert all(frame.shape == (4,) and 0 <= int(frame.min()) <= int(frame.max()) < 35 for frame in frames)
    assert context.cache.keys.dtype == torch.float32 and context.length == 12
    assert all(map(torch.equal, stepped(model, 3), stepped(model, 3)))


def test_packing_leaves_no_second_copy_behind():
    model = random_model(0)
    packed(model, "int4")
    assert {name for name, _ in model.named_parameters() if "norm" not in name} == {
        "text_embeddings.weight",
        "audio_embeddings.weight",
    }


def test_nano_in_int4_speaks():
    generator = load("nano", "cpu", weights="int4")
    assert generator.engine.model.packing == "int4"
    prompt = Segment(0, "Hi there.", codes=torch.randint(0, 512, (12, generator.config.num_codebooks)))
    codes = generator.generate_codes("Hello.", 0, context=[prompt], max_audio_length_ms=400, seed=1)
    assert len(codes) and 0 <= int(codes.min()) <= int(codes.max()) < generator.config.audio_vocab_size


def test_shapes_and_processors_that_cannot_fall_back_with_one_warning(monkeypatch):
    odd = replace(CONFIG, backbone=replace(SMALL, mlp_dim=40))
    with torch.no_grad():
        model = CSM(odd).init_weights()
    with pytest.warns(UserWarning, match="Rows of 40 numbers .* in int8 instead") as told:
        assert packed(model, "int4").packing == "int8"
    assert len(told) == 1
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.warns(UserWarning, match="This processor is none with AVX2") as told:
        assert packed(random_model(0), "int4").packing == "int8"
    assert len(told) == 1


def test_without_onnx_runtime_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("csm.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx and onnxruntime: run `pip install '.*\[int4\]'`"):
        load("nano", "cpu", weights="int4")


def test_where_int4_is_to_be_had_nothing_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_graph.why_not_in_graphs(CONFIG) is None
        packed(random_model(0), "int4")
