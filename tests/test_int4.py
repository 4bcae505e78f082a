"""Weights in four bits: rounded in groups, computed as one graph a step, and nearly the same model."""

import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from csm import Segment, load
from csm.checkpoint import convert, describe, load_model
from csm.cli import main
from csm.engine import Engine
from csm.engine.frames import audio_rows
from csm.errors import InputError
from csm.model import CSM, KVCache, SideBySide, in_graph
from csm.model.int4 import Int4, group_for, rounded_to_int4
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


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small published model whose rows divide by 32, and the same packed."""
    from tests.published import small_csm_config, small_reference, write_transformers

    depth = small_csm_config().depth_decoder_config.to_dict()
    depth |= {"backbone_hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
    model = small_reference(**shape, depth_decoder_config=depth | {"intermediate_size": 64})
    folder = tmp_path_factory.mktemp("published")
    write_transformers(folder / "whole", model)
    assert main(["convert", str(folder / "whole"), str(folder / "packed"), "--weights", "int4"]) == 0
    return folder / "whole", folder / "packed"


def codes_of(model, **options):
    return load(str(model), "cpu", **options).generate_codes("Hello.", 0, max_audio_length_ms=560, seed=3)


def test_weights_packed_on_disk_say_what_those_packed_at_loading_say(published):
    whole, made = published
    assert torch.equal(codes_of(made), codes_of(whole, weights="int4"))
    assert torch.equal(codes_of(made, weights="int4"), codes_of(made))
    assert not torch.equal(codes_of(whole, weights="float32"), codes_of(made))
    assert "packed in int4" in describe(str(made)).layout


def test_any_loader_of_safetensors_reads_packed_weights(published):
    whole, made = published
    weights = load_model(str(whole), torch.bfloat16).model.state_dict()
    name = "backbone.layers.1.mlp.w2.weight"
    with safe_open(made / "model.safetensors", "pt") as file:
        assert file.metadata()["kind"] == "int4" and file.metadata()["order"] == "lower half first, eight added"
        stored = Int4(file.get_tensor(f"{name}.packed"), file.get_tensor(f"{name}.scales"))
        assert torch.equal(file.get_tensor("audio_head"), weights["audio_head"])
    assert stored.group == 32
    assert torch.equal(stored.wide(), rounded_to_int4(weights[name], 32).wide())


def test_nano_packed_on_disk_speaks_the_same(tmp_path):
    convert("nano", tmp_path / "nano", None, weights="int4")
    assert torch.equal(codes_of(tmp_path / "nano"), codes_of("nano", weights="int4"))


def test_packed_weights_that_cannot_be_used_are_told_of_in_one_sentence(published, tmp_path, monkeypatch, capsys):
    whole, made = published
    file = "model.safetensors"
    with safe_open(made / file, "pt") as opened:
        told, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}

    def written(name, told, changed):
        folder = shutil.copytree(made, tmp_path / name)
        save_file(tensors | changed, folder / file, told)
        return str(folder)

    name = "decoder.layers.0.attn.k_proj.weight.packed"
    wider = {name: tensors[name].flatten(1).unflatten(1, (-1, 8)).contiguous()}
    other = written("other", told | {"kind": "int3"}, {})
    coarser, torn = written("coarser", told, wider), written("torn", told, {"more.packed": tensors[name].clone()})
    for folder, options, words in (
        (other, {}, "packed as 'int3', which this version can't read"),
        (coarser, {}, "k_proj.weight is in groups of 16, and this version reads groups of 32"),
        (torn, {}, "tensors that the model doesn't know, the first more.packed"),
        (str(made), {"weights": "int8"}, "in int4: for int8, load the model they were made of"),
    ):
        with pytest.raises(InputError, match=words):
            load(folder, "cpu", **options)
    with pytest.raises(InputError, match="packed weights, which only speak"):
        load_model(str(made))  # as training does
    for source, words in ((made, "holds packed weights"), (tmp_path / "nothing", "There is no model")):
        assert main(["convert", str(source), str(tmp_path / "new"), "--weights", "int4"]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert main(["convert", str(whole), str(tmp_path / "new"), "--weights", "int4", "--layout", "original"]) == 2
    assert "Say either" in capsys.readouterr().err and not (tmp_path / "new").exists()
    monkeypatch.setattr("csm.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs onnx and onnxruntime"):
        load(str(made), "cpu")


def test_rows_that_no_group_divides_are_not_packed(folder, tmp_path):
    with pytest.raises(InputError, match="Rows of 48 numbers, as .* has, don't divide into int4's groups"):
        convert(str(folder), tmp_path / "new", None, weights="int4")
