"""Train a Mimi of any shape from nothing (`python -m csm train codec --config mimi-small`).

The recipe is Mimi's (Défossez et al. 2024, arXiv:2410.00037): a split residual quantiser with quantiser dropout, half
of the clips not quantised at all, code 0 taught by a self-supervised model, spectral discriminators. It differs in a
mel distance beside the adversarial losses, without which small runs don't get anywhere, and in a k-means start after
a warm-up without quantiser. What is trained are moshi's own modules, as `csm.codec.mimi` builds them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from moshi.models.compression import MimiModel
from moshi.modules.conv import StreamingConv1d, StreamingConvTranspose1d
from moshi.modules.seanet import SEANetResnetBlock
from moshi.quantization import ResidualVectorQuantizer, SplitResidualVectorQuantizer
from moshi.quantization.core_vq import EuclideanCodebook
from moshi.utils.compile import no_compile
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from csm.codec.mimi import build_mimi
from csm.config import MimiConfig
from csm.training.adversary import Adversary, discriminator_loss, generator_losses
from csm.training.codec import Clips, MelDistance, crops
from csm.training.corpus import Corpus
from csm.training.distributed import Processes
from csm.training.export import folded
from csm.training.run import Run, improve, say, warmup_cosine
from csm.training.shapes import keep_shape
from csm.training.teacher import Teacher, choose_lesson

ELU_GAIN = 1.25  # an ELU leaves 0.64 of the power of white noise
LOUDNESS = 0.1  # root mean square of speech, about
BYPASS = -1  # in place of a number of codebooks: this clip is not quantised
CHECK_EVERY = 5  # steps from one search for dead codes to the next, moshi's own figure
VECTORS_PER_CODE = 8  # what k-means starts from


@dataclass(frozen=True)
class MimiRecipe:
    """How long, on what, and what counts how much. Clips are `frames` of 80 ms; steps are counted from the start."""

    steps: int = 20_000
    batch: int = 8
    frames: int = 12
    rate: float = 5e-4
    warm_up: int = 1_000  # steps without quantiser, before it starts by k-means
    adversarial_from: int = 2_000
    bypass: float = 0.5  # part of the clips that go past the quantiser, as in Mimi
    mel: float = 10.0
    waveform: float = 1.0
    semantic: float = 1.0
    commitment: float = 1.0
    adversarial: float = 1.0
    feature: float = 2.0
    channels: int = 16  # of the discriminators' first layers
    seed: int = 1
    every: int = 250  # steps from save to save
    log_every: int = 50

    @classmethod
    def of(cls, steps: int, adversarial_from: int | None = None, **fields: Any) -> MimiRecipe:
        """The recipe with so many steps; its stages begin earlier where there are few of them."""
        judged = min(cls.adversarial_from, steps // 2) if adversarial_from is None else adversarial_from
        return cls(steps=steps, warm_up=min(cls.warm_up, steps // 4), adversarial_from=judged, **fields)


def trainable_mimi(config: MimiConfig) -> MimiModel:
    """moshi's Mimi, set up for training from nothing.

    moshi builds convolutions for weights with their norm folded in, and PyTorch's default start shrinks the signal in
    each of them. Here every layer starts at gain 1, with weight norm on those of the SEANet.
    """
    mimi: Any = build_mimi(config).train()
    for part in (mimi.encoder, mimi.decoder):
        convs = [m for m in part.modules() if isinstance(m, StreamingConv1d | StreamingConvTranspose1d)]
        branches = {m.block[-1] for m in part.modules() if isinstance(m, SEANetResnetBlock)}
        for conv in convs:
            # A branch is added to its input: at half the gain, it adds a quarter of the power.
            _start(conv, ELU_GAIN * (0.5 if conv in branches else 1.0))
    _start(mimi.encoder.model[0], 1 / LOUDNESS)
    _start(mimi.decoder.model[-1], ELU_GAIN * LOUDNESS)
    for part in (mimi.encoder, mimi.decoder):
        for module in [m for m in part.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]:
            weight_norm(module)
    _start(mimi.downsample.conv, 1.0)
    repeat = mimi.upsample.convtr.convtr.convtr.weight  # (dim, 1, 4), 2 steps for each frame
    with torch.no_grad():
        repeat.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]).expand_as(repeat))
    for rvq in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
        nn.init.normal_(rvq.input_proj.weight, std=config.dim**-0.5)
        nn.init.normal_(rvq.output_proj.weight, std=(2 * config.codebook_dim) ** -0.5)  # the two are added up
    return mimi


def _start(conv: StreamingConv1d | StreamingConvTranspose1d, gain: float) -> None:
    """Random weights that give white noise `gain` times its amplitude, and no bias."""
    inner: Any = conv.conv.conv if isinstance(conv, StreamingConv1d) else conv.convtr.convtr
    inputs = inner.in_channels * inner.kernel_size[0]
    if isinstance(conv, StreamingConvTranspose1d):
        inputs //= inner.stride[0]
    nn.init.normal_(inner.weight, std=gain * inputs**-0.5)
    if inner.bias is not None:
        nn.init.zeros_(inner.bias)


def quantised(quantizer: SplitResidualVectorQuantizer, latents: Tensor, depths: Tensor) -> tuple[Tensor, ...]:
    """Latents (B, dim, frames) by their codes, as many codebooks for each clip as `depths`, int64 (B,), says.

    -> vectors (B, dim, frames), code 0's part of them, commitment loss. In training mode, codebooks follow their
    vectors as moving averages, and codes that nobody uses are replaced (both by moshi). Gradients pass straight
    through. moshi's own `q_dropout` draws one depth for a whole batch; here every clip has its own.
    """
    bypass = depths == BYPASS
    semantic, first = _residual(quantizer.rvq_first, latents, torch.where(bypass, BYPASS, depths.clamp_max(1)))
    acoustic, rest = _residual(quantizer.rvq_rest, latents, torch.where(bypass, BYPASS, depths - 1))
    return semantic + acoustic, semantic, first + rest


def _residual(rvq: ResidualVectorQuantizer, latents: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    x = rvq.input_proj(latents)
    depths = depths[:, None, None]
    residual, total, chosen = x, torch.zeros_like(x), torch.zeros_like(x)
    losses, count = x.new_zeros(()), 0
    for number, layer in enumerate(rvq.vq.layers, 1):
        nearest = layer(residual).quantized.detach()
        used = ((depths >= number) | (depths == BYPASS)).expand_as(x)
        losses = losses + (residual - nearest).square()[used].sum()
        count += int(used.sum())
        residual, total = residual - nearest, total + nearest
        chosen = torch.where(depths >= number, total, chosen)
    straight = torch.where(depths == BYPASS, x, x + (chosen - x).detach())
    return rvq.output_proj(torch.where(depths == 0, 0.0, straight)), losses / max(1, count)


def unquantised(quantizer: SplitResidualVectorQuantizer, latents: Tensor) -> tuple[Tensor, ...]:
    """The same three, without codebooks: vectors, the part that code 0 will stand for, no loss."""
    parts = [rvq.output_proj(rvq.input_proj(latents)) for rvq in (quantizer.rvq_first, quantizer.rvq_rest)]
    return parts[0] + parts[1], parts[0], latents.new_zeros(())


@torch.no_grad()
def start_codebooks(quantizer: SplitResidualVectorQuantizer, latents: Tensor, batch: int) -> None:
    """Start every codebook by k-means over latents (1, dim, n), each on what the ones before it leave.

    moshi starts one codebook a step, each from one batch, which for a small batch is fewer vectors than codes. The
    usage counts are scaled to a `batch` of that many vectors, so that what is learned now soon outweighs the start.
    """
    for rvq in (quantizer.rvq_first, quantizer.rvq_rest):
        residual = rvq.input_proj(latents)
        for layer in rvq.vq.layers:
            residual = residual - layer.train()(residual).quantized
            for name in ("embedding_sum", "cluster_usage"):
                getattr(layer._codebook, name).mul_(batch / latents.shape[2])


class MimiTrainer(nn.Module):
    """Mimi with its lesson for code 0 and its discriminators, and one batch's losses."""

    def __init__(self, config: MimiConfig, lesson: nn.Module | None = None, channels: int = 16) -> None:
        super().__init__()
        self.codec = trainable_mimi(config)
        self.lesson = lesson
        self.adversary = Adversary(channels=channels)
        self.distance = MelDistance()

    @property
    def quantizer(self) -> SplitResidualVectorQuantizer:
        assert isinstance(self.codec.quantizer, SplitResidualVectorQuantizer)
        return self.codec.quantizer

    def decoded(self, vectors: Tensor) -> Tensor:
        """Vectors (B, dim, frames) -> float32 (B, samples)."""
        mimi: Any = self.codec
        (x,) = mimi.decoder_transformer(mimi.upsample(vectors))
        return mimi.decoder(x)[:, 0]

    def forward(self, wave: Tensor, depths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """wave (B, samples) -> reconstruction (B, samples), code 0's vectors (B, frames, dim), commitment loss.

        `depths`, int64 (B,): how many codebooks each clip gets, or BYPASS; None leaves the quantiser out.
        """
        with no_compile():  # moshi compiles parts of its transformers on CUDA, for inference
            latents = self.codec.encode_to_latent(wave[:, None], quantize=False)
            if depths is None:
                vectors, semantic, commitment = unquantised(self.quantizer, latents)
            else:
                vectors, semantic, commitment = quantised(self.quantizer, latents, depths)
            return self.decoded(vectors), semantic.transpose(1, 2), commitment


def random_depths(rng: np.random.Generator, batch: int, codebooks: int, bypass: float) -> Tensor:
    """How many codebooks each clip of a batch gets: 1 to all, each as likely; or BYPASS, for a part of the clips."""
    depths = rng.integers(1, codebooks + 1, batch)
    return torch.from_numpy(np.where(rng.random(batch) < bypass, BYPASS, depths))


def train_mimi(
    data: Path,
    folder: Path,
    config: MimiConfig,
    recipe: MimiRecipe = MimiRecipe(),
    teacher: Teacher | None = None,
    device: torch.device | str = "cpu",
) -> MimiModel:
    """Train (or resume) in `folder` on the speech in `data`; float32 throughout, but for the discriminators.

    Returns Mimi in evaluation mode, on the CPU, its weight norms folded in. Raises `InputError` for no speech, and for
    a folder that holds a run of another shape.
    """
    torch.manual_seed(recipe.seed)
    corpus = Corpus(data)
    learnt = [clip for clip in corpus.utterances if not clip.held_out]
    train, held_out = Clips(learnt), Clips([clip for clip in corpus.utterances if clip.held_out] or learnt)
    lesson, remark = choose_lesson(config.dim, learnt, teacher)
    say(remark)
    trainer = MimiTrainer(config, lesson, recipe.channels).to(device)
    learner, critic = _optimisers(trainer, recipe.rate)
    settings = {**asdict(recipe), "code_0": remark}
    keep_shape(folder, config)
    run = Run(folder, trainer, [learner, critic], settings, Processes(device=torch.device(device)))

    def batch_of(step: int, clips: Clips, size: int) -> tuple[Tensor, Tensor]:
        wave, phones = crops(corpus, clips, np.random.default_rng((recipe.seed, step)), size, recipe.frames)
        return wave.to(device), phones.to(device)

    def start() -> None:
        """Latents of enough clips for k-means, then the codebooks."""
        clips = -(-VECTORS_PER_CODE * config.codebook_size // recipe.frames)
        latents = []
        with torch.no_grad(), no_compile():
            for number in range(0, clips, recipe.batch):
                wave, _ = batch_of(recipe.steps + number, train, recipe.batch)
                latents.append(trainer.codec.encode_to_latent(wave[:, None], quantize=False))
        vectors = torch.cat(latents).transpose(0, 1).flatten(1)[None]
        start_codebooks(trainer.quantizer, vectors, recipe.batch * recipe.frames)

    def train_step(step: int) -> dict[str, float]:
        trainer.train()
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # what moshi draws; a resumed run draws the same
        if step == recipe.warm_up:
            start()
        _search_dead_codes(trainer.quantizer, step)
        wave, phones = batch_of(step, train, recipe.batch)
        depths = None
        if step >= recipe.warm_up:
            rng = np.random.default_rng((recipe.seed, step, 1))
            depths = random_depths(rng, recipe.batch, config.total_codebooks, recipe.bypass).to(device)
        for group in [*learner.param_groups, *critic.param_groups]:
            group["lr"] = recipe.rate * warmup_cosine(step, recipe.steps, min(200, recipe.steps // 10))
        made, semantic, commitment = trainer(wave, depths)
        metrics: dict[str, float] = {}
        loss = recipe.commitment * commitment
        if step >= recipe.adversarial_from:
            critic_loss = discriminator_loss(trainer.adversary, wave, made)
            improve([critic], critic_loss)
            adversarial, feature = generator_losses(trainer.adversary, wave, made)
            loss = loss + recipe.adversarial * adversarial + recipe.feature * feature
            metrics |= {"critic": critic_loss.item(), "adversarial": adversarial.item(), "feature": feature.item()}
        if trainer.lesson is not None:
            taught, learned = trainer.lesson(semantic, wave, phones)
            loss = loss + recipe.semantic * taught
            metrics |= learned
        mel, waveform = trainer.distance(made, wave), F.l1_loss(made, wave)
        improve([learner], loss + recipe.mel * mel + recipe.waveform * waveform)
        return {"mel": mel.item(), "waveform": waveform.item(), "commitment": commitment.item(), **metrics}

    @torch.no_grad()
    def validate() -> dict[str, float]:
        trainer.eval()
        wave, _ = batch_of(0, held_out, 2 * recipe.batch)
        with no_compile():
            if run.step > recipe.warm_up:
                made = trainer.codec.decode(trainer.codec.encode(wave[:, None]))[:, 0]
            else:
                made, _, _ = trainer(wave)
        return {"mel": trainer.distance(made, wave).item()}

    run.loop(recipe.steps, train_step, validate, recipe.every, recipe.log_every)
    mimi = build_mimi(config)
    mimi.load_state_dict({name: tensor.cpu() for name, tensor in folded(trainer.codec.state_dict()).items()})
    return mimi


def _optimisers(trainer: MimiTrainer, rate: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """For the codec, with weight decay on the transformers' matrices alone, as in Mimi; for the discriminators."""
    named = [(name, p) for name, p in trainer.named_parameters() if not name.startswith("adversary.")]
    decayed = {name for name, p in named if "_transformer." in name and p.dim() > 1}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in named if name in decayed], "weight_decay": 5e-2},
        {"params": [p for name, p in named if name not in decayed], "weight_decay": 0.0},
    ]
    return (
        torch.optim.AdamW(groups, lr=rate, betas=(0.8, 0.99)),
        torch.optim.AdamW(trainer.adversary.parameters(), lr=rate, betas=(0.8, 0.99), weight_decay=0.0),
    )


def _search_dead_codes(quantizer: SplitResidualVectorQuantizer, step: int) -> None:
    """moshi counts the steps to the next search in an attribute that no checkpoint holds: count them by the run's."""
    for module in quantizer.modules():
        if isinstance(module, EuclideanCodebook):
            module._next_unused_check = CHECK_EVERY - step % CHECK_EVERY
