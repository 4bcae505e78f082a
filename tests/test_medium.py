"""MisoTTS, the published 8B: known from its tensors, its text as it was trained, in both layouts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CsmForConditionalGeneration

import csm
from csm import InputError, Segment
from csm.checkpoint import describe, hub, layouts
from csm.checkpoint.configs import model_config, read_config, recognised, to_json
from csm.checkpoint.tensors import shapes_of
from csm.cli import main
from csm.config import PRESETS, RELEASES, ModelConfig
from csm.engine.frames import RowFormat
from csm.model import CSM
from csm.text import ByteTokenizer, turn_text
from csm.training.shapes import keep_shape, kept_model, model_shape
from tests.hub import Repository, asked_by_the_client, serving
from tests.published import hollow
from tests.small import small_config

MISO = next(made.repository for made in RELEASES if made.preset == "medium")
CONTEXT = [Segment(0, "Hi, who is it?", codes=torch.arange(1, 25).view(6, 4))]


@pytest.mark.parametrize(
    "preset, text, parameters", [("tiny", "[0]Hello.", "1,552,791,552"), ("medium", "[0] Hello.", "8,188,122,112")]
)
def test_a_published_file_tells_what_it_is_without_a_config(tmp_path, preset, text, parameters):
    facts = describe(str(hollow(tmp_path / "model", PRESETS[preset])))
    told = "\n".join(facts.lines())
    assert facts.config == PRESETS[preset] and facts.layout == "original"
    assert f" {text} " in told and f"{parameters} parameters" in told
    assert next(made.repository for made in RELEASES if made.preset == preset) in facts.licence


def test_it_is_known_by_the_names_of_the_other_layout_too():
    for preset in ("tiny", "medium"):
        with torch.device("meta"):
            ours = shapes_of(CSM(PRESETS[preset]))
        theirs = {layouts.transformers_name(name): shape for name, shape in ours.items()}
        assert {layouts.our_name(name): shape for name, shape in theirs.items()} == ours
        assert recognised(ours) == PRESETS[preset]


def test_a_file_without_a_config_that_is_neither_is_refused_in_one_sentence(original, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(original / "model.safetensors")
    with pytest.raises(InputError, match=r"no config\.json beside the weights.*nor MisoLabs/MisoTTS") as error:
        csm.load(str(tmp_path), "cpu")
    assert "\n" not in str(error.value)


def test_a_layer_that_is_missing_is_named(tmp_path):
    larger = PRESETS["medium"]
    shorter = replace(larger, decoder=replace(larger.decoder, layers=7))
    file = hollow(tmp_path / "model", shorter)
    with pytest.raises(InputError, match=r"lacks 9 tensors, the first of them decoder\.layers\.7\.attn\.k_proj"):
        describe(str(file))


def test_text_has_its_space_and_nothing_else_does():
    assert turn_text("Hello.", 3, space=True) == turn_text("  Hello.", 3, space=True) == "[3] Hello."
    assert turn_text("Hello.", 3) == "[3]Hello."
    assert turn_text("", 3, space=True) == "[3]"
    for config in PRESETS.values():
        assert RowFormat.of(config, ByteTokenizer()).space_after_slot == config.space_after_slot
    assert [name for name, config in PRESETS.items() if config.space_after_slot] == ["medium"]


@pytest.fixture
def small_medium(original, monkeypatch) -> ModelConfig:
    """What is taken for MisoTTS here: the small model, whose file is a few hundred kilobytes."""
    config = replace(model_config(read_config(original)), space_after_slot=True)
    monkeypatch.setitem(PRESETS, "medium", config)
    return config


@pytest.fixture
def published(original, small_medium, tmp_path) -> Path:
    """The small model as MisoTTS was published, with no config.json."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name in ("model.safetensors", "mimi.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(original / name)
    return folder


def spoken(folder: Path) -> torch.Tensor:
    return csm.load(str(folder), "cpu").generate_codes("Come in.", 0, CONTEXT, max_audio_length_ms=1600, topk=1)


def test_it_loads_without_a_config_and_reads_its_text_with_the_space(published):
    generator = csm.load(str(published), "cpu")
    ids = generator.turn_rows("Come in.", 1).ids[:, -1].tolist()
    assert ids == generator.tokenizer.encode("[1] Come in.")
    with pytest.raises(InputError, match="nothing to say"):
        generator.turn_rows(" ", 1)
    assert len(generator.turn_rows("I", 1)) == len("[1] I") + 2, "one letter is something to say"


def test_it_says_the_same_in_the_transformers_layout_and_back(published, original, tmp_path, monkeypatch):
    there, back = tmp_path / "there", tmp_path / "back"
    assert main(["convert", str(published), str(there), "--layout", "transformers"]) == 0
    assert main(["convert", str(there), str(back), "--layout", "original"]) == 0
    codes = spoken(published)
    monkeypatch.undo()  # what is converted says itself how its text is written, whatever its shape
    assert torch.equal(spoken(there), codes) and torch.equal(spoken(back), codes)
    assert not torch.equal(spoken(original), codes), "or the space changes nothing"
    loaded, report = CsmForConditionalGeneration.from_pretrained(there, output_loading_info=True)
    assert not any(report.values()) and loaded.config.space_after_slot is True


def test_a_config_says_how_text_is_written_and_else_the_shape_does():
    for preset in ("tiny", "medium"):
        config = PRESETS[preset]
        written = to_json(config)
        assert model_config(written) == config
        assert model_config(written | {"space_after_slot": not config.space_after_slot}) != config
        assert model_config({key: value for key, value in written.items() if key != "space_after_slot"}) == config
    with pytest.raises(InputError, match="space_after_slot is 'yes': write true or false"):
        model_config(written | {"space_after_slot": "yes"})


def test_a_run_keeps_how_text_is_written_and_one_from_before_goes_on(tmp_path):
    spaced = replace(small_config(), tokenizer="llama3", space_after_slot=True)
    keep_shape(tmp_path / "run", spaced)
    assert kept_model(tmp_path / "run") == spaced
    with pytest.raises(InputError, match="begun with another shape"):
        keep_shape(tmp_path / "run", replace(spaced, space_after_slot=False))
    file = tmp_path / "older" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps({k: v for k, v in small_config().to_dict().items() if k != "space_after_slot"}))
    keep_shape(file.parent, small_config())
    file.write_text(json.dumps(replace(spaced, tokenizer="bytes").to_dict()))
    with pytest.raises(InputError, match="only the tokenizer 'llama3' has such a space"):
        model_shape(str(file))


def test_it_loads_from_the_hub_by_its_id_and_by_its_preset(published, tmp_path, monkeypatch):
    """Its repository has the weights alone; tokenizer and Mimi come from where CSM-1B's do."""
    files = {name: (published / name).read_bytes() for name in ("model.safetensors", "tokenizer.json")}
    repositories = {
        MISO: Repository({"model.safetensors": files["model.safetensors"], "README.md": b"# Miso"}),
        hub.HUB_MIMI[0]: Repository({hub.HUB_MIMI[1]: (published / "mimi.safetensors").read_bytes()}),
        hub.HUB_TOKENIZER[0]: Repository({"tokenizer.json": files["tokenizer.json"]}),
    }
    with serving(repositories) as served, asked_by_the_client(served, tmp_path, monkeypatch):
        before = describe(MISO)
        assert before.layout == "not on this machine yet" and before.config.space_after_slot
        assert not served.downloads()
        generator = csm.load("medium", "cpu")
        assert generator.model_name == MISO and generator.config.space_after_slot
        assert describe(MISO).layout == "original"
        assert f"{MISO}:README.md" not in served.downloads()
