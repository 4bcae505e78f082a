"""RHVoice through its C library: text in, waveform out, and the time of every word; more voices than Flite has.

RHVoice tells when words begin and end, in steps of a tenth of a second, and nothing of phones. So Flite says the
same text, and its times are carried over (`csm/training/alignment.py`). Voices slt, clb, bdl and ksp, built from
the CMU ARCTIC recordings.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_int, c_short, c_uint, c_void_p
from pathlib import Path

import numpy as np

from csm.errors import InputError
from csm.training.alignment import time_map
from csm.training.flite import Flite, Spoken, Words

GUIDES = {"slt": "slt", "clb": "slt", "bdl": "rms", "ksp": "rms"}  # voice: the Flite voice that is most like it
MISSING = (
    "RHVoice {what}: build it from its public sources (tag 1.6.0, `scons languages=english`, `scons install`) "
    "and give --rhvoice PREFIX, the folder it was installed in."
)

_OnRate = CFUNCTYPE(c_int, c_int, c_void_p)
_OnSpeech = CFUNCTYPE(c_int, POINTER(c_short), c_uint, c_void_p)
_OnName = CFUNCTYPE(c_int, c_char_p, c_void_p)
_OnSpan = CFUNCTYPE(c_int, c_uint, c_uint, c_void_p)
_OnDone = CFUNCTYPE(None, c_void_p)


class _Callbacks(ctypes.Structure):
    _fields_ = [
        ("set_sample_rate", _OnRate),
        ("play_speech", _OnSpeech),
        ("process_mark", _OnName),
        ("word_starts", _OnSpan),
        ("word_ends", _OnSpan),
        ("sentence_starts", _OnSpan),
        ("sentence_ends", _OnSpan),
        ("play_audio", _OnName),
        ("done", _OnDone),
    ]


class _Setup(ctypes.Structure):
    _fields_ = [
        ("data_path", c_char_p),
        ("config_path", c_char_p),
        ("resource_paths", POINTER(c_char_p)),
        ("callbacks", _Callbacks),
        ("options", c_uint),
    ]


class _VoiceInfo(ctypes.Structure):
    _fields_ = [("language", c_char_p), ("name", c_char_p), ("gender", c_int), ("country", c_char_p)]


class _Manner(ctypes.Structure):
    _fields_ = [
        ("voice_profile", c_char_p),
        ("absolute_rate", c_double),
        ("absolute_pitch", c_double),
        ("absolute_volume", c_double),
        ("relative_rate", c_double),
        ("relative_pitch", c_double),
        ("relative_volume", c_double),
        ("punctuation_mode", c_int),
        ("punctuation_list", c_char_p),
        ("capitals_mode", c_int),
        ("flags", c_int),
    ]


_SIGNATURES = {
    "RHVoice_new_tts_engine": (c_void_p, [POINTER(_Setup)]),
    "RHVoice_delete_tts_engine": (None, [c_void_p]),
    "RHVoice_get_number_of_voices": (c_uint, [c_void_p]),
    "RHVoice_get_voices": (POINTER(_VoiceInfo), [c_void_p]),
    "RHVoice_new_message": (c_void_p, [c_void_p, c_char_p, c_uint, c_int, POINTER(_Manner), c_void_p]),
    "RHVoice_delete_message": (None, [c_void_p]),
    "RHVoice_speak": (c_int, [c_void_p]),
}


class RHVoice:
    """A process's handle on the library and the four voices installed under `prefix` (default: /usr/local).

    Raises `InputError` when RHVoice, one of the voices, or Flite (for the phones) is not installed.
    """

    def __init__(self, prefix: Path | None = None) -> None:
        root = prefix or Path("/usr/local")
        try:
            for name in ("libRHVoice_core.so.6", "libRHVoice.so.5"):
                own = root / "lib" / name
                self._lib = ctypes.CDLL(str(own) if own.exists() or prefix else name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise InputError(MISSING.format(what="is not there")) from error
        self._flite = Flite(("slt", "rms"))
        for function_name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._lib, function_name)
            function.restype, function.argtypes = result, arguments
        self._sample_rate = 0
        self._played: list[np.ndarray] = []
        self._samples = 0
        self._spans: list[tuple[int, int, int]] = []  # first character, length, samples played; twice a word
        data, configuration = root / "share/RHVoice", root / "etc/RHVoice"
        self._callbacks = _Callbacks(
            set_sample_rate=_OnRate(self._on_rate),
            play_speech=_OnSpeech(self._on_speech),
            word_starts=_OnSpan(self._on_span),
            word_ends=_OnSpan(self._on_span),
        )
        setup = _Setup(
            str(data).encode() if data.is_dir() else None,
            str(configuration).encode() if configuration.is_dir() else None,
            None,
            self._callbacks,
            0,
        )
        self._engine = self._lib.RHVoice_new_tts_engine(ctypes.byref(setup))
        if not self._engine:
            raise InputError(MISSING.format(what="finds none of its voices"))
        found = self._lib.RHVoice_get_voices(self._engine)
        count = self._lib.RHVoice_get_number_of_voices(self._engine)
        self._names = {found[i].name.decode().lower(): found[i].name for i in range(count)}
        lacking = [voice for voice in GUIDES if voice not in self._names]
        if lacking:
            raise InputError(MISSING.format(what=f"lacks the voice {lacking[0]}"))

    def _on_rate(self, sample_rate: int, _) -> int:
        self._sample_rate = sample_rate
        return 1

    def _on_speech(self, samples, count: int, _) -> int:
        self._played.append(np.ctypeslib.as_array(samples, (count,)).copy())
        self._samples += count
        return 1

    def _on_span(self, position: int, length: int, _) -> int:
        self._spans.append((position, length, self._samples))
        return 1

    def speak(self, text: str, voice: str, rate: float = 1.0) -> Spoken:
        """Say `text` in `voice`, `rate` times as fast as the voice's own pace. Nothing to say: no samples."""
        self._played, self._samples, self._spans = [], 0, []
        letters = text.encode()
        manner = _Manner(self._names[voice], 0, 0, 0, rate, 1, 1, 0, None, 0, 0)
        message = self._lib.RHVoice_new_message(self._engine, letters, len(letters), 0, ctypes.byref(manner), None)
        if message:
            try:
                self._lib.RHVoice_speak(message)
            finally:
                self._lib.RHVoice_delete_message(message)
        if not self._samples:
            return Spoken(np.zeros(0, np.int16), self._sample_rate or 24_000, [], [])
        samples = np.concatenate(self._played)
        second = 1 / self._sample_rate
        words = [
            (start, start + length, begin * second, end * second)
            for (start, length, begin), (_, _, end) in zip(self._spans[::2], self._spans[1::2])
        ]
        return self._timed(text, samples, words, GUIDES[voice], rate)

    def _timed(self, text: str, samples: np.ndarray, coarse: Words, guide_voice: str, rate: float) -> Spoken:
        """Flite's phones and words of the text, at the times RHVoice says them."""
        guide = self._flite.speak(text, guide_voice, rate)
        if not guide.words:
            return Spoken(samples, self._sample_rate, [], [])
        clips = (guide.samples, guide.sample_rate), (samples, self._sample_rate)
        at, there = time_map(text, *clips, guide.words, coarse)

        def move(seconds: float) -> float:
            return float(np.interp(seconds, at, there))

        phones = [(name, move(end)) for name, end in guide.phones]
        return Spoken(samples, self._sample_rate, phones, [(a, b, move(s), move(e)) for a, b, s, e in guide.words])

    def close(self) -> None:
        """Give the library's memory back; nothing can be said afterwards."""
        if self._engine:
            self._lib.RHVoice_delete_tts_engine(self._engine)
            self._engine = None
