"""From logits to codes and from codes to the next inputs, without the host: sampling, embedding, the final norm."""

import triton
import triton.language as tl

from csm.kernels.processor import let_next_begin, wait_for_previous


@triton.jit
def order(value, SHORT: tl.constexpr):
    """Unsigned integers that sort as the float32 `value` does; SHORT keeps the upper 16 bits, all of a bfloat16."""
    bits = value.to(tl.uint32, bitcast=True)
    key = tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    if SHORT:
        key = key >> 16
    return key


@triton.jit
def pick(logits, noise, temperature, topk, floor, VOCAB: tl.constexpr, SHORT: tl.constexpr, BLOCK_V: tl.constexpr):
    """The arg-max of softmax(the topk largest of a row's logits / temperature) / noise, int32; of those, only such as
    lie no further below the largest than `floor`, which is negative.

    SHORT: the logits are bfloat16's. They are read past the multiprocessor's own cache: others may just have written
    them.
    """
    v = tl.arange(0, BLOCK_V)
    live = v < VOCAB
    raw = tl.load(logits + v, mask=live, other=-float("inf"), cache_modifier=".cg").to(tl.float32)
    draw = tl.load(noise + v, mask=live, other=1.0)
    scaled = tl.div_rn(raw, tl.zeros([BLOCK_V], tl.float32) + temperature)
    k = tl.minimum(topk, VOCAB)
    if SHORT:
        key = order(raw, True)
    else:
        key = order(scaled, False)
    tl.static_assert(BLOCK_V < 1 << 15)  # two counts share an integer
    BITS: tl.constexpr = 16 if SHORT else 32
    smallest = tl.zeros([1], tl.uint32)  # the k-th largest key, found from its highest bits down, two at a time
    for i in range(BITS // 2):
        step = tl.full([1], 1, tl.uint32) << (BITS - 2 - 2 * i)
        one, two, three = smallest + step, smallest + 2 * step, smallest + 3 * step
        counts = tl.sum((key >= one).to(tl.int32) + ((key >= two).to(tl.int32) << 16), 0)
        last = tl.sum((key >= three).to(tl.int32), 0)
        smallest = tl.where((counts & 0xFFFF) >= k, one, smallest)
        smallest = tl.where((counts >> 16) >= k, two, smallest)
        smallest = tl.where(last >= k, three, smallest)
    top = tl.max(scaled, 0)
    weight = tl.div_rn(tl.exp(scaled - top), draw)
    score = tl.where((key >= smallest) & (scaled >= top + floor), weight, -1.0)
    score = tl.where(k == 1, raw, score)
    return tl.argmax(tl.where(live, score, -float("inf")), 0)


@triton.jit(do_not_specialize=["codebook"])
def choose_kernel(
    logits,  # (rows, VOCAB)
    noise,  # float32 (rows, CODEBOOKS, VOCAB), exponential with rate 1
    temperature,  # float32 (rows,)
    topk,  # int32 (rows,)
    floor,  # float32 (rows,), `Settings.floor`
    codes,  # int64 (rows, CODEBOOKS)
    table,  # ((CODEBOOKS - 1) * VOCAB or more, DIM) with NEXT: each code's input to the depth decoder
    inputs,  # (rows, DIM) with NEXT
    codebook,
    CODEBOOKS: tl.constexpr,
    VOCAB: tl.constexpr,
    DIM: tl.constexpr,
    NEXT: tl.constexpr,
    SHORT: tl.constexpr,  # the logits are bfloat16's
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One program per row: its code, and with NEXT what the depth decoder reads next."""
    let_next_begin(OVERLAP)
    wait_for_previous(OVERLAP)
    row = tl.program_id(0)
    draws = noise + (row * CODEBOOKS + codebook).to(tl.int64) * VOCAB
    own_temperature = tl.load(temperature + row)
    own_topk = tl.load(topk + row)
    own_floor = tl.load(floor + row)
    code = pick(logits + row * VOCAB, draws, own_temperature, own_topk, own_floor, VOCAB, SHORT, BLOCK_V)
    tl.store(codes + row * CODEBOOKS + codebook, code.to(tl.int64))
    if NEXT:
        entry = table + (codebook * VOCAB + code).to(tl.int64) * DIM
        for start in range(0, DIM, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            tl.store(inputs + row * DIM + d, tl.load(entry + d, mask=d < DIM), mask=d < DIM)


@triton.jit
def embed_kernel(
    codes,  # int64 (rows, CODEBOOKS)
    embeddings,  # (CODEBOOKS * VOCAB, DIM)
    out,  # (rows, DIM)
    CODEBOOKS: tl.constexpr,
    VOCAB: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The sum of a frame's embeddings, which is the backbone's next input."""
    let_next_begin(OVERLAP)
    wait_for_previous(OVERLAP)
    row = tl.program_id(0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    c = tl.arange(0, BLOCK_C)
    code = tl.load(codes + row * CODEBOOKS + c, mask=c < CODEBOOKS, other=0)
    entry = embeddings + (c * VOCAB + code)[:, None] * DIM + d[None, :]
    tile = tl.load(entry, mask=(c < CODEBOOKS)[:, None] & (d < DIM)[None, :], other=0.0).to(tl.float32)
    tl.store(out + row * DIM + d, tl.sum(tile, 0).to(out.dtype.element_ty), mask=d < DIM)


@triton.jit
def finish_kernel(
    x,  # (rows, DIM)
    norm,  # (DIM,)
    state,  # (rows, DIM)
    lengths,  # int64 (rows,)
    active,  # uint8 (rows,)
    eps,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The backbone's last norm gives the new state, and the row is one position longer; only for active rows."""
    let_next_begin(OVERLAP)
    wait_for_previous(OVERLAP)
    row = tl.program_id(0)
    if tl.load(active + row) != 0:
        d = tl.arange(0, BLOCK_D)
        wide = tl.load(x + row * DIM + d, mask=d < DIM, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(wide * wide, 0) / DIM + eps)
        scale = tl.load(norm + d, mask=d < DIM, other=0.0).to(tl.float32)
        normed = (wide * factor).to(x.dtype.element_ty).to(tl.float32) * scale
        tl.store(state + row * DIM + d, normed.to(x.dtype.element_ty), mask=d < DIM)
        tl.store(lengths + row, tl.load(lengths + row) + 1)
