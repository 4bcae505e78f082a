"""Attention of one new query per row to the valid part of a static cache, split over the positions.

Flash-decoding: each program takes one row, one KV head with the queries that share it, and one chunk of positions;
chunks beyond the row's length end at once. The program of a row and head that finishes last puts the chunks
together, in their order, so that the result does not depend on who was last.
"""

import triton
import triton.language as tl

from csm.kernels.processor import let_next_begin, wait_for_previous


@triton.jit
def product(a, b, acc, EMULATE: tl.constexpr):
    if EMULATE:  # Triton's interpreter has no bfloat16 arithmetic
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def attention_kernel(
    queries,  # (rows, KV_HEADS, GROUP, HEAD_DIM)
    keys,  # (slots, KV_HEADS, positions, HEAD_DIM)
    values,
    out,  # like queries
    lengths,  # int64 (rows,): the positions before the newest, which is read too
    active,  # uint8 (rows,): the others are left as they are
    parts,  # float32 (rows, KV_HEADS, SPLITS, GROUP, HEAD_DIM), sums of values per chunk
    peaks,  # float32 (rows, KV_HEADS, SPLITS, GROUP), the largest score
    sums,  # likewise, of the exponentials
    arrivals,  # int32 (rows, KV_HEADS), zeros before and after
    slots,
    positions,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLITS: tl.constexpr,
    FIXED: tl.constexpr,  # nobody ever writes into lengths and active
    EMULATE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    let_next_begin(OVERLAP)
    if not FIXED:
        wait_for_previous(OVERLAP)
    own = tl.program_id(0)
    split = tl.program_id(1)
    row = own // KV_HEADS
    kv = own % KV_HEADS
    length = tl.minimum(tl.load(lengths + row).to(tl.int32) + 1, positions)
    present = tl.load(active + row) != 0
    if FIXED:
        wait_for_previous(OVERLAP)
    begin = split * CHUNK
    if (begin < length) & present:
        g = tl.arange(0, BLOCK_G)
        d = tl.arange(0, BLOCK_D)
        mask = (g < GROUP)[:, None] & (d < HEAD_DIM)[None, :]
        place = own * (GROUP * HEAD_DIM) + g[:, None] * HEAD_DIM + d[None, :]
        q = tl.load(queries + place, mask=mask, other=0.0)
        base = ((row % slots).to(tl.int64) * KV_HEADS + kv) * positions * HEAD_DIM
        peak = tl.full([BLOCK_G], -float("inf"), tl.float32)
        total = tl.zeros([BLOCK_G], tl.float32)
        acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
        end = tl.minimum(begin + CHUNK, length)
        for start in range(begin, end, BLOCK_S):
            s = start + tl.arange(0, BLOCK_S)
            k = tl.load(
                keys + base + s[None, :] * HEAD_DIM + d[:, None],
                mask=(s < end)[None, :] & (d < HEAD_DIM)[:, None],
                other=0.0,
            )
            v = tl.load(
                values + base + s[:, None] * HEAD_DIM + d[None, :],
                mask=(s < end)[:, None] & (d < HEAD_DIM)[None, :],
                other=0.0,
            )
            scores = product(q, k, tl.zeros([BLOCK_G, BLOCK_S], tl.float32), EMULATE) * scale
            scores = tl.where((s < end)[None, :], scores, -float("inf"))
            higher = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.exp(scores - higher[:, None])
            shrink = tl.exp(peak - higher)
            total = total * shrink + tl.sum(weights, 1)
            acc = product(weights.to(v.dtype), v, acc * shrink[:, None], EMULATE)
            peak = higher
        if SPLITS == 1:
            tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
        else:
            chunk = own * SPLITS + split
            tl.store(parts + chunk * (GROUP * HEAD_DIM) + g[:, None] * HEAD_DIM + d[None, :], acc, mask=mask)
            tl.store(peaks + chunk * GROUP + g, peak, mask=g < GROUP)
            tl.store(sums + chunk * GROUP + g, total, mask=g < GROUP)
            tl.debug_barrier()  # all threads' parts are written before this program is counted
            arrived = tl.atomic_add(arrivals + own, 1, sem="acq_rel")
            chunks = (length + CHUNK - 1) // CHUNK
            if arrived == chunks - 1:
                peak = tl.full([BLOCK_G], -float("inf"), tl.float32)
                total = tl.zeros([BLOCK_G], tl.float32)
                acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
                for other in range(0, chunks):
                    chunk = own * SPLITS + other
                    theirs = tl.load(peaks + chunk * GROUP + g, mask=g < GROUP, other=0.0, cache_modifier=".cg")
                    higher = tl.maximum(peak, theirs)
                    shrink = tl.exp(peak - higher)
                    grow = tl.exp(theirs - higher)
                    part = parts + chunk * (GROUP * HEAD_DIM) + g[:, None] * HEAD_DIM + d[None, :]
                    part = tl.load(part, mask=mask, other=0.0, cache_modifier=".cg")
                    share = tl.load(sums + chunk * GROUP + g, mask=g < GROUP, other=1.0, cache_modifier=".cg")
                    acc = acc * shrink[:, None] + part * grow[:, None]
                    total = total * shrink + share * grow
                    peak = higher
                tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
                tl.store(arrivals + own, 0)
