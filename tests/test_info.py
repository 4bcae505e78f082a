"""`python -m csm info MODEL`: what a model is, from its headers alone."""

import pytest

from csm.checkpoint import describe, hub
from csm.cli import main
from csm.config import PRESETS
from tests.published import write_original, write_transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_transformers(tmp_path_factory.mktemp("model") / "transformers", max_shard_size="200KB")


def told(capsys, *arguments):
    assert main(["info", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_tells_its_size_without_weights(capsys, name):
    out = told(capsys, name)
    assert out.splitlines()[0] == name
    for label in ("layout", "backbone", "depth decoder", "codec", "memory needed", "licence"):
        assert f"  {label} " in out


def test_the_published_model_needs_half_the_memory_in_bfloat16(capsys):
    """1.55 billion parameters of 2 bytes, a cache of 67 MB, and 0.38 GB of Mimi in float32."""
    out = told(capsys, "tiny")
    assert "1,552,791,552" in out
    assert "6.73 GB in float32, 3.56 GB in bfloat16" in out
    assert "impersonation" in out


def test_a_published_folder_tells_its_layout_and_files(capsys, folder):
    out = told(capsys, folder)
    assert "layout         transformers" in out
    for file in folder.glob("*.safetensors"):
        assert f"MB  {file.name}" in out
    assert "float32 (" in out
    assert "none stated" in out


def test_the_other_layout_and_a_licence_beside_the_weights_are_seen(capsys, folder, tmp_path):
    original = write_original(folder, tmp_path / "original")
    (original / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-4.0\n---\n# A model\n")
    out = told(capsys, original / "model.safetensors")
    assert "layout         original" in out
    assert "cc-by-4.0" in out


def test_a_hub_id_downloads_nothing_but_its_config(monkeypatch, folder):
    asked = []

    def fetch_file(repository, file, token=None):
        asked.append(file)
        return folder / file

    monkeypatch.setattr("csm.checkpoint.info.fetch_file", fetch_file)
    facts = describe("someone/tuned")
    assert asked == ["config.json"]
    assert facts.config.backbone.layers == 3
    assert facts.layout == "not on this machine yet"


def test_out_of_reach_the_published_model_s_shape_is_known_all_the_same(monkeypatch):
    def fetch_file(*_):
        raise hub.OutOfReach("The hub can't be reached.")

    monkeypatch.setattr("csm.checkpoint.info.fetch_file", fetch_file)
    monkeypatch.setattr("csm.checkpoint.info.cached_model", lambda repository: None)
    assert describe(hub.HUB_MODEL).config == PRESETS["tiny"]


def test_what_is_no_model_is_refused_in_one_sentence(capsys):
    assert main(["info", "./nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
