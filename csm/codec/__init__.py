"""Waveform <-> codes. One small protocol, two codecs behind it: Mimi for the published models, a light one for nano.

The last step to sound: everything the generator gives out passed through `CodecStream.push`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from csm.config import CodecConfig, MimiConfig, SpectralConfig


class CodecStream(Protocol):
    """A decoder in the middle of a clip. Its state is its own: streams of one codec don't disturb each other."""

    def push(self, codes: Tensor) -> Tensor:
        """codes int64 (frames, K) -> float32 (num_samples,) that are ready; the rest follows later.

        The model's vocabulary has three codes that no codec knows; the last known one takes their place.
        """
        ...

    def flush(self) -> Tensor:
        """The samples still waiting. After it, pushed and flushed samples are 1920 a frame."""
        ...


class Codec(Protocol):
    num_codebooks: int
    speaker_dim: int  # of the embeddings of speakers that the decoder is told; 0: none
    batches: bool  # whether `push_side_by_side` costs less than its streams one after the other

    @property
    def config(self) -> CodecConfig:
        """Its shape."""
        ...

    @property
    def module(self) -> torch.nn.Module:
        """The network, to move to a device and to load weights into."""
        ...

    def encode(self, wave: Tensor) -> Tensor:
        """float32 (num_samples,) at 24 kHz -> int64 (frames, K); the last frame is filled up with silence."""
        ...

    def embed(self, wave: Tensor) -> Tensor | None:
        """A recording float32 (num_samples,) at 24 kHz -> its speaker's embedding, float32 (D,), which lets the decoder
        speak in a voice that the codes alone don't carry; None where they carry all there is."""
        ...

    def decode(self, codes: Tensor, speaker: Tensor | None = None) -> Tensor:
        """int64 (frames, n), all K codebooks or the first n -> float32 (1920 frames,) on the codec's device, in the
        voice of the `speaker` that is embedded so, or as the codes say."""
        ...

    def stream(self, speaker: Tensor | None = None) -> CodecStream:
        """A clip to be decoded as it comes, in the voice of that speaker."""
        ...

    def push_side_by_side(self, streams: Sequence[Any], codes: Sequence[Tensor]) -> list[Tensor]:
        """What each of this codec's streams gives for its codes, of which all have equally many, rounding aside."""
        ...


def build_codec(config: CodecConfig) -> Codec:
    """The codec that `config` describes, with random weights, in evaluation mode."""
    if isinstance(config, MimiConfig):
        from csm.codec.mimi import MimiCodec

        return MimiCodec(config)
    from csm.codec.light import LightCodec

    return LightCodec(config)


def decoded_again(codec: Codec, wave: Tensor) -> Tensor:
    """A recording float32 (num_samples,) at 24 kHz, encoded and decoded: what is left of it, on the codec's device."""
    return codec.decode(codec.encode(wave), codec.embed(wave))


def codec_key(codec: Codec, encoding: bool = False) -> str:
    """Sixteen hexadecimal digits that tell a codec from others: those whose codes it says that it has, or of a few
    numbers out of each of its weights, or, for `encoding`, of each that codes depend on, so that another decoder for
    the same codes changes nothing."""
    if not encoding and isinstance(codec.config, SpectralConfig) and codec.config.codes_of:
        return codec.config.codes_of
    found = hashlib.sha256()
    for name, weight in sorted(codec.module.state_dict().items()):
        if encoding and name.startswith(("decoder", "upsample")):
            continue
        values = weight.detach().flatten()[:8].to("cpu", torch.float32).numpy()
        found.update(f"{name} {tuple(weight.shape)} ".encode() + values.tobytes())
    return found.hexdigest()[:16]


__all__ = ["Codec", "CodecStream", "build_codec", "codec_key", "decoded_again"]
