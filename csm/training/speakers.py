"""Let the embedded model's codec speak in any voice (`python -m csm train speakers`).

The codes stay what they are, so that the language model does. The decoder is told by an embedding who speaks, and
learns from pairs: codes of one of the recipe's voices, and a natural clip with the same words, times and melody, whose
speaker's embedding comes from other recordings. The recipe's own voices stay in, so that they are kept.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.codec.pitch import pitch
from csm.codec.spectral import HOP, SpeakerEncoder, SpectralCodec
from csm.config import FRAME_SIZE, SAMPLE_RATE, SpectralConfig
from csm.model.precision import quick_in_bfloat16
from csm.training.codec import CONTRAST, Clips, EnergyDistance, MelDistance, grow
from csm.training.corpus import Corpus, Utterance
from csm.training.muon import Muon
from csm.training.pairs import Pair, read_pairs
from csm.training.run import Run, improve, warmup_cosine

NATURAL, AS_IT_IS = 0.7, 0.2  # shares of natural speech, and in it of clips whose codes are their own
NOBODY = 0.25  # share of the recipe's clips that are spoken by nobody in particular
HEARD = 3.0  # seconds that an embedding is made from
APART = 0.1  # weight of telling speakers apart
SHARPNESS = 10.0  # of that
LISTEN_ANEW = 100  # steps
SHORT, LONG = (256, 512), (1024, 2048)  # windows: spectra are looked at through one of each, a step
MOST_TRIED = 20  # clips for one of another speaker than those of the batch


class SpeakerTrainer(nn.Module):
    """The codec, of which decoder and speaker encoder learn, and one batch's losses."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.codec = SpectralCodec(config)
        self.distance, self.energy = MelDistance(), EnergyDistance()
        self._listener: list[SpeakerEncoder] = []  # no part of the module: it is not saved

    @property
    def listens(self) -> bool:
        return bool(self._listener)

    def listen_anew(self) -> None:
        """What is made is heard from now on by the speaker encoder as it is, which goes on learning."""
        assert self.codec.speaker_encoder is not None
        self._listener = [copy.deepcopy(self.codec.speaker_encoder).requires_grad_(False).eval()]

    def forward(
        self,
        wave: Tensor,
        codes: Tensor,
        heard: Tensor,
        known: Tensor,
        refining: bool = False,
        rng: np.random.Generator | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """wave (B, samples), codes (B, frames, K) that say the same, two recordings of each speaker (2, B, samples) and
        whether it is told, bool (B,) -> loss, metrics. `refining`: two takes are judged by the energy distance, too.
        With `rng` the recordings are heard through microphones and in rooms, and spectra looked at through two windows
        of the four."""
        codec = self.codec
        assert codec.speaker_encoder is not None
        quick = torch.autocast(wave.device.type, torch.bfloat16, enabled=quick_in_bfloat16(wave.device.type))
        with torch.no_grad():
            latents = codec.quantizer.decode(codes.transpose(1, 2)).transpose(1, 2)
            hertz, voiced = pitch(wave, HOP)
            mel, sung = codec.encoder.log_mel(heard.flatten(0, 1)), pitch(heard.flatten(0, 1), 2 * HOP)
            mel = mel if rng is None else torch.stack([spoilt(one, rng) for one in mel])
        with quick:
            one, other = codec.speaker_encoder(mel, *sung).float().chunk(2)
            features, _ = codec.decoder(latents, None, torch.where(known.unsqueeze(1), one, 0.0))
        octaves, filters = codec.decoder.controls(features.float())
        made = codec._take(filters, hertz)
        few = None if rng is None else [int(rng.choice(windows)) for windows in (SHORT, LONG)]
        mel_distance, contrast = self.distance.both(made, wave, few)
        metrics = {"mel": mel_distance, "contrast": contrast}
        metrics["semitones_off"] = 12 * (octaves - hertz.log2()).abs()[voiced].mean()
        metrics["apart"] = _apart(one[:, : -codec.speaker_encoder.BY_HAND], other[:, : -codec.speaker_encoder.BY_HAND])
        loss = metrics["semitones_off"] / 3 + APART * metrics["apart"]
        if refining:
            metrics["energy"] = self.energy(wave, made, codec._take(filters, hertz), few and [few[0], max(LONG)])
            loss = loss + 10 * metrics["energy"] + 4 * metrics["mel"] + CONTRAST * metrics["contrast"]
        else:
            loss = loss + 14 * metrics["mel"] + CONTRAST / 2 * metrics["contrast"]
        if self._listener:
            steps = made.shape[1] // (2 * HOP)
            with quick:
                sounds = self._listener[0](codec.encoder.log_mel(made), hertz[:, :steps], voiced[:, :steps]).float()
            own, wanted = (x[:, : -codec.speaker_encoder.BY_HAND] for x in (sounds, other.detach()))
            metrics["unlike"] = 1 - F.cosine_similarity(own, wanted, dim=1).mean()
            loss = loss + metrics["unlike"]
        return loss, {name: value.item() for name, value in metrics.items()}


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """How badly embeddings (B, D) of recordings tell which `other` is of the same speaker."""
    alike = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    return F.cross_entropy(SHARPNESS * alike, torch.arange(len(alike), device=alike.device))


def spoilt(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """A log-mel spectrum (n, mels) as another microphone and room may give it: other bands, echo, hiss, no treble."""
    bands = mel.shape[1]

    def curve(points: int, spread: float) -> Tensor:
        knots = torch.from_numpy(rng.normal(0, spread, points)).float()
        return F.interpolate(knots[None, None], bands, mode="linear", align_corners=True)[0, 0]

    if rng.random() < 0.5:
        mel = mel + curve(6, 0.25)
    power = 10**mel
    if rng.random() < 0.4:
        echo = torch.exp(-torch.arange(40.0) / float(rng.uniform(2, 12)))
        echo[0] = 0
        echo *= float(rng.uniform(0.05, 0.35)) / echo.sum()
        power = power + F.conv1d(F.pad(power.T.unsqueeze(1), (39, 0)), echo.flip(0)[None, None])[:, 0].T
    if rng.random() < 0.5:
        hiss = 10 ** (curve(5, 0.3) + float(rng.uniform(-2.8, -1.0)))
        power = power + hiss * (0.5 + torch.rand(mel.shape))
    mel = power.log10()
    if rng.random() < 0.15:
        mel[:, int(rng.integers(int(0.6 * bands), int(0.9 * bands))) :] = -3
    return mel


class Speech:
    """Natural speech with its pairs, and the recipe's speech, by speaker."""

    def __init__(self, natural: Corpus, pairs: list[Pair], recipe: Corpus, held_out: bool) -> None:
        self.natural, self.recipe = natural, recipe
        self.pairs = [pair for pair in pairs if pair.clip.held_out == held_out] or pairs
        said = [clip for clip in recipe.utterances if clip.held_out == held_out]
        self.clips = Clips(said or recipe.utterances)
        self.by_speaker: dict[str, list[Pair]] = {}
        for pair in pairs:  # whoever is heard is known from all clips
            self.by_speaker.setdefault(pair.speaker, []).append(pair)

    def _new(self, rng: np.random.Generator, heard: set[str]) -> Pair | Utterance:
        """A natural clip or one of the recipe's, by somebody who was not heard yet if such a one comes up soon."""
        for _ in range(MOST_TRIED):
            chosen = self.pairs[rng.integers(len(self.pairs))] if rng.random() < NATURAL else self.clips.draw(rng)
            if chosen.speaker not in heard:
                break
        return chosen

    def batch(self, codec: SpectralCodec, rng: np.random.Generator, size: int, frames: int) -> tuple[Tensor, ...]:
        """Waves (B, samples), codes (B, frames, K), recordings (2, B, samples), who is known (B,)."""
        length = frames * FRAME_SIZE
        waves = np.zeros((size, length), np.float32)
        heard = np.zeros((2, size, int(HEARD * SAMPLE_RATE)), np.float32)
        known = np.ones(size, bool)
        others: dict[int, np.ndarray] = {}
        speakers: set[str] = set()
        for row in range(size):
            chosen = self._new(rng, speakers)
            speakers.add(chosen.speaker)
            codes = None
            if isinstance(chosen, Pair):
                codes = None if rng.random() < AS_IT_IS else chosen.codes
                wave = chosen.natural(self.natural) if codes is None else chosen.dubbed.astype(np.float32) / 32768
                own = [pair.natural(self.natural) for pair in _two(self.by_speaker[chosen.speaker], rng)]
            else:
                known[row] = rng.random() >= NOBODY
                clips = chosen, *_two(self.clips.by_speaker[chosen.speaker], rng)
                wave, *own = (self.recipe.audio(clip).astype(np.float32) / 32768 for clip in clips)
            start = int(rng.integers(max(1, len(wave) // FRAME_SIZE - frames + 1)))
            part = wave[start * FRAME_SIZE :][:length]
            waves[row, : len(part)] = part
            if codes is not None and len(codes) >= start + frames:
                others[row] = codes[start : start + frames]
            for take, recording in enumerate(own):
                heard[take, row] = _cut(recording, rng)
        with torch.no_grad():
            made = codec.encode(torch.from_numpy(waves)).transpose(1, 2)
        for row, codes in others.items():
            made[row] = torch.from_numpy(codes.astype(np.int64))
        return torch.from_numpy(waves), made, torch.from_numpy(heard), torch.from_numpy(known)


def _two(clips: list, rng: np.random.Generator) -> list:
    return [clips[rng.integers(len(clips))] for _ in range(2)]


def _cut(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two to three seconds from anywhere in it, louder or softer, filled up with silence."""
    taken = int(rng.uniform(0.66, 1) * HEARD * SAMPLE_RATE)
    start = int(rng.integers(max(1, len(wave) - taken)))
    part = wave[start : start + taken] * 10 ** (rng.uniform(-6, 4) / 20)
    return np.pad(part, (0, int(HEARD * SAMPLE_RATE) - len(part)))


def train_speakers(
    natural: Path,
    pairs: Path,
    speech: Path,
    folder: Path,
    config: SpectralConfig,
    start: SpectralCodec,
    steps: int = 2_000,
    refined: int = 1_000,
    batch: int = 16,
    frames: int = 16,
    rate: float = 5e-4,
    seed: int = 1,
    every: int = 200,
) -> SpectralCodec:
    """Train (or resume) in `folder` decoder and speaker encoder of a codec that begins as `start`, which may have fewer
    decoder blocks and know no speakers: `steps` by what is right on average, then `refined` by the energy distance,
    too. Muon moves the matrices between the first and the last layers, AdamW the rest. Returns it in evaluation mode.
    Raises `InputError` for speech that is missing."""
    torch.manual_seed(seed)
    corpus, recipe = Corpus(natural), Corpus(speech)
    found = read_pairs(corpus, pairs)
    train, held_out = (Speech(corpus, found, recipe, late) for late in (False, True))
    trainer = SpeakerTrainer(config)
    grow(trainer.codec, start)
    codec = trainer.codec
    for part in (codec.encoder, codec.quantizer):
        part.requires_grad_(False)
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    for name, weight in codec.named_parameters():
        if weight.requires_grad:
            matrix = weight.dim() == 2 and min(weight.shape) > 1 and not name.endswith(("embed.weight", "head.weight"))
            (inner if matrix else outer).append(weight)
    optimisers = [Muon(inner, lr=rate, weight_decay=0.0), torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.99))]
    run = Run(folder, trainer, optimisers)

    def train_step(step: int) -> dict[str, float]:
        torch.manual_seed(seed * 1_000_003 + step)
        trainer.train()
        for part in (codec.encoder, codec.quantizer):
            part.eval()
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * warmup_cosine(step, steps + refined, 50)
        if step % LISTEN_ANEW == 0 or not trainer.listens:
            trainer.listen_anew()
        rng = np.random.default_rng((seed, step))
        loss, metrics = trainer(*train.batch(codec, rng, batch, frames), step >= steps, rng)
        improve(optimisers, loss)
        return metrics

    @torch.no_grad()
    def validate() -> dict[str, float]:
        trainer.eval()
        torch.manual_seed(0)
        return trainer(*held_out.batch(codec, np.random.default_rng(0), 2 * batch, frames), run.step > steps)[1]

    run.loop(steps + refined, train_step, validate, every)
    return codec.eval()
