"""Train the embedded model's codec on synthetic speech (`python -m csm train codec`).

Reconstruction is judged by log-mel distance at four window sizes and then by discriminators, too. Code 0 is
made semantic by distillation, as in Mimi, except that the teacher is the synthesiser itself: a linear head
must read the phones of each frame from code 0's vector alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.codec.spectral import HOP, SpectralCodec, mel_filters
from csm.config import FRAME_SIZE, SAMPLE_RATE, SpectralConfig
from csm.training.adversary import Adversary, discriminator_loss, generator_losses
from csm.training.corpus import Corpus, Utterance, speaker_shares
from csm.training.pitch import pitch
from csm.training.run import Run, warmup_cosine

PHONE_TIMES = (0.02, 0.06)  # seconds into a frame at which the teacher names the phone
PHONES = (
    "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh"
).split()
PHONE_IDS = {phone: index for index, phone in enumerate(PHONES)}


class MelDistance(nn.Module):
    """Mean absolute difference of log-mel spectra at several window sizes.

    The floor inside the logarithm is added, not clamped: below a clamp there is no gradient, and a model
    that starts near silence stays there.
    """

    def __init__(self, windows: tuple[tuple[int, int], ...] = ((256, 32), (512, 64), (1024, 100), (2048, 128))) -> None:
        super().__init__()
        self.windows = [window for window, _ in windows]
        for window, mels in windows:
            self.register_buffer(f"filters_{window}", mel_filters(mels, window), persistent=False)
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def log_mel(self, wave: Tensor, window: int) -> Tensor:
        spectrum = torch.stft(
            wave, window, window // 4, window=getattr(self, f"window_{window}"), return_complex=True, pad_mode="reflect"
        )
        return torch.log10(spectrum.abs().transpose(1, 2) @ getattr(self, f"filters_{window}") + 1e-3)

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        distances = [F.l1_loss(self.log_mel(made, w), self.log_mel(target, w)) for w in self.windows]
        return torch.stack(distances).mean()


def phones_at(utterance: Utterance, start: float, frames: int) -> np.ndarray:
    """The teacher's answer: int64 (frames, 2), phone ids at `PHONE_TIMES` of each frame from `start` seconds on."""
    ends = np.array([end for _, end in utterance.phones])
    ids = np.array([PHONE_IDS.get(phone, 0) for phone, _ in utterance.phones] + [0])
    times = start + np.arange(frames)[:, None] * 0.08 + np.array(PHONE_TIMES)
    return ids[np.searchsorted(ends, times)]


class CodecTrainer(nn.Module):
    """The codec with its phone reader, and one batch's losses."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.codec = SpectralCodec(config)
        self.phone_reader = nn.Linear(config.dim, len(PHONE_TIMES) * len(PHONES))
        self.distance = MelDistance()
        self.adversary = Adversary()

    def forward(
        self, wave: Tensor, phones: Tensor, quantise: bool, judged: bool = False, own_pitch: bool = False
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """wave (B, samples), phones (B, frames, 2) -> loss, reconstruction, metrics. `judged`: by discriminators, too.

        The reconstruction speaks at the recording's pitch, which the codes must tell besides; `own_pitch`: as in use.
        """
        hertz, voiced = pitch(wave, HOP)
        made, commitment, semantic, octaves = self.codec(wave, None if own_pitch else hertz, quantise)
        mel = self.distance(made, wave)
        off = (octaves - hertz.log2()).abs()[voiced].mean()
        read = self.phone_reader(semantic).view(*phones.shape, len(PHONES))
        phone = F.cross_entropy(read.flatten(0, 2), phones.flatten())
        loss = 10 * mel + 4 * off + phone + commitment
        correct = (read.argmax(-1) == phones).float().mean()
        metrics = {"mel": mel, "semitones_off": 12 * off, "phone_accuracy": correct, "commitment": commitment}
        if judged:
            fooled, features = generator_losses(self.adversary, wave, made)
            loss = loss + fooled + 2 * features  # the reconstruction's share keeps the voice in place
            metrics |= {"fooled": fooled, "features": features}
        return loss, made, {name: value.item() for name, value in metrics.items()}


class Clips:
    """Clips to draw from, the speaker first."""

    def __init__(self, utterances: list[Utterance]) -> None:
        self.by_speaker: dict[str, list[Utterance]] = {}
        for utterance in utterances:
            self.by_speaker.setdefault(utterance.speaker, []).append(utterance)
        self.speakers = list(self.by_speaker)
        self.shares = speaker_shares(self.by_speaker)

    def draw(self, rng: np.random.Generator) -> Utterance:
        own = self.by_speaker[self.speakers[rng.choice(len(self.speakers), p=self.shares)]]
        return own[rng.integers(len(own))]


def crops(corpus: Corpus, clips: Clips, rng: np.random.Generator, batch: int, frames: int) -> tuple[Tensor, Tensor]:
    """Random cuts of random clips: waves float32 (B, 1920 frames) and phone ids int64 (B, frames, 2)."""
    length = frames * FRAME_SIZE
    waves = np.zeros((batch, length), np.float32)
    phones = np.zeros((batch, frames, len(PHONE_TIMES)), np.int64)
    for row in range(batch):
        clip = clips.draw(rng)
        start = int(rng.integers(max(1, clip.samples - length)))
        pcm = corpus.audio(clip)[start : start + length]
        gain = 10 ** (rng.uniform(-4, 2) / 20)
        waves[row, : len(pcm)] = pcm.astype(np.float32) / 32768 * gain
        phones[row] = phones_at(clip, start / SAMPLE_RATE, frames)
    return torch.from_numpy(waves), torch.from_numpy(phones)


def train_codec(
    data: Path,
    folder: Path,
    config: SpectralConfig,
    steps: int = 6_000,
    refined: int = 4_000,
    batch: int = 8,
    frames: int = 10,
    rate: float = 1e-3,
    refined_rate: float = 3e-4,
    unquantised: int = 700,
    seed: int = 1,
    every: int = 250,
) -> SpectralCodec:
    """Train (or resume) in `folder` on the speech in `data`: `steps` steps of reconstruction, in which the quantiser
    starts by k-means after `unquantised`, when the latents mean something; then `refined` more in which the decoder
    alone learns from discriminators, too. The codes stay what they are after `steps`, so that the language model can
    be trained on them meanwhile. Returns the codec in evaluation mode."""
    torch.manual_seed(seed)
    corpus = Corpus(data)
    train = Clips([u for u in corpus.utterances if not u.held_out])
    held_out = Clips([u for u in corpus.utterances if u.held_out])
    trainer = CodecTrainer(config)
    learning = [*trainer.codec.parameters(), *trainer.phone_reader.parameters()]
    judging = list(trainer.adversary.parameters())
    optimisers = [
        torch.optim.AdamW(parameters, lr=rate, betas=(0.8, 0.99), weight_decay=1e-2)
        for parameters in (learning, judging)
    ]
    run = Run(folder, trainer, [*optimisers])

    def refine(wave: Tensor, made: Tensor) -> Tensor:
        """One step of the discriminators."""
        loss = discriminator_loss(trainer.adversary, wave, made.detach())
        optimisers[1].zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(judging, 5.0)
        optimisers[1].step()
        return loss

    def train_step(step: int) -> dict[str, float]:
        torch.manual_seed(seed * 1_000_003 + step)
        refining = step >= steps
        trainer.train()
        for part in (trainer.codec.encoder, trainer.codec.quantizer, trainer.phone_reader):
            part.train(not refining).requires_grad_(not refining)
        # The first quantised batch feeds k-means: it must hold several vectors for every code.
        size = batch * (1 + 5 * (step == unquantised))
        wave, phones = crops(corpus, train, np.random.default_rng((seed, step)), size, frames)
        factor = warmup_cosine(step - steps, refined) if refining else warmup_cosine(step, steps)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = factor * (refined_rate if refining else rate)
        loss, made, metrics = trainer(wave, phones, step >= unquantised, judged=refining)
        optimisers[0].zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 5.0)
        optimisers[0].step()
        return metrics | ({"judgement": refine(wave, made).item()} if refining else {})

    @torch.no_grad()
    def validate() -> dict[str, float]:
        trainer.eval()
        torch.manual_seed(0)
        wave, phones = crops(corpus, held_out, np.random.default_rng(0), 32, frames)
        return trainer(wave, phones, run.step > unquantised, own_pitch=True)[2]

    run.loop(steps + refined, train_step, validate, every)
    return trainer.codec.eval()
