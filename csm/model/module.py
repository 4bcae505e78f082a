"""The Conversational Speech Model as one module: embeddings, backbone, depth decoder and their heads.

A row of the input is K audio columns and one text column with a mask; embeddings of the columns in use are
added. The backbone's last hidden state gives code 0; the depth decoder reads that state and the codes so far
and gives codes 1 to K-1. Names are those of the original checkpoint (SesameAILabs/csm).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csm.config import ModelConfig
from csm.model.sampling import RowSampling, sample
from csm.model.transformer import KVCache, Transformer
from csm.settings import Settings

ROWS_AT_ONCE = 256  # whose columns' embeddings are held at a time: 2 048 rows of CSM-1B would take 0.55 GB


class CSM(nn.Module):
    stack: type[Transformer] = Transformer  # what the backbone and the depth decoder are
    in_graphs = False  # whether others than torch compute them, with threads of their own

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        backbone, decoder = config.backbone, config.decoder
        k, vocab = config.num_codebooks, config.audio_vocab_size
        self.backbone = self.stack(backbone, config.max_positions)
        self.decoder = self.stack(decoder, k + 1)
        self.text_embeddings = nn.Embedding(config.text_vocab_size, backbone.dim)
        self.audio_embeddings = nn.Embedding(vocab * k, backbone.dim)
        self.projection = nn.Linear(backbone.dim, decoder.dim, bias=False)
        self.codebook0_head = nn.Linear(backbone.dim, vocab, bias=False)
        self.audio_head = nn.Parameter(torch.empty(k - 1, decoder.dim, vocab))

    def init_weights(self) -> CSM:
        """Small normal weights, residual outputs scaled down by depth (GPT-2's rule); for training from scratch."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            if name.endswith(("output_proj.weight", "w2.weight")):
                layers = (self.backbone if name.startswith("backbone") else self.decoder).config.layers
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5)
        nn.init.normal_(self.projection.weight, std=self.config.backbone.dim**-0.5)
        return self

    def embed_codes(self, codes: Tensor, first_codebook: int = 0) -> Tensor:
        """codes (..., n) of codebooks first_codebook.. -> embeddings (..., n, dim); row = code + vocab * codebook."""
        n, vocab = codes.shape[-1], self.config.audio_vocab_size
        if n == 1:
            return self.audio_embeddings(codes + first_codebook * vocab)
        offsets = torch.arange(first_codebook, first_codebook + n, device=codes.device) * vocab
        return self.audio_embeddings(codes + offsets)

    def embed_rows(self, rows: Tensor, mask: Tensor) -> Tensor:
        """rows int64 (B, S, K+1) and mask bool of the same shape -> (B, S, dim)."""
        parts = [
            self._embed_rows(some, used)
            for some, used in zip(rows.split(ROWS_AT_ONCE, dim=1), mask.split(ROWS_AT_ONCE, dim=1))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _embed_rows(self, rows: Tensor, mask: Tensor) -> Tensor:
        audio = self.embed_codes(rows[..., :-1])
        text = self.text_embeddings(rows[..., -1:])
        return (torch.cat([audio, text], dim=-2) * mask.unsqueeze(-1)).sum(dim=-2)

    def embed_frames(self, codes: Tensor, slot_ids: Tensor) -> Tensor:
        """Whole frames, int64 (B, K), and their slots' ids (B,), which count in models whose frames carry them -> their
        rows' embeddings (B, dim); what `embed_rows` gives for audio rows."""
        embedded = self.embed_codes(codes).sum(dim=-2)
        return embedded + self.text_embeddings(slot_ids) if self.config.slots_in_frames else embedded

    def depth_inputs(self, state: Tensor, codes: Tensor) -> Tensor:
        """Backbone states (N, dim) and codes (N, n) of codebooks 0.. -> decoder inputs (N, n + 1, decoder dim)."""
        return self.projection(torch.cat([state.unsqueeze(1), self.embed_codes(codes)], dim=1))

    def depth_logits(self, state: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced logits of codes 1..K-1: states (N, dim), codes (N, K) -> (N, K-1, vocab)."""
        hidden = self.decoder(self.depth_inputs(state, codes[:, :-1]))[:, 1:]
        return torch.einsum("nkd,kdv->nkv", hidden, self.audio_head)

    def sample_frame(self, state: Tensor, sampling: Settings | RowSampling, noise: Tensor | None) -> Tensor:
        """Backbone states (B, dim) of the newest position and noise (B, K, V) -> the next frame's codes, int64 (B, K).

        The depth decoder's cache is new in every frame. Greedy sampling of all rows needs no noise.
        """

        def draw(logits: Tensor, codebook: int) -> Tensor:
            return sample(logits, sampling, None if noise is None else noise[:, codebook])

        code = draw(self.codebook0_head(state), 0)
        codes = [code]
        cache = KVCache(self.config.decoder, self.config.num_codebooks, state.shape[0], state)
        inputs = self.depth_inputs(state, code.unsqueeze(1))
        for k in range(1, self.config.num_codebooks):
            hidden = self.decoder(inputs, cache)[:, -1]
            code = draw(hidden @ self.audio_head[k - 1], k)
            codes.append(code)
            inputs = self.projection(self.embed_codes(code.unsqueeze(1), first_codebook=k))
        return torch.stack(codes, dim=1)

    def losses(
        self, rows: Tensor, mask: Tensor, depth_frames: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of code 0 on every audio row and of codes 1..K-1 on the rows `depth_frames` chooses.

        rows (B, S, K+1), mask (B, S, K+1), depth_frames bool (B, S), True only on audio rows. The frame in row s
        is predicted from the hidden state of row s-1. Compute amortisation: choose 1/16 of the frames.
        """
        if hidden is None:
            hidden = self.backbone(self.embed_rows(rows, mask))
        states, targets = hidden[:, :-1], rows[:, 1:, :-1]
        audio = mask[:, 1:, 0]
        first = F.cross_entropy(self.codebook0_head(states[audio]).float(), targets[audio][:, 0])
        chosen = depth_frames[:, 1:] & audio
        codes = targets[chosen]
        logits = self.depth_logits(states[chosen], codes).float()
        return first, F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten())
