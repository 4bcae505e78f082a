"""Lists that others publish: read as they are, or refused in one sentence before anything is spoken."""

import json
import shutil

import pytest

from csm.errors import InputError
from csm.evaluation.published.lists import read_list
from tests.serving import TOP

PROMPT = TOP / "prompts" / "slt.wav"
MANIFEST = {"id": "one", "text": "Say this.", "prompt_text": "Some words.", "prompt_audio_filepath": "wavs/a.wav"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "wavs").mkdir()
    shutil.copy(PROMPT, tmp_path / "wavs" / "a.wav")
    return tmp_path


def test_both_kinds_of_list_say_the_same(folder):
    bars, lines = folder / "meta.lst", folder / "list.jsonl"
    bars.write_text("one|Some words.|wavs/a.wav|Say this.\n\ntwo/b.wav|Some words.|wavs/a.wav|And this.|wavs/b.wav\n")
    lines.write_text("\n".join(json.dumps(one) for one in (MANIFEST, MANIFEST | {"id": "two/b", "text": "And this."})))
    assert read_list(bars) == read_list(lines)
    [first] = read_list(bars, 1)
    assert (first.name, first.transcript, first.text) == ("one", "Some words.", "Say this.")
    assert first.recording == folder / "wavs" / "a.wav"
    assert read_list(bars)[1].name == "two_b"


@pytest.mark.parametrize("place", ["wavs/b.wav", "../b.wav", "/nowhere/b.wav", "wavs", "b\0.wav"])
def test_missing_recordings_are_named_once(folder, place):
    path = folder / "meta.lst"
    path.write_text("".join(f"{name}|Some words.|{place}|Say this.\n" for name in ("one", "two")))
    with pytest.raises(InputError) as refused:
        read_list(path)
    assert str(refused.value).count(place) == 1 and str(refused.value).endswith("They belong beside it.")


@pytest.mark.parametrize("wrong", [5, None, "", [], {"a": 1}])
@pytest.mark.parametrize("key", ["text", "prompt_text", "prompt_audio_filepath"])
def test_a_line_that_is_none_is_named(folder, key, wrong):
    path = folder / "list.jsonl"
    path.write_text(json.dumps(MANIFEST) + "\n" + json.dumps(MANIFEST | {key: wrong}))
    with pytest.raises(InputError, match="^Line 2 of .* can't be read: it needs text, prompt_text and"):
        read_list(path)


def test_two_lines_of_one_name_are_refused(folder):
    path = folder / "meta.lst"
    path.write_text("one|Some words.|wavs/a.wav|Say this.\n" * 2)
    with pytest.raises(InputError, match="more than one line named one"):
        read_list(path)


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xff\xfe\x00", b"a|b|c\n", b"|||\n"])
def test_what_is_no_list_is_refused(folder, data):
    path = folder / "meta.lst"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"can't be read|is empty"):
        read_list(path)
