"""Sound to bytes while it is made: every format decodes to what went in, streamed or whole."""

import io
import shutil
import subprocess
import wave

import numpy as np
import pytest
import soundfile

from csm.errors import InputError
from csm.web import encoding
from csm.web.encoding import FORMATS, Encoder, check_format, samples

SECONDS = 3
TONE = (0.3 * np.sin(2 * np.pi * 220 * np.arange(24_000 * SECONDS) / 24_000)).astype(np.float32)


def streamed(name: str, pieces: int = 7) -> list[bytes]:
    encoder = Encoder(name)
    return [*(encoder.write(part) for part in np.array_split(TONE, pieces)), encoder.finish()]


def decoded(data: bytes) -> np.ndarray:
    sound, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 24_000
    return sound


@pytest.mark.parametrize("name", ["mp3", "opus", "wav"])
def test_a_stream_decodes_to_what_went_in(name):
    sound = decoded(b"".join(streamed(name)))
    assert abs(len(sound) / 24_000 - SECONDS) < 0.1
    middle = sound[24_000:48_000]
    assert np.abs(np.fft.rfft(middle)).argmax() == 220
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.3 / np.sqrt(2), rel=0.06)  # LAME takes 5 % off


@pytest.mark.parametrize("name", ["mp3", "opus", "pcm", "wav"])
def test_a_stream_gives_sound_long_before_its_end(name):
    parts = streamed(name, pieces=30)
    assert sum(map(len, parts[:15])) > 0.3 * sum(map(len, parts))


@pytest.mark.parametrize("name", ["mp3", "opus", "wav", "flac"])
def test_a_whole_file_states_its_length(name):
    data = Encoder(name).whole(TONE)
    assert len(decoded(data)) == pytest.approx(len(TONE), abs=1_200)
    if name in ("wav", "flac"):
        assert soundfile.info(io.BytesIO(data)).frames == len(TONE)
        assert np.abs(decoded(data) - TONE).max() < 1e-4


def test_a_whole_wav_is_one_for_the_strictest_reader():
    with wave.open(io.BytesIO(Encoder("wav").whole(TONE))) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels(), file.getsampwidth()) == (
            72_000,
            24_000,
            1,
            2,
        )


def test_pcm_is_16_bit_little_endian_at_24_khz_without_a_header():
    data = b"".join(streamed("pcm"))
    assert len(data) == 2 * len(TONE)
    assert np.abs(np.frombuffer(data, "<i2") / 32_767 - TONE).max() < 1e-4


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap():
    assert samples(np.array([2.0, -2.0], np.float32)).tolist() == [32_767, -32_767]


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="aac is written by ffmpeg")
def test_aac_is_written_where_ffmpeg_is(tmp_path):
    (tmp_path / "a.aac").write_bytes(Encoder("aac").whole(TONE))
    command = ["ffprobe", "-v", "error", "-show_entries", "format=format_name", "-of", "csv=p=0", tmp_path / "a.aac"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "aac"


def test_aac_without_ffmpeg_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(encoding.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="ask for mp3"):
        check_format("aac")


def test_silence_and_nothing_are_encoded_too():
    for name in FORMATS:
        if name != "aac":
            encoder = Encoder(name)
            assert encoder.write(np.zeros(0, np.float32)) + encoder.finish() is not None
            assert Encoder(name).whole(np.zeros(1_920, np.float32)) is not None
