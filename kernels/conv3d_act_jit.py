# mypy: ignore-errors
# triton compiles this text; to a type checker it is no Python
"""The Triton kernels of `conv3d_act`; conv3d_act.md derives them. Only this file needs triton.

They run on triton 3.6 to 3.9 and in its interpreter: no block pointers, no autotune, no libdevice,
loop bounds known when compiling.
"""

from __future__ import annotations

import triton
import triton.language as tl

# numbers that change with every history: one machine code serves all of them
COUNTS = ["rows", "frames_out", "rows_out", "columns_out", "rows_in", "columns_in"]


@triton.jit(do_not_specialize=COUNTS)
def conv3d_act_kernel(
    x_ptr, w_ptr, bias_ptr, norm_ptr, out_ptr,
    rows, frames_out, rows_out, columns_out, rows_in, columns_in,
    x_batch, x_frame, out_batch, out_first, EPS,
    C: tl.constexpr, N: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, HALF_SUMS: tl.constexpr,
    MERGE: tl.constexpr, SPLIT: tl.constexpr, PARTIAL: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write BM output cells × BN channels: a matrix product over taps × input channels.

    Where:
        x_ptr: `[B, F, H, W, C]`, batch and frame strides given, the rest contiguous.
        w_ptr: `[N, KT, KH, KW, C]`.
        bias_ptr: `[N]`.
        norm_ptr: `[N]`, read with NORM.
        out_ptr: `[B, F', H', W', N]` with batch stride `out_batch`, from element `out_first` on;
            with PARTIAL float32 `[SPLIT, rows, N]`, sums without bias.
        rows: output cells, B · frames_out · rows_out · columns_out.
        MERGE: one step of K runs over a row of taps (KW · C numbers that lie side by side).
        SPLIT: shares of K, each a program of its own; 1 unless PARTIAL.
        HALF_SUMS: sum BK products in float16, and these sums in float32.
        UPCAST: multiply in float32 (the interpreter's bfloat16 is wrong).
    """
    tiles: tl.constexpr = (N + BN - 1) // BN
    K: tl.constexpr = KW * C if MERGE else C
    TAPS: tl.constexpr = KT * KH if MERGE else KT * KH * KW
    BLOCKS: tl.constexpr = (K + BK - 1) // BK
    STEPS: tl.constexpr = (TAPS * BLOCKS + SPLIT - 1) // SPLIT
    pid = tl.program_id(0)
    share = tl.program_id(1)
    m = (pid // tiles) * BM + tl.arange(0, BM)
    n = (pid % tiles) * BN + tl.arange(0, BN)
    live = m < rows
    cell = tl.where(live, m, 0)
    column = cell % columns_out
    row = (cell // columns_out) % rows_out
    frame = cell // (columns_out * rows_out)
    sample = frame // frames_out
    y = row * SH - 1
    x = column * SW - 1
    # one bit a tap in space: whether it lies inside the picture; in time all do
    inside = tl.zeros((BM,), dtype=tl.int32)
    for h in tl.static_range(KH):
        for w in tl.static_range(KW):
            seen = live & (y + h >= 0) & (y + h < rows_in) & (x + w >= 0) & (x + w < columns_in)
            inside |= seen.to(tl.int32) << (h * KW + w)
    first = sample.to(tl.int64) * x_batch + ((frame % frames_out) * ST).to(tl.int64) * x_frame
    x_rows = x_ptr + first + (y * columns_in + x) * C
    n_live = n < N
    w_rows = w_ptr + n * (KT * KH * KW * C)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range(STEPS):
        step = share * STEPS + i
        tap = step // BLOCKS
        kk = (step % BLOCKS) * BK + k
        k_live = kk < K
        if TAPS * BLOCKS % SPLIT != 0:
            k_live = k_live & (step * BK + k < TAPS * BLOCKS * BK)
        if MERGE:
            at = (tap // KH) * x_frame + (tap % KH) * (columns_in * C)
            bit = (tap % KH) * KW + tl.minimum(kk // C, KW - 1)
            mask = ((inside[:, None] >> bit[None, :]) & 1) != 0
        else:
            spot = tap % (KH * KW)
            at = (tap // (KH * KW)) * x_frame + ((spot // KW) * columns_in + spot % KW) * C
            mask = (((inside >> spot) & 1) != 0)[:, None]
        if K % BK != 0 or TAPS * BLOCKS % SPLIT != 0:
            mask = mask & k_live[None, :]
        a = tl.load(x_rows[:, None] + (at + kk)[None, :], mask=mask, other=0.0)
        w_at = w_rows[None, :] + (tap * K + kk)[:, None]
        if K % BK != 0 or N % BN != 0 or TAPS * BLOCKS % SPLIT != 0:
            b = tl.load(w_at, mask=k_live[:, None] & n_live[None, :], other=0.0)
        else:
            b = tl.load(w_at)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        if HALF_SUMS:
            acc += tl.dot(a, b, out_dtype=tl.float16).to(tl.float32)
        else:
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    mask = live[:, None] & n_live[None, :]
    if PARTIAL:
        at = (share.to(tl.int64) * rows + m.to(tl.int64)) * N
        tl.store(out_ptr + at[:, None] + n[None, :], acc, mask=mask)
    else:
        z = acc + tl.load(bias_ptr + n, mask=n_live, other=0.0).to(tl.float32)[None, :]
        if NORM:  # BN holds all channels: those beyond N are zero
            scale = tl.rsqrt(tl.sum(z * z, axis=1) / N + EPS)
            z = z * scale[:, None]
            z = z * tl.load(norm_ptr + n, mask=n_live, other=0.0).to(tl.float32)[None, :]
        if ACTIVATION:
            z = z / (1.0 + tl.exp(-z))
        per = frames_out * rows_out * columns_out
        at = sample.to(tl.int64) * out_batch + out_first + (cell - sample * per).to(tl.int64) * N
        tl.store(out_ptr + at[:, None] + n[None, :], z.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "cells"])
def conv3d_finish_kernel(
    sums_ptr, bias_ptr, norm_ptr, out_ptr,
    rows, cells, out_batch, out_first, EPS,
    N: tl.constexpr, SPLIT: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write what follows the sums of SPLIT shares: bias, RMSNorm over channels, SiLU.

    Where:
        sums_ptr: float32 `[SPLIT, rows, N]`, added in this order.
        bias_ptr: `[N]`.
        norm_ptr: `[N]`, read with NORM.
        out_ptr: as of `conv3d_act_kernel`.
        rows: output cells of all samples.
        cells: output cells of one sample.
        BN: N or more, a power of two.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.arange(0, BN)
    mask = (m < rows)[:, None] & (n < N)[None, :]
    z = tl.zeros((BM, BN), dtype=tl.float32)
    for share in range(SPLIT):
        at = (m + share * rows).to(tl.int64) * N
        z += tl.load(sums_ptr + at[:, None] + n[None, :], mask=mask, other=0.0)
    z += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if NORM:
        scale = tl.rsqrt(tl.sum(z * z, axis=1) / N + EPS)
        z = z * scale[:, None]
        z = z * tl.load(norm_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION:
        z = z / (1.0 + tl.exp(-z))
    sample = m // cells
    at = sample.to(tl.int64) * out_batch + out_first + (m - sample * cells).to(tl.int64) * N
    tl.store(out_ptr + at[:, None] + n[None, :], z.to(out_ptr.dtype.element_ty), mask=mask)
