"""A PEFT adapter merged at load: the weights that PEFT would merge, and nothing that is skipped in silence."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

import csm
from csm import InputError
from csm.checkpoint import load_model
from csm.cli import main
from tests.published import write_transformers

RANK, ALPHA = 3, 12
MODULES = {
    "backbone_model.layers.0.self_attn.q_proj": (48, 48),
    "backbone_model.layers.2.self_attn.k_proj": (16, 48),
    "backbone_model.layers.1.mlp.down_proj": (48, 80),
    "depth_decoder.model.layers.1.self_attn.q_proj": (32, 32),
    "depth_decoder.model.inputs_embeds_projector": (32, 48),
}


def pairs():
    generator = torch.Generator().manual_seed(1)
    made = {}
    for module, (rows, columns) in MODULES.items():
        made[f"base_model.model.{module}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.1
        made[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.1
    return made


def write_adapter(path, tensors=None, **config):
    path.mkdir(exist_ok=True)
    given = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_rslora": False} | config
    (path / "adapter_config.json").write_text(json.dumps(given))
    save_file(pairs() if tensors is None else tensors, path / "adapter_model.safetensors")
    return path


def merged_by_hand(reference, path, scale):
    """transformers' own model with scale * B @ A added to each weight."""
    tensors = pairs()
    model = copy.deepcopy(reference)
    with torch.no_grad():
        for module in MODULES:
            a, b = (tensors[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
            model.get_submodule(module).weight += scale * b @ a
    return write_transformers(path, model)


@pytest.mark.parametrize("rslora,scale", [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)])
@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_a_merged_adapter_gives_the_weights_of_peft(reference, folder, original, tmp_path, layout, rslora, scale):
    base = folder if layout == "transformers" else original
    adapter = write_adapter(tmp_path / "adapter", use_rslora=rslora)
    ours = load_model(str(base), adapter=str(adapter)).model.state_dict()
    expected = load_model(str(merged_by_hand(reference, tmp_path / "merged", scale))).model.state_dict()
    plain = load_model(str(base)).model.state_dict()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name])
    assert sum(not torch.equal(tensor, plain[name]) for name, tensor in ours.items()) == len(MODULES)


def test_the_merge_is_made_in_float32_before_the_cast(folder, tmp_path):
    adapter = str(write_adapter(tmp_path / "adapter"))
    whole = load_model(str(folder), adapter=adapter).model.state_dict()
    for name, tensor in load_model(str(folder), torch.bfloat16, adapter).model.state_dict().items():
        assert torch.equal(tensor, whole[name].bfloat16()), name


def test_ranks_and_alphas_of_single_modules_count(folder, tmp_path):
    """`rank_pattern` and `alpha_pattern` are PEFT's exceptions for modules whose names end so."""
    module = "backbone_model.layers.1.mlp.down_proj"
    a, b = torch.randn(2, 80), torch.randn(48, 2)
    tensors = {f"base_model.model.{module}.lora_{half}.weight": tensor for half, tensor in (("A", a), ("B", b))}
    adapter = write_adapter(tmp_path / "a", tensors, rank_pattern={"down_proj": 2}, alpha_pattern={"mlp.down_proj": 5})
    name = "backbone.layers.1.mlp.w2.weight"
    change = (
        load_model(str(folder), adapter=str(adapter)).model.state_dict()[name]
        - load_model(str(folder)).model.state_dict()[name]
    )
    torch.testing.assert_close(change, 2.5 * b @ a)


def test_a_module_that_was_trained_as_a_whole_takes_the_place_of_the_base_s(folder, tmp_path):
    head = torch.randn(35, 48)
    adapter = write_adapter(tmp_path / "adapter", pairs() | {"base_model.model.lm_head.weight": head})
    assert torch.equal(load_model(str(folder), adapter=str(adapter)).model.codebook0_head.weight, head)


def test_the_generator_speaks_with_the_adapter(folder, tmp_path):
    adapter = str(write_adapter(tmp_path / "adapter"))
    options = dict(text="Hello.", speaker=0, max_audio_length_ms=800, seed=1)
    plain, merged = csm.load(str(folder), "cpu"), csm.load(str(folder), "cpu", adapter=adapter)
    assert not torch.equal(plain.generate_codes(**options), merged.generate_codes(**options))
    assert merged.model_name == "transformers with adapter"


def odd(key, shape=(3, 3)):
    return lambda tensors: tensors | {key: torch.ones(shape)}


def without(key):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != key}


Q = "base_model.model.backbone_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "change,config,words",
    [
        (odd("base_model.model.backbone_model.layers.7.mlp.up_proj.lora_A.weight"), {}, r"layers.7.mlp.up_proj.lora_A"),
        (odd("base_model.model.lm_head.lora_magnitude_vector"), {}, "lora_magnitude_vector fits nothing"),
        (odd("backbone_model.embed_tokens.embed_audio_tokens.weight", (140, 48)), {}, "embed_audio_tokens.weight fits"),
        (odd("base_model.model.lm_head.weight"), {}, r"lm_head.weight has shape \(3, 3\)"),
        (without(f"{Q}.lora_B.weight"), {}, "only half of the pair"),
        (odd(f"{Q}.lora_A.weight"), {}, r"q_proj has shapes \(3, 3\)"),
        (dict, {"r": 4}, "with rank 4"),
        (lambda tensors: {}, {}, "no tensors"),
        (dict, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        (dict, {"use_dora": True}, "use_dora is True"),
        (dict, {"r": 0}, "changes nothing"),
        (dict, {"lora_alpha": None}, "adapter_config.json can't be used"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_sentence(folder, tmp_path, change, config, words):
    adapter = write_adapter(tmp_path / "adapter", change(pairs()), **config)
    with pytest.raises(InputError, match=words) as error:
        csm.load(str(folder), "cpu", adapter=str(adapter))
    assert "\n" not in str(error.value)


def test_what_is_no_adapter_is_refused_in_one_sentence(folder, tmp_path):
    adapter = write_adapter(tmp_path / "adapter")
    with pytest.raises(InputError, match="this model needs"):
        csm.load("nano", "cpu", adapter=str(adapter))
    with pytest.raises(InputError, match="no adapter"):
        csm.load(str(folder), "cpu", adapter="./nowhere")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="can't be read"):
        csm.load(str(folder), "cpu", adapter=str(adapter))
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="adapter_config.json"):
        csm.load(str(folder), "cpu", adapter=str(adapter))


def test_the_command_line_takes_an_adapter(folder, tmp_path, capsys):
    (tmp_path / "script.txt").write_text("A: Hi.\n")
    options = ["--model", str(folder), "--device", "cpu", "--script", str(tmp_path / "script.txt")]
    options += ["--out", str(tmp_path / "out.wav"), "--voice", "A=slt"]
    assert main(["generate", *options, "--adapter", str(tmp_path / "nowhere")]) == 2
    assert "no adapter" in capsys.readouterr().err
    assert not (tmp_path / "out.wav").exists()
