"""The published layouts: each loads as it is, and gives the reference's own numbers."""

import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MimiModel

import csm
from csm import InputError, Segment
from csm.checkpoint import load_model
from csm.checkpoint.configs import model_config, to_json
from csm.checkpoint.tensors import open_tensors
from csm.config import PRESETS, RopeConfig
from csm.engine.frames import Rows
from tests.published import (
    AUDIO,
    AUDIO_EOS,
    K,
    small_reference,
    write_tokenizer,
    write_transformers,
)

FRAMES = 100


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def copy_of_original(original, tmp_path):
    return shutil.copytree(original, tmp_path / "copy")


def close(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def sound(frames=6, seed=0):
    return torch.randn(frames * 1920, generator=torch.Generator().manual_seed(seed)) * 0.3


def context():
    return [Segment(0, "Hi, who is it?", audio=sound()), Segment(1, "It is me.", audio=sound(4, 1))]


def reference_inputs(generator):
    """The same conversation as that library wants it: ids with places for audio, and the sounds in one row."""
    ids, ends, sounds = [], [], []
    for segment in context():
        ids += generator.tokenizer.encode(f"[{segment.speaker}]{segment.text}")
        ids += [AUDIO] * (len(segment.audio) // 1920) + [AUDIO_EOS]
        sounds.append(segment.audio)
        ends.append(sum(map(len, sounds)))
    ids += generator.tokenizer.encode("[0]Come in.")
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        "input_values": torch.cat(sounds).view(1, 1, -1),
        "input_values_cutoffs": torch.tensor([ends]),
    }


def test_hidden_states_and_logits_are_the_reference_s(reference, folder):
    generator = csm.load(str(folder), "cpu")
    model = generator.engine.model
    rows = Rows.join([generator.prompt_rows(context()), generator.turn_rows("Come in.", 0)])
    with torch.inference_mode():
        theirs = reference(**reference_inputs(generator), output_hidden_states=True)
        hidden = model.backbone(model.embed_rows(rows.ids[None], rows.mask[None]))
        assert close(hidden, theirs.hidden_states[-1])
        assert close(model.codebook0_head(hidden), theirs.logits)
        codes = torch.randint(0, 32, (7, K), generator=torch.Generator().manual_seed(0))
        state = hidden[0, -7:]
        depth = reference.depth_decoder(
            torch.nn.functional.pad(codes[:, :-1], (1, 0)), backbone_last_hidden_state=state.clone()
        )
        assert close(model.depth_logits(state, codes), depth.logits)


def spoken(folder):
    generator = csm.load(str(folder), "cpu")
    return generator.generate_codes("Come in.", 0, context(), max_audio_length_ms=FRAMES * 80, topk=1)


def test_greedy_codes_are_the_reference_s_frame_by_frame(reference, folder):
    inputs = reference_inputs(csm.load(str(folder), "cpu"))
    theirs = reference.generate(**inputs, max_new_tokens=FRAMES, do_sample=False, depth_decoder_do_sample=False)[0]
    ours = spoken(folder)
    assert ours.shape == (FRAMES, K)
    assert torch.equal(ours, theirs)
    assert len({tuple(frame) for frame in ours.tolist()}) > FRAMES // 4  # nothing that says one thing over and over


def test_the_original_layout_says_the_same(folder, original):
    assert torch.equal(spoken(original), spoken(folder))


def test_the_original_pickle_says_the_same(folder, copy_of_original):
    weights = copy_of_original / "model.safetensors"
    torch.save(load_file(weights), copy_of_original / "ckpt.pt")
    weights.unlink()
    assert torch.equal(spoken(copy_of_original), spoken(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "ckpt.pt"])
def test_a_file_loads_like_its_folder(copy_of_original, name):
    if name == "ckpt.pt":
        torch.save(load_file(copy_of_original / "model.safetensors"), copy_of_original / name)
    loaded = load_model(str(copy_of_original / name))
    assert torch.equal(loaded.model.audio_head, load_model(str(copy_of_original)).model.audio_head)


def test_shards_load_like_one_file(reference, folder, tmp_path):
    sharded = write_transformers(tmp_path / "sharded", reference, max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    state = load_model(str(folder)).model.state_dict()
    for name, tensor in load_model(str(sharded)).model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_of_both_layouts_in_one_folder_the_one_with_its_codec_inside_is_taken(reference, original, tmp_path):
    """As published: shards in the transformers layout beside the original's single file."""
    both = write_transformers(tmp_path / "both", reference, max_shard_size="100KB")
    index = json.loads((both / "model.safetensors.index.json").read_text())
    renamed = {file: file.replace("model-", "transformers-") for file in set(index["weight_map"].values())}
    for old, new in renamed.items():
        (both / old).rename(both / new)
    index["weight_map"] = {key: renamed[file] for key, file in index["weight_map"].items()}
    (both / "model.safetensors.index.json").unlink()
    (both / "transformers.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(original / "model.safetensors", both)
    assert load_model(str(both)).codec.encode(sound()).shape == (6, K)
    next(both.glob("transformers-00002*")).unlink()  # a download that never ended: the other layout is complete
    shutil.copy(original / "mimi.safetensors", both)
    assert torch.equal(spoken(both), spoken(original))


def test_either_copy_of_the_tied_embeddings_is_enough(copy):
    tensors = {name: tensor.clone() for name, tensor in load_file(copy / "model.safetensors").items()}
    first, second = "backbone_model.embed_tokens.embed_audio_tokens.weight", "depth_decoder.model.embed_tokens.weight"
    found = tensors.pop(first, None)
    weight = found if found is not None else tensors.pop(second)
    for name in (first, second):
        rest = {key: tensor for key, tensor in tensors.items() if key not in (first, second)}
        save_file(rest | {name: weight}, copy / "model.safetensors", metadata={"format": "pt"})
        assert torch.equal(load_model(str(copy)).model.audio_embeddings.weight, weight)
    save_file(rest | {first: weight, second: weight + 1}, copy / "model.safetensors")
    with pytest.raises(InputError, match="two copies"):
        load_model(str(copy))


def test_a_head_width_of_its_own_is_read_from_the_config(tmp_path):
    reference = small_reference(head_dim=12)
    generator = csm.load(str(write_transformers(tmp_path, reference)), "cpu")
    model, inputs = generator.engine.model, reference_inputs(generator)
    rows = Rows.join([generator.prompt_rows(context()), generator.turn_rows("Come in.", 0)])
    with torch.inference_mode():
        hidden = model.backbone(model.embed_rows(rows.ids[None], rows.mask[None]))
        assert close(hidden, reference(**inputs, output_hidden_states=True).hidden_states[-1])


def test_mimi_gives_the_codes_and_the_waveform_of_transformers_and_of_moshi(reference, folder, original):
    wave = sound(40)
    inside, beside = load_model(str(folder)).codec, load_model(str(original)).codec
    mimi: MimiModel = reference.codec_model
    with torch.inference_mode():
        theirs = mimi.encode(wave.view(1, 1, -1)).audio_codes
        heard = mimi.decode(theirs).audio_values[0, 0]
    codes = inside.encode(wave)
    assert torch.equal(codes.T, theirs[0])
    assert torch.equal(codes, beside.encode(wave))
    assert len(codes.unique()) > 20
    assert (inside.decode(codes) - heard).abs().max() < 1e-4 * heard.abs().max()
    assert torch.equal(inside.decode(codes), beside.decode(codes))


def test_mimi_s_published_names_load_too(copy_of_original):
    """The published file was written before moshi numbered its projections."""
    file = copy_of_original / "mimi.safetensors"
    older = {
        name.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0.", "out_proj."): tensor
        for name, tensor in load_file(file).items()
    }
    expected = load_model(str(copy_of_original)).codec.encode(sound())
    save_file(older, copy_of_original / "tokenizer-e351c8d8-checkpoint125.safetensors")
    file.unlink()
    assert torch.equal(load_model(str(copy_of_original)).codec.encode(sound()), expected)


def test_a_cast_while_loading_is_the_cast_of_what_was_loaded(folder):
    whole, half = load_model(str(folder)), load_model(str(folder), torch.bfloat16)
    for name, tensor in half.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name].bfloat16()), name
    assert all(buffer.dtype == torch.float32 for buffer in half.codec.module.state_dict().values())


def test_a_file_that_is_too_large_to_be_mapped_is_read(folder, tmp_path, monkeypatch):
    """As MisoTTS' 32.8 GB are on a machine with less memory: nothing needs more than one tensor of them."""
    tensors = {"flag": torch.tensor(True), "none": torch.empty(5, 0), "rows": torch.arange(12.0).view(4, 3).bfloat16()}
    save_file(tensors, tmp_path / "some.safetensors")
    whole = load_model(str(folder)).model.state_dict()

    def refuse(file, framework):
        if framework == "pt":
            raise RuntimeError("unable to mmap: Cannot allocate memory")
        return contextlib.nullcontext()

    monkeypatch.setattr("csm.checkpoint.tensors.safe_open", refuse)
    for name, tensor in open_tensors([tmp_path / "some.safetensors"]).items():
        assert torch.equal(tensor.load(tensor.dtype), tensors[name]), name
        assert torch.equal(tensor.load(torch.float32), tensors[name].float()), name
    for name, tensor in load_model(str(folder)).model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def test_a_model_in_bfloat16_speaks(folder):
    generator = csm.load(str(folder), "cpu", dtype=torch.bfloat16)
    assert generator.engine.model.audio_head.dtype == torch.bfloat16
    assert generator.generate("Hello.", 0, context(), max_audio_length_ms=400, seed=1).shape == (5 * 1920,)


def test_flavors_name_the_published_shapes():
    flavors = {"backbone_flavor": "llama-1B", "decoder_flavor": "llama-100M", "text_vocab_size": 128_256}
    assert model_config(flavors | {"audio_vocab_size": 2051, "audio_num_codebooks": 32}) == PRESETS["tiny"]
    larger = {"backbone_flavor": "llama-8B", "decoder_flavor": "llama-300M"}
    assert model_config(larger) == PRESETS["medium"]


@pytest.mark.parametrize("name", ["tiny", "small", "medium"])
def test_a_written_config_reads_back_and_scales_as_published(name):
    written = to_json(PRESETS[name])
    assert model_config(json.loads(json.dumps(written))) == PRESETS[name]
    assert written["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 0.125,
        "high_freq_factor": 0.5,
        "original_max_position_embeddings": 1024,
    }
    assert written["depth_decoder_config"]["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 0.001953125,
        "high_freq_factor": 0.0078125,
        "original_max_position_embeddings": 16,
    }


def test_both_ways_to_write_the_rotary_scaling_are_one():
    written = to_json(PRESETS["tiny"])
    newer = {**written, "rope_parameters": {**written["rope_scaling"], "rope_theta": 500_000.0}}
    newer.pop("rope_scaling")
    newer.pop("rope_theta")
    assert model_config(newer).backbone.rope == RopeConfig()


def change(file, **tensors):
    kept = {name: tensor for name, tensor in (load_file(file) | tensors).items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})


def damage_truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def damage_type(folder):
    change(folder / "model.safetensors", **{"lm_head.weight": torch.ones(35, 48, dtype=torch.int32)})


def damage_missing(folder):
    change(folder / "model.safetensors", **{"backbone_model.layers.1.mlp.up_proj.weight": None})


def damage_extra(folder):
    change(folder / "model.safetensors", **{"backbone_model.layers.9.mlp.up_proj.weight": torch.ones(1)})


def damage_codec_type(folder):
    change(folder / "model.safetensors", **{"codec_model.upsample.conv.weight": torch.ones(32, 1, 4).double()})


def damage_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def damage_other_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|end_of_text|>", "<|other|>"))


def damage_codec_missing(folder):
    change(folder / "model.safetensors", **{"codec_model.downsample.conv.weight": None})


def damage_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 81}))


def damage_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))


def damage_depth(folder):
    config = json.loads((folder / "config.json").read_text())
    config["depth_decoder_config"]["num_codebooks"] = 5
    (folder / "config.json").write_text(json.dumps(config))


def damage_activation(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))


def damage_json(folder):
    (folder / "config.json").write_text("{")


def damage_nonsense(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))


@pytest.mark.parametrize(
    "damage,words",
    [
        (damage_truncate, "model.safetensors can't be read"),
        (damage_type, "lm_head.weight holds numbers that are neither float32"),
        (damage_missing, "lacks 1 tensors, the first of them backbone_model.layers.1.mlp.up_proj.weight"),
        (damage_extra, "doesn't know, the first backbone_model.layers.9.mlp.up_proj.weight"),
        (damage_codec_missing, "lacks 1 tensors, the first of them downsample.conv.weight"),
        (damage_codec_type, "upsample.conv.weight holds numbers"),
        (damage_tokenizer, "tokenizer.json can't be read"),
        (damage_other_tokenizer, "doesn't go with this model"),
        (damage_config, r"down_proj.weight has shape \(48, 80\); its config asks for \(48, 81\)"),
        (damage_layers, "doesn't know, the first backbone_model.layers.2"),
        (damage_depth, "num_codebooks"),
        (damage_activation, "hidden_act 'relu'"),
        (damage_json, "config.json beside the weights can't be read"),
        (damage_nonsense, "makes no sense"),
    ],
)
def test_a_damaged_published_model_is_refused_in_one_sentence(copy, damage, words):
    damage(copy)
    with pytest.raises(InputError, match=words) as error:
        csm.load(str(copy), "cpu")
    assert "\n" not in str(error.value)


class Runs:
    """Pickled, it makes a file when it is loaded without care."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_runs_nothing(copy_of_original, tmp_path, zipped):
    (copy_of_original / "model.safetensors").unlink()
    torch.save(
        {"audio_head": Runs(tmp_path / "ran")}, copy_of_original / "ckpt.pt", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(InputError, match=r"ckpt\.pt") as error:
        csm.load(str(copy_of_original), "cpu")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_truncated_pickle_is_refused_in_one_sentence(copy_of_original):
    torch.save(load_file(copy_of_original / "model.safetensors"), copy_of_original / "ckpt.pt")
    (copy_of_original / "model.safetensors").unlink()
    pickled = copy_of_original / "ckpt.pt"
    pickled.write_bytes(pickled.read_bytes()[:-5000])
    with pytest.raises(InputError, match="can't be read"):
        csm.load(str(copy_of_original), "cpu")


def test_a_folder_or_file_without_weights_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no weights"):
        load_model(str(tmp_path))
    write_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no weights"):
        load_model(str(tmp_path / "tokenizer.json"))
