"""`python -m csm convert`: either published layout from the other, bit for bit, and readable by transformers itself."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import CsmForConditionalGeneration

import csm
from csm.checkpoint import layouts, load_model, mimi_keys
from csm.checkpoint.published import mimi_shapes
from csm.checkpoint.tensors import Stored, open_tensors, shapes_of
from csm.cli import main
from csm.config import PRESETS
from csm.model import CSM


def converted(source, target, *options):
    assert main(["convert", str(source), str(target), *options]) == 0
    return target


def tensors_of(folder):
    stored = open_tensors(sorted(folder.glob("*.safetensors")))
    return {name: tensor.load(tensor.dtype) for name, tensor in stored.items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]), name


def test_there_and_back_is_bit_for_bit(original, tmp_path):
    there = converted(original, tmp_path / "there", "--layout", "transformers")
    back = converted(there, tmp_path / "back", "--layout", "original")
    assert_same(tensors_of(back), tensors_of(original))
    again = converted(back, tmp_path / "again", "--layout", "transformers")
    assert (again / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()
    assert json.loads((again / "config.json").read_text()) == json.loads((there / "config.json").read_text())


def test_what_is_written_is_what_transformers_writes(reference, original, tmp_path):
    ours = tensors_of(converted(original, tmp_path / "made", "--layout", "transformers"))
    theirs = reference.state_dict()
    assert_same(ours, {name: tensor.detach() for name, tensor in theirs.items()})


@pytest.mark.parametrize("shard_bytes", [10**9, 100_000])
def test_transformers_itself_loads_what_is_written(reference, original, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(sys.modules["csm.checkpoint.convert"], "SHARD_BYTES", shard_bytes)
    made = converted(original, tmp_path / "made", "--layout", "transformers")
    assert (made / "model.safetensors.index.json").is_file() == (shard_bytes < 10**9)
    loaded, report = CsmForConditionalGeneration.from_pretrained(made, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name]), name
    ids = torch.tensor([[256, 65, 66, 257]])
    options = dict(max_new_tokens=8, do_sample=False, depth_decoder_do_sample=False)
    assert torch.equal(loaded.generate(ids, **options), reference.generate(ids, **options))


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_what_is_written_speaks_the_same(folder, tmp_path, layout):
    made = converted(folder, tmp_path / "made", "--layout", layout)
    options = dict(text="Hello.", speaker=0, max_audio_length_ms=800, seed=1)
    first, second = csm.load(str(folder), "cpu"), csm.load(str(made), "cpu")
    codes = first.generate_codes(**options)
    assert torch.equal(second.generate_codes(**options), codes)
    torch.testing.assert_close(second.codec.decode(codes), first.codec.decode(codes))


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_bfloat16_is_half_the_size_and_leaves_the_codec_alone(folder, tmp_path, layout):
    made = converted(folder, tmp_path / "made", "--layout", layout, "--dtype", "bfloat16")
    whole, half = load_model(str(folder)), load_model(str(made), torch.bfloat16)
    for name, tensor in half.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name].bfloat16()), name
    for name, tensor in half.codec.module.state_dict().items():
        assert torch.equal(tensor, whole.codec.module.state_dict()[name]), name
    stored = {t.dtype for n, t in load_file(made / "model.safetensors").items() if not n.startswith("codec_model.")}
    assert stored == {torch.bfloat16}
    back = converted(made, tmp_path / "back", "--layout", layout, "--dtype", "float32")
    assert torch.equal(load_model(str(back)).model.audio_head, half.model.audio_head.float())


def test_the_published_model_has_538_tensors_in_the_transformers_layout():
    config = PRESETS["tiny"]
    with torch.device("meta"):
        shapes = shapes_of(CSM(config))

    def stored(shapes):
        return {name: Stored(shape, torch.float32, torch.zeros) for name, shape in shapes.items()}

    names = list(layouts.to_transformers(stored(shapes), config))
    names += mimi_keys.to_transformers(stored(mimi_shapes(config.codec)), config.codec)
    assert len(names) == 538


def test_what_stands_in_the_way_is_named_in_one_sentence(folder, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for arguments, words in (
        ([str(folder), str(taken)], "exists already"),
        ([str(folder), str(tmp_path / "no" / "where")], "does not exist"),
        (["nano", str(tmp_path / "new")], "own layout"),
        ([str(tmp_path / "nothing"), str(tmp_path / "new")], "There is no model"),
    ):
        assert main(["convert", *arguments, "--layout", "original"]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_damaged_source_leaves_nothing_behind(folder, tmp_path, capsys):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["convert", str(damaged), str(tmp_path / "new"), "--layout", "original"]) == 2
    assert "can't be read" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]
