"""Models from the hub: the real `huggingface_hub` client in front of a stand-in for the hub's HTTP API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import csm
from csm import InputError
from csm.checkpoint import hub as client
from csm.checkpoint.hub import HUB_MODEL, NoAccess, OutOfReach, fetch_adapter, fetch_file, fetch_model
from tests.hub import Repository, asked_by_the_client, go_offline, serving
from tests.published import write_original, write_transformers

TOKEN = "hf_" + "secret" * 5
STRANGER = "hf_" + "someone" * 4
COPY = "unsloth/csm-1b"
ORIGINAL = {"config.json": b"{}", "model.safetensors": b"o" * 9_000, "ckpt.pt": b"p" * 9_000}
FIRST, SECOND = "transformers-00001-of-00002.safetensors", "transformers-00002-of-00002.safetensors"
SHARDS = {FIRST: b"1" * 50_000, SECOND: b"2" * 50_000}
WEIGHT_MAP = {"a": FIRST, "b": SECOND, "c": SECOND}
INDEX = {"transformers.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": WEIGHT_MAP}).encode()}
EXTRA = {"README.md": b"read me", "tokenizer.json": b'{"model": {}}', "prompts/conversational_a.wav": b"w" * 9_000}
PUBLISHED = ORIGINAL | SHARDS | INDEX | EXTRA
USED = {"config.json", "tokenizer.json", *INDEX, *SHARDS}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in with the gated model, an ungated copy of it, and one account that has access."""
    published = Repository(dict(PUBLISHED), gated=True, granted={TOKEN})
    copy = Repository(SHARDS | INDEX | {"config.json": b"{}", "tokenizer.json": EXTRA["tokenizer.json"]})
    with serving({HUB_MODEL: published, COPY: copy}) as hub, asked_by_the_client(hub, tmp_path, monkeypatch):
        hub.tokens = {TOKEN, STRANGER}
        yield hub


def names(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_only_the_files_of_one_layout_are_downloaded(hub):
    snapshot = fetch_model(HUB_MODEL, TOKEN)
    assert snapshot.repository == HUB_MODEL
    assert snapshot.weights.name == "transformers.safetensors.index.json"
    assert names(snapshot.folder) == USED
    assert all((snapshot.folder / name).read_bytes() == PUBLISHED[name] for name in USED)
    assert sorted(hub.downloads()) == sorted(f"{HUB_MODEL}:{name}" for name in USED)


@pytest.mark.parametrize(
    "files,weights",
    [
        (ORIGINAL, "model.safetensors"),
        ({"ckpt.pt": b"p"}, "ckpt.pt"),
        (ORIGINAL | SHARDS | INDEX, "transformers.safetensors.index.json"),
        ({"model.safetensors": b"t", "config.json": b"{}", "optimizer.bin": b"x"}, "model.safetensors"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}', "x.safetensors": b"1"},
            "model.safetensors.index.json",
        ),
    ],
)
def test_every_layout_of_a_repository_is_found(hub, files, weights):
    hub.repositories["someone/tuned"] = Repository(files)
    snapshot = fetch_model("someone/tuned")
    assert snapshot.weights.name == weights and snapshot.weights.read_bytes() == files[weights]
    assert "optimizer.bin" not in names(snapshot.folder)


def test_what_was_downloaded_is_not_downloaded_again(hub):
    fetch_model(HUB_MODEL, TOKEN)
    before = len(hub.downloads())
    assert fetch_model(HUB_MODEL, TOKEN).repository == HUB_MODEL
    assert len(hub.downloads()) == before


def test_a_layout_that_is_in_the_cache_is_kept_to(hub):
    complete = hub.repositories[HUB_MODEL].files
    hub.repositories[HUB_MODEL].files = dict(ORIGINAL)
    fetch_model(HUB_MODEL, TOKEN)
    hub.repositories[HUB_MODEL].files = complete
    before = len(hub.downloads())
    snapshot = fetch_model(HUB_MODEL, TOKEN)
    assert snapshot.weights.name == "model.safetensors"
    assert hub.downloads()[before:] == [f"{HUB_MODEL}:tokenizer.json"]


def test_a_new_version_replaces_the_one_in_the_cache(hub):
    fetch_model(COPY)
    hub.repositories[COPY].files[FIRST] = b"new" * 20_000
    before = len(hub.downloads())
    assert (fetch_model(COPY).folder / FIRST).read_bytes() == b"new" * 20_000
    assert hub.downloads()[before:] == [f"{COPY}:{FIRST}"]


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub):
    hub.repositories[HUB_MODEL].cuts = {FIRST: [20_000, 10_000, 5_000]}
    snapshot = fetch_model(HUB_MODEL, TOKEN)
    assert (snapshot.folder / FIRST).read_bytes() == SHARDS[FIRST]
    asked = [(seen.range, seen.sent) for seen in hub.log if seen.method == "GET" and seen.path.endswith(FIRST)]
    assert asked == [(None, 20_000), ("bytes=20000-", 10_000), ("bytes=30000-", 5_000), ("bytes=35000-", 15_000)]


def test_a_download_that_was_given_up_goes_on_at_the_next_start(hub, monkeypatch):
    hub.repositories[COPY].cuts = {SECOND: [1_000] * client.ATTEMPTS}
    with pytest.raises(OutOfReach, match="broke off 5 times: start again, and it goes on") as error:
        fetch_model(COPY)
    assert "\n" not in str(error.value)
    before = len(hub.log)
    assert (fetch_model(COPY).folder / SECOND).read_bytes() == SHARDS[SECOND]
    asked = [
        (seen.range, seen.sent) for seen in hub.log[before:] if seen.method == "GET" and seen.path.endswith(SECOND)
    ]
    assert asked == [("bytes=5000-", 45_000)]


@pytest.mark.parametrize("how", ["switch", "no line", "hub down"])
def test_offline_with_a_filled_cache_works(hub, monkeypatch, how):
    from huggingface_hub.utils import reset_sessions

    first = fetch_model(HUB_MODEL, TOKEN)
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a"}
    hub.repositories["someone/adapter"] = Repository(adapter)
    fetch_adapter("someone/adapter")
    fetch_file(HUB_MODEL, "config.json", TOKEN)
    asked = len(hub.log)
    if how == "switch":
        go_offline(monkeypatch)
    elif how == "hub down":
        hub.broken = True
    else:
        hub.shutdown()
        hub.server_close()
        reset_sessions()
    assert fetch_model(HUB_MODEL) == first
    assert names(fetch_adapter("someone/adapter").folder) == set(adapter)
    assert fetch_file(HUB_MODEL, "config.json").read_bytes() == b"{}"
    assert not [seen for seen in hub.log[asked:] if seen.path]


def test_offline_a_cache_that_lacks_a_shard_does_not_count_as_filled(hub, monkeypatch):
    snapshot = fetch_model(COPY)
    (snapshot.folder / SECOND).unlink()
    go_offline(monkeypatch)
    with pytest.raises(OutOfReach, match="not on this machine and the hub can't be reached"):
        fetch_model(COPY)


def test_an_update_that_breaks_off_leaves_the_version_in_the_cache_in_use(hub):
    first = fetch_model(COPY)
    hub.repositories[COPY].files[FIRST] = b"new" * 20_000
    hub.repositories[COPY].cuts = {FIRST: [100] * client.ATTEMPTS}
    assert fetch_model(COPY) == first


def test_a_gate_names_the_page_and_the_variable(hub, monkeypatch):
    monkeypatch.setenv("CSM_FALLBACK", "none")
    for token in (False, STRANGER):
        with pytest.raises(NoAccess) as error:
            fetch_model(HUB_MODEL, token)
        sentence = str(error.value)
        assert f"https://huggingface.co/{HUB_MODEL}" in sentence and "HF_TOKEN" in sentence
        assert "\n" not in sentence and sentence.count(". ") == 0
        assert STRANGER not in sentence


def test_behind_a_gate_an_ungated_copy_speaks_and_says_so(hub):
    with pytest.warns(UserWarning, match="CSM_FALLBACK=none") as told:
        snapshot = fetch_model(HUB_MODEL, STRANGER)
    assert snapshot.repository == COPY
    assert COPY in str(told[0].message) and f"https://huggingface.co/{HUB_MODEL}" in str(told[0].message)
    assert not [path for path in hub.downloads() if path.startswith(COPY) and path.split(":")[1] not in USED]


def test_which_copies_may_stand_in_is_a_setting(hub, monkeypatch):
    hub.repositories["my/mirror"] = Repository(SHARDS | INDEX)
    monkeypatch.setenv("CSM_FALLBACK", "no/such, my/mirror")
    with pytest.warns(UserWarning, match="my/mirror"):
        assert fetch_model(HUB_MODEL).repository == "my/mirror"


def test_a_copy_in_the_cache_stands_in_offline(hub, monkeypatch):
    with pytest.warns(UserWarning):
        fetch_model(HUB_MODEL)
    go_offline(monkeypatch)
    with pytest.warns(UserWarning, match="can't be reached"):
        assert fetch_model(HUB_MODEL).repository == COPY


def test_no_copy_stands_in_for_another_model(hub):
    hub.repositories["someone/gated"] = Repository(dict(PUBLISHED), gated=True)
    with pytest.raises(NoAccess, match="https://huggingface.co/someone/gated"):
        fetch_model("someone/gated")


def test_with_access_nobody_is_warned(hub):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert fetch_model(HUB_MODEL, TOKEN).repository == HUB_MODEL


def test_a_token_that_the_hub_does_not_know_is_said_in_one_sentence(hub, monkeypatch):
    monkeypatch.setenv("CSM_FALLBACK", "none")
    with pytest.raises(NoAccess, match="doesn't know the token in HF_TOKEN") as error:
        fetch_model(HUB_MODEL, "hf_expired")
    assert "hf_expired" not in str(error.value)


def test_a_token_that_the_hub_does_not_know_does_not_keep_open_files_away(hub):
    for repository, file in (client.HUB_MIMI, client.HUB_TOKENIZER):
        hub.repositories[repository] = Repository({file: b"open"})
        assert fetch_file(repository, file, "hf_expired").read_bytes() == b"open"


@pytest.mark.parametrize(
    "repository,files,words",
    [
        ("no/where", None, "shows no repository no/where"),
        ("some/text", {"README.md": b"x"}, "has no weights of a CSM"),
        ("bad name/x y", None, "write it as owner/name"),
        ("some/torn", INDEX, "its index names transformers-00001-of-00002.safetensors, which it lacks"),
        ("some/nonsense", {"model.safetensors.index.json": b"[]"}, "can't be read"),
    ],
)
def test_a_repository_that_can_t_be_used_is_refused_in_one_sentence(hub, repository, files, words):
    if files is not None:
        hub.repositories[repository] = Repository(files)
    with pytest.raises(InputError, match=words) as error:
        fetch_model(repository)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused_in_one_sentence(hub):
    with pytest.raises(InputError, match=r"There is no wings.wav of unsloth/csm-1b"):
        fetch_file(COPY, "wings.wav")


def test_a_full_disk_is_said_in_one_sentence(hub, monkeypatch):
    import huggingface_hub

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(InputError, match="can't be stored in the hub's cache: No space left on device"):
        fetch_model(COPY)


def test_the_token_goes_to_the_gated_repository_and_nowhere_else(hub, caplog, capfd):
    caplog.set_level("DEBUG")
    with pytest.warns(UserWarning) as told:
        fetch_model(HUB_MODEL, STRANGER)
    fetch_model(HUB_MODEL, TOKEN)
    sent = {(seen.path.partition("/resolve")[0].partition(":")[0], seen.token) for seen in hub.log}
    assert (f"api/models/{HUB_MODEL}", TOKEN) in sent and (HUB_MODEL, TOKEN) in sent
    assert all(token is None for path, token in sent if COPY in path)
    large = [seen.token for seen in hub.log if seen.method == "GET" and seen.path.endswith(FIRST)]
    assert large == [None, None]  # of the copy, and of the published one from the store beside the hub
    printed = capfd.readouterr()
    for text in (caplog.text, printed.out, printed.err, *(str(warning.message) for warning in told)):
        assert TOKEN not in text and STRANGER not in text


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[str, bytes]:
    """A repository like the published one: both layouts of the same small weights, one config, one tokenizer."""
    folder = tmp_path_factory.mktemp("both")
    original = write_original(write_transformers(folder / "whole"), folder / "original")
    sharded = write_transformers(folder / "sharded", max_shard_size="60KB")
    files = {file.name: file.read_bytes() for file in sharded.iterdir() if file.name.endswith(".json")}
    index = files.pop("model.safetensors.index.json").decode()
    files["transformers.safetensors.index.json"] = index.replace("model-0", "transformers-0").encode()
    for shard in sharded.glob("model-*.safetensors"):
        files[shard.name.replace("model-", "transformers-")] = shard.read_bytes()
    assert len(files) > 5
    files["model.safetensors"] = (original / "model.safetensors").read_bytes()
    files["mimi.safetensors"] = (original / "mimi.safetensors").read_bytes()
    return files


def spoken() -> torch.Tensor:
    return csm.load(HUB_MODEL, "cpu").generate_codes("Hi.", 0, max_audio_length_ms=800, seed=1)


def test_the_model_speaks_the_same_from_either_layout_of_the_hub_and_from_a_copy(hub, both, monkeypatch):
    mimi = both["mimi.safetensors"]
    layout = {name: data for name, data in both.items() if "transformers" in name or name.endswith(".json")}
    original = {name: both[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    hub.repositories = {
        HUB_MODEL: Repository(layout | original, gated=True, granted={TOKEN}),
        COPY: Repository(layout),
        client.HUB_MIMI[0]: Repository({client.HUB_MIMI[1]: mimi}),
    }
    with pytest.warns(UserWarning, match=COPY):
        generator = csm.load(HUB_MODEL, "cpu")
    assert generator.model_name == COPY
    from_a_copy = generator.generate_codes("Hi.", 0, max_audio_length_ms=800, seed=1)
    assert len(from_a_copy) == 10

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert csm.load("tiny", "cpu").model_name == HUB_MODEL
    assert torch.equal(spoken(), from_a_copy)
    assert not [path for path in hub.downloads() if path.endswith("model.safetensors")]

    hub.repositories[HUB_MODEL].files = original
    assert torch.equal(spoken(), from_a_copy)
    assert f"{client.HUB_MIMI[0]}:{client.HUB_MIMI[1]}" in hub.downloads()

    go_offline(monkeypatch)
    assert torch.equal(spoken(), from_a_copy)


def test_hf_endpoint_and_hf_token_are_all_that_a_user_sets(hub, tmp_path):
    """The command line in a process of its own, as on a Space: the stand-in by HF_ENDPOINT, the token by HF_TOKEN."""
    program = (
        "from csm.checkpoint.hub import fetch_model\n"
        "from csm.config import Environment\n"
        f"print(fetch_model({HUB_MODEL!r}, Environment.read().token).repository)\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "CSM_FALLBACK")}
    base = clean | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": "."}
    for token, repository in ((STRANGER, COPY), (TOKEN, HUB_MODEL)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parent.parent,
            env=base | {"HF_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.strip() == repository, done.stderr
        assert token not in done.stdout + done.stderr
