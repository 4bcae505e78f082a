"""From a recording to a voice that is kept: cut to its speech, and encoded once for the model that will speak."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from csm.config import FRAME_SIZE, SAMPLE_RATE
from csm.engine.frames import Segment
from csm.errors import InputError
from csm.speech.generator import Generator
from csm.speech.voices import Voice, load_prompt


def cut(wave: Tensor, start: float, end: float) -> Tensor:
    """The part of float32 (num_samples,) at 24 kHz from `start` to `end`, in seconds. Raises `InputError`."""
    if end <= start:
        raise InputError("The end lies before the start: move one of them.")
    part = wave[max(0, int(start * SAMPLE_RATE)) : int(end * SAMPLE_RATE)]
    if not len(part):
        raise InputError("Nothing of the recording lies between start and end: move one of them.")
    return part


def codes_fit(generator: Generator, voice: Voice) -> bool:
    """Whether the voice has codes that are this model's and as long as its recording."""
    codes = voice.codes_for(generator.codec_key)
    if codes is None:
        return False
    shape = (-(-len(load_prompt(voice)) // FRAME_SIZE), generator.config.num_codebooks)
    return codes.shape == shape and int(codes.max()) < generator.config.codec.codebook_size


def with_codes(generator: Generator, voice: Voice) -> Voice:
    """The voice with this model's codes: its own where they fit, or else its recording's, encoded.

    Raises `InputError` when the recording can't be used.
    """
    if codes_fit(generator, voice):
        return voice
    codes = generator.segment_codes(Segment(0, voice.transcript, audio=load_prompt(voice)))
    return replace(voice, codes=codes.numpy().astype(np.int32), codec=generator.codec_key)
