"""Folders in object storage: copied once, brought up to date, and trained from like any other."""

import re
from argparse import Namespace

import fsspec
import pytest
import torch

import csm
from csm.cli import main
from csm.text import ByteTokenizer
from csm.training import commands, remote
from csm.training.codes import Conversations
from csm.training.corpus import Corpus
from csm.training.remote import at_hand
from tests.letters import CONFIG


@pytest.fixture
def stored(speech, tmp_path, monkeypatch):
    """`speech` in memory, and no copy of it yet."""
    monkeypatch.chdir(tmp_path)
    files = fsspec.filesystem("memory")
    for file in speech.iterdir():
        files.pipe(f"/bucket/speech/{file.name}", file.read_bytes())
    yield files
    files.rm("/bucket", recursive=True)


def test_a_folder_in_storage_is_copied_once_and_then_what_is_new(stored, speech, tmp_path, monkeypatch):
    assert at_hand(tmp_path) == tmp_path
    here = at_hand(remote.Path("memory://bucket/speech"))
    assert {file.name for file in speech.iterdir()} == {file.name for file in here.iterdir()} - {".lock"}
    assert Corpus(here).utterances == Corpus(speech).utterances
    fetched: list[str] = []
    monkeypatch.setattr(type(stored), "get_file", lambda files, name, to: fetched.append(name) or open(to, "w").close())
    at_hand(remote.Path("memory://bucket/speech/"))
    assert not fetched
    stored.pipe("/bucket/speech/codes-000.npy", stored.cat("/bucket/speech/codes-000.npy"))  # of the same size
    stored.rm("/bucket/speech/audio-000.npy")
    at_hand(remote.Path("memory://bucket/speech"))
    assert fetched == ["/bucket/speech/codes-000.npy"] and not (here / "audio-000.npy").exists()


def test_training_reads_speech_and_codes_from_storage(stored, speech, talk, monkeypatch):
    seen: list[Namespace] = []
    monkeypatch.setattr(commands.lm_command, "run", seen.append)
    assert main(["train", "lm", "--data", "memory://bucket/speech", "--codes", "memory://bucket/speech"]) == 0
    far = Conversations(Corpus(seen[0].data), seen[0].codes, ByteTokenizer(), CONFIG)
    assert torch.equal(far.batch(3, 2, 128).ids, talk.batch(3, 2, 128).ids)


@pytest.mark.parametrize(
    ("address", "told"),
    [("memory://nowhere/x", "There is nothing at memory://nowhere/x"), ("elsewhere://a/b", "elsewhere://a/b can't be")],
)
def test_what_can_not_be_read_is_one_sentence(address, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(csm.InputError, match=re.escape(told)) as error:
        at_hand(remote.Path(address))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../x.npy", "/etc/x.npy"])
def test_a_name_that_leads_out_of_the_copy_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = fsspec.filesystem("memory")
    found = {f"bucket/odd/{name}": {"size": 1, "type": "file"}}
    monkeypatch.setattr(type(files), "find", lambda files, path, detail: found)
    with pytest.raises(csm.InputError, match="names that lead out of it"):
        at_hand(remote.Path("memory://bucket/odd"))
