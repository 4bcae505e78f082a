"""Judges a recording before it becomes a voice: each defect in one sentence that says what to do about it.

Thresholds were set on synthetic voices (Flite, eSpeak NG, RHVoice), on human recordings, and on mixes of them with
noise, hum, music, echo and clipping; `tests/test_listening.py` keeps them there.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.errors import InputError
from csm.extras import install
from csm.listening import recogniser as recognisers
from csm.listening.recogniser import Recogniser
from csm.listening.speakers import SpeakerSimilarity, unity
from csm.listening.speech import (
    STEADY,
    SpeechDetector,
    clipped,
    detector,
    fastest_fall,
    levels,
    loudness,
    sounding_edges,
)
from csm.listening.words import Difference, comparable, differences, letters_apart
from csm.speech.voices import LONGEST, SHORTEST

INSTALL = install("listening")
SILENT_DB = -50.0  # of full scale, in the loudest 20 ms
QUIET_DB = -45.0  # of full scale, speech
SHORT = 3.0  # seconds of sound; less gives a poor likeness
NOISY = 18.0  # dB between speech and what sounds in its pauses; clean recordings have 25 and more
HISS = 0.3  # spectral flatness of that; hum, music and echo lie below 0.3, noise above 0.45
ECHO = 16.0  # dB in 80 ms (`fastest_fall`); dry recordings have 25 and more, half a second of echo leaves 14
SPEECH_SHARE = 0.4  # of the sounding time in which the detector must hear speech
ONE_VOICE = 0.8  # cosine (`unity`) below which two people speak; one voice has 0.87 and more, two 0.58 to 0.82
APART = 0.3  # `letters_apart` of the transcript and what is heard; right ones had up to 0.2
LONG_GAP = 4  # words in a row that are only written or only heard


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a recording. `refused`: it can't be used at all; otherwise it can, with worse
    results. `kind` is for programs: `silent`, `quiet`, `too long`, `too short`, `clipped`, `noisy`, `background`,
    `echo`, `not speech`, `two speakers` or `transcript`."""

    kind: str
    sentence: str
    refused: bool = False


@dataclass(frozen=True)
class Ears:
    """Who helps to listen; each may be missing."""

    recogniser: Recogniser | None = None
    speakers: SpeakerSimilarity | None = None
    speech: SpeechDetector | None = None

    @property
    def missing(self) -> str:
        """What can't be told here and how to change that, in one sentence; empty when nothing is missing."""
        lacking = [
            name
            for name, helper in (
                ("the words", self.recogniser),
                ("a second speaker", self.speakers),
                ("what is not speech", self.speech),
            )
            if helper is None
        ]
        return f"{' and '.join(lacking).capitalize()} can't be told here: run `{INSTALL}`." if lacking else ""


class LazyEars:
    """The ears that are installed here, loaded when first asked for and shared from then on."""

    def __init__(self) -> None:
        self._ears: Ears | None = None
        self._lock = threading.Lock()

    def get(self) -> Ears:
        with self._lock:
            if self._ears is None:
                names = recognisers.available()
                try:
                    speakers: SpeakerSimilarity | None = SpeakerSimilarity()
                except InputError:
                    speakers = None
                recogniser = recognisers.load(names[0]) if names else None
                self._ears = Ears(recogniser, speakers, detector())
            return self._ears


def write_down(wave: Tensor, ears: Ears) -> str:
    """What is said in float32 (num_samples,) at 24 kHz. Raises `InputError` when nobody here can hear words."""
    if ears.recogniser is None:
        raise InputError(f"The recogniser is not installed, so type what is said, or run `{INSTALL}`.")
    heard = ears.recogniser.transcribe(wave)
    return _without_opening_you(heard, comparable(heard)[1:])


def check_prompt(
    wave: Tensor,
    transcript: str,
    recogniser: Recogniser | None = None,
    speakers: SpeakerSimilarity | None = None,
    speech: SpeechDetector | None = None,
) -> list[Finding]:
    """What is wrong with float32 (num_samples,) at 24 kHz as a voice that says `transcript`; empty when nothing is.

    Without a helper what it would hear is not looked for; an empty transcript is not compared. Sampling rates of
    the file don't matter: `load_audio` has made them one.
    """
    wave = torch.nan_to_num(wave.detach().to("cpu", torch.float32))
    if not len(wave) or float(levels(wave).max()) < SILENT_DB:
        return [Finding("silent", "The recording is silent: record it again or choose another file.", True)]
    found = _lengths(wave)
    begin, end = sounding_edges(wave)
    sound = wave[begin:end]
    if clipped(wave):
        found.append(
            Finding(
                "clipped",
                "The loudest parts are cut off: record it again with the microphone turned down or further away.",
            )
        )
    if not _is_speech(sound, speech):
        found.append(Finding("not speech", "Hardly any speech is heard: choose a recording of one person talking."))
        return found
    found += _surroundings(sound)
    if speakers is not None and unity(speakers.pieces(sound)) < ONE_VOICE:
        found.append(
            Finding("two speakers", "More than one person seems to speak: cut the recording so that only one is heard.")
        )
    if recogniser is not None and comparable(transcript):
        found += _words(transcript, recogniser.transcribe(wave))
    return found


def _lengths(wave: Tensor) -> list[Finding]:
    begin, end = sounding_edges(wave)
    whole, sound = len(wave) / SAMPLE_RATE, (end - begin) / SAMPLE_RATE
    if whole > LONGEST + 0.05:
        return [
            Finding("too long", f"It lasts {whole:.0f} s and at most {LONGEST:.0f} s fit: choose a shorter part.", True)
        ]
    if sound < SHORTEST:
        sentence = f"Only {sound:.1f} s of it sound: at least {SHORTEST:.0f} s is needed, and five to ten are better."
        return [Finding("too short", sentence, True)]
    if sound < SHORT:
        return [Finding("too short", f"It has only {sound:.1f} s of sound: five to ten give a better likeness.")]
    return []


def _is_speech(sound: Tensor, speech: SpeechDetector | None) -> bool:
    level = levels(sound)
    if len(level) > 20 and float(level.std()) < STEADY:
        return False
    return speech is None or float((speech(sound) > 0.5).float().mean()) >= SPEECH_SHARE


def _surroundings(sound: Tensor) -> list[Finding]:
    """Level, noise and echo."""
    measured, fall = loudness(sound), fastest_fall(sound)
    found = []
    if measured.speech < QUIET_DB:
        found.append(Finding("quiet", "It is very quiet: record it again closer to the microphone or louder."))
    if fall is not None and fall < ECHO:
        found.append(
            Finding(
                "echo", "The room echoes: record it again in a room with soft furniture or closer to the microphone."
            )
        )
    elif measured.above_noise < NOISY and measured.flatness >= HISS:
        found.append(
            Finding(
                "noisy",
                f"There is noise only {max(0.0, measured.above_noise):.0f} dB below the speech: record it again in a "
                "quiet place.",
            )
        )
    elif measured.above_noise < NOISY:
        found.append(
            Finding(
                "background",
                "Music, a hum or an echo sounds behind the speech: record it again where nothing else is heard.",
            )
        )
    return found


def _words(transcript: str, heard: str) -> list[Finding]:
    if not comparable(heard):
        return [Finding("transcript", "No English words are heard in it: check that the right recording is chosen.")]
    heard = _without_opening_you(heard, comparable(transcript))
    parts = differences(transcript, heard)
    gaps = [max(len(part.written), len(part.heard)) for part in parts if not part.written or not part.heard]
    if letters_apart(transcript, heard) <= APART and max(gaps, default=0) < LONG_GAP:
        return []
    worst = sorted(parts, key=lambda part: len(part.written) + len(part.heard), reverse=True)[:2]
    told = "; ".join(_told(part) for part in worst)
    return [Finding("transcript", f"The transcript does not match what is heard ({told}): write exactly what is said.")]


def _without_opening_you(heard: str, expected: list[str]) -> str:
    """Moonshine often hears a "you" in the silence before the first word."""
    first, _, rest = heard.strip().partition(" ")
    opening = comparable(first) == ["you"] and bool(rest) and expected[:1] == comparable(rest)[:1]
    return rest if opening else heard


def _told(part: Difference) -> str:
    written, heard = (" ".join(words[:6]) + (" …" if len(words) > 6 else "") for words in (part.written, part.heard))
    if not part.heard:
        return f"“{written}” is written but not heard"
    if not part.written:
        return f"“{heard}” is heard but not written"
    return f"“{written}” is written where “{heard}” is heard"
