"""Flite through its C library: text in, waveform out, and the time of every phone and word.

The synthesiser knows what it said and when. That truth stands in for the self-supervised teacher of
Mimi's semantic code (`csm/training/codec.py`) and shows the language model where it is in the text
(`csm/training/lm.py`). Debian package `libflite1`; voices cmu_us_slt, cmu_us_rms, cmu_us_awb.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_short, c_void_p
from dataclasses import dataclass

import numpy as np

from csm.errors import InputError


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", c_char_p),
        ("sample_rate", c_int),
        ("num_samples", c_int),
        ("num_channels", c_int),
        ("samples", POINTER(c_short)),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("features", c_void_p)]


_SIGNATURES = {
    "flite_synth_text": (c_void_p, [c_char_p, POINTER(_Voice)]),
    "flite_feat_set_float": (None, [c_void_p, c_char_p, c_float]),
    "utt_wave": (POINTER(_Wave), [c_void_p]),
    "utt_relation": (c_void_p, [c_void_p, c_char_p]),
    "relation_head": (c_void_p, [c_void_p]),
    "item_next": (c_void_p, [c_void_p]),
    "item_parent": (c_void_p, [c_void_p]),
    "item_as": (c_void_p, [c_void_p, c_char_p]),
    "ffeature_string": (c_char_p, [c_void_p, c_char_p]),
    "ffeature_float": (c_float, [c_void_p, c_char_p]),
    "delete_utterance": (None, [c_void_p]),
}


Phones = list[tuple[str, float]]  # name, end in seconds
Words = list[tuple[int, int, float, float]]  # first character, character after the last, start and end in seconds


@dataclass(frozen=True)
class Spoken:
    """One synthesised utterance. `samples` is int16 (num_samples,) at `sample_rate` Hz."""

    samples: np.ndarray
    sample_rate: int
    phones: Phones
    words: Words


class Flite:
    """The engine with its voices loaded. Not thread-safe: one per process."""

    def __init__(self, voices: tuple[str, ...] = ("slt", "rms", "awb")) -> None:
        try:
            self._lib = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise InputError("Flite is missing: install the Debian package flite.") from error
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self._lib.flite_init()
        self._voices = {voice: self._register(f"cmu_us_{voice}") for voice in voices}

    def _register(self, name: str):
        register = getattr(ctypes.CDLL(f"libflite_{name}.so.1", mode=ctypes.RTLD_GLOBAL), f"register_{name}")
        register.restype, register.argtypes = POINTER(_Voice), [c_char_p]
        return register(None)

    def speak(self, text: str, voice: str, rate: float = 1.0) -> Spoken:
        """Say `text` in `voice`, `rate` times as fast as the voice's own pace."""
        lib, handle = self._lib, self._voices[voice]
        lib.flite_feat_set_float(handle.contents.features, b"duration_stretch", 1 / rate)
        utterance = lib.flite_synth_text(text.encode("ascii"), handle)
        try:
            wave = lib.utt_wave(utterance).contents
            samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).copy()
            phones, words = self._timing(utterance, text)
            return Spoken(samples, wave.sample_rate, phones, words)
        finally:
            lib.delete_utterance(utterance)

    def _timing(self, utterance, text: str):
        lib = self._lib
        phones: Phones = []
        words: Words = []
        cursor, current, start = 0, None, 0.0
        segment = lib.relation_head(lib.utt_relation(utterance, b"Segment"))
        while segment:
            end = lib.ffeature_float(segment, b"end")
            phones.append((lib.ffeature_string(segment, b"name").decode(), end))
            inside = lib.item_as(segment, b"SylStructure")
            if inside:
                word = lib.item_parent(lib.item_parent(inside))
                if word != current:
                    token = lib.ffeature_string(word, b"R:Token.parent.name").decode()
                    at = text.find(token, cursor)
                    if at >= 0 and not any(map(str.isalnum, text[cursor:at])):
                        words.append((at, at + len(token), start, end))
                        cursor = at + len(token)
                    elif words:  # another word of the same token
                        words[-1] = (*words[-1][:3], end)
                    current = word
                elif words:
                    words[-1] = (*words[-1][:3], end)
            start = end
            segment = lib.item_next(segment)
        return phones, words
