"""Voices of one's own: kept, exported as one file, imported with their codes; foreign and broken files are refused."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch

from csm.audio import load_audio, write_audio
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.listening.library import codes_fit, with_codes
from csm.listening.prompt import Ears, Finding
from csm.speech.voices import (
    LARGEST_FILE,
    Voice,
    load_prompt,
    own_voice,
    read_voice,
    save_voice,
    shipped_voices,
    voice_name,
)
from csm.web.voices import VoicesTab, _seconds, build_voices_tab, findings, forget, lay_out
from tests.small import SMALL_MIMI, performed, small_generator

SHIPPED = next(iter(shipped_voices().values()))


@pytest.fixture(scope="module")
def generator():
    return small_generator()


@pytest.fixture
def voice(tmp_path, generator) -> Voice:
    return with_codes(generator, own_voice(tmp_path, "Anna", load_audio(SHIPPED.path), SHIPPED.transcript))


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def test_a_voice_comes_out_of_its_file_as_it_went_in(tmp_path, voice, generator):
    file = tmp_path / "Anna.voice"
    save_voice(file, voice)
    again = read_voice(file, folder(tmp_path, "again"))
    assert (again.name, again.transcript, again.codec) == ("Anna", SHIPPED.transcript, generator.codec_key)
    assert torch.equal(load_prompt(again), load_prompt(voice))
    assert np.array_equal(again.codes, voice.codes)
    assert file.stat().st_size < 300_000


def test_the_codes_are_used_by_the_same_model_and_made_again_for_another(tmp_path, voice, generator, monkeypatch):
    save_voice(tmp_path / "Anna.voice", voice)
    again = read_voice(tmp_path / "Anna.voice", folder(tmp_path, "again"))
    other = small_generator(SMALL_MIMI)
    renewed = with_codes(other, again)
    assert renewed.codec == other.codec_key != again.codec and not np.array_equal(renewed.codes, again.codes)
    monkeypatch.setattr(generator, "segment_codes", lambda segment: pytest.fail("encoded again"))
    assert with_codes(generator, again) is again
    assert torch.equal(again.codes_for(generator.codec_key), torch.from_numpy(again.codes).long())
    assert again.codes_for(other.codec_key) is None and again.codes_for("") is None


def test_the_tab_gives_its_page_a_state_without_voices(generator):
    with gr.Blocks():
        assert build_voices_tab(generator).value == {}


@pytest.mark.parametrize("change", ("too large", "too short", "too few books"))
def test_codes_that_do_not_fit_the_model_are_made_again(voice, generator, change):
    wrong = {
        "too large": voice.codes + 60_000,
        "too short": voice.codes[:-2],
        "too few books": voice.codes[:, :2],
    }[change]
    broken = replace(voice, codes=wrong)
    assert not codes_fit(generator, broken)
    assert np.array_equal(with_codes(generator, broken).codes, voice.codes)


def parts_of(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def pack(file: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in parts.items():
            made.writestr(name, data)
    return file


def npy(array: np.ndarray, **options) -> bytes:
    data = io.BytesIO()
    np.save(data, array, **options)
    return data.getvalue()


def broken_files(tmp_path: Path, good: Path) -> dict[str, Path]:
    parts, made = parts_of(good), {}

    def variant(name: str, **changed: bytes | None) -> None:
        new = parts | {key.replace("_", "."): data for key, data in changed.items()}
        made[name] = pack(tmp_path / f"{name}.voice", {key: data for key, data in new.items() if data is not None})

    about = json.loads(parts["voice.json"])
    variant("no recording", recording_flac=None)
    variant("no words", voice_json=json.dumps({**about, "transcript": " "}).encode())
    variant("not json", voice_json=b"\xff\xfe{")
    variant("list", voice_json=b"[1]")
    variant("deep", voice_json=b"[" * 60_000)
    variant("newer", voice_json=json.dumps({**about, "format": 99}).encode())
    variant("bad name", voice_json=json.dumps({**about, "name": "../../evil"}).encode())
    variant("bomb", recording_flac=b"\0" * 50_000_000)
    variant("stranger", stranger_txt=b"hello")
    variant("pickle", codes_npy=npy(np.array([[{}]], dtype=object), allow_pickle=True))
    variant("float codes", codes_npy=npy(np.zeros((5, 4))))
    variant("negative codes", codes_npy=npy(np.full((5, 4), -1)))
    variant("flat codes", codes_npy=npy(np.arange(5)))
    variant("not flac", recording_flac=b"RIFF" + b"\0" * 100)
    cut = tmp_path / "cut.voice"
    cut.write_bytes(good.read_bytes()[:-200])
    damaged = tmp_path / "damaged.voice"
    data = bytearray(good.read_bytes())
    data[2_000:4_000] = bytes(2_000)
    damaged.write_bytes(bytes(data))
    text = tmp_path / "text.voice"
    text.write_text("hello")
    empty = tmp_path / "empty.voice"
    empty.write_bytes(b"")
    large = tmp_path / "large.voice"
    large.write_bytes(bytes(LARGEST_FILE + 1))
    return made | {
        "cut": cut, "damaged": damaged, "text": text, "empty": empty, "large": large,
        "missing": tmp_path / "missing.voice",
    }  # fmt: skip


def test_foreign_and_broken_files_are_refused_in_one_sentence_and_leave_nothing_behind(tmp_path, voice):
    good = tmp_path / "Anna.voice"
    save_voice(good, voice)
    out = folder(tmp_path, "out")
    for name, file in broken_files(tmp_path, good).items():
        with pytest.raises(InputError) as refused:
            read_voice(file, out)
        sentence = str(refused.value)
        assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 200, name
        assert list(out.iterdir()) == [], name


@pytest.mark.parametrize("name", ("", "   ", "a/b", "..", "x" * 41, "<b>"))
def test_an_impossible_name_is_refused(name):
    with pytest.raises(InputError, match="name"):
        voice_name(name)


def test_a_name_that_is_taken_is_refused_in_any_case():
    with pytest.raises(InputError, match="already"):
        voice_name(" anna ", {"Anna": SHIPPED})
    assert voice_name("  Anna   B. ") == "Anna B."


NOBODY = Ears()


def page(generator, ears: Ears = NOBODY) -> VoicesTab:
    with gr.Blocks():
        return lay_out(generator, type("These", (), {"get": lambda self: ears})())


class Heard:
    """A recogniser that always hears the same."""

    name = "stand-in"

    def transcribe(self, wave: torch.Tensor) -> str:
        return SHIPPED.transcript


@pytest.fixture
def recording(tmp_path) -> str:
    path = tmp_path / "recording.wav"
    quiet = torch.zeros(SAMPLE_RATE)
    write_audio(path, torch.cat([quiet, load_audio(SHIPPED.path), quiet]))
    return str(path)


def test_a_new_recording_is_cut_written_down_and_checked(generator, recording):
    tab = page(generator, Ears(Heard()))
    changes = tab.hear(recording, "", "")
    assert 0.8 < changes[tab.start] <= 1.2 and changes[tab.end] > changes[tab.start] + 4
    assert changes[tab.transcript] == SHIPPED.transcript
    assert "fine for a voice" in changes[tab.told]
    typed = tab.hear(recording, "Something else that was typed by hand.", "")
    assert tab.transcript not in typed and "does not match" in typed[tab.told]
    replaced = tab.hear(recording, "What was heard before.", "What was heard before.")
    assert replaced[tab.transcript] == SHIPPED.transcript


def test_a_voice_is_kept_exported_removed_and_imported_again(generator, recording, tmp_path):
    tab = page(generator)
    changes = tab.add(recording, 1.0, 6.0, SHIPPED.transcript, "Anna", {})
    kept = changes[tab.kept]
    assert list(kept) == ["Anna"] and changes[tab.own]["choices"] == ["Anna"] and changes[tab.own]["value"] == "Anna"
    assert kept["Anna"].codes_for(generator.codec_key) is not None
    assert len(load_audio(kept["Anna"].path)) == 5 * SAMPLE_RATE
    file = Path(tab.export("Anna", kept))
    assert file.name == "Anna.voice"
    moved = tmp_path / file.name
    file.rename(moved)
    gone = tab.remove("Anna", kept)
    assert gone[tab.kept] == {} and not kept["Anna"].path.exists()
    back = tab.take_in(str(moved), {})[tab.kept]
    assert list(back) == ["Anna"] and np.array_equal(back["Anna"].codes, kept["Anna"].codes)
    twice = tab.take_in(str(moved), back)[tab.kept]
    assert list(twice) == ["Anna", "Anna 2"] and twice["Anna"].path != twice["Anna 2"].path


def test_what_is_refused_leaves_the_kept_voices_as_they_were(generator, recording, tmp_path):
    tab = page(generator)
    before = set(tab.folder.iterdir())
    kept = {"Anna": SHIPPED}
    for act in (
        lambda: tab.add(None, 0, 5, "Hello there.", "Ben", kept),
        lambda: tab.add(recording, 5, 2, "Hello there.", "Ben", kept),
        lambda: tab.add(recording, 0, 5, " ", "Ben", kept),
        lambda: tab.add(recording, 0, 5, "Hello there.", SHIPPED.name.upper(), kept),
        lambda: tab.add(recording, 0, 0.5, "Hello there.", "Ben", kept),
        lambda: tab.take_in(recording, kept),
        lambda: tab.export("Ben", kept),
        lambda: tab.remove(None, kept),
        lambda: tab.add(recording, 0, 5, "Hello.", "Ben", {str(number): SHIPPED for number in range(20)}),
    ):
        with pytest.raises(InputError):
            act()
    assert kept == {"Anna": SHIPPED} and set(tab.folder.iterdir()) == before


def test_a_closed_page_takes_its_recordings_with_it(generator, recording):
    tab = page(generator)
    kept = tab.add(recording, 1.0, 6.0, SHIPPED.transcript, "Anna", {})[tab.kept]
    forget(kept)
    assert not kept["Anna"].path.parent.exists()


def test_findings_are_told_as_sentences_and_never_as_markup():
    assert "fine for a voice" in findings([])
    told = findings([Finding("transcript", "It says “<b>x</b>”.")], "Words can't be told.")
    assert "<b>" not in told and "would be better" in told and "Words can&#x27;t be told." in told
    assert "can't be used" in findings([Finding("silent", "It is silent.", True)])


def test_a_kept_voice_speaks_with_its_codes(generator, recording):
    from csm.conversation.events import Performed
    from csm.conversation.parsing import Line
    from csm.settings import Settings

    tab = page(generator)
    kept = tab.add(recording, 1.0, 3.0, "My grandmother.", "Anna", {})[tab.kept]
    done = list(performed(generator, [Line("A", "Hi.", 1)], {"A": kept["Anna"]}, Settings(max_turn_seconds=0.3)))
    assert isinstance(done[-1], Performed) and done[-1].report["turns"]


@pytest.mark.parametrize("given", [10**400, "soon", [1]])
def test_a_time_that_is_none_is_refused(given):
    with pytest.raises(InputError, match="are seconds"):
        _seconds(given)
