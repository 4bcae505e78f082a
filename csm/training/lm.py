"""Train the language model, backbone and depth decoder together (`python -m csm train lm`).

Compute amortisation as Sesame describes it: the backbone learns code 0 on every frame, the depth decoder the
other codes on a random part of the frames. Less and less as it goes, two heads of one backbone layer are shown
where in the text the speech is: the probability they give to the letters being spoken is rewarded (guided
attention, after Tachibana et al. 2017, arXiv:1710.08969, with the synthesiser's own timing instead of a diagonal).
Two heads of a later layer are shown in the same way where the speaker was heard before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from csm.config import ModelConfig
from csm.errors import InputError
from csm.model import CSM
from csm.model.precision import quick_in_bfloat16
from csm.model.transformer import Layer
from csm.training.codes import Batch, Conversations
from csm.training.distributed import Processes, shard
from csm.training.muon import Muon
from csm.training.run import Run, warmup_cosine
from csm.training.shapes import keep_shape

LENGTHS, LENGTH_SHARES = (256, 512, 1024), (0.45, 0.40, 0.12)  # shorter conversations than the longest, and how often
MOST_SKIPPED = 20
OPENING = 6  # frames
TRIALS = 16  # rows of 512 positions, to see whether voices are bound to slots
GUIDED_EVERY = 4  # rows; neighbours look at the same, and each costs as much as its attention
GUIDES = ("guide", "voice")
LOSSES = ("code0", "depth", *GUIDES)


@dataclass(frozen=True)
class LMSettings:
    """How the language model is trained. A step is `accumulate` batches on each process, of `batch_positions` each:
    conversations of up to `positions` rows, more of them the shorter they are.

    `depth_share` is the part of the frames that the depth decoder learns, and `openings` the part of those that are
    taken from the beginnings of turns, where the voice is decided. `guide_weight` is that of the guide, which
    shows the first heads of one layer the text being spoken, and `voice_weight` that of the other, which shows the last
    heads of a later layer where the speaker was heard before; both fade out to the end, and 0 leaves one out.
    `code_noise` is the part of the frames that the backbone hears wrongly, as other frames of the batch, and learns to
    go on from, as it must from its own mistakes. `precision` is that of the matrix products, "auto" bfloat16
    where the device is quick in it: weights, their updates, norms and losses are float32.
    """

    steps: int = 15_000
    rate: float = 2e-3
    warmup: int = 200
    positions: int = 2_048
    batch_positions: int = 2_048
    accumulate: int = 1
    depth_share: float = 1 / 16
    openings: float = 0.5
    guide_weight: float = 0.5
    guided_layer: int = 2
    voice_weight: float = 0.3
    voice_layer: int = 4
    guided_heads: int = 2
    code_noise: float = 0.05
    optimiser: Literal["muon", "adamw"] = "muon"
    weight_decay: float = 0.05
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    checkpointing: bool = False
    seed: int = 1
    every: int = 250
    log_every: int = 50

    def __post_init__(self) -> None:
        counts = ("steps", "positions", "batch_positions", "accumulate", "every")
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError(f"The setting {name} is {getattr(self, name)}; choose a whole number of at least 1.")
        if not 0 < self.depth_share <= 1:
            raise InputError(f"The depth share is {self.depth_share}; choose a part of the frames above 0, at most 1.")
        if not 0 <= self.openings <= 1:
            raise InputError(f"The part of openings is {self.openings}; choose one from 0 to 1.")
        if not 0 <= self.code_noise < 1:
            raise InputError(f"The part of wrong frames is {self.code_noise}; choose one from 0 to below 1.")
        if not 0 < self.rate < 1:
            raise InputError(f"The learning rate is {self.rate}; choose one above 0 and below 1.")

    def bfloat16(self, device: str = "cuda") -> bool:
        """Whether matrix products are in bfloat16 on that kind of device."""
        return quick_in_bfloat16(device) if self.precision == "auto" else self.precision == "bfloat16"

    def shapes(self) -> tuple[list[tuple[int, int]], list[float]]:
        """Conversations x positions of the batches, and how often each comes: the same work in every batch."""
        kept = [(length, share) for length, share in zip(LENGTHS, LENGTH_SHARES) if length < self.positions]
        shares = [share for _, share in kept]
        lengths = [*(length for length, _ in kept), self.positions]
        return [(max(1, self.batch_positions // n), n) for n in lengths], [*shares, 1 - sum(shares)]


def check_positions(config: ModelConfig, settings: LMSettings) -> None:
    """Raises `InputError` for conversations longer than the model takes."""
    if settings.positions > config.max_positions:
        raise InputError(f"The model has {config.max_positions} positions; choose at most that many.")


class Batches(Protocol):
    """Where training conversations come from."""

    def batch(self, step: int, rows: int, length: int) -> Batch:
        """Conversations packed to (rows, length), always the same ones for the same `step`."""
        ...


def guide_loss(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, guide: Tensor, heads: Sequence[int]) -> Tensor:
    """How little some of a layer's heads look where `guide` (B, S, 2) shows, from its first to its last row: mean
    negative log of their attention to it, over every fourth of the rows where it is known."""
    q, k = layer.attn.queries_keys(layer.sa_norm(x), cos, sin)
    group = layer.attn.heads // layer.attn.kv_heads
    scores = q[:, list(heads), ::GUIDED_EVERY] @ k[:, [head // group for head in heads]].transpose(-1, -2)
    scores = scores.float() / layer.attn.head_dim**0.5
    positions, guide = torch.arange(x.shape[1], device=x.device), guide[:, ::GUIDED_EVERY]
    future = positions > positions[::GUIDED_EVERY, None]
    total = scores.masked_fill(future, -torch.inf).logsumexp(-1)
    first, last = guide[..., :1], guide[..., 1:]
    shown = (positions >= first) & (positions <= last)
    inside = scores.masked_fill(~shown.unsqueeze(1), -torch.inf).logsumexp(-1)
    guided = (guide[..., 0] >= 0).unsqueeze(1).expand_as(total)
    return (total - inside)[guided].mean() if guided.any() else scores.new_zeros(())


class Guided(NamedTuple):
    """Which heads of which layer of the backbone are guided."""

    layer: int
    heads: Sequence[int]


def guided_heads(config: ModelConfig, settings: LMSettings) -> dict[str, Guided]:
    """By the name of the guide, as in a `Batch`: those that count, in a model that has their layer."""
    last, count = config.backbone.heads, min(settings.guided_heads, config.backbone.heads)
    chosen = {
        "guide": (settings.guide_weight, Guided(settings.guided_layer, range(count))),
        "voice": (settings.voice_weight, Guided(settings.voice_layer, range(last - count, last))),
    }
    return {name: heads for name, (weight, heads) in chosen.items() if weight and heads.layer < config.backbone.layers}


class Objective(nn.Module):
    """The model with its `LOSSES` as one `forward`, so that sharding has one call to wrap."""

    def __init__(self, model: CSM, settings: LMSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self.guided = guided_heads(model.config, settings)

    def guides(self, batch: Batch) -> dict[str, Tensor]:
        """What of a batch's `GUIDES` is known somewhere, and counts."""
        spans = {name: cast(Tensor, getattr(batch, name)) for name in self.guided}
        return {name: span for name, span in spans.items() if (span[..., 0] >= 0).any()}

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        depth_frames: Tensor,
        guides: Mapping[str, Tensor],
        heard: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The `LOSSES`: cross-entropy of code 0 and of the other codes on `depth_frames` bool (B, S), and those of the
        guides, 0 where none is given; each averaged over this batch. The backbone reads `heard` instead of `ids` where
        given."""
        model = self.model
        x = model.embed_rows(ids if heard is None else heard, mask)
        cos, sin = model.backbone.rotary(torch.arange(x.shape[1], device=x.device))
        guided = {name: x.new_zeros(()) for name in GUIDES}
        for index, module in enumerate(model.backbone.layers):
            for name, guide in guides.items():
                if self.guided[name].layer == index:
                    guided[name] = guide_loss(cast(Layer, module), x, cos, sin, guide, self.guided[name].heads)
            x = module(x, cos, sin, index, None)
        first, depth = model.losses(ids, mask, depth_frames, model.backbone.norm(x))
        return first, depth, *guided.values()


def misheard(batch: Batch, share: float, seed: tuple[int, ...]) -> Tensor:
    """A batch's ids (B, S, K+1) with a random `share` of the frames replaced by others of it; ends stay ends.

    Confused turns keep code 0 and have the other codes of a stretch of sound from elsewhere: what was said, in a voice
    that is not the speaker's, so that the voice has to be taken from turns before.
    """
    sound = batch.mask[..., 0] & (batch.ids[..., :-1] != 0).any(-1)
    frames = batch.ids[sound][:, :-1]
    rng = np.random.default_rng(seed)
    foreign = frames.roll(int(rng.integers(1, max(2, len(frames)))), dims=0)
    foreign[:, 0] = frames[:, 0]
    frames = torch.where(batch.confused[sound][:, None], foreign, frames)
    wrong = torch.from_numpy(rng.random((len(frames), 1)) < share)
    heard = batch.ids.clone()
    mixed = frames[torch.from_numpy(rng.permutation(len(frames)))]
    heard[..., :-1][sound] = torch.where(wrong, mixed, frames)
    return heard


def choose_frames(batch: Batch, share: float, seed: tuple[int, ...], openings: float = 0.0) -> Tensor:
    """A random `share` of the frames of a batch, at least one: bool (B, S).

    The part `openings` of them, if there are so many, are among the first `OPENING` of a turn, of a speaker who was
    heard before where that is known. There the voice is taken from what was heard; what follows is told by the turn's
    own beginning, and who wasn't heard can only be guessed: both teach less. 0: every frame is as likely as any other.
    """
    mask = batch.mask
    audio = mask[..., 0].clone()
    audio[:, 0] = False  # nothing comes before it to predict it from
    places = torch.arange(mask.shape[1])
    since = places - torch.where(mask[..., 0], -1, places).cummax(1).values
    early = since <= OPENING
    known = nn.functional.pad(batch.voice[:, :-1, 0] >= 0, (1, 0))  # of the frame itself, not of the next
    if known.any():
        early = (early | batch.confused) & known
    opening = (audio & early).flatten().nonzero()[:, 0].numpy()
    later = (audio & ~early).flatten().nonzero()[:, 0].numpy()
    frames = len(opening) + len(later)
    count = min(frames, max(1, round(share * frames)))
    rng = np.random.default_rng(seed)
    chosen = torch.zeros(audio.numel(), dtype=torch.bool)
    if not openings:
        chosen[rng.choice(np.concatenate([opening, later]), count, replace=False)] = True
        return chosen.view(audio.shape)
    first = max(count - len(later), min(int(count * openings), len(opening)))
    chosen[rng.choice(opening, first, replace=False)] = True
    chosen[rng.choice(later, count - first, replace=False)] = True
    return chosen.view(audio.shape)


def optimisers(model: nn.Module, settings: LMSettings) -> list[torch.optim.Optimizer]:
    """For everything that `requires_grad`: Muon for the matrices inside the transformers and AdamW for embeddings,
    heads and norms, or AdamW for all."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise InputError("Nothing in this model is left to train.")
    inner = [p for name, p in named if ".layers." in name and p.dim() == 2]
    outer = [p for name, p in named if not (".layers." in name and p.dim() == 2)]
    rate, decay, betas = settings.rate, settings.weight_decay, (0.9, 0.95)
    if settings.optimiser == "adamw" or not inner:
        groups = [{"params": inner, "weight_decay": decay}, {"params": outer, "weight_decay": 0.0}]
        # One parameter after the other: all at once needs another copy of all weights.
        return [torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, betas=betas, foreach=False)]
    made: list[torch.optim.Optimizer] = [Muon(inner, lr=rate, weight_decay=decay)]
    return [*made, torch.optim.AdamW(outer, lr=rate, betas=betas, weight_decay=0.0, foreach=False)] if outer else made


def remember_less(layers: list[nn.Module]) -> None:
    """Activation checkpointing: keep each layer's input only, and compute the layer again in the backward pass."""
    for layer in layers:
        again = partial(checkpoint, layer.forward, use_reentrant=False)
        setattr(layer, "forward", again)  # noqa: B010 - inside the module, where sharding's hooks stay outside of it


def train_lm(
    model: CSM,
    train: Batches,
    held_out: Batches | None,
    folder: Path,
    settings: LMSettings,
    together: Processes = Processes(),  # noqa: B008 - frozen
) -> CSM:
    """Train (or resume) in `folder` what `requires_grad` in `model`; returns it in evaluation mode.

    On several processes the model is sharded, so its whole weights are in the folder's `state.pt` only. Raises
    `InputError` for settings that don't fit the model or the run in `folder`, or when training diverges.
    """
    check_positions(model.config, settings)
    if together.count > 1 and settings.optimiser == "muon":
        raise InputError("Muon needs each matrix whole, and several processes hold parts: choose --optimiser adamw.")
    keep_shape(folder, model.config, together.first)
    device, several = together.device, together.count
    objective = Objective(model.train(), settings)
    layers = [*model.backbone.layers, *model.decoder.layers]
    if settings.checkpointing:
        remember_less(layers)
    if several > 1:
        # A guided layer's projections are also used from outside the layer, so it stays with the whole.
        guided = {id(model.backbone.layers[heads.layer]) for heads in objective.guided.values()}
        shard(objective, [layer for layer in layers if id(layer) not in guided], together)
    objective.to(device)
    chosen = optimisers(model, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    run = Run(folder, model, chosen, asdict(settings), together)
    shapes, shares = settings.shapes()
    skipped = 0

    def losses(batch: Batch, depth_frames: Tensor, heard: Tensor | None = None) -> tuple[Tensor, ...]:
        guides = {name: span.to(device) for name, span in objective.guides(batch).items()}
        heard = None if heard is None else heard.to(device)
        bfloat16 = settings.bfloat16(device.type)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=several == 1):
            return objective(batch.ids.to(device), batch.mask.to(device), depth_frames.to(device), guides, heard)

    def counts(batch: Batch, depth_frames: Tensor) -> Tensor:
        guided = [(getattr(batch, name)[:, ::GUIDED_EVERY, 0] >= 0).sum() for name in GUIDES]
        return torch.stack([batch.mask[:, 1:, 0].sum(), depth_frames.sum(), *guided]).double()

    def train_step(step: int) -> dict[str, float | Tensor]:
        nonlocal skipped
        torch.manual_seed(settings.seed * 1_000_003 + step)  # for whatever dropout an adapter may have
        shape = shapes[np.random.default_rng((settings.seed, step, 2)).choice(len(shapes), p=shares)]
        first = step * settings.accumulate * several + together.rank
        numbers = range(first, first + settings.accumulate * several, several)
        batches = [train.batch(number, *shape) for number in numbers]
        frames = [
            choose_frames(batch, settings.depth_share, (settings.seed, number, 3), settings.openings)
            for batch, number in zip(batches, numbers)
        ]
        own = [counts(batch, chosen_frames) for batch, chosen_frames in zip(batches, frames)]
        in_all = together.sum(torch.stack(own).sum(0).to(device)).clamp_min(1).cpu()
        fading = 1 - step / settings.steps
        guiding = settings.guide_weight, settings.voice_weight
        weights = torch.tensor([1.0, 1.0, *(weight * fading for weight in guiding)], device=device)
        model.zero_grad(set_to_none=True)
        seen = torch.zeros(len(LOSSES), device=device)
        for number, batch, depth_frames, count in zip(numbers, batches, frames, own):
            heard = None
            if settings.code_noise or batch.confused.any():
                heard = misheard(batch, settings.code_noise, (settings.seed, number, 4))
            part = (count / in_all).float().to(device)  # so that every frame counts the same, whichever batch it is in
            values = torch.stack(losses(batch, depth_frames, heard)).float() * part
            (values @ weights * several).backward()  # times the processes, since sharding averages over them
            seen += values.detach()
        for optimiser in chosen:
            for group in optimiser.param_groups:
                group["lr"] = settings.rate * warmup_cosine(step, settings.steps, settings.warmup)
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if torch.isfinite(norm):
            skipped = 0
            for optimiser in chosen:
                optimiser.step()
        elif (skipped := skipped + 1) > MOST_SKIPPED:
            raise InputError(
                f"Training diverged: {MOST_SKIPPED} steps in a row without finite gradients. Choose a lower --rate."
            )
        metrics = dict(zip(LOSSES, together.sum(seen)))
        return {**metrics, "gradient_norm": norm.detach() if not skipped else 0.0, "skipped": float(skipped > 0)}

    @torch.no_grad()
    def validate() -> dict[str, float | Tensor]:
        if held_out is None:
            return {}
        length = min(512, settings.positions)
        rows = max(1, settings.batch_positions // length)
        found = []
        for number in range(4):
            batch = held_out.batch(number, rows, length)
            found.append(torch.stack(losses(batch, choose_frames(batch, 1.0, (0, number)))).float())
        return dict(zip(LOSSES, torch.stack(found).mean(0))) | bound()

    def bound() -> dict[str, float | Tensor]:
        """How much is lost when a turn comes under the other speaker's slot: codes 1.. in its first frame, and in all
        of them. Near nothing: the model doesn't know who speaks."""
        if not isinstance(held_out, Conversations):
            return {}
        if (trials := held_out.trials(0, TRIALS, min(512, settings.positions))) is None:
            return {}
        *pair, asked = trials
        spans = {"first": asked & (asked.cumsum(1) == 1), "turn": asked}
        found = {name: [losses(batch, span)[1].float() for batch in pair] for name, span in spans.items()}
        return {f"swap_{name}": other - own for name, (own, other) in found.items()}

    run.loop(settings.steps, train_step, validate, settings.every, settings.log_every)
    for layer in layers if settings.checkpointing else []:
        del layer.forward
    return model.eval()
