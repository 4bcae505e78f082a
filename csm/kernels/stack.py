"""One transformer's weights, packed for the kernels, and the five launches of each of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from csm.config import TransformerConfig
from csm.errors import InputError
from csm.kernels.attention import attention_kernel
from csm.kernels.processor import LEAST_SHARED, Processor
from csm.kernels.products import pair_kernel, single_kernel
from csm.kernels.quantise import quantise_rows, quantise_rows_float8
from csm.model.transformer import Layer, Transformer, rope_frequencies

FORMATS = ("bfloat16", "int8", "float8")
MOST_SPLITS = 8
MULTIPROCESSORS = 132  # that products are cut for: those of an H200
CHUNK = 128  # positions that one program of the attention reads


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Weight:
    """A matrix (N, K), or one for each layer (layers, N, K), as the kernels read it; `scale` float32 (N,) or
    (layers, N) where it is in eight bits."""

    data: Tensor
    scale: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[-2], self.data.shape[-1]

    def layer(self, index: int) -> Weight:
        return Weight(self.data[index], None if self.scale is None else self.scale[index])

    @property
    def bytes(self) -> int:
        return self.data.numel() * self.data.element_size()


def pack(layers: list[list[nn.Linear]], weights: str, in_one: bool = False) -> list[Weight]:
    """For every layer its parts' rows below one another, (N, K); `in_one`, each follows the one before in memory.

    Unquantised, the modules' parameters become views of the result. In eight bits they stay as they are: reading a
    prompt in uses the backbone's, and a clip's confidence the depth decoder's.
    """
    groups = [layers] if in_one else [[parts] for parts in layers]  # one at a time: no second copy of all of them
    return [
        whole.layer(index) for group in groups for whole in [_stacked(group, weights)] for index in range(len(group))
    ]


def _stacked(layers: list[list[nn.Linear]], weights: str) -> Weight:
    if weights != "bfloat16":
        quantise = quantise_rows if weights == "int8" else quantise_rows_float8
        done = [quantise(torch.cat([part.weight.data for part in parts])) for parts in layers]
        return Weight(torch.stack([data for data, _ in done]), torch.stack([scale for _, scale in done]))
    like = layers[0][0].weight.data
    packed = like.new_empty(len(layers), sum(part.weight.shape[0] for part in layers[0]), like.shape[1])
    for matrix, parts in zip(packed, layers, strict=True):
        begin = 0
        for part in parts:
            end = begin + part.weight.shape[0]
            matrix[begin:end] = part.weight.data
            part.weight = nn.Parameter(matrix[begin:end], requires_grad=False)
            begin = end
    return Weight(packed)


def check_format(weights: str, device: torch.device) -> None:
    """Raises `InputError` for a format that is unknown or that the device cannot read."""
    if weights not in FORMATS:
        raise InputError(f"The weight format is {weights!r}; choose one of {', '.join(FORMATS)}.")
    if weights == "float8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise InputError("This GPU has no float8; choose int8 weights.")


@dataclass(frozen=True)
class Scratch:
    """Where the programs of a split product put their parts, float32, and count one another, int32 zeros."""

    parts: Tensor
    arrivals: Tensor

    @classmethod
    def new(cls, rows: int, outputs: int, device: torch.device) -> Scratch:
        return cls(
            torch.zeros(MOST_SPLITS, rows, outputs, device=device),
            torch.zeros(outputs, dtype=torch.int32, device=device),
        )


@dataclass(frozen=True)
class Blocks:
    """How a product is cut into programs, and each program's warps and stages of loads under way."""

    rows: int
    n: int
    k: int
    stages: int
    warps: int

    def splits(self, n: int, k: int) -> int:
        """Over how many programs the inputs of a block of outputs are split: two programs for each multiprocessor,
        if each still has four blocks of inputs to read."""
        splits = 1
        while self.rows > 1 and splits < MOST_SPLITS and n // self.n * splits < 256 and k >= 8 * splits * self.k:
            splits *= 2
        return splits

    @classmethod
    def choose(
        cls, rows: int, n: int, k: int, pairs: bool = False, width: int = 2, shared: int = LEAST_SHARED
    ) -> Blocks:
        """For an output of n (or n pairs) from k inputs.

        One row: all inputs of a few outputs at once, up to 256 weights of each thread, in as few warps as hold them (a
        sum within one warp is cheap) but enough programs for every multiprocessor to have several. Several rows: the
        smallest tiles that matrix units take, and as many stages of them, numbers of `width` bytes, as fit into
        `shared` bytes of a multiprocessor's memory.
        """
        if rows == 1:
            block_k = power_of_two(k) if k <= 8_192 else 1_024
            warps = min(4, max(1, block_k // 1_024))
            block_n = max(1, 8_192 * warps // block_k // (2 if pairs else 1))
            wanted = MULTIPROCESSORS * max(3, 6 // warps)
            while n // block_n < wanted and block_n > 1 and block_n * block_k > 1_024:
                block_n //= 2
            return cls(1, block_n, block_k, 1 if k <= block_k else 4, warps)
        padded = max(16, power_of_two(rows))
        block_n = 16 if n < 4_096 else min(64, 2 * padded)
        block_k = max(16, min(power_of_two(k), 256 if padded <= 32 else 128))
        column = width * ((2 if pairs else 1) * block_n + padded)  # of the weights' tiles and of the inputs'
        while block_k > 16 and 2 * column * block_k > shared:
            block_k //= 2
        stages = max(1, min(3 if pairs else 4, shared // (column * block_k)))
        return cls(padded, block_n, block_k, stages, 8 if padded >= 32 else 4)

    def options(self) -> dict[str, Any]:
        return {
            "ROWS": self.rows,
            "BLOCK_N": self.n,
            "BLOCK_K": self.k,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }


def single(
    processor: Processor,
    x: Tensor,
    weight: Weight,
    out: Tensor,
    rows: int,
    norm: Tensor | None = None,
    eps: float = 0.0,
    add: bool = False,
    policy: str = "evict_first",
    scratch: Scratch | None = None,
) -> None:
    """out (rows, N) = [out +] norm(x) (rows, K) times weight (N, K) transposed; with `scratch` and without a norm
    the sums may be split."""
    n, k = weight.shape
    blocks = Blocks.choose(rows, n, k, width=x.element_size(), shared=processor.shared)
    splits = 1 if scratch is None or norm is not None else blocks.splits(n, k)
    processor.launch(
        single_kernel,
        (-(-n // blocks.n), splits),
        x,
        x if norm is None else norm,
        weight.data,
        x if weight.scale is None else weight.scale,
        out,
        out if scratch is None else scratch.parts,
        out if scratch is None else scratch.arrivals,
        rows,
        eps,
        K=k,
        N=n,
        NORM=norm is not None,
        ADD=add,
        SCALED=weight.scale is not None,
        SPLITS=splits,
        POLICY=policy,
        EMULATE=processor.emulated,
        **blocks.options(),
    )


@dataclass(frozen=True)
class Places:
    """Where the rows of a step stand: `lengths` int64 (rows,) positions are before each, `active` uint8 (rows,) says
    whose keys and values are kept. Row r belongs to slot r % slots of the cache. `fixed`: neither is ever written."""

    rows: int
    lengths: Tensor
    active: Tensor
    fixed: bool = False


class StackWeights:
    """A transformer's layers as the kernels read them. `in_one`: as the depth decoder's single launch does, too."""

    def __init__(self, transformer: Transformer, weights: str, in_one: bool = False) -> None:
        self.config: TransformerConfig = transformer.config
        self.norm = transformer.norm.scale.data
        layers: list[Layer] = list(transformer.layers)  # type: ignore[arg-type]
        self.attention_norms = torch.stack([layer.sa_norm.scale.data for layer in layers])
        self.mlp_norms = torch.stack([layer.mlp_norm.scale.data for layer in layers])
        heads = [layer.attn for layer in layers]
        self.qkv = pack(
            [[attention.q_proj, attention.k_proj, attention.v_proj] for attention in heads], weights, in_one
        )
        self.output = pack([[attention.output_proj] for attention in heads], weights, in_one)
        self.gate_up = pack([[layer.mlp.w1, layer.mlp.w3] for layer in layers], weights, in_one)
        self.down = pack([[layer.mlp.w2] for layer in layers], weights, in_one)

    @property
    def bytes(self) -> int:
        """What one step reads of the layers' matrices."""
        return sum(layer.bytes for kind in (self.qkv, self.output, self.gate_up, self.down) for layer in kind)


class Stack:
    """A transformer's layers with all the memory that a step of at most `rows` rows needs.

    `keys` and `values` are (layers, slots, kv_heads, positions, head_dim), laid out as in `KVCache`. `keep_small` asks
    the GPU's second-level cache to keep the attention's weights, which pays for a stack that runs many times a frame.
    """

    def __init__(
        self, processor: Processor, weights: StackWeights, slots: int, rows: int, positions: int, keep_small: bool
    ) -> None:
        config = weights.config
        self.processor = processor
        self.weights, self.config, self.slots, self.positions = weights, config, slots, positions
        self.small_policy = "evict_last" if keep_small else "evict_first"
        like = weights.norm
        shape = (config.layers, slots, config.kv_heads, positions, config.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        angles = torch.outer(
            torch.arange(positions, dtype=torch.float32), rope_frequencies(config.head_dim, config.rope)
        ).to(like.device)
        self.cos, self.sin = angles.cos(), angles.sin()
        width = config.heads * config.head_dim
        self.queries, self.attended = like.new_zeros(rows, width), like.new_zeros(rows, width)
        self.activations = like.new_zeros(rows, config.mlp_dim)
        self.scratch = Scratch.new(rows, config.dim, like.device)
        self.group = config.heads // config.kv_heads
        self.splits = -(-positions // CHUNK)
        parts = (rows, config.kv_heads, self.splits, self.group)
        self.parts = torch.zeros(*parts, config.head_dim, device=like.device)
        self.peaks, self.sums = torch.zeros(parts, device=like.device), torch.zeros(parts, device=like.device)
        self.arrivals = torch.zeros(rows, config.kv_heads, dtype=torch.int32, device=like.device)

    def run(self, x: Tensor, places: Places) -> None:
        """All layers, in place on x (rows, dim); the last norm is left to whoever reads x."""
        weights = self.weights
        for index in range(self.config.layers):
            self.read(index, x, places)
            self.attend(index, places)
            output, policy = weights.output[index], self.small_policy
            single(self.processor, self.attended, output, x, places.rows, add=True, policy=policy, scratch=self.scratch)
            norm, gate_up = weights.mlp_norms[index], weights.gate_up[index]
            self._pair(x, norm, gate_up, self.activations, index, places, rope=False)
            single(
                self.processor, self.activations, weights.down[index], x, places.rows, add=True, scratch=self.scratch
            )

    def read(self, index: int, x: Tensor, places: Places) -> None:
        """Norm, queries, keys and values of layer `index`, turned by RoPE; keys and values go into the cache."""
        norm, qkv = self.weights.attention_norms[index], self.weights.qkv[index]
        self._pair(x, norm, qkv, self.queries, index, places, rope=True)

    def attend(self, index: int, places: Places) -> None:
        """The queries' attention to the valid positions of layer `index`, into `attended`."""
        config = self.config
        block_d = max(16, power_of_two(config.head_dim))
        self.processor.launch(
            attention_kernel,
            (places.rows * config.kv_heads, self.splits),
            self.queries,
            self.keys[index],
            self.values[index],
            self.attended,
            places.lengths,
            places.active,
            self.parts,
            self.peaks,
            self.sums,
            self.arrivals,
            self.slots,
            self.positions,
            config.head_dim**-0.5,
            KV_HEADS=config.kv_heads,
            GROUP=self.group,
            HEAD_DIM=config.head_dim,
            BLOCK_G=max(16, power_of_two(self.group)),
            BLOCK_D=block_d,
            BLOCK_S=min(64, max(16, power_of_two(self.positions))),
            CHUNK=CHUNK,
            SPLITS=self.splits,
            FIXED=places.fixed,
            EMULATE=self.processor.emulated,
            num_warps=4,
        )

    def _pair(
        self, x: Tensor, norm: Tensor, weight: Weight, out: Tensor, index: int, places: Places, rope: bool
    ) -> None:
        config = self.config
        n, k = weight.shape
        blocks = Blocks.choose(places.rows, n // 2, k, True, x.element_size(), self.processor.shared)
        self.processor.launch(
            pair_kernel,
            (-(-(n // 2) // blocks.n),),
            x,
            norm,
            weight.data,
            x if weight.scale is None else weight.scale,
            out,
            self.keys[index],
            self.values[index],
            self.cos,
            self.sin,
            places.lengths,
            places.active,
            places.rows,
            self.slots,
            self.positions,
            config.norm_eps,
            K=k,
            PAIRS=n // 2,
            HEADS=config.heads,
            KV_HEADS=config.kv_heads,
            HEAD_DIM=config.head_dim,
            ROPE=rope,
            SCALED=weight.scale is not None,
            POLICY=self.small_policy if rope else "evict_first",
            FIXED=places.fixed,
            EMULATE=self.processor.emulated,
            **blocks.options(),
        )
