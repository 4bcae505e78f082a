"""The whole depth decoder of one conversation as one launch: codes 1 to K-1 from the state and code 0.

Every multiprocessor runs one program, and all of them walk through the layers together, with a barrier across the
device where a product needs what others computed. 31 steps of 4 layers would be 680 launches of a few microseconds
each; here the weights that a program needs next are under way before it waits, so that memory never rests:

    A  norm, queries, keys, values, RoPE, cache      C  norm, gate and up, SiLU
    B  attention (by every program), output, add     D  down, add              then, per position: norm and head

The code is drawn by every program for itself, from the same logits and noise, which saves a barrier. Programs must
all run at once: launch no more of them than there are multiprocessors, cooperatively. `wanted` runs one of a frame's
phases alone without any barrier, with any number of programs: so the interpreter can run it.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from csm.kernels.choice import pick
from csm.kernels.products import load_weights, widen
from csm.kernels.stack import Stack, power_of_two


@triton.jit
def arrive(counter, wanted):
    """This program has written what others wait for. What it loads from here on may be under way while it waits."""
    if wanted < 0:
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release")


@triton.jit
def wait(counter, goal, wanted):
    """Returns when `goal` arrivals have been counted; what was written before them is then visible."""
    if wanted < 0:
        while tl.atomic_add(counter, 0, sem="acquire") < goal:
            pass
        tl.debug_barrier()


@triton.jit
def shared(pointer, mask):
    """What other programs may have written during this launch: read past the multiprocessor's own cache."""
    return tl.load(pointer, mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)


@triton.jit
def normed(x, norm, k, eps, K: tl.constexpr):
    """RMSNorm of a row read with `shared`, in float32."""
    wide = shared(x + k, k < K)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / K + eps)
    return wide * factor * tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)


@triton.jit
def total(w, x, scale, n, live, SCALED: tl.constexpr):
    """Rows of w (N, K) times x (K,), float32 (N,)."""
    result = tl.sum(widen(w) * x[None, :], 1)
    if SCALED:
        result = result * tl.load(scale + n, mask=live, other=0.0)
    return result


@triton.jit
def attended(queries, keys, values, kv, length, scale, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr,
             POSITIONS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """The queries of KV head `kv` read `length` positions: float32 (BLOCK_G, BLOCK_D)."""
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    s = tl.arange(0, BLOCK_S)
    mask = (s < length)[:, None] & (d < HEAD_DIM)[None, :]
    q = shared(
        queries + (kv * GROUP + g)[:, None] * HEAD_DIM + d[None, :], (g < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
    )
    place = (kv * POSITIONS + s)[:, None] * HEAD_DIM + d[None, :]
    k = shared(keys + place, mask)
    v = shared(values + place, mask)
    scores = tl.sum(q[:, None, :] * k[None, :, :], 2) * scale
    scores = tl.where((s < length)[None, :], scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    return tl.sum(weights[:, :, None] * v[None, :, :], 1)


@triton.jit(do_not_specialize=["wanted", "begin", "end"])
def depth_kernel(
    entries,  # ((CODEBOOKS - 1) * VOCAB + 1, DIM): every code's projected embedding, last the projected state
    codes,  # int64 (CODEBOOKS,), code 0 is there
    logits,  # (VOCAB,)
    x,  # (DIM,), the residual stream
    queries,  # (HEADS * HEAD_DIM,)
    activations,  # (MLP,)
    keys,  # (LAYERS, KV_HEADS, CODEBOOKS, HEAD_DIM)
    values,
    cos,  # float32 (CODEBOOKS, HEAD_DIM / 2)
    sin,
    attention_norms,  # (LAYERS, DIM)
    qkv,  # (LAYERS, 2 * PAIRS, DIM)
    qkv_scale,
    output,  # (LAYERS, DIM, HEADS * HEAD_DIM)
    output_scale,
    mlp_norms,  # (LAYERS, DIM)
    gate_up,  # (LAYERS, 2 * MLP, DIM)
    gate_up_scale,
    down,  # (LAYERS, DIM, MLP)
    down_scale,
    last_norm,  # (DIM,)
    heads,  # (CODEBOOKS - 1, VOCAB, DIM)
    noise,  # float32 (CODEBOOKS, VOCAB)
    temperature,  # float32 (1,)
    topk,  # int32 (1,)
    floor,  # float32 (1,)
    counter,  # int32 (1,), zero before the launch
    wanted,  # a phase, or -1 for all
    begin,  # positions to walk through: 0 and CODEBOOKS, or the wanted phase's
    end,
    eps,
    score_scale,
    LAYERS: tl.constexpr,
    DIM: tl.constexpr,
    MLP: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CODEBOOKS: tl.constexpr,
    VOCAB: tl.constexpr,
    SCALED: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK_K: tl.constexpr,  # DIM, up to a power of two
    BLOCK_G: tl.constexpr,  # queries that share a KV head, likewise
    BLOCK_D: tl.constexpr,  # HEAD_DIM, likewise
    BLOCK_S: tl.constexpr,  # CODEBOOKS, likewise
    BLOCK_V: tl.constexpr,  # VOCAB, likewise
    CHUNK: tl.constexpr,  # of MLP
    PAIR_N: tl.constexpr,
    ROW_N: tl.constexpr,
    HEAD_N: tl.constexpr,
):
    dtype: tl.constexpr = x.dtype.element_ty
    WIDTH: tl.constexpr = HEADS * HEAD_DIM
    HALF: tl.constexpr = HEAD_DIM // 2
    GROUP: tl.constexpr = HEADS // KV_HEADS
    PAIRS: tl.constexpr = (HEADS + 2 * KV_HEADS) * HALF
    PHASES: tl.constexpr = 4 * LAYERS + 1
    CHUNKS: tl.constexpr = (MLP + CHUNK - 1) // CHUNK
    EVEN: tl.constexpr = DIM % BLOCK_K == 0
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    k = tl.arange(0, BLOCK_K)
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    pair = program * PAIR_N + tl.arange(0, PAIR_N)
    row = program * ROW_N + tl.arange(0, ROW_N)
    head_row = program * HEAD_N + tl.arange(0, HEAD_N)
    chunk = tl.arange(0, CHUNK)

    goal = 0
    for position in range(begin, end):
        arrive(counter, wanted)
        one = load_weights(qkv, 2 * pair, pair < PAIRS, k, DIM, EVEN, "evict_last")
        two = load_weights(qkv, 2 * pair + 1, pair < PAIRS, k, DIM, EVEN, "evict_last")
        goal += programs
        wait(counter, goal, wanted)
        entry = tl.load(codes).to(tl.int32)
        if position == 0:
            entry = entry * 0 + (CODEBOOKS - 1) * VOCAB
        if position >= 2:
            code = pick(logits, noise + (position - 1) * VOCAB, tl.load(temperature), tl.load(topk), tl.load(floor),
                        VOCAB, SHORT, BLOCK_V)  # fmt: skip
            entry = (position - 1) * VOCAB + code
            if program == 0:
                tl.store(codes + position - 1, code.to(tl.int64))
        for layer in range(0, LAYERS):
            phase = position * PHASES + layer * 4
            stream = x
            if layer == 0:
                stream = entries + entry.to(tl.int64) * DIM
            if layer > 0:
                arrive(counter, wanted)
                matrix = qkv + layer * (2 * PAIRS * DIM)
                one = load_weights(matrix, 2 * pair, pair < PAIRS, k, DIM, EVEN, "evict_last")
                two = load_weights(matrix, 2 * pair + 1, pair < PAIRS, k, DIM, EVEN, "evict_last")
                goal += programs
                wait(counter, goal, wanted)
            if (wanted < 0) | (wanted == phase):
                inputs = normed(stream, attention_norms + layer * DIM, k, eps, DIM)
                for first in range(program * PAIR_N, PAIRS, programs * PAIR_N):
                    p = first + tl.arange(0, PAIR_N)
                    scale = qkv_scale + layer * (2 * PAIRS)
                    even = total(one, inputs, scale, 2 * p, p < PAIRS, SCALED).to(dtype).to(tl.float32)
                    odd = total(two, inputs, scale, 2 * p + 1, p < PAIRS, SCALED).to(dtype).to(tl.float32)
                    following = p + programs * PAIR_N
                    matrix = qkv + layer * (2 * PAIRS * DIM)
                    one = load_weights(matrix, 2 * following, following < PAIRS, k, DIM, EVEN, "evict_last")
                    two = load_weights(matrix, 2 * following + 1, following < PAIRS, k, DIM, EVEN, "evict_last")
                    head = p // HALF
                    turned = (p < PAIRS) & (head < HEADS + KV_HEADS)
                    c = tl.load(cos + position * HALF + p % HALF, mask=turned, other=1.0)
                    s = tl.load(sin + position * HALF + p % HALF, mask=turned, other=0.0)
                    to_even = (even * c - odd * s).to(dtype)
                    to_odd = (odd * c + even * s).to(dtype)
                    tl.store(queries + 2 * p, to_even, mask=head < HEADS)
                    tl.store(queries + 2 * p + 1, to_odd, mask=head < HEADS)
                    base = layer * (KV_HEADS * CODEBOOKS * HEAD_DIM) + position * HEAD_DIM + 2 * (p % HALF)
                    key = keys + base + (head - HEADS) * (CODEBOOKS * HEAD_DIM)
                    is_key = (head >= HEADS) & turned
                    tl.store(key, to_even, mask=is_key)
                    tl.store(key + 1, to_odd, mask=is_key)
                    value = values + base + (head - HEADS - KV_HEADS) * (CODEBOOKS * HEAD_DIM)
                    is_value = (head >= HEADS + KV_HEADS) & (p < PAIRS)
                    tl.store(value, to_even, mask=is_value)
                    tl.store(value + 1, to_odd, mask=is_value)

            arrive(counter, wanted)
            up = gate_up + layer * (2 * MLP * DIM)
            gate = load_weights(up, pair, pair < MLP, k, DIM, EVEN, "evict_first")
            gated = load_weights(up, pair + MLP, pair < MLP, k, DIM, EVEN, "evict_first")
            goal += programs
            wait(counter, goal, wanted)
            if (wanted < 0) | (wanted == phase + 1):
                for first in range(program * ROW_N, DIM, programs * ROW_N):
                    n = first + tl.arange(0, ROW_N)
                    sums = tl.zeros([ROW_N], tl.float32)
                    for kv in tl.static_range(KV_HEADS):
                        column = (kv * GROUP + g)[:, None] * HEAD_DIM + d[None, :]
                        tile = output + layer * (DIM * WIDTH) + n[:, None, None] * WIDTH + column[None, :, :]
                        inside = ((g < GROUP)[:, None] & (d < HEAD_DIM)[None, :])[None, :, :]
                        w = tl.load(tile, mask=(n < DIM)[:, None, None] & inside, other=0.0,
                                    eviction_policy="evict_last")  # fmt: skip
                        cache = layer * (KV_HEADS * CODEBOOKS * HEAD_DIM)
                        read = attended(queries, keys + cache, values + cache, kv, position + 1, score_scale, HEAD_DIM,
                                        GROUP, CODEBOOKS, BLOCK_G, BLOCK_D, BLOCK_S)  # fmt: skip
                        read = read.to(dtype).to(tl.float32)
                        sums += tl.sum(tl.sum(widen(w) * read[None, :, :], 2), 1)
                    if SCALED:
                        sums = sums * tl.load(output_scale + layer * DIM + n, mask=n < DIM, other=0.0)
                    sums = sums.to(dtype).to(tl.float32) + shared(stream + n, n < DIM)
                    tl.store(x + n, sums.to(dtype), mask=n < DIM)

            arrive(counter, wanted)
            goal += programs
            wait(counter, goal, wanted)
            if (wanted < 0) | (wanted == phase + 2):
                inputs = normed(x, mlp_norms + layer * DIM, k, eps, DIM)
                for first in range(program * PAIR_N, MLP, programs * PAIR_N):
                    p = first + tl.arange(0, PAIR_N)
                    following = p + programs * PAIR_N
                    gate_next = load_weights(up, following, following < MLP, k, DIM, EVEN, "evict_first")
                    gated_next = load_weights(up, following + MLP, following < MLP, k, DIM, EVEN, "evict_first")
                    scale = gate_up_scale + layer * (2 * MLP)
                    a = total(gate, inputs, scale, p, p < MLP, SCALED).to(dtype).to(tl.float32)
                    b = total(gated, inputs, scale, p + MLP, p < MLP, SCALED).to(dtype).to(tl.float32)
                    a = (a / (1.0 + tl.exp(-a))).to(dtype).to(tl.float32)
                    tl.store(activations + p, (a * b).to(dtype), mask=p < MLP)
                    gate = gate_next
                    gated = gated_next

            arrive(counter, wanted)
            matrix = down + layer * (DIM * MLP)
            w = load_weights(matrix, row, row < DIM, chunk, MLP, MLP % CHUNK == 0, "evict_first")
            goal += programs
            wait(counter, goal, wanted)
            if (wanted < 0) | (wanted == phase + 3):
                acc = tl.zeros([ROW_N, CHUNK], tl.float32)
                tiles = (DIM - program * ROW_N + programs * ROW_N - 1) // (programs * ROW_N)
                for i in range(0, tiles * CHUNKS):
                    n = row + (i // CHUNKS) * (programs * ROW_N)
                    m = (i % CHUNKS) * CHUNK + chunk
                    n_next = row + ((i + 1) // CHUNKS) * (programs * ROW_N)
                    m_next = ((i + 1) % CHUNKS) * CHUNK + chunk
                    w_next = load_weights(matrix, n_next, n_next < DIM, m_next, MLP, MLP % CHUNK == 0, "evict_first")
                    acc += widen(w) * shared(activations + m, m < MLP)[None, :]
                    w = w_next
                    if (i + 1) % CHUNKS == 0:
                        sums = tl.sum(acc, 1)
                        if SCALED:
                            sums = sums * tl.load(down_scale + layer * DIM + n, mask=n < DIM, other=0.0)
                        sums = sums.to(dtype).to(tl.float32) + shared(x + n, n < DIM)
                        tl.store(x + n, sums.to(dtype), mask=n < DIM)
                        acc = tl.zeros([ROW_N, CHUNK], tl.float32)

        if position > 0:
            arrive(counter, wanted)
            matrix = heads + (position - 1) * (VOCAB * DIM)
            w = load_weights(matrix, head_row, head_row < VOCAB, k, DIM, EVEN, "evict_first")
            goal += programs
            wait(counter, goal, wanted)
            if (wanted < 0) | (wanted == position * PHASES + 4 * LAYERS):
                inputs = normed(x, last_norm, k, eps, DIM)
                for first in range(program * HEAD_N, VOCAB, programs * HEAD_N):
                    n = first + tl.arange(0, HEAD_N)
                    following = n + programs * HEAD_N
                    w_next = load_weights(matrix, following, following < VOCAB, k, DIM, EVEN, "evict_first")
                    tl.store(logits + n, total(w, inputs, inputs, n, n < VOCAB, False).to(dtype), mask=n < VOCAB)
                    w = w_next

    arrive(counter, wanted)
    goal += programs
    wait(counter, goal, wanted)
    if (program == 0) & ((wanted < 0) | (wanted == CODEBOOKS * PHASES)):
        code = pick(logits, noise + (CODEBOOKS - 1) * VOCAB, tl.load(temperature), tl.load(topk), tl.load(floor),
                    VOCAB, SHORT, BLOCK_V)  # fmt: skip
        tl.store(codes + CODEBOOKS - 1, code.to(tl.int64))


@dataclass(frozen=True)
class DepthInOne:
    """What `depth_kernel` needs beside one frame's inputs. `heads` (K-1, vocab, dim), `entries` as in the kernel.

    `pairs`, `rows`, `codes` and `chunk` are the tiles of a program: pairs of rows of queries to values and of gate and
    up, rows of output and down, rows of a head; and how many of down's inputs it takes at a time.
    """

    stack: Stack
    heads: Tensor
    entries: Tensor
    logits: Tensor
    x: Tensor
    counter: Tensor
    pairs: int = 4
    rows: int = 4
    codes: int = 8
    chunk: int = 2_048
    warps: int = 8

    @property
    def phases(self) -> int:
        """How many phases a frame has, the last choice included."""
        return (self.heads.shape[0] + 1) * (4 * self.stack.config.layers + 1) + 1

    def decode(
        self,
        codes: Tensor,
        noise: Tensor,
        temperature: Tensor,
        topk: Tensor,
        floor: Tensor,
        wanted: int = -1,
        programs: int | None = None,
    ) -> None:
        """codes int64 (K,), whose first is given, are filled; noise float32 (K, vocab), temperature, topk and
        floor (1,)."""
        stack, weights, config = self.stack, self.stack.weights, self.stack.config
        qkv, output, gate_up, down = (kind[0] for kind in (weights.qkv, weights.output, weights.gate_up, weights.down))
        books, vocab = noise.shape
        position = wanted // (4 * config.layers + 1)
        scaled = qkv.scale is not None
        group = config.heads // config.kv_heads
        self.counter.zero_()
        self.stack.processor.launch(
            depth_kernel,
            (programs or self.stack.processor.multiprocessors,),
            self.entries,
            codes,
            self.logits,
            self.x,
            stack.queries,
            stack.activations,
            stack.keys,
            stack.values,
            stack.cos,
            stack.sin,
            weights.attention_norms,
            qkv.data,  # the first layer's, behind which the others lie
            qkv.scale if scaled else stack.cos,
            output.data,
            output.scale if scaled else stack.cos,
            weights.mlp_norms,
            gate_up.data,
            gate_up.scale if scaled else stack.cos,
            down.data,
            down.scale if scaled else stack.cos,
            weights.norm,
            self.heads,
            noise,
            temperature,
            topk,
            floor,
            self.counter,
            wanted,
            0 if wanted < 0 else position,
            books if wanted < 0 else min(position + 1, books),
            config.norm_eps,
            config.head_dim**-0.5,
            LAYERS=config.layers,
            DIM=config.dim,
            MLP=config.mlp_dim,
            HEADS=config.heads,
            KV_HEADS=config.kv_heads,
            HEAD_DIM=config.head_dim,
            CODEBOOKS=books,
            VOCAB=vocab,
            SCALED=scaled,
            SHORT=self.logits.dtype == torch.bfloat16,
            BLOCK_K=power_of_two(config.dim),
            BLOCK_G=power_of_two(group),
            BLOCK_D=power_of_two(config.head_dim),
            BLOCK_S=power_of_two(books),
            BLOCK_V=power_of_two(vocab),
            CHUNK=min(self.chunk, power_of_two(config.mlp_dim)),
            PAIR_N=self.pairs,
            ROW_N=self.rows,
            HEAD_N=self.codes,
            num_warps=self.warps,
            launch_cooperative_grid=True,
            overlap=False,
        )
