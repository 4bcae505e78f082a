"""Train the language model, backbone and depth decoder together (`python -m csm train lm`).

Compute amortisation as Sesame describes it: the backbone learns code 0 on every frame, the depth decoder the
other codes on a random part of the frames. Less and less as it goes, two heads of one backbone layer are shown
where in the text the speech is: the probability they give to the letters being spoken is rewarded (guided
attention, after Tachibana et al. 2017, arXiv:1710.08969, with the synthesiser's own timing instead of a diagonal).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from csm.config import ModelConfig
from csm.model import CSM
from csm.model.transformer import Layer
from csm.text import Tokenizer
from csm.training.codes import Batch, Conversations
from csm.training.corpus import Corpus
from csm.training.run import Run, warmup_cosine

SHAPES = ((8, 256), (4, 512), (2, 1024), (1, 2048))  # conversations x positions: the same work in every batch
SHAPE_SHARES = (0.62, 0.25, 0.10, 0.03)
GUIDED_LAYER, GUIDED_HEADS = 2, 2


def guided_backbone(model: CSM, batch: Batch) -> tuple[Tensor, Tensor]:
    """The backbone over a batch: hidden states (B, S, dim), and how little the guided heads look at the text
    being spoken (mean negative log of their attention to it)."""
    x = model.embed_rows(batch.ids, batch.mask)
    length = x.shape[1]
    positions = torch.arange(length, device=x.device)
    cos, sin = model.backbone.rotary(positions)
    guide_loss = x.new_zeros(())
    for index, module in enumerate(model.backbone.layers):
        layer = cast(Layer, module)
        if index == GUIDED_LAYER:
            q, k = layer.attn.queries_keys(layer.sa_norm(x), cos, sin)
            group = layer.attn.heads // layer.attn.kv_heads
            scores = q[:, :GUIDED_HEADS] @ k[:, [h // group for h in range(GUIDED_HEADS)]].transpose(-1, -2)
            scores = scores.float() / layer.attn.head_dim**0.5
            future = positions[None] > positions[:, None]
            total = scores.masked_fill(future, -torch.inf).logsumexp(-1)
            first, last = batch.guide[..., :1], batch.guide[..., 1:]
            spoken = (positions >= first) & (positions <= last)
            inside = scores.masked_fill(~spoken.unsqueeze(1), -torch.inf).logsumexp(-1)
            guided = (batch.guide[..., 0] >= 0).unsqueeze(1).expand_as(total)
            guide_loss = (total - inside)[guided].mean()
        x = layer(x, cos, sin, index, None)
    return model.backbone.norm(x), guide_loss


def optimisers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformers, AdamW for embeddings, heads and norms."""
    inner = [p for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2]
    outer = [p for n, p in model.named_parameters() if not (".layers." in n and p.dim() == 2)]
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_lm(
    data: Path,
    codes: Path,
    folder: Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    steps: int = 15_000,
    rate: float = 2e-3,
    depth_share: float = 0.25,
    guide_weight: float = 0.5,
    seed: int = 1,
    every: int = 250,
) -> CSM:
    """Train (or resume) in `folder` on the codes of the speech in `data`; returns the model in evaluation mode.

    `depth_share` is the part of the frames that the depth decoder learns; the guide fades out to the end.
    """
    torch.manual_seed(seed)
    corpus = Corpus(data)
    train = Conversations(corpus, codes, tokenizer, config.num_codebooks, seed=seed)
    held_out = Conversations(corpus, codes, tokenizer, config.num_codebooks, held_out=True, seed=0)
    model = CSM(config).init_weights()
    model.train()
    chosen = optimisers(model, rate)
    run = Run(folder, model, chosen)

    def losses(batch: Batch, share: float, guide: float) -> tuple[Tensor, dict[str, float]]:
        depth_frames = torch.rand(batch.ids.shape[:2]) < share
        with torch.autocast("cpu", torch.bfloat16):
            hidden, guide_loss = guided_backbone(model, batch)
            first, depth = model.losses(batch.ids, batch.mask, depth_frames, hidden)
        metrics = {"code0": first.item(), "depth": depth.item(), "guide": guide_loss.item()}
        return first + depth + guide * guide_loss, metrics

    def train_step(step: int) -> dict[str, float]:
        torch.manual_seed(seed * 1_000_003 + step)
        shape = SHAPES[int(torch.multinomial(torch.tensor(SHAPE_SHARES), 1))]
        factor = warmup_cosine(step, steps)
        for optimiser in chosen:
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        loss, metrics = losses(train.batch(step, *shape), depth_share, guide_weight * (1 - step / steps))
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in chosen:
            optimiser.step()
        return metrics

    @torch.no_grad()
    def validate() -> dict[str, float]:
        torch.manual_seed(0)
        runs = [losses(held_out.batch(step, 4, 512), 1.0, 0.0)[1] for step in range(4)]
        return {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}

    run.loop(steps, train_step, validate, every)
    return model.eval()
