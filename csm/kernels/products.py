"""The matrix products of one step, memory-bound: every weight is read once for all rows of the batch.

Two kernels. `pair_kernel` makes two products that belong together: even and odd rows of the stacked query, key and
value weights, whose outputs RoPE turns against each other and writes into the cache; or gate and up of SwiGLU.
`single_kernel` makes one: output and down projections with their residual add, the projection, the heads. An
RMSNorm before a product is folded in: its scale goes onto the inputs, its factor, known when all inputs have been
read, onto the outputs. A product of few outputs and many inputs is split over the inputs, too, when rows are several.

One row of inputs is multiplied elementwise in float32; several, padded to at least 16, by `tl.dot`. Triton's
interpreter has no bfloat16 arithmetic: EMULATE rounds the operands and then multiplies in float32.
"""

import triton
import triton.language as tl

from csm.kernels.processor import let_next_begin, wait_for_previous


@triton.jit
def widen(w):
    """A tile of weights in float32. int8 goes through the bits of 2**23 + 128 + w: conversions run at an eighth of
    the rate of logic, and would be slower than memory."""
    if w.dtype == tl.int8:
        bits = (w.to(tl.int32) & 0xFF) ^ 0x4B000080
        return bits.to(tl.float32, bitcast=True) - 8388736.0
    else:
        return w.to(tl.float32)


@triton.jit
def multiply(w, x, acc, dtype: tl.constexpr, ROWS: tl.constexpr, EMULATE: tl.constexpr):
    """acc + w x: w (N, K); one row: x float32 (1, K) and acc (N, K), summed up at the end; else x (K, ROWS)."""
    if ROWS == 1:
        return acc + widen(w) * x
    elif EMULATE:
        return tl.dot(w.to(tl.float32), x.to(dtype).to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(w.to(dtype), x.to(dtype), acc, input_precision="ieee")


@triton.jit
def multiply_once(w, x, acc, dtype: tl.constexpr, ROWS: tl.constexpr, EMULATE: tl.constexpr):
    """`multiply` where nothing is in acc yet: products that are only summed up become fused multiply-adds."""
    if ROWS == 1:
        return widen(w) * x
    else:
        return multiply(w, x, acc, dtype, ROWS, EMULATE)


@triton.jit
def load_vector(vector, k, K: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr):
    """Numbers k of `vector` (K,), as a row (1, K') for one row of inputs, as a column (K', 1) for several."""
    if ROWS == 1:
        k = k[None, :]
    else:
        k = k[:, None]
    if EVEN:
        return tl.load(vector + k)
    else:
        return tl.load(vector + k, mask=k < K, other=0.0)


@triton.jit
def load_scale(norm, k, K: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr):
    """The norm's scale of inputs k, float32, as `load_vector` shapes it; 1 without a norm."""
    if NORM:
        return load_vector(norm, k, K, ROWS, EVEN).to(tl.float32)
    else:
        return 1.0


@triton.jit
def load_inputs(x, scale, k, r, rows, K: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr, EVEN: tl.constexpr):
    """Inputs k of all rows times the norm's scale, (K', ROWS), and the sums of their squares, (ROWS,); for one row
    both are (1, K'): its squares are summed up at the end."""
    if ROWS == 1:
        tile = load_vector(x, k, K, ROWS, EVEN).to(tl.float32)
    else:
        tile = tl.load(x + r[None, :] * K + k[:, None], mask=(k < K)[:, None] & (r < rows)[None, :], other=0.0)
    wide = tile.to(tl.float32)
    if NORM:
        tile = wide * scale
    if ROWS == 1:
        return tile, wide * wide
    else:
        return tile, tl.sum(wide * wide, 0)


@triton.jit
def load_weights(w, n, live, k, K: tl.constexpr, EVEN: tl.constexpr, POLICY: tl.constexpr):
    """Rows n, columns k of w (N, K) as a tile (N', K'); zeros beyond the edges."""
    tile = w + n[:, None].to(tl.int64) * K + k[None, :]
    if EVEN:
        return tl.load(tile, mask=live[:, None], other=0.0, eviction_policy=POLICY)
    else:
        return tl.load(tile, mask=live[:, None] & (k < K)[None, :], other=0.0, eviction_policy=POLICY)


@triton.jit
def load_turns(cos, sin, lengths, active, p, live, r, rows, positions, TURNED: tl.constexpr, HALF: tl.constexpr):
    """Each row's position, whether its key and value are kept, and by what RoPE turns its pairs p < TURNED."""
    position = tl.load(lengths + r, mask=r < rows, other=0)
    valid = position < positions
    kept = (tl.load(active + r, mask=r < rows, other=0) != 0) & valid
    turned = (live & (p < TURNED))[:, None] & ((r < rows) & valid)[None, :]
    angle = position[None, :] * HALF + (p % HALF)[:, None]
    return position, kept, tl.load(cos + angle, mask=turned, other=1.0), tl.load(sin + angle, mask=turned, other=0.0)


@triton.jit
def pair_kernel(
    x,  # (rows, K), the residual stream
    norm,  # (K,)
    w,  # (2 * PAIRS, K)
    w_scale,  # float32 (2 * PAIRS,), for weights in eight bits
    out,  # ROPE: queries (rows, HEADS * HEAD_DIM); else activations (rows, PAIRS)
    keys,  # (slots, KV_HEADS, positions, HEAD_DIM), this layer's
    values,
    cos,  # float32 (positions, HEAD_DIM / 2)
    sin,
    lengths,  # int64 (rows,): where the row's key and value go
    active,  # uint8 (rows,): rows whose key and value are kept
    rows,
    slots,  # row r belongs to slot r % slots
    positions,
    eps,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROPE: tl.constexpr,
    FIXED: tl.constexpr,  # nobody ever writes into lengths and active
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    POLICY: tl.constexpr,
    EMULATE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    let_next_begin(OVERLAP)
    dtype: tl.constexpr = x.dtype.element_ty
    EVEN: tl.constexpr = K % BLOCK_K == 0
    p = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = p < PAIRS
    r = tl.arange(0, ROWS)
    if ROPE:
        first = 2 * p
        second = 2 * p + 1
    else:
        first = p
        second = p + PAIRS
    if ROWS == 1:
        one = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        two = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        squares = tl.zeros([1, BLOCK_K], tl.float32)
    else:
        one = tl.zeros([BLOCK_N, ROWS], tl.float32)
        two = tl.zeros([BLOCK_N, ROWS], tl.float32)
        squares = tl.zeros([ROWS], tl.float32)
    HALF: tl.constexpr = HEAD_DIM // 2
    TURNED: tl.constexpr = (HEADS + KV_HEADS) * HALF
    if SCALED:
        scale_one = tl.load(w_scale + first, mask=live, other=0.0)[:, None]
        scale_two = tl.load(w_scale + second, mask=live, other=0.0)[:, None]
    if K <= BLOCK_K:  # all weights are under way before there is anything to wait for
        k = tl.arange(0, BLOCK_K)
        w_one = load_weights(w, first, live, k, K, EVEN, POLICY)
        w_two = load_weights(w, second, live, k, K, EVEN, POLICY)
        scale = load_scale(norm, k, K, True, ROWS, EVEN)
        if ROPE and FIXED:
            position, kept, c, s = load_turns(cos, sin, lengths, active, p, live, r, rows, positions, TURNED, HALF)
        wait_for_previous(OVERLAP)
        if ROPE and not FIXED:
            position, kept, c, s = load_turns(cos, sin, lengths, active, p, live, r, rows, positions, TURNED, HALF)
        inputs, squares = load_inputs(x, scale, k, r, rows, K, True, ROWS, EVEN)
        one = multiply_once(w_one, inputs, one, dtype, ROWS, EMULATE)
        two = multiply_once(w_two, inputs, two, dtype, ROWS, EMULATE)
    else:
        wait_for_previous(OVERLAP)
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            k = start + tl.arange(0, BLOCK_K)
            w_one = load_weights(w, first, live, k, K, EVEN, POLICY)
            w_two = load_weights(w, second, live, k, K, EVEN, POLICY)
            scale = load_scale(norm, k, K, True, ROWS, EVEN)
            inputs, square = load_inputs(x, scale, k, r, rows, K, True, ROWS, EVEN)
            one = multiply(w_one, inputs, one, dtype, ROWS, EMULATE)
            two = multiply(w_two, inputs, two, dtype, ROWS, EMULATE)
            squares += square
        if ROPE:
            position, kept, c, s = load_turns(cos, sin, lengths, active, p, live, r, rows, positions, TURNED, HALF)
    if ROWS == 1:
        one = tl.sum(one, 1)[:, None]
        two = tl.sum(two, 1)[:, None]
        factor = tl.rsqrt(tl.sum(squares, 1) / K + eps)
    else:
        factor = tl.rsqrt(squares / K + eps)
    one = one * factor[None, :]
    two = two * factor[None, :]
    if SCALED:
        one = one * scale_one
        two = two * scale_two
    one = one.to(dtype).to(tl.float32)  # as a module rounds what its projection gives
    two = two.to(dtype).to(tl.float32)
    mask = live[:, None] & (r < rows)[None, :]
    if ROPE:
        head = p // HALF
        d = p % HALF
        even = (one * c - two * s).to(dtype)
        odd = (two * c + one * s).to(dtype)
        is_query = mask & (head < HEADS)[:, None]
        query = out + r[None, :] * (HEADS * HEAD_DIM) + (2 * p)[:, None]
        tl.store(query, even, mask=is_query)
        tl.store(query + 1, odd, mask=is_query)
        is_key = mask & kept[None, :] & ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None]
        slot = (r % slots).to(tl.int64)
        key = keys + ((slot[None, :] * KV_HEADS + (head - HEADS)[:, None]) * positions + position[None, :]) * HEAD_DIM
        tl.store(key + (2 * d)[:, None], even, mask=is_key)
        tl.store(key + (2 * d + 1)[:, None], odd, mask=is_key)
        is_value = mask & kept[None, :] & (head >= HEADS + KV_HEADS)[:, None]
        value_head = (head - HEADS - KV_HEADS)[:, None]
        value = values + ((slot[None, :] * KV_HEADS + value_head) * positions + position[None, :]) * HEAD_DIM
        tl.store(value + (2 * d)[:, None], even, mask=is_value)
        tl.store(value + (2 * d + 1)[:, None], odd, mask=is_value)
    else:
        gate = (one / (1.0 + tl.exp(-one))).to(dtype).to(tl.float32)
        tl.store(out + r[None, :] * PAIRS + p[:, None], (gate * two).to(dtype), mask=mask)


@triton.jit
def store_outputs(acc, old, place, mask, dtype: tl.constexpr, ADD: tl.constexpr):
    """acc (N', ROWS) to its place, added to what is there, `old`, with ADD."""
    if ADD:
        acc = acc.to(dtype).to(tl.float32) + old.to(tl.float32)
    tl.store(place, acc.to(dtype), mask=mask)


@triton.jit
def single_kernel(
    x,  # (rows, K)
    norm,  # (K,) with NORM
    w,  # (N, K)
    w_scale,  # float32 (N,), for weights in eight bits
    out,  # (rows, N), added to with ADD
    parts,  # float32 (SPLITS, rows, N): sums over a share of K each, where there are several
    arrivals,  # int32, one for each block of outputs, zeros before and after
    rows,
    eps,
    K: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    SCALED: tl.constexpr,
    SPLITS: tl.constexpr,  # 1 with NORM
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    POLICY: tl.constexpr,
    EMULATE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    let_next_begin(OVERLAP)
    dtype: tl.constexpr = x.dtype.element_ty
    SPAN: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    EVEN: tl.constexpr = K % (SPLITS * BLOCK_K) == 0
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = n < N
    r = tl.arange(0, ROWS)
    if ROWS == 1:
        acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        squares = tl.zeros([1, BLOCK_K], tl.float32)
    else:
        acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
        squares = tl.zeros([ROWS], tl.float32)
    mask = live[:, None] & (r < rows)[None, :]
    place = out + r[None, :] * N + n[:, None]
    if SCALED:
        own_scale = tl.load(w_scale + n, mask=live, other=0.0)[:, None]
    if K <= BLOCK_K:  # all weights are under way before there is anything to wait for
        k = tl.arange(0, BLOCK_K)
        tile = load_weights(w, n, live, k, K, EVEN, POLICY)
        scale = load_scale(norm, k, K, NORM, ROWS, EVEN)
        wait_for_previous(OVERLAP)
        old = tl.load(place, mask=mask & ADD, other=0.0)
        inputs, squares = load_inputs(x, scale, k, r, rows, K, NORM, ROWS, EVEN)
        acc = multiply_once(tile, inputs, acc, dtype, ROWS, EMULATE)
    else:
        wait_for_previous(OVERLAP)
        begin = tl.program_id(1) * SPAN
        for start in tl.range(0, SPAN, BLOCK_K, num_stages=STAGES):
            k = begin + start + tl.arange(0, BLOCK_K)
            tile = load_weights(w, n, live, k, K, EVEN, POLICY)
            scale = load_scale(norm, k, K, NORM, ROWS, EVEN)
            inputs, square = load_inputs(x, scale, k, r, rows, K, NORM, ROWS, EVEN)
            acc = multiply(tile, inputs, acc, dtype, ROWS, EMULATE)
            if NORM:
                squares += square
        old = tl.load(place, mask=mask & ADD, other=0.0)
    if ROWS == 1:
        acc = tl.sum(acc, 1)[:, None]
    if NORM:
        if ROWS == 1:
            factor = tl.rsqrt(tl.sum(squares, 1) / K + eps)
        else:
            factor = tl.rsqrt(squares / K + eps)
        acc = acc * factor[None, :]
    if SCALED:
        acc = acc * own_scale
    if SPLITS == 1:
        store_outputs(acc, old, place, mask, dtype, ADD)
    else:
        part = parts + r[None, :] * N + n[:, None]
        tl.store(part + tl.program_id(1) * rows * N, acc, mask=mask)
        tl.debug_barrier()  # all threads' parts are written before this program is counted
        arrived = tl.atomic_add(arrivals + tl.program_id(0), 1, sem="acq_rel")
        if arrived == SPLITS - 1:  # whoever is last adds up, always in the same order
            acc = tl.zeros([BLOCK_N, ROWS], tl.float32)
            for split in range(SPLITS):
                acc += tl.load(part + split * rows * N, mask=mask, other=0.0, cache_modifier=".cg")
            store_outputs(acc, old, place, mask, dtype, ADD)
            tl.store(arrivals + tl.program_id(0), 0)
