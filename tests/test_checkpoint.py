"""Files to weights and back: strict, small, and never half loaded."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import csm
from csm import InputError
from csm.assets import ASSETS
from csm.checkpoint import HUB_MIMI, INDEX, fill, load_model, save_folder
from csm.config import PRESETS
from csm.model import CSM
from csm.text import ByteTokenizer
from tests.small import small_generator


@pytest.fixture
def folder(tmp_path):
    generator = small_generator()
    save_folder(tmp_path / "model", generator.engine.model, generator.codec.module)
    return tmp_path / "model"


def test_a_saved_model_speaks_the_same_after_loading(folder):
    first, second = csm.load(str(folder), "cpu"), csm.load(str(folder), "cpu")
    options = dict(text="Hello.", speaker=0, max_audio_length_ms=800, seed=1)
    assert torch.equal(first.generate(**options), second.generate(**options))
    original = small_generator().engine.model.state_dict()
    for name, tensor in first.engine.model.state_dict().items():
        assert torch.equal(tensor, original[name].half().float()), name


def test_every_shipped_weight_file_is_under_10_mb_and_all_are_listed():
    files = sorted((ASSETS / "nano").glob("*.safetensors"))
    listed = set(json.loads((ASSETS / "nano" / INDEX).read_text())["weight_map"].values())
    assert {file.name for file in files} == listed
    assert all(file.stat().st_size < 10_000_000 for file in files)
    assert sum(file.stat().st_size for file in files) < 40_000_000


def shard(folder):
    return next(folder.glob("*.safetensors"))


def damage_truncate(folder):
    file = shard(folder)
    file.write_bytes(file.read_bytes()[:-1000])


def damage_missing_key(folder):
    tensors = load_file(shard(folder))
    tensors.pop("csm.projection.weight")
    save_file(tensors, shard(folder))


def damage_extra_key(folder):
    save_file(load_file(shard(folder)) | {"csm.surprise": torch.zeros(1)}, shard(folder))


def damage_shape(folder):
    save_file(load_file(shard(folder)) | {"csm.projection.weight": torch.zeros(3, 3)}, shard(folder))


def damage_config(folder):
    (folder / "config.json").write_text("{")


def damage_config_field(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"wings": 2}))


def damage_shard_gone(folder):
    shard(folder).unlink()


def damage_pickle(folder):
    shard(folder).write_bytes(pickle.dumps({"csm.projection.weight": print}))


@pytest.mark.parametrize(
    "damage,words",
    [
        (damage_truncate, "can't be read"),
        (damage_missing_key, "lacks 1 tensors, the first of them projection.weight"),
        (damage_extra_key, "doesn't know, the first surprise"),
        (damage_shape, r"has shape \(3, 3\)"),
        (damage_config, "no complete model"),
        (damage_config_field, "wings"),
        (damage_shard_gone, "can't be read"),
        (damage_pickle, "can't be read"),
    ],
)
def test_a_damaged_model_is_refused_in_one_sentence(folder, damage, words):
    damage(folder)
    with pytest.raises(InputError, match=words) as error:
        csm.load(str(folder), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nonsense", "./nowhere", "/nowhere/at/all", "small"])
def test_an_unknown_model_is_refused_in_one_sentence(name):
    with pytest.raises(InputError):
        load_model(name)


def test_the_original_layout_loads_as_it_is(tmp_path, monkeypatch):
    """A file in the original's names fills the model; Mimi and the tokenizer come from where the hub puts them."""
    from csm.checkpoint import published
    from csm.codec import build_codec
    from tests.small import SMALL_MIMI, fill_codebooks, small_config

    config = small_config(SMALL_MIMI)
    torch.manual_seed(0)
    model = CSM(config).init_weights()
    codec = build_codec(SMALL_MIMI)
    fill_codebooks(codec.module)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    save_file(codec.module.state_dict(), tmp_path / "mimi.safetensors")
    downloads = {HUB_MIMI[1]: tmp_path / "mimi.safetensors", "tokenizer.json": tmp_path / "tokenizer.json"}
    monkeypatch.setattr(published, "fetch_file", lambda repository, file, token: downloads[file])
    monkeypatch.setattr(published, "LlamaTokenizer", lambda path: ByteTokenizer())
    monkeypatch.setitem(PRESETS, "tiny", config)
    generator = csm.load(str(tmp_path), "cpu", dtype=torch.float32)
    assert torch.equal(generator.engine.model.audio_head, model.audio_head)
    assert generator.generate("Hi.", 0, max_audio_length_ms=400, seed=1).shape == (5 * 1920,)


def test_offline_the_published_model_is_refused_in_one_sentence(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="hub can't be reached"):
        load_model("sesame/csm-1b")


def test_an_unknown_device_is_refused_in_one_sentence():
    with pytest.raises(InputError, match="not available"):
        csm.load("nano", "quantum")


def test_filling_keeps_the_module_s_own_precision():
    layer = torch.nn.Linear(2, 2)
    fill(layer, {"weight": torch.ones(2, 2).half(), "bias": torch.zeros(2).half()}, "test")
    assert layer.weight.dtype == torch.float32
