"""One frame of a whole batch in static memory: what the engine captures as one CUDA graph, and steps with.

A frame goes from the backbone's states to the codes of all codebooks, on to the next input row, and through the
backbone to the next states. Nothing in it waits for the host, and after the first call nothing is allocated.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from csm.kernels.choice import choose_kernel, embed_kernel, finish_kernel
from csm.kernels.depth import DepthInOne
from csm.kernels.processor import Processor
from csm.kernels.stack import Places, Stack, StackWeights, Weight, check_format, power_of_two, single
from csm.model.module import CSM
from csm.model.transformer import KVCache
from csm.settings import Settings


class KernelWeights:
    """What the kernels read of `model`, packed once for however many `FrameKernels`.

    `weights` is "bfloat16" (the model's own weights as they are, whatever their type; its parameters become views of
    the packed ones, so they exist once), "int8" or "float8" (the layers in eight bits beside the originals, which
    prefill still reads). Raises `InputError` for an unknown weight format.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, model: CSM, weights: str = "bfloat16") -> None:
        like = model.projection.weight.data
        check_format(weights, like.device)
        self.config = config = model.config
        books, vocab, width = config.num_codebooks, config.audio_vocab_size, config.decoder.dim
        self.backbone = StackWeights(model.backbone, weights)
        self.depth = StackWeights(model.decoder, weights, in_one=True)
        self.first_head = Weight(model.codebook0_head.weight.data)
        self.head_block = model.audio_head.data.transpose(1, 2).contiguous()
        model.audio_head = nn.Parameter(self.head_block.transpose(1, 2), requires_grad=False)
        self.heads = [Weight(head) for head in self.head_block]
        self.projection = Weight(like)
        self.embeddings = model.audio_embeddings.weight.data
        self.entries = like.new_empty((books - 1) * vocab + 1, width)  # the last one is the state's, in one launch
        for begin in range(0, (books - 1) * vocab, vocab):
            self.entries[begin : begin + vocab] = model.projection(self.embeddings[begin : begin + vocab])

    @property
    def frame_bytes(self) -> int:
        """Weights that one frame reads; keys, values and activations come on top."""
        heads = self.first_head.bytes + sum(head.bytes for head in self.heads)
        depth = (self.config.num_codebooks - 1) * self.depth.bytes
        return self.backbone.bytes + depth + heads + self.projection.bytes


class FrameKernels:
    """The frames of `slots` conversations of at most `positions` positions, and all the memory they need beside
    `weights`.

    Prefill writes into `keys` and `values`, (layers, slots, kv_heads, positions, head_dim), by plain torch:
    `model.backbone(x, kernels.cache(slot, length))`.

    `depth_in_one`, for one slot, runs the depth decoder as a single launch (csm/kernels/depth.py) instead of 682.

    Each slot has its own `temperature` and `floor`, float32, and `topk`, int32; `set_sampling` changes them between
    frames.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(
        self,
        weights: KernelWeights,
        slots: int,
        positions: int,
        depth_in_one: bool = False,
        processor: Processor | None = None,
    ) -> None:
        like = weights.projection.data
        self.processor = processor = processor or Processor.of(like.device)
        self.weights, self.config, self.slots, self.positions = weights, weights.config, slots, positions
        config, device = weights.config, like.device
        books, vocab, width = config.num_codebooks, config.audio_vocab_size, config.decoder.dim
        self.backbone = Stack(processor, weights.backbone, slots, slots, positions, keep_small=False)
        self.depth = Stack(processor, weights.depth, slots, 2 * slots, books, keep_small=True)
        self.keys, self.values = self.backbone.keys, self.backbone.values
        self.x, self.depth_x = like.new_zeros(slots, config.backbone.dim), like.new_zeros(2 * slots, width)
        self.logits = like.new_zeros(slots, vocab)
        self.temperature = torch.full((slots,), config.temperature, device=device)
        self.topk = torch.full((slots,), config.topk, dtype=torch.int32, device=device)
        self.floor = torch.full((slots,), -torch.inf, device=device)
        self.in_one: DepthInOne | None = None
        if depth_in_one:
            if slots != 1:
                raise ValueError("The depth decoder in one launch serves one slot.")
            counter = torch.zeros(1, dtype=torch.int32, device=device)
            self.in_one = DepthInOne(
                self.depth, weights.head_block, weights.entries, self.logits, self.depth_x, counter
            )
        always = torch.ones(2 * slots, dtype=torch.uint8, device=device)
        both = torch.arange(2, device=device).repeat_interleave(slots)
        self._depth_places = [Places(2 * slots, both, always, fixed=True)] + [
            Places(slots, torch.full((slots,), position, device=device), always[:slots], fixed=True)
            for position in range(2, books)
        ]

    def set_sampling(self, sampling: Settings, slot: int | None = None) -> None:
        """How one slot samples, or all do; takes effect with the next frame, captured or not."""
        rows = slice(None) if slot is None else slice(slot, slot + 1)
        assert sampling.temperature is not None and sampling.topk is not None, "not `filled`"
        self.temperature[rows] = sampling.temperature
        self.topk[rows] = sampling.topk
        self.floor[rows] = sampling.floor

    def go_in_turn(self) -> bool:
        """From now on no kernel begins before the one before it has ended -> whether any did until now."""
        overlapped = self.processor.overlap
        for part in (self, self.backbone, self.depth):
            part.processor = replace(part.processor, overlap=False)
        return overlapped

    def cache(self, slot: int, length: int) -> KVCache:
        """The memory of one slot as prefill takes it, with `length` positions in use; a view, not a copy."""
        view = KVCache.__new__(KVCache)
        view.keys, view.values = self.keys[:, slot : slot + 1], self.values[:, slot : slot + 1]
        view.length = length
        return view

    def step(self, state: Tensor, noise: Tensor, codes_out: Tensor, lengths: Tensor, active: Tensor) -> None:
        """One frame for every slot.

        state (slots, dim): the backbone's hidden state behind the final norm; replaced by the next one. noise float32
        (slots, K, vocab), exponential with rate 1, filled outside. codes_out int64 (slots, K) is written. lengths
        int64 (slots,): positions in use, one more afterwards. active bool (slots,): the other slots keep their
        state, cache and length; what is written into their codes means nothing. A slot must have room:
        lengths < positions. All tensors contiguous, on the model's device.
        """
        self.sample(state, noise, codes_out)
        self.advance(state, codes_out, lengths, active)

    def sample(self, state: Tensor, noise: Tensor, codes_out: Tensor) -> None:
        """The first half of a frame: states to codes."""
        slots, depth, weights = self.slots, self.depth, self.weights
        single(self.processor, state, weights.first_head, self.logits, slots)
        self._choose(noise, codes_out, 0, self.depth_x[slots:])
        if self.in_one is not None:
            single(self.processor, state, weights.projection, weights.entries[-1:], slots)
            self.in_one.decode(codes_out[0], noise[0], self.temperature, self.topk, self.floor)
            return
        single(self.processor, state, weights.projection, self.depth_x, slots)
        for book, places in enumerate(self._depth_places, start=1):
            depth.run(self.depth_x, places)
            newest = self.depth_x[places.rows - slots : places.rows]
            head, norm = weights.heads[book - 1], weights.depth.norm
            single(self.processor, newest, head, self.logits, slots, norm=norm, eps=depth.config.norm_eps)
            self._choose(noise, codes_out, book, self.depth_x)

    def advance(self, state: Tensor, codes: Tensor, lengths: Tensor, active: Tensor) -> None:
        """The second half: codes int64 (slots, K) to the next states, for a frame that was sampled or is given."""
        config, flags = self.config, active.view(torch.uint8)
        dim = config.backbone.dim
        block = min(128, power_of_two(dim))
        self.processor.launch(
            embed_kernel,
            (self.slots, -(-dim // block)),
            codes,
            self.weights.embeddings,
            self.x,
            CODEBOOKS=config.num_codebooks,
            VOCAB=config.audio_vocab_size,
            DIM=dim,
            BLOCK_C=power_of_two(config.num_codebooks),
            BLOCK_D=block,
            num_warps=4,
        )
        self.backbone.run(self.x, Places(self.slots, lengths, flags))
        self.processor.launch(
            finish_kernel,
            (self.slots,),
            self.x,
            self.weights.backbone.norm,
            state,
            lengths,
            flags,
            config.backbone.norm_eps,
            DIM=dim,
            BLOCK_D=power_of_two(dim),
            num_warps=4,
        )

    def _choose(self, noise: Tensor, codes: Tensor, book: int, inputs: Tensor) -> None:
        """Sample codebook `book` from `logits`; its code's projected embedding goes to `inputs`."""
        config = self.config
        width = config.decoder.dim
        self.processor.launch(
            choose_kernel,
            (self.slots,),
            self.logits,
            noise,
            self.temperature,
            self.topk,
            self.floor,
            codes,
            self.weights.entries,
            inputs,
            book,
            CODEBOOKS=config.num_codebooks,
            VOCAB=config.audio_vocab_size,
            DIM=width,
            NEXT=book < config.num_codebooks - 1,
            SHORT=self.logits.dtype == torch.bfloat16,
            BLOCK_V=power_of_two(config.audio_vocab_size),
            BLOCK_D=min(1_024, power_of_two(width)),
            num_warps=8,
        )
