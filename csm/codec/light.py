"""The spectral codec behind the codec protocol: whole clips, and streams with a state of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.codec.spectral import DecoderState, SpectralCodec
from csm.config import FRAME_SIZE, SpectralConfig


class LightStream:
    def __init__(self, module: SpectralCodec) -> None:
        self._module = module
        self._state: DecoderState | None = None

    @torch.inference_mode()
    def push(self, codes: Tensor) -> Tensor:
        known = codes.clamp_max(self._module.config.codebook_size - 1)
        wave, self._state = self._module.decode_step(known.T.unsqueeze(0), self._state)
        return wave[0]

    def flush(self) -> Tensor:
        tail = self._state.tail[0] if self._state else torch.zeros(0)
        self._state = None
        return tail


class LightCodec:
    def __init__(self, config: SpectralConfig) -> None:
        self.config, self.num_codebooks = config, config.num_codebooks
        self.module = SpectralCodec(config).eval()

    @torch.inference_mode()
    def encode(self, wave: Tensor) -> Tensor:
        padded = F.pad(wave, (0, -wave.shape[0] % FRAME_SIZE))
        return self.module.encode(padded.unsqueeze(0))[0].T

    def decode(self, codes: Tensor) -> Tensor:
        stream = self.stream()
        return torch.cat([stream.push(codes), stream.flush()]) if len(codes) else torch.zeros(0)

    def stream(self) -> LightStream:
        return LightStream(self.module)
