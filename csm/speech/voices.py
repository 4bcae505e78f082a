"""The voice library: names or files to voice prompts that are fit to be cloned, on their way into the context.

A voice of one's own can be kept as one file, `NAME.voice`: its recording, its transcript and its codes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from csm.assets import PROMPTS
from csm.audio import inspect_audio, load_audio
from csm.checkpoint.hub import fetch_prompt
from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.files import output

SHORTEST = 1.0  # seconds of sound
LONGEST = 30.0  # seconds
SILENCE = 0.003  # RMS of the loudest window (-50 dBFS) below which a recording counts as silent
WINDOW = 480  # samples: the 20 ms over which loudness is judged
QUIET = 0.01  # windows 40 dB below the loudest are silence
LONG_SILENCE = 0.5  # seconds of silence at an edge that are cut ...
KEPT_SILENCE = 0.1  # ... down to this
LEVEL = 0.071  # RMS of the shipped voices' speech: -23 dB below full scale
LEVEL_RANGE = 3.0  # a voice within a third and three times `LEVEL` is left as it is
LONGEST_NAME = 40  # characters

VOICE_SUFFIX = ".voice"
VOICE_FORMAT = 1
LARGEST_FILE = 8_000_000  # bytes of a voice file; 30 s of sound are 1.5 MB
LARGEST_PARTS = {"voice.json": 65_536, "recording.flac": 6_000_000, "codes.npy": 1_000_000}  # bytes, unpacked
MOST_CODES = 400  # frames; 30 s are 375


@dataclass(frozen=True)
class Voice:
    """A recording of one speaker and exactly what is said in it.

    With `published_bytes` the recording lies on the hub, at `path` in the model's repository, and is that long; see
    `fetched`. `codes`, int (frames, K), are what the codec called `codec` makes of it, where that is known.
    """

    name: str
    path: Path
    transcript: str
    licence: str = ""
    origin: str = ""
    description: str = ""
    published_bytes: int = 0
    codes: np.ndarray | None = field(default=None, compare=False, repr=False)
    codec: str = field(default="", compare=False)

    def codes_for(self, codec: str) -> Tensor | None:
        """The voice's codes, int64 (frames, K), when they are of this codec (`Generator.codec_key`), else None."""
        if self.codes is None or not codec or codec != self.codec:
            return None
        return torch.from_numpy(self.codes.astype(np.int64))


def shipped_voices() -> dict[str, Voice]:
    """The voices of `prompts/index.json`, by name, in its order."""
    return _listed("index.json", PROMPTS)


def official_voices() -> dict[str, Voice]:
    """The prompts that were published with CSM-1B, by name: their recordings stay on the hub until `fetched`."""
    return _listed("official.json", Path())


def fetched(voice: Voice) -> Voice:
    """The voice with its recording on this machine, downloaded if need be.

    Raises `InputError` when it can't be had, and when it isn't the recording that the transcript was written for.
    """
    if not voice.published_bytes:
        return voice
    path = fetch_prompt(voice.path.as_posix())
    if path.stat().st_size != voice.published_bytes:
        raise InputError(
            f"The recording of {voice.name} on the hub is no longer the one that its transcript was written for; "
            "choose another voice."
        )
    return replace(voice, path=path, published_bytes=0)


def find_voice(name_or_path: str, transcript: str | None = None) -> Voice:
    """A shipped or official voice by its name (in any case), or the voice in an audio file.

    What a file says comes from `transcript` or else from the text file beside it (`anna.wav`, `anna.txt`).
    Raises `InputError` when there is no such voice or file, or no transcript. The sound is checked later, by
    `load_prompt`.
    """
    wanted = str(name_or_path).strip()
    shipped = shipped_voices()
    for name, voice in (shipped | official_voices()).items():
        if name.casefold() == wanted.casefold():
            return voice
    path = Path(os.path.expanduser(wanted))
    if not wanted or not os.path.isfile(path):
        names = ", ".join(shipped)
        raise InputError(f"There is no voice or audio file “{wanted}”; the shipped voices are {names}.")
    text = " ".join((transcript or _transcript_beside(path)).split())
    if not any(character.isalnum() for character in text):
        raise InputError(
            f"The transcript of the voice {path.name} is missing; give the exact words of the recording, "
            f"for example in a file {path.stem}.txt beside it."
        )
    return Voice(path.stem, path, text)


def voices_for(speakers: Sequence[str], chosen: Mapping[str, Voice]) -> dict[str, Voice]:
    """A voice for each speaker: the chosen one, or else the next shipped one that nobody has, and then all again."""
    taken = {voice.name for voice in chosen.values()}
    shipped = list(shipped_voices().values())
    free = cycle([voice for voice in shipped if voice.name not in taken] or shipped)
    return {speaker: chosen[speaker] if speaker in chosen else next(free) for speaker in speakers}


def load_prompt(voice: Voice) -> Tensor:
    """The voice's recording as float32 (num_samples,), mono, 24 kHz, ready for the codec.

    Silence of more than 0.5 s at either end is cut to 0.1 s. A recording whose speech is more than three times
    louder or softer than the shipped voices is brought to their level. Raises `InputError` when the file is not
    audio, silent, shorter than 1 s (edges cut) or longer than 30 s, or can't be fetched.
    """
    voice = fetched(voice)
    seconds = inspect_audio(voice.path).seconds
    if seconds > LONGEST + 0.05:
        raise InputError(
            f"The voice {voice.path.name} is {seconds:.1f} s long and at most {LONGEST:.0f} s fit; "
            f"cut the recording and its transcript."
        )
    wave = load_audio(voice.path, LONGEST + 1)
    if (loudness := _loudness(wave)).max() < SILENCE:
        raise InputError(f"The voice {voice.path.name} is silent; record it again or choose another file.")
    sounding = loudness > QUIET * loudness.max()
    wave = _without_long_silence(wave, sounding)
    if len(wave) < SHORTEST * SAMPLE_RATE:
        raise InputError(
            f"The voice {voice.path.name} is too short with {len(wave) / SAMPLE_RATE:.1f} s of sound; "
            f"at least {SHORTEST:.0f} s is needed, and five to ten are better."
        )
    return wave * _gain(wave, float(loudness[sounding].square().mean().sqrt()))


def voice_name(name: str, taken: dict[str, Voice] | None = None) -> str:
    """A name for a voice of one's own, with single spaces. Raises `InputError` when it can't be one or is `taken`."""
    wanted = " ".join(str(name).split())
    if not wanted or not all(character.isalnum() or character in " -_." for character in wanted) or wanted[0] == ".":
        raise InputError("Give the voice a name of letters, digits, spaces and hyphens.")
    if len(wanted) > LONGEST_NAME:
        raise InputError(f"The voice's name has {len(wanted)} characters; use at most {LONGEST_NAME}.")
    if wanted.casefold() in {known.casefold() for known in taken or {}}:
        raise InputError(f"There is already a voice called “{wanted}”; choose another name.")
    return wanted


def own_voice(folder: Path, name: str, wave: Tensor, transcript: str) -> Voice:
    """A voice of float32 (num_samples,) at 24 kHz, its recording written into `folder` under a name of its own.

    Raises `InputError` as `load_prompt` does, and when name or transcript is missing.
    """
    name, text = voice_name(name), " ".join(transcript.split())
    if not any(character.isalnum() for character in text):
        raise InputError(f"The transcript of the voice {name} is missing; write exactly what is said in the recording.")
    samples = (wave.clamp(-1, 1) * 32_768).round().clamp(-32_768, 32_767).to(torch.int16)
    digest = hashlib.sha256(samples.numpy().tobytes()).hexdigest()[:12]
    voice = Voice(name, folder / f"{name}-{digest}.wav", text)
    try:
        soundfile.write(voice.path, samples.numpy(), SAMPLE_RATE, subtype="PCM_16")
        load_prompt(voice)
    except BaseException:
        voice.path.unlink(missing_ok=True)
        raise
    return voice


def save_voice(path: str | Path, voice: Voice) -> None:
    """Write a voice as one file, whole or not at all. Raises `InputError` when it can't be read or written."""
    path = Path(path)
    recording, codes = io.BytesIO(), io.BytesIO()
    wave = (load_audio(voice.path, LONGEST + 1) * 32_768).round().clamp(-32_768, 32_767).to(torch.int16)
    soundfile.write(recording, wave.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    about = {"format": VOICE_FORMAT, "name": voice.name, "transcript": voice.transcript, "codec": voice.codec}
    about |= {"description": voice.description, "licence": voice.licence, "origin": voice.origin}
    parts = {"voice.json": json.dumps(about, ensure_ascii=False, indent=1).encode()}
    parts["recording.flac"] = recording.getvalue()
    if voice.codes is not None:
        np.save(codes, voice.codes.astype(np.int32), allow_pickle=False)
        parts["codes.npy"] = codes.getvalue()
    with output(path) as part, zipfile.ZipFile(part, "w") as file:
        for name, data in parts.items():
            file.writestr(zipfile.ZipInfo(name), data)


def read_voice(path: str | Path, folder: Path) -> Voice:
    """The voice in a file that `save_voice` wrote; its recording is put into `folder`.

    Raises `InputError` in one sentence for a file that is missing, damaged, foreign, too large, or newer than this
    program.
    """
    path = Path(path)
    parts = _parts_of(path)
    about = _about(path, parts.get("voice.json", b""))
    codes = _codes(path, parts["codes.npy"]) if "codes.npy" in parts else None
    try:
        with soundfile.SoundFile(io.BytesIO(parts["recording.flac"])) as file:
            if file.format != "FLAC" or file.samplerate != SAMPLE_RATE or file.channels != 1:
                raise _broken(path)
            samples = file.read(int((LONGEST + 1) * SAMPLE_RATE), np.float32)
    except (KeyError, RuntimeError) as error:
        raise _broken(path) from error
    voice = own_voice(folder, about["name"], torch.from_numpy(samples), about["transcript"])
    voice = replace(voice, description=about["description"], licence=about["licence"], origin=about["origin"])
    return replace(voice, codes=codes, codec=about["codec"] if codes is not None else "")


def _parts_of(path: Path) -> dict[str, bytes]:
    """The files inside a voice file, each no larger than it may be."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path.name} is too large for a voice; choose a file that this program saved.")
        with zipfile.ZipFile(path) as file:
            parts: dict[str, bytes] = {}
            if len(file.namelist()) > len(LARGEST_PARTS):
                raise _broken(path)
            for name in file.namelist():
                with file.open(name) as part:
                    parts[name] = part.read(LARGEST_PARTS.get(name, -1) + 1)
                if name not in LARGEST_PARTS or len(parts[name]) > LARGEST_PARTS[name]:
                    raise _broken(path)
            return parts
    except FileNotFoundError as error:
        raise InputError(f"There is no voice file {path.name}.") from error
    except InputError:
        raise
    except Exception as error:  # a damaged archive makes trouble of many kinds: zipfile's, zlib's, lzma's
        raise _broken(path) from error


def _about(path: Path, data: bytes) -> dict[str, str]:
    try:
        about: Any = json.loads(data.decode("utf-8"))
        version = int(about["format"])
        if version > VOICE_FORMAT:
            raise InputError(f"{path.name} was saved by a newer version of this program; update it to open this voice.")
        wanted = ("name", "transcript", "codec", "description", "licence", "origin")
        return {key: str(about.get(key, ""))[:4_000] for key in wanted}
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(path) from error


def _codes(path: Path, data: bytes) -> np.ndarray:
    try:
        codes = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError) as error:
        raise _broken(path) from error
    if not isinstance(codes, np.ndarray) or codes.ndim != 2 or codes.dtype.kind not in "iu":
        raise _broken(path)
    if not (0 < len(codes) <= MOST_CODES and 0 < codes.shape[1] <= 64 and codes.min() >= 0 and codes.max() < 65_536):
        raise _broken(path)
    return codes.astype(np.int32)


def _broken(path: Path) -> InputError:
    return InputError(f"{path.name} is not a voice file of this program, or it is damaged; export the voice again.")


def _listed(index: str, folder: Path) -> dict[str, Voice]:
    """The voices of an index in `prompts/`, by name, their recordings in `folder`."""
    entries = json.loads((PROMPTS / index).read_text(encoding="utf-8"))["voices"]
    voices = [Voice(path=folder / entry.pop("file"), **entry) for entry in entries]
    return {voice.name: voice for voice in voices}


def _transcript_beside(path: Path) -> str:
    try:
        return path.with_suffix(".txt").read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The transcript {path.stem}.txt can't be read; save it as plain UTF-8 text.") from error


def _loudness(wave: Tensor) -> Tensor:
    """RMS of each 20 ms window: (num_samples,) -> (windows,)."""
    padded = torch.nn.functional.pad(wave, (0, -len(wave) % WINDOW))
    return padded.view(-1, WINDOW).square().mean(dim=1).sqrt()


def _without_long_silence(wave: Tensor, sounding: Tensor) -> Tensor:
    first, last = (int(index) for index in sounding.nonzero().flatten()[[0, -1]])
    begin, end = first * WINDOW, min(len(wave), (last + 1) * WINDOW)
    kept = int(KEPT_SILENCE * SAMPLE_RATE)
    if begin <= LONG_SILENCE * SAMPLE_RATE:
        begin = kept
    if len(wave) - end <= LONG_SILENCE * SAMPLE_RATE:
        end = len(wave) - kept
    return wave[begin - kept : end + kept]


def _gain(wave: Tensor, level: float) -> float:
    """How to bring speech of RMS `level` to that of the shipped voices without clipping; 1 when it is near."""
    if abs(math.log(level / LEVEL)) <= math.log(LEVEL_RANGE):
        return 1.0
    return min(LEVEL / level, 0.99 / float(wave.abs().max()))
