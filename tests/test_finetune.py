"""Learning a voice from one's own recordings: adapters and whole models, from a manifest to what `csm.load` takes."""

import builtins
import json
from importlib.util import find_spec

import pytest
import torch

import csm
from csm import InputError
from csm.checkpoint import load_model
from csm.model import CSM
from csm.training.lora import LoraOptions, add_lora, merged, save_adapter
from tests.published import small_reference
from tests.small import small_config

LORA = LoraOptions(rank=3, alpha=6)
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="PEFT is not installed")


def taught(model: CSM) -> CSM:
    """The model with adapters that say something, as training leaves them."""
    add_lora(model.requires_grad_(False), LORA)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(number)
            parameter.data.normal_(0, 0.2, generator=generator)
    return model


def rows(model: CSM) -> tuple[torch.Tensor, torch.Tensor]:
    """A conversation's ids and mask (1, 12, K+1)."""
    torch.manual_seed(0)
    k = model.config.num_codebooks
    ids = torch.randint(1, 30, (1, 12, k + 1))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, :5, -1] = True
    mask[:, 5:, :-1] = True
    return ids, mask


@torch.no_grad()
def logits(model: CSM) -> torch.Tensor:
    """Code 0 of every position and all others of every frame, (n,)."""
    ids, mask = rows(model)
    hidden = model.backbone(model.embed_rows(ids, mask))
    depth = model.depth_logits(hidden[0, 4:-1], ids[0, 5:, :-1])
    return torch.cat([model.codebook0_head(hidden).flatten(), depth.flatten()])


@needs_peft
def test_fresh_adapters_change_nothing_and_alone_are_trainable():
    torch.manual_seed(0)
    model = CSM(small_config()).init_weights()
    before = logits(model)
    add_lora(model.requires_grad_(False), LORA)
    assert torch.equal(logits(model), before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * 7 * (2 + 2) and all(".lora_" in name for name in trainable)


@needs_peft
def test_merged_adapters_compute_what_the_adapted_model_does():
    torch.manual_seed(0)
    plain = CSM(small_config()).init_weights()
    before = logits(plain)
    adapted = taught(plain)
    torch.testing.assert_close(logits(merged(adapted)), logits(adapted), atol=1e-5, rtol=1e-5)
    assert (logits(adapted) - before).abs().max() > 0.01
    assert {name for name, _ in merged(adapted).named_parameters()} == {
        name for name, _ in CSM(small_config()).named_parameters()
    }


@needs_peft
@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_a_saved_adapter_loads_onto_either_layout_as_what_was_trained(folder, original, tmp_path, layout):
    base = str(folder if layout == "transformers" else original)
    adapted = taught(load_model(base).model)
    save_adapter(adapted, tmp_path / "adapter", LORA, "sesame/csm-1b")
    loaded = csm.load(base, "cpu", adapter=str(tmp_path / "adapter")).engine.model
    torch.testing.assert_close(logits(loaded), logits(adapted), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(loaded), logits(load_model(base).model), atol=1e-2)


@needs_peft
def test_a_saved_adapter_fits_transformers_own_model_through_peft(folder, tmp_path):
    """What PEFT merges from our folder into transformers' CSM is what we merge into ours; Mimi stays as it is."""
    save_adapter(taught(load_model(str(folder)).model), tmp_path / "adapter", LORA, "sesame/csm-1b")
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(small_reference(), tmp_path / "adapter").merge_and_unload().state_dict()
    untouched = small_reference().state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in theirs.items() if "codec_model" in name)
    ours = load_model(str(folder), adapter=str(tmp_path / "adapter")).model
    name = "backbone_model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(theirs[name], untouched[name])
    torch.testing.assert_close(theirs[name], ours.backbone.layers[1].mlp.w2.weight)
    ids, mask = rows(ours)
    with torch.no_grad():
        reference = small_reference()
        reference.load_state_dict(theirs)
        embedded = ours.embed_rows(ids, mask)
        expected = reference.backbone_model(inputs_embeds=embedded).last_hidden_state
        torch.testing.assert_close(ours.backbone(embedded), expected, atol=1e-4, rtol=1e-4)


@needs_peft
def test_saving_an_adapter_again_replaces_it_whole(folder, tmp_path):
    model = taught(load_model(str(folder)).model)
    for _ in range(2):
        save_adapter(model, tmp_path / "adapter", LORA, "base")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter"]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6, "base")


def test_lora_without_peft_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_peft(name, *rest):
        if name == "peft":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(InputError, match="pip install peft"):
        add_lora(CSM(small_config()), LORA)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}])
def test_an_impossible_adapter_is_refused(options):
    with pytest.raises(InputError, match="needs a rank"):
        LoraOptions(**options)
