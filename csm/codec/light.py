"""The spectral codec behind the codec protocol: whole clips, and streams with a state of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from csm.codec.spectral import DecoderState, SpectralCodec
from csm.config import FRAME_SIZE, SpectralConfig


class LightStream:
    def __init__(self, module: SpectralCodec, speaker: Tensor | None = None) -> None:
        self.module = module
        self.speaker = self._known(speaker)
        self.state: DecoderState | None = None

    def push(self, codes: Tensor) -> Tensor:
        return push_side_by_side([self], [codes])[0]

    def _known(self, speaker: Tensor | None) -> Tensor:
        """Nobody in particular is an embedding of zeros."""
        nobody = torch.zeros(self.module.config.speaker_dim, device=self.module.decoder.window.device)
        return nobody if speaker is None or not nobody.numel() else speaker.to(nobody)

    def flush(self) -> Tensor:
        tail = self.state.tail[0] if self.state else torch.zeros(0)
        self.state = None
        return tail


@torch.inference_mode()
def push_side_by_side(streams: Sequence[LightStream], codes: Sequence[Tensor]) -> list[Tensor]:
    """What each of the streams of one codec gives for its codes, of which all have equally many: in one batch of those
    that begin and one of those that go on, whose weights are read once."""
    waves: dict[LightStream, Tensor] = {}
    pairs = list(zip(streams, codes, strict=True))
    for group in [pair for pair in pairs if pair[0].state is None], [pair for pair in pairs if pair[0].state]:
        if group:
            module, known = group[0][0].module, [one.state for one, _ in group if one.state]
            batch = torch.stack([new.T for _, new in group]).clamp_max(module.config.codebook_size - 1)
            speakers = torch.stack([one.speaker for one, _ in group])
            made, after = module.decode_step(batch, DecoderState.join(known) if known else None, speakers)
            for (one, _), wave, state in zip(group, made, after.split()):
                waves[one], one.state = wave, state
    return [waves[one] for one in streams]


class LightCodec:
    batches = True

    def __init__(self, config: SpectralConfig) -> None:
        self.config, self.num_codebooks, self.speaker_dim = config, config.num_codebooks, config.speaker_dim
        self.module = SpectralCodec(config).eval()

    @torch.inference_mode()
    def encode(self, wave: Tensor) -> Tensor:
        padded = F.pad(wave, (0, -wave.shape[0] % FRAME_SIZE))
        return self.module.encode(padded.unsqueeze(0))[0].T

    @torch.inference_mode()
    def embed(self, wave: Tensor) -> Tensor | None:
        if not self.config.speaker_dim:
            return None
        padded = F.pad(wave, (0, -wave.shape[0] % FRAME_SIZE))
        return self.module.embed(padded.unsqueeze(0))[0]

    def decode(self, codes: Tensor, speaker: Tensor | None = None) -> Tensor:
        stream = self.stream(speaker)
        return torch.cat([stream.push(codes), stream.flush()]) if len(codes) else torch.zeros(0)

    def stream(self, speaker: Tensor | None = None) -> LightStream:
        return LightStream(self.module, speaker)

    def push_side_by_side(self, streams: Sequence[LightStream], codes: Sequence[Tensor]) -> list[Tensor]:
        return push_side_by_side(streams, codes)
