"""Train the embedded model's codec on synthetic speech (`python -m csm train codec`).

Reconstruction is judged by log-mel distance at four window sizes; then the decoder alone learns to sound like speech,
from an energy distance and, if they are asked for, from discriminators. Code 0 is made semantic by distillation, as in
Mimi, except that the teacher is the synthesiser itself: a linear head must read the phones of each frame from code 0's
vector alone. A trained codec can go on as a whole, with both distances at once and more blocks; its codes move then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.codec.pitch import pitch
from csm.codec.spectral import HOP, SpectralCodec, mel_filters
from csm.config import FRAME_SIZE, SAMPLE_RATE, SpectralConfig
from csm.training.adversary import Adversary, discriminator_loss, fooled
from csm.training.corpus import Corpus, Utterance, played, speaker_shares
from csm.training.run import Run, warmup_cosine

FASTER, SLOWER = 1.25, 0.8  # how a clip may be played, pitch and vocal tract with it, to be another speaker's
CONTRAST = 60.0  # weight of the contrast of spectra while the decoder learns to sound
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
        return torch.stack([F.l1_loss(self.log_mel(made, w), self.log_mel(target, w)) for w in self.windows]).mean()

    def contrast(self, made: Tensor, target: Tensor) -> Tensor:
        """How far the liveliness of log-mel spectra is from the recording's: how much they vary, and how much they
        change from one to the next, over time and over bands (global variance, Toda and Tokuda 2007). What is right on
        average is smoother than speech, and sounds muffled, where it is nearest to it. The shortest window has no part
        in it: its spectra change with every period of the voice."""
        return self.both(made, target, self.windows[1:])[1]

    def both(self, made: Tensor, target: Tensor, windows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """The distance and the contrast of the same spectra, at all windows or at these."""
        looked = windows or self.windows
        mine, theirs = ([self.log_mel(wave, window) for window in looked] for wave in (made, target))
        distance = torch.stack([F.l1_loss(own, real) for own, real in zip(mine, theirs)]).mean()
        apart = [
            F.l1_loss(own, real)
            for window, mels in zip(looked, zip(mine, theirs))
            if window != min(self.windows)
            for own, real in zip(*map(_liveliness, mels))
        ]
        return distance, torch.stack(apart).mean()


def _liveliness(mel: Tensor) -> list[Tensor]:
    """(B, frames, mels) -> spread and mean step over time (B, mels), and over bands (B, frames)."""
    return [measure for dim in (1, 2) for measure in (mel.std(dim), mel.diff(dim=dim).abs().mean(dim))]


class EnergyDistance(nn.Module):
    """How far the distribution of what is made is from that of recordings (Gritsenko et al. 2020, arXiv:2008.01160):
    2 E|real - made| - E|made - made again|, which has its least value where what is made is as likely as what was
    recorded. Distances are between log spectra at several window sizes, and between the ripples of the longest's.

    The first term alone is least for a hum in the place of noise, which is wrong by less than another noise is; the
    second rewards takes that differ, as recordings do. Ripples over frequency are harmonics, and their sizes tell a
    voice from a whisper even where its pitch is a little off, so that no harmonic stands where it should.
    """

    BAND, RIPPLES = 64, 0.05  # bins, half overlapping; weight

    def __init__(self, windows: tuple[int, ...] = (256, 512, 1024, 2048)) -> None:
        super().__init__()
        self.windows = windows
        for length in (*windows, self.BAND):
            self.register_buffer(f"window_{length}", torch.hann_window(length), persistent=False)

    def log_spectrum(self, wave: Tensor, window: int) -> Tensor:
        """(B, samples) -> (B, bins, frames) in powers of ten."""
        shape = getattr(self, f"window_{window}")
        return torch.log10(
            torch.stft(wave, window, window // 4, window=shape, return_complex=True).abs() / window**0.5 + 1e-4
        )

    def ripples(self, spectrum: Tensor) -> Tensor:
        """How strong the ripples of a log spectrum (B, bins, frames) are in each band, by their number, from 2 on."""
        bands = spectrum.transpose(1, 2).unfold(2, self.BAND, self.BAND // 2)
        waves = torch.fft.rfft((bands - bands.mean(-1, keepdim=True)) * getattr(self, f"window_{self.BAND}"))
        return waves[..., 2:].abs()

    def forward(self, real: Tensor, made: Tensor, again: Tensor, windows: Sequence[int] | None = None) -> Tensor:
        """float32 (B, samples) each, clip for clip; `made` and `again` are two takes of the same codes. At all
        windows or at these, the longest last."""
        looked = windows or self.windows
        spectra = [[self.log_spectrum(wave, window) for window in looked] for wave in (real, made, again)]
        rippled = _energy(*(self.ripples(longest) for *_, longest in spectra))
        return torch.stack([_energy(*views) for views in zip(*spectra)]).mean() + self.RIPPLES * rippled


def _energy(real: Tensor, made: Tensor, again: Tensor) -> Tensor:
    return F.l1_loss(real, made) + F.l1_loss(real, again) - F.l1_loss(made, again)


def phones_at(utterance: Utterance, start: float, frames: int, speed: float = 1.0) -> np.ndarray:
    """The teacher's answer: int64 (frames, 2), phone ids at `PHONE_TIMES` of each frame from `start` seconds on, when
    it is played at `speed`."""
    ends = np.array([end for _, end in utterance.phones])
    ids = np.array([PHONE_IDS.get(phone, 0) for phone, _ in utterance.phones] + [0])
    times = start + (np.arange(frames)[:, None] * 0.08 + np.array(PHONE_TIMES)) * speed
    return ids[np.searchsorted(ends, times)]


class CodecTrainer(nn.Module):
    """The codec with its phone reader, and one batch's losses."""

    def __init__(self, config: SpectralConfig, adversarial: float = 0.0) -> None:
        super().__init__()
        self.codec = SpectralCodec(config)
        self.phone_reader = nn.Linear(config.dim, len(PHONE_TIMES) * len(PHONES))
        self.distance, self.energy = MelDistance(), EnergyDistance()
        self.adversarial = adversarial
        self.adversary = Adversary() if adversarial else nn.Module()

    def forward(
        self, wave: Tensor, phones: Tensor, quantise: bool, own_pitch: bool = False, energy: bool = False
    ) -> tuple[Tensor, dict[str, float]]:
        """wave (B, samples), phones (B, frames, 2) -> loss, metrics.

        The reconstruction speaks at the recording's pitch, which the codes must tell besides; `own_pitch`: as in use.
        `energy`: it is judged by the energy distance of two takes before the mel distance of one.
        """
        hertz, voiced = pitch(wave, HOP)
        hertz_spoken = None if own_pitch else hertz
        takes, commitment, semantic, octaves = self.codec(wave, hertz_spoken, quantise, takes=2 if energy else 1)
        mel = self.distance(takes[0], wave)
        off = (octaves - hertz.log2()).abs()[voiced].mean()
        read = self.phone_reader(semantic).view(*phones.shape, len(PHONES))
        phone = F.cross_entropy(read.flatten(0, 2), phones.flatten())
        correct = (read.argmax(-1) == phones).float().mean()
        metrics = {"mel": mel, "semitones_off": 12 * off, "phone_accuracy": correct, "commitment": commitment}
        if energy:
            metrics["energy"] = self.energy(wave, *takes)
            sound = 10 * metrics["energy"] + 4 * mel
        else:
            sound = 10 * mel
        loss = sound + 4 * off + phone + commitment
        return loss, {name: value.item() for name, value in metrics.items()}

    def refine(self, wave: Tensor) -> tuple[Tensor, dict[str, float]]:
        """wave (B, samples) -> loss of the decoder and of its discriminators, which share no gradient; metrics."""
        hertz, voiced = pitch(wave, HOP)
        takes, _, _, octaves = self.codec(wave, hertz, takes=2)
        energy = self.energy(wave, *takes)
        off = (octaves - hertz.log2()).abs()[voiced].mean()
        contrast = self.distance.contrast(takes[0], wave)
        loss = 10 * energy + CONTRAST * contrast + 4 * off
        metrics = {"energy": energy, "contrast": contrast, "semitones_off": 12 * off}
        if isinstance(self.adversary, Adversary):
            metrics["fooled"] = fooled(self.adversary, takes[0])
            metrics["judgement"] = discriminator_loss(self.adversary, wave, takes[0])
            loss = loss + self.adversarial * metrics["fooled"] + metrics["judgement"]
        return loss, {name: value.item() for name, value in metrics.items()}


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


def other_speed(rng: np.random.Generator) -> float:
    """How fast to play a clip so that it is another speaker's."""
    return float(np.exp(rng.uniform(np.log(SLOWER), np.log(FASTER))))


def crops(
    corpus: Corpus, clips: Clips, rng: np.random.Generator, batch: int, frames: int, shifted: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Random cuts of random clips: waves float32 (B, 1920 frames) and phone ids int64 (B, frames, 2). `shifted` is the
    part of them that is played faster or slower than it was said."""
    length = frames * FRAME_SIZE
    waves = np.zeros((batch, length), np.float32)
    phones = np.zeros((batch, frames, len(PHONE_TIMES)), np.int64)
    for row in range(batch):
        clip = clips.draw(rng)
        other = shifted > 0 and rng.random() < shifted
        speed = other_speed(rng) if other else 1.0
        taken = length if speed == 1 else int(length * speed) + 2
        start = int(rng.integers(max(1, clip.samples - taken)))
        wave = corpus.audio(clip)[start : start + taken].astype(np.float32) / 32768
        wave = played(wave, speed, "MQ")[:length]
        waves[row, : len(wave)] = wave * 10 ** (rng.uniform(-4, 2) / 20)
        phones[row] = phones_at(clip, start / SAMPLE_RATE, frames, speed)
    return torch.from_numpy(waves), torch.from_numpy(phones)


def grow(codec: SpectralCodec, start: SpectralCodec) -> None:
    """Begin `codec` as the trained `start`; decoder blocks and speakers that only it has change nothing yet."""
    own, trained = codec.state_dict(), start.state_dict()
    for name in own.keys() - trained.keys():
        if name.startswith("decoder.") and name.endswith((".scale", ".speaker.weight")):
            own[name] = torch.zeros_like(own[name])
    codec.load_state_dict(own | trained)


def train_codec(
    data: Path,
    folder: Path,
    config: SpectralConfig,
    steps: int = 6_000,
    refined: int = 4_000,
    batch: int = 8,
    frames: int = 10,
    refined_batch: int = 6,
    refined_frames: int = 16,
    rate: float = 1e-3,
    refined_rate: float = 3e-4,
    adversarial: float = 0.0,
    shifted: float = 0.0,
    unquantised: int = 700,
    seed: int = 1,
    every: int = 250,
    start: SpectralCodec | None = None,
) -> SpectralCodec:
    """Train (or resume) in `folder` on the speech in `data`: `steps` steps of reconstruction, in which the quantiser
    starts by k-means after `unquantised` (a quarter at most), when the latents mean something; then `refined` more in
    which the decoder alone learns to sound like speech, from discriminators, too, if `adversarial` gives them a weight.
    The codes stay what they are after `steps`, so that the language model can be trained on them meanwhile. A trained
    codec to `start` from, of this shape or of fewer decoder blocks, goes on for `steps` as a whole, judged by the
    energy distance, too. `shifted` is the part of the clips that are played as other speakers. Returns the codec in
    evaluation mode."""
    torch.manual_seed(seed)
    corpus = Corpus(data)
    train = Clips([u for u in corpus.utterances if not u.held_out])
    held_out = Clips([u for u in corpus.utterances if u.held_out])
    trainer = CodecTrainer(config, adversarial)
    if start is not None:
        grow(trainer.codec, start)
    unquantised = min(unquantised, steps // 4) if start is None else -1
    parts = [[*trainer.codec.parameters(), *trainer.phone_reader.parameters()], [*trainer.adversary.parameters()]]
    optimiser = torch.optim.AdamW(
        [{"params": part} for part in parts if part], lr=rate, betas=(0.8, 0.99), weight_decay=1e-2
    )
    run = Run(folder, trainer, [optimiser])

    def train_step(step: int) -> dict[str, float]:
        torch.manual_seed(seed * 1_000_003 + step)
        refining = step >= steps
        trainer.train()
        for module in (trainer.codec.encoder, trainer.codec.quantizer, trainer.phone_reader):
            module.train(not refining).requires_grad_(not refining)
        rng = np.random.default_rng((seed, step))
        if refining:
            now = refined_rate * warmup_cosine(step - steps, refined)
            wave, _ = crops(corpus, train, rng, refined_batch, refined_frames, shifted)
            loss, metrics = trainer.refine(wave)
        else:
            now = rate * warmup_cosine(step, steps)
            # The first quantised batch feeds k-means: it must hold several vectors for every code.
            size = batch * (1 + 5 * (step == unquantised))
            wave, phones = crops(corpus, train, rng, size, frames, shifted)
            loss, metrics = trainer(wave, phones, step >= unquantised, energy=start is not None)
        for group in optimiser.param_groups:
            group["lr"] = now
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for part in parts:
            nn.utils.clip_grad_norm_(part, 5.0)
        optimiser.step()
        return metrics

    @torch.no_grad()
    def validate() -> dict[str, float]:
        trainer.eval()
        torch.manual_seed(0)
        wave, phones = crops(corpus, held_out, np.random.default_rng(0), 32, frames)
        return trainer(wave, phones, run.step > unquantised, own_pitch=True)[1]

    run.loop(steps + refined, train_step, validate, every)
    return trainer.codec.eval()
