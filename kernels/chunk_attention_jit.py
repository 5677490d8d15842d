# mypy: ignore-errors
# triton compiles this text; to a type checker it is no Python
"""The Triton kernels of `chunk_attention`; chunk_attention.md derives them.

They run on triton 3.6 to 3.9 and in its interpreter: no block
pointers, no autotune, no libdevice, loop bounds known when compiling.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .products_jit import products

# numbers that change with every chunk: one machine code serves all of them
COUNTS = ["rows", "batch", "new", "past", "held"]


@triton.jit(do_not_specialize=COUNTS)
def norm_past_kernel(
    x_ptr, norm_ptr, norm_bias_ptr, past_ptr, normed_ptr, pair_ptr, state_ptr,
    rows, batch, new, past, held, EPS,
    C: tl.constexpr, E: tl.constexpr, S: tl.constexpr,
    CB: tl.constexpr, EB: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Write LayerNorm(x), BM cells a program; the programs behind those copy BM cells of the past.

    Where:
        x_ptr: `[rows, C]`, a row a cell of a new frame: sample, frame, cell; as normed_ptr.
        norm_ptr: `[C]`, as norm_bias_ptr.
        past_ptr: `[2, B, past, S, E]`, keys and values of the frames before.
        pair_ptr: `[2, B, past + T, S, E]`.
        state_ptr: `[2, B, held, S, E]`: the last `held` frames of pair_ptr once more.
        rows: B · T · S cells of new frames.
        CB: C or more, a power of two; EB: of E.
    """
    pid = tl.program_id(0)
    norms = (rows + BM - 1) // BM
    if pid < norms:
        _norm(x_ptr, norm_ptr, norm_bias_ptr, normed_ptr, pid * BM, rows, EPS, C, CB, BM)
    else:
        first = (pid - norms) * BM
        _copy_past(past_ptr, pair_ptr, state_ptr, first, batch, new, past, held, E, S, EB, BM)


@triton.jit
def _norm(
    x_ptr, norm_ptr, norm_bias_ptr, normed_ptr, first, rows, EPS,
    C: tl.constexpr, CB: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    m = first + tl.arange(0, BM)
    c = tl.arange(0, CB)
    c_live = c < C
    mask = (m < rows)[:, None] & c_live[None, :]
    at = (m * C)[:, None] + c[None, :]
    z = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    z = tl.where(c_live[None, :], z - (tl.sum(z, axis=1) / C)[:, None], 0.0)
    z = z * tl.rsqrt(tl.sum(z * z, axis=1) / C + EPS)[:, None]
    z = z * tl.load(norm_ptr + c, mask=c_live, other=0.0).to(tl.float32)[None, :]
    z = z + tl.load(norm_bias_ptr + c, mask=c_live, other=0.0).to(tl.float32)[None, :]
    tl.store(normed_ptr + at, z.to(normed_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _copy_past(
    past_ptr, pair_ptr, state_ptr, first, batch, new, past, held,
    E: tl.constexpr, S: tl.constexpr, EB: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    cell = first + tl.arange(0, BM)
    e = tl.arange(0, EB)
    plane = cell // (past * S)
    within = cell % (past * S)
    mask = (plane < 2 * batch)[:, None] & (e < E)[None, :]
    z = tl.load(past_ptr + (cell * E)[:, None] + e[None, :], mask=mask, other=0.0)
    at = (plane * (past + new) * S + within) * E
    tl.store(pair_ptr + at[:, None] + e[None, :], z, mask=mask)
    kept = within - (past + new - held) * S
    at = (plane * held * S + kept) * E
    tl.store(state_ptr + at[:, None] + e[None, :], z, mask=mask & (kept >= 0)[:, None])


@triton.jit(do_not_specialize=COUNTS)
def qkv_kernel(
    normed_ptr, w_ptr, query_ptr, pair_ptr, state_ptr,
    rows, batch, new, past, held,
    C: tl.constexpr, E: tl.constexpr, S: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write BM cells × BN numbers of their queries, keys or values, which go behind the past.

    Where:
        normed_ptr: `[rows, C]`, what `norm_past_kernel` wrote; pair_ptr and state_ptr as there.
        w_ptr: `[3 · E, C]`: queries, keys, values.
        query_ptr: `[rows, E]`.
        UPCAST: multiply in float32 (the interpreter's bfloat16 is wrong).
    """
    TILES: tl.constexpr = (E + BN - 1) // BN
    pid = tl.program_id(0)
    m = (pid // (3 * TILES)) * BM + tl.arange(0, BM)
    part = (pid // TILES) % 3
    n = (pid % TILES) * BN + tl.arange(0, BN)
    live = m < rows
    n_live = n < E
    a_rows = normed_ptr + tl.where(live, m, 0) * C
    w_rows = w_ptr + (part * E + n) * C
    acc = products(a_rows, w_rows, n_live, C, E, PRECISION, UPCAST, BM, BN, BK)
    mask = live[:, None] & n_live[None, :]
    y = acc.to(pair_ptr.dtype.element_ty)
    if part == 0:
        tl.store(query_ptr + (m * E)[:, None] + n[None, :], y, mask=mask)
    else:
        plane = (part - 1) * batch + m // (new * S)
        within = past * S + m % (new * S)
        at = (plane * (past + new) * S + within) * E
        tl.store(pair_ptr + at[:, None] + n[None, :], y, mask=mask)
        kept = within - (past + new - held) * S
        at = (plane * held * S + kept) * E
        tl.store(state_ptr + at[:, None] + n[None, :], y, mask=mask & (kept >= 0)[:, None])


@triton.jit(do_not_specialize=["batch", "new", "past"])
def window_attention_kernel(
    query_ptr, pair_ptr, mixed_ptr,
    batch, new, past, SCALE,
    E: tl.constexpr, D: tl.constexpr, S: tl.constexpr, WINDOW: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Write what BM cells of a new frame see in one head: softmax over the cells of its window.

    Where:
        query_ptr: `[B, T, S, E]`, heads of D numbers side by side, as mixed_ptr.
        pair_ptr: `[2, B, past + T, S, E]`, keys and values.
        SCALE: of the products, log₂ e / √D: the softmax is by powers of two.
        BN: cells of the window at a step.
        BD: D or more, a power of two.
    """
    BLOCKS: tl.constexpr = (S + BM - 1) // BM
    pid = tl.program_id(0)
    head = tl.program_id(1)
    frame = pid // BLOCKS  # of all samples
    sample = frame // new
    last = past + frame % new
    first = tl.maximum(last + 1 - WINDOW, 0)
    seen = (last + 1 - first) * S
    m = (pid % BLOCKS) * BM + tl.arange(0, BM)
    n = tl.arange(0, BN)
    d = tl.arange(0, BD)
    d_live = d < D
    rows = (frame * S + m) * E + head * D
    mask = (m < S)[:, None] & d_live[None, :]
    q = tl.load(query_ptr + rows[:, None] + d[None, :], mask=mask, other=0.0)
    if UPCAST:
        q = q.to(tl.float32)
    k_rows = pair_ptr + (sample * (past + new) + first) * S * E + head * D
    v_rows = k_rows + batch * (past + new) * S * E
    top = tl.full((BM,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BM,), dtype=tl.float32)
    acc = tl.zeros((BM, BD), dtype=tl.float32)
    for i in range((WINDOW * S + BN - 1) // BN):
        cell = i * BN + n
        n_live = cell < seen
        at = cell * E
        k = tl.load(
            k_rows + at[None, :] + d[:, None], mask=n_live[None, :] & d_live[:, None], other=0.0
        )
        v = tl.load(
            v_rows + at[:, None] + d[None, :], mask=n_live[:, None] & d_live[None, :], other=0.0
        )
        if UPCAST:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        z = tl.dot(q, k, input_precision=PRECISION) * SCALE
        z = tl.where(n_live[None, :], z, float("-inf"))
        # the first step has cells to see, so that `higher` is finite
        higher = tl.maximum(top, tl.max(z, axis=1))
        p = tl.exp2(z - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, axis=1)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        top = higher
    y = (acc / total[:, None]).to(mixed_ptr.dtype.element_ty)
    tl.store(mixed_ptr + rows[:, None] + d[None, :], y, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def attention_out_kernel(
    mixed_ptr, w_ptr, bias_ptr, x_ptr, out_ptr,
    rows,
    C: tl.constexpr, E: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write BM cells × BN of their C features: x + mixed · wᵀ + bias.

    Where:
        mixed_ptr: `[rows, E]`.
        w_ptr: `[C, E]`.
        bias_ptr: `[C]`.
        x_ptr: `[rows, C]`, as out_ptr.
    """
    TILES: tl.constexpr = (C + BN - 1) // BN
    pid = tl.program_id(0)
    m = (pid // TILES) * BM + tl.arange(0, BM)
    n = (pid % TILES) * BN + tl.arange(0, BN)
    live = m < rows
    n_live = n < C
    a_rows = mixed_ptr + tl.where(live, m, 0) * E
    w_rows = w_ptr + n * E
    acc = products(a_rows, w_rows, n_live, E, C, PRECISION, UPCAST, BM, BN, BK)
    mask = live[:, None] & n_live[None, :]
    at = (m * C)[:, None] + n[None, :]
    z = acc + tl.load(bias_ptr + n, mask=n_live, other=0.0).to(tl.float32)[None, :]
    z += tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty), mask=mask)
