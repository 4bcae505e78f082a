"""Mimi, from the `moshi` package, behind the codec protocol.

moshi keeps the state of a stream inside the module. Here every stream owns its state and puts it in place only
while it decodes, under a lock, so two conversations can share one Mimi.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from moshi.models.compression import MimiModel
from moshi.modules import SEANetDecoder, SEANetEncoder, transformer
from moshi.modules.conv import StreamingConvTranspose1d
from moshi.quantization import SplitResidualVectorQuantizer
from moshi.utils.compile import no_cuda_graph
from torch import Tensor, nn

from csm.config import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE, MimiConfig

FEW = 8  # steps


def build_mimi(config: MimiConfig) -> MimiModel:
    """moshi's Mimi in the shape of `config`; the defaults give the published module, key by key."""
    seanet: dict[str, Any] = {
        "channels": 1,
        "dimension": config.dim,
        "causal": True,
        "n_filters": config.filters,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",  # the published weights have their weight norm folded in
        "pad_mode": "constant",
        "ratios": [8, 6, 5, 4],
        "true_skip": True,
    }
    attention: dict[str, Any] = {
        "d_model": config.dim,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "causal": True,
        "layer_scale": 0.01,
        "context": 250,
        "conv_layout": True,
        "max_period": 10_000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": config.mlp_dim,
        "input_dimension": config.dim,
        "output_dimensions": [config.dim],
    }
    encoder, decoder = SEANetEncoder(**seanet), SEANetDecoder(**seanet)
    model = MimiModel(
        encoder,
        decoder,
        SplitResidualVectorQuantizer(
            dimension=config.codebook_dim,
            n_q=config.total_codebooks,
            bins=config.codebook_size,
            input_dimension=config.dim,
            output_dimension=config.dim,
        ),
        channels=1,
        sample_rate=SAMPLE_RATE,
        frame_rate=FRAME_RATE,
        encoder_frame_rate=SAMPLE_RATE / encoder.hop_length,
        causal=True,
        resample_method="conv",
        encoder_transformer=transformer.ProjectedTransformer(**attention),
        decoder_transformer=transformer.ProjectedTransformer(**attention),
    )
    model.set_num_codebooks(config.num_codebooks)
    first = next(layer.convtr for layer in decoder.model if isinstance(layer, StreamingConvTranspose1d))
    first.convtr = FewSteps.of(first.convtr)  # the one with the most weights, of which a frame is two steps
    return model.eval()


class FewSteps(nn.ConvTranspose1d):
    """A transposed convolution whose kernel is twice its stride, on a CPU: few steps are one product with its weights,
    which torch's own way copies first."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """x (B, in, T) -> (B, out, (T + 1) stride)."""
        steps, stride = x.shape[-1], self.stride[0]
        if steps > FEW or x.device.type != "cpu" or self.bias is None:
            return super().forward(x, output_size)
        made = torch.matmul(x.transpose(1, 2), self.weight.flatten(1)).unflatten(2, (self.out_channels, 2, stride))
        first, second = made.permute(3, 0, 2, 1, 4).flatten(3)  # (B, out, T stride): each step's two halves
        return (F.pad(first, (0, stride)) + F.pad(second, (stride, 0))).add_(self.bias[:, None])

    @classmethod
    def of(cls, source: nn.ConvTranspose1d) -> FewSteps:
        """The same with the parameters of `source`."""
        assert source.kernel_size[0] == 2 * source.stride[0]
        with torch.device("meta"):
            made = cls(source.in_channels, source.out_channels, source.kernel_size[0], source.stride[0])
        made.weight, made.bias = source.weight, source.bias
        return made


class MimiStream:
    def __init__(self, codec: MimiCodec) -> None:
        self._codec = codec
        self._state: dict[str, Any] | None = None

    @torch.inference_mode()
    def push(self, codes: Tensor) -> Tensor:
        module, codes = self._codec.module, self._codec.known(codes)
        with self._codec.lock:
            if self._state is None:
                with module.streaming(1):
                    self._state = module.get_streaming_state()
            module.set_streaming_state(self._state)
            try:
                with no_cuda_graph():  # moshi would record them anew for every stream, while nobody may use the device
                    waves = [module.decode(frame.unsqueeze(0)) for frame in codes.T.split(1, dim=1)]
            finally:
                module.set_streaming_state(dict.fromkeys(self._state))  # nobody streams
        return torch.cat(waves, dim=-1)[0, 0].float()

    def flush(self) -> Tensor:
        """Mimi's decoder is causal: nothing waits."""
        self._state = None
        return torch.zeros(0)


class MimiCodec:
    batches = False
    speaker_dim = 0

    def __init__(self, config: MimiConfig) -> None:
        self.config, self.num_codebooks = config, config.num_codebooks
        self.module = build_mimi(config)
        self.lock = threading.Lock()

    @torch.inference_mode()
    def encode(self, wave: Tensor) -> Tensor:
        padded = F.pad(wave, (0, -wave.shape[0] % FRAME_SIZE))
        with self.lock:
            return self.module.encode(padded.view(1, 1, -1))[0].T

    def embed(self, wave: Tensor) -> None:
        return None

    @torch.inference_mode()
    def decode(self, codes: Tensor, speaker: Tensor | None = None) -> Tensor:
        if not len(codes):
            return torch.zeros(0)
        with self.lock:
            return self.module.decode(self.known(codes).T.unsqueeze(0))[0, 0, : len(codes) * FRAME_SIZE].float()

    def known(self, codes: Tensor) -> Tensor:
        return codes.clamp_max(self.module.cardinality - 1)

    def stream(self, speaker: Tensor | None = None) -> MimiStream:
        return MimiStream(self)

    def push_side_by_side(self, streams: Sequence[MimiStream], codes: Sequence[Tensor]) -> list[Tensor]:
        return [stream.push(new) for stream, new in zip(streams, codes, strict=True)]
