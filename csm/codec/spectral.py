"""The embedded model's codec: waveform <-> codes with work at 100 Hz instead of 24 kHz.

Same split residual vector quantiser, frame rate and protocol as Mimi, at a thousandth of the cost: a log-mel
encoder and a decoder that filters a pitched source in the short-time spectrum (`csm/codec/source.py`), both on stacks
of causal ConvNeXt blocks (Liu et al. 2022, arXiv:2201.03545) as in Vocos (Siuzdak 2023, arXiv:2306.00814).

Time line: step n of a clip ends at sample 240 (n + 1). The encoder sees samples up to there and no further.
The decoder's spectrum n covers samples 240 n - 720 to 240 n + 240, so 720 samples wait for the next frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from moshi.quantization import SplitResidualVectorQuantizer
from torch import Tensor, nn

from csm.codec.pitch import pitch
from csm.codec.source import NOISE_SAMPLES, SourceState, fixed_noise, source
from csm.config import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE, SpectralConfig
from csm.model.precision import quick_in_bfloat16

HOP = 240
STEPS_PER_FRAME = FRAME_SIZE // HOP
MEL_WINDOW = 1024
SPECTRUM = 960
TAIL = SPECTRUM - HOP  # samples of the last windows that wait for what comes next
CAUSAL, ANTICAUSAL = 96, 24  # coefficients of a filter's cepstrum
USUAL_PITCH = 7.3  # octaves above 1 Hz: 158 Hz, between men and women


def mel_filters(mels: int, window: int, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Triangular filters on the HTK mel scale: float32 (window // 2 + 1, mels)."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)
    bins = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp_min(0).float()


def told(layer: nn.Linear | None, x: Tensor, speaker: Tensor | None) -> Tensor:
    """x (B, steps, dim), scaled and shifted by what the layer makes of speaker embeddings (B, speaker_dim): FiLM (Perez
    et al. 2018, arXiv:1709.07871). As it is where there is no layer or no speaker."""
    if layer is None or speaker is None:
        return x
    scale, shift = layer(speaker).unsqueeze(1).chunk(2, dim=-1)
    return x * (1 + scale) + shift


class ConvNeXtBlock(nn.Module):
    """Causal depthwise convolution over 7 steps, then a pointwise MLP, added to the input. A speaker embedding,
    where there is one, changes what the MLP reads."""

    reach = 6  # steps of the past that the convolution reads

    def __init__(self, dim: int, mlp_dim: int, layers: int, speaker_dim: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, self.reach + 1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 1 / layers))
        self.speaker = nn.Linear(speaker_dim, 2 * dim, bias=False) if speaker_dim else None

    def forward(self, x: Tensor, past: Tensor | None = None, speaker: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, steps, dim), the last `reach` inputs before it and embeddings (B, speaker_dim), zeros for nobody in
        particular -> (B, steps, dim) and the new past."""
        if past is None:
            past = x.new_zeros(x.shape[0], self.reach, x.shape[2])
        inputs = torch.cat([past, x], dim=1)
        y = self.conv(inputs.transpose(1, 2)).transpose(1, 2)
        y = self.down(F.gelu(self.up(told(self.speaker, self.norm(y), speaker))))
        return x + self.scale * y, inputs[:, -self.reach :]


class ConvNeXtStack(nn.Module):
    def __init__(self, dim: int, mlp_dim: int, layers: int, speaker_dim: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, mlp_dim, layers, speaker_dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.speaker = nn.Linear(speaker_dim, 2 * dim, bias=False) if speaker_dim else None

    def forward(
        self, x: Tensor, past: list[Tensor] | None = None, speaker: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        states = []
        for index, block in enumerate(self.blocks):
            x, state = block(x, past[index] if past else None, speaker)
            states.append(state)
        return told(self.speaker, self.norm(x), speaker), states


class SpectralEncoder(nn.Module):
    """Log-mel spectra (B, 8 frames, mels) of a waveform -> latents (B, frames, dim)."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.filters: Tensor
        self.window: Tensor
        self.register_buffer("filters", mel_filters(config.mels, MEL_WINDOW), persistent=False)
        self.register_buffer("window", torch.hann_window(MEL_WINDOW), persistent=False)
        self.embed = nn.Linear(config.mels, config.dim)
        self.stack = ConvNeXtStack(config.dim, config.mlp_dim, config.encoder_blocks)
        self.stacked = nn.Linear(STEPS_PER_FRAME * config.dim, config.dim)

    def log_mel(self, wave: Tensor) -> Tensor:
        """(B, samples) -> (B, samples / 240, mels), each step seeing only its past."""
        frames = F.pad(wave, (MEL_WINDOW - HOP, 0)).unfold(1, MEL_WINDOW, HOP)
        power = torch.fft.rfft(frames * self.window).abs()
        return torch.log10(power @ self.filters + 1e-3)

    def forward(self, mel: Tensor) -> Tensor:
        x, _ = self.stack(self.embed(mel))
        return self.stacked(x.reshape(x.shape[0], -1, STEPS_PER_FRAME * x.shape[2]))


class SpeakerEncoder(nn.Module):
    """What tells a speaker from others: log-mel spectra of a recording, summed up over the steps that tell most (Okabe
    et al. 2018, arXiv:1803.10963), the middle of its pitch and how far that moves."""

    DIM, BY_HAND = 192, 2

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(config.mels, self.DIM)
        self.stack = ConvNeXtStack(self.DIM, 2 * self.DIM, config.speaker_blocks)
        self.weigh = nn.Linear(self.DIM, 1)
        self.sum_up = nn.Linear(2 * self.DIM, config.speaker_dim - self.BY_HAND)

    def forward(self, mel: Tensor, hertz: Tensor, voiced: Tensor) -> Tensor:
        """Log-mel (B, 2 n, mels), pitch in Hz and whether voiced (B, n) -> (B, speaker_dim), about unit size each."""
        x, _ = self.stack(self.embed(F.avg_pool1d(mel.transpose(1, 2), 2).transpose(1, 2)))
        shares = self.weigh(x).softmax(dim=1)
        mean = (shares * x).sum(1)
        spread = (shares * (x - mean.unsqueeze(1)).square()).sum(1).clamp_min(1e-6).sqrt()
        learned = F.layer_norm(self.sum_up(torch.cat([mean, spread], dim=1)), (self.sum_up.out_features,))
        octaves = torch.where(voiced, hertz.log2(), torch.nan)
        middle = octaves.nanmedian(dim=1, keepdim=True).values
        moved = (octaves - middle).abs().nanmedian(dim=1, keepdim=True).values
        by_hand = torch.cat([(middle - USUAL_PITCH) * 2, moved * 8 - 1], dim=1).nan_to_num()
        return torch.cat([learned, by_hand.clamp(-3, 3)], dim=1)


class SpectralDecoder(nn.Module):
    """Quantised latents (B, frames, dim) -> a pitch and two filters a step; the source, filtered, overlap-added.

    A filter is a complex cepstrum: few numbers, always smooth, with its phase (mostly minimum phase) inside.
    """

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.window: Tensor
        self.noise: Tensor
        self.places: Tensor
        self.register_buffer("window", torch.hann_window(SPECTRUM), persistent=False)
        self.register_buffer("noise", fixed_noise(), persistent=False)
        places = torch.cat([torch.arange(CAUSAL), torch.arange(SPECTRUM - ANTICAUSAL, SPECTRUM)])
        self.register_buffer("places", places, persistent=False)
        self.unstack = nn.Linear(config.dim, STEPS_PER_FRAME * config.dim)
        self.stack = ConvNeXtStack(config.dim, config.mlp_dim, config.decoder_blocks, config.speaker_dim)
        self.head = nn.Linear(config.dim, 1 + 2 * (CAUSAL + ANTICAUSAL))

    def forward(
        self, latents: Tensor, past: list[Tensor] | None = None, speaker: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """-> features (B, 8 frames, dim), and the new past."""
        batch, frames, _ = latents.shape
        return self.stack(self.unstack(latents).view(batch, frames * STEPS_PER_FRAME, self.dim), past, speaker)

    def controls(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, dim) -> pitch in octaves above 1 Hz (B, n), and the two filters' spectra, complex (B, 2, n, 481)."""
        octaves, cepstra = self.head(features).split([1, 2 * (CAUSAL + ANTICAUSAL)], dim=-1)
        cepstra = cepstra.unflatten(-1, (2, -1)).transpose(1, 2)
        spread = cepstra.new_zeros(*cepstra.shape[:-1], SPECTRUM)
        logs = torch.fft.rfft(spread.index_copy(-1, self.places, cepstra))
        gain, phase = logs.real.clamp_max(6).exp(), logs.imag
        return 7 + octaves[..., 0].clamp(-1.5, 2), torch.complex(gain * phase.cos(), gain * phase.sin())

    @torch.no_grad()
    def sharpen(self, factor: float) -> None:
        """Let the peaks of the voiced filter stand out by `factor` more in decibels, its level as it was: what learned
        to be right on average is smoother than speech, and the postfilters of speech coders do the same."""
        shape = slice(2, 1 + CAUSAL + ANTICAUSAL)
        self.head.weight[shape] *= factor
        self.head.bias[shape] *= factor

    @torch.no_grad()
    def stress(self, factor: float) -> None:
        """Let embeddings act `factor` times as much: what learned to be right on average is nearer to all speakers than
        each of them is."""
        for part in self.stack.modules():
            if isinstance(part, ConvNeXtBlock | ConvNeXtStack) and part.speaker is not None:
                part.speaker.weight *= factor

    def pieces(self, filters: Tensor, pitch: Tensor, state: SourceState | None = None) -> tuple[Tensor, SourceState]:
        """Filters (B, 2, n, 481) and pitch in Hz (B, n) -> windowed pieces of waveform (B, n, 960), still to be
        overlap-added, and the source's new state."""
        state = state or SourceState.start(pitch[:, 0], TAIL)
        sound, state = source(pitch, HOP, self.noise, state)
        spectra = torch.fft.rfft(sound.unfold(2, SPECTRUM, HOP) * self.window)
        return torch.fft.irfft((spectra * filters).sum(1), n=SPECTRUM) * self.window, state


def overlap_add(pieces: Tensor, tail: Tensor) -> Tensor:
    """Add windowed pieces (B, n, 960), 240 samples apart, after `tail` (B, 720) of earlier ones.

    -> (B, 240 n + 720), of which the last 720 samples are the new tail. The squared Hann windows sum to 1.5.
    """
    count = pieces.shape[1]
    length = HOP * count + TAIL
    wave = F.fold(pieces.transpose(1, 2) / 1.5, (1, length), (1, SPECTRUM), stride=(1, HOP)).view(-1, length)
    return wave + F.pad(tail, (0, length - TAIL))


@dataclass(frozen=True)
class DecoderState:
    """A stream between two chunks: the blocks' past inputs, the samples that still wait (B, 720), and the source."""

    past: list[Tensor]
    tail: Tensor
    source: SourceState

    @classmethod
    def join(cls, states: Sequence[DecoderState]) -> DecoderState:
        """Streams side by side as one batch."""
        past = [torch.cat(inputs) for inputs in zip(*(one.past for one in states))]
        return cls(past, torch.cat([one.tail for one in states]), SourceState.join([one.source for one in states]))

    def split(self) -> list[DecoderState]:
        """The streams of a batch, each with its own."""
        past = zip(*(inputs.split(1) for inputs in self.past))
        return [DecoderState(list(own), *rest) for own, *rest in zip(past, self.tail.split(1), self.source.split())]


class SpectralCodec(nn.Module):
    """Encoder, split RVQ and decoder as one module; `csm.codec` wraps it in the streaming protocol."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SpectralEncoder(config)
        self.decoder = SpectralDecoder(config)
        self.speaker_encoder = SpeakerEncoder(config) if config.speaker_dim else None
        self.quantizer = SplitResidualVectorQuantizer(
            n_q=config.num_codebooks,
            n_q_semantic=1,
            dimension=config.codebook_dim,
            input_dimension=config.dim,
            output_dimension=config.dim,
            bins=config.codebook_size,
        )

    def encode(self, wave: Tensor) -> Tensor:
        """float32 (B, samples), samples a multiple of 1920 -> int64 (B, K, frames)."""
        return self.quantizer.encode(self.encoder(self.encoder.log_mel(wave)).transpose(1, 2))

    def embed(self, wave: Tensor) -> Tensor:
        """Recordings float32 (B, samples) -> their speakers' embeddings (B, speaker_dim)."""
        assert self.speaker_encoder is not None
        return self.speaker_encoder(self.encoder.log_mel(wave), *pitch(wave, 2 * HOP))

    def decode_step(
        self, codes: Tensor, state: DecoderState | None, speaker: Tensor | None = None
    ) -> tuple[Tensor, DecoderState]:
        """int64 (B, K, frames), the state after what came before and the embeddings (B, speaker_dim) of who
        speaks -> (B, samples ready), new state.

        The first call gives 720 samples fewer than its frames; the state's tail holds them until more comes.
        """
        latents = self.quantizer.decode(codes).transpose(1, 2)
        features, past = self.decoder(latents, state.past if state else None, speaker)
        octaves, filters = self.decoder.controls(features)
        pieces, source_state = self.decoder.pieces(filters, octaves.exp2(), state.source if state else None)
        if state is None:
            wave = overlap_add(pieces, pieces.new_zeros(pieces.shape[0], TAIL))[:, TAIL:]
        else:
            wave = overlap_add(pieces, state.tail)
        ready = wave.shape[1] - TAIL
        return wave[:, :ready], DecoderState(past, wave[:, ready:], source_state)

    def forward(
        self, wave: Tensor, pitch: Tensor | None = None, quantise: bool = True, takes: int = 1
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Training: (B, samples), and the pitch (B, samples / 240) to speak with instead of the model's own ->
        reconstructions (B, samples) that differ in their noise, commitment loss, code 0's vectors (B, frames, dim),
        pitch in octaves (B, n).

        The two stacks run in bfloat16 where that is quick; spectra and quantiser stay in float32, as they have to.
        """
        mel = self.encoder.log_mel(wave)
        quick = quick_in_bfloat16(wave.device.type)
        with torch.autocast(wave.device.type, torch.bfloat16, enabled=quick):
            latents = self.encoder(mel).transpose(1, 2)
        vectors, semantic, commitment = self._quantise(latents.float(), quantise)
        with torch.autocast(wave.device.type, torch.bfloat16, enabled=quick):
            features, _ = self.decoder(vectors.transpose(1, 2))
        octaves, filters = self.decoder.controls(features.float())
        hertz = octaves.detach().exp2() if pitch is None else pitch
        made = [self._take(filters, hertz) for _ in range(takes)]
        return made, commitment, semantic.transpose(1, 2), octaves

    def _take(self, filters: Tensor, hertz: Tensor) -> Tensor:
        """The waveform (B, samples) of filters and pitch, with noise from anywhere."""
        position = torch.randint(NOISE_SAMPLES, (len(hertz),), device=hertz.device)
        pieces, _ = self.decoder.pieces(filters, hertz, SourceState.start(hertz[:, 0], TAIL, position))
        return overlap_add(pieces, pieces.new_zeros(len(pieces), TAIL))[:, TAIL:]

    def _quantise(self, latents: Tensor, quantise: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What is rebuilt from code 0 does not teach it: it is to tell phones, which text foretells, and no pitch."""
        first, rest = self.quantizer.rvq_first, self.quantizer.rvq_rest
        if quantise:
            semantic, acoustic = first(latents, FRAME_RATE), rest(latents, FRAME_RATE)
            return semantic.x.detach() + acoustic.x, semantic.x, semantic.penalty + acoustic.penalty
        semantic = first.output_proj(first.input_proj(latents))
        return semantic.detach() + rest.output_proj(rest.input_proj(latents)), semantic, latents.new_zeros(())
