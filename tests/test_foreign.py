"""Sound as it is found: what phones, browsers and films hold comes in like a WAV, with ffmpeg or without."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from csm import audio, foreign
from csm.audio import inspect_audio, load_audio
from csm.config import SAMPLE_RATE
from csm.errors import InputError

av = pytest.importorskip("av")

KINDS = {
    "voice.m4a": ("ipod", "aac"),
    "voice.aac": ("adts", "aac"),
    "voice.mp4": ("mp4", "aac"),
    "voice.webm": ("webm", "libopus"),
    "voice.mka": ("matroska", "libopus"),
    "voice.wma": ("asf", "wmav2"),
    "voice.amr": ("amr", "libopencore_amrnb"),
    "voice": ("mp4", "aac"),
}


def record(path: Path, container: str, codec: str, seconds: float = 2.0, pitch: float = 440.0) -> None:
    """A tone as a phone or a browser would write it."""
    rate = {"libopus": 48_000, "libopencore_amrnb": 8_000}.get(codec, 44_100)
    tone = (0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)).astype(np.float32)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        fifo = av.AudioFifo()
        fifo.write(frame)
        resampler = av.AudioResampler(
            format=stream.format, layout="mono", rate=rate, frame_size=stream.frame_size or 1024
        )
        for part in [*resampler.resample(fifo.read()), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))


@pytest.fixture(params=["ffmpeg", "PyAV"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What decodes: the installed program, or the library where there is none."""
    if request.param == "PyAV":
        monkeypatch.setattr(foreign, "_programs", lambda: False)
    elif not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("ffmpeg is not installed")
    return request.param


@pytest.mark.parametrize("name", KINDS)
def test_a_recording_of_any_kind_is_read(tmp_path: Path, name: str, decoder: str):
    try:
        record(tmp_path / name, *KINDS[name])
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this PyAV can't write it: {error}")
    wave = load_audio(tmp_path / name)
    spectrum = np.abs(np.fft.rfft(wave.numpy()))
    assert spectrum.argmax() * SAMPLE_RATE / len(wave) == pytest.approx(440, abs=2)
    assert len(wave) / SAMPLE_RATE == pytest.approx(2, abs=0.15)
    assert inspect_audio(tmp_path / name).seconds == pytest.approx(2, abs=0.15)
    assert len(load_audio(tmp_path / name, max_seconds=1)) <= SAMPLE_RATE


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
def test_a_streamed_wav_whose_header_knows_no_length_is_read(tmp_path: Path, length: int, decoder: str):
    tone = (0.3 * np.sin(np.arange(SAMPLE_RATE) / 10)).astype(np.float32)
    soundfile.write(tmp_path / "voice.wav", tone, SAMPLE_RATE)
    data = bytearray((tmp_path / "voice.wav").read_bytes())
    data[4:8] = data[40:44] = length.to_bytes(4, "little")
    (tmp_path / "voice.wav").write_bytes(data)
    assert inspect_audio(tmp_path / "voice.wav").seconds == pytest.approx(1, abs=0.01)
    assert np.allclose(load_audio(tmp_path / "voice.wav").numpy(), tone, atol=1e-3)


def test_no_more_is_decoded_than_is_asked_for_or_allowed(tmp_path: Path, decoder: str, monkeypatch: pytest.MonkeyPatch):
    record(tmp_path / "voice.m4a", "ipod", "aac")
    monkeypatch.setattr(foreign, "LONGEST_SOUND", 1.0)
    monkeypatch.setattr(audio, "LONGEST_SOUND", 1.0)
    assert len(load_audio(tmp_path / "voice.m4a", max_seconds=0.5)) == SAMPLE_RATE // 2
    with pytest.raises(InputError, match=r"^voice\.m4a holds more sound than is read"):
        load_audio(tmp_path / "voice.m4a")


def test_decoding_has_a_time_and_what_came_until_then_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record(tmp_path / "voice.m4a", "ipod", "aac")
    monkeypatch.setattr(foreign, "_programs", lambda: False)
    whole = len(load_audio(tmp_path / "voice.m4a"))
    hours = itertools.count(0, 3_600)
    monkeypatch.setattr(foreign, "time", SimpleNamespace(monotonic=lambda: next(hours)))
    assert 0 < len(load_audio(tmp_path / "voice.m4a", max_seconds=2)) < whole / 10


def test_a_list_of_other_files_is_no_sound(tmp_path: Path, decoder: str):
    record(tmp_path / "voice.aac", "adts", "aac")
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nvoice.aac\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile voice.aac\n")
    for name in ("list.m3u8", "list.txt"):
        with pytest.raises(InputError, match="is not audio"):
            load_audio(tmp_path / name)


def test_without_any_decoder_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record(tmp_path / "voice.m4a", "ipod", "aac")
    monkeypatch.setattr(foreign, "can_decode", lambda: False)
    with pytest.raises(InputError, match=r"^voice\.m4a can't be read without ffmpeg or PyAV: run `pip install av`"):
        load_audio(tmp_path / "voice.m4a")
