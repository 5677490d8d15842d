# mypy: ignore-errors
# triton compiles this text; to a type checker it is no Python
"""The Triton kernel of `out_tokens`; out_tokens.md derives it."""

from __future__ import annotations

import triton
import triton.language as tl

from .products_jit import products

COUNTS = ["rows", "frames", "grid_rows", "grid_columns", "lr_rows", "lr_columns", "lr_row"]


@triton.jit(do_not_specialize=COUNTS)
def out_tokens_kernel(
    hidden_ptr, w_ptr, bias_ptr, lr_ptr, patch_ptr, patch_bias_ptr, out_ptr,
    rows, frames, grid_rows, grid_columns, lr_rows, lr_columns,
    lr_batch, lr_channel, lr_frame, lr_row, out_batch, out_first,
    C: tl.constexpr, D: tl.constexpr, L: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write BM tokens × BN of their D numbers: two matrix products into one sum.

    Where:
        hidden_ptr is `[rows, C]`, a row a token: sample, frame, grid row, grid column.
        w_ptr is `[D, C]`, bias_ptr `[D]`.
        lr_ptr is `[B, L, frames, lr_rows, lr_columns]`, columns side by side, the rest by strides;
        a patch that reaches over an edge reads the last row or column again.
        patch_ptr is `[D, L · PH · PW]`, patch_bias_ptr `[D]`.
        out_ptr is `[B, any, D]` with batch stride `out_batch`, from element `out_first` on.
    """
    tiles: tl.constexpr = (D + BN - 1) // BN
    pid = tl.program_id(0)
    m = (pid // tiles) * BM + tl.arange(0, BM)
    n = (pid % tiles) * BN + tl.arange(0, BN)
    live = m < rows
    n_live = n < D
    token = tl.where(live, m, 0)
    h_rows = hidden_ptr + token.to(tl.int64) * C
    acc = products(h_rows, w_ptr + n * C, n_live, C, D, PRECISION, UPCAST, BM, BN, BK)
    column = token % grid_columns
    row = (token // grid_columns) % grid_rows
    frame = token // (grid_columns * grid_rows)
    sample = frame // frames
    z = acc + tl.load(bias_ptr + n, mask=n_live, other=0.0).to(tl.float32)[None, :]
    K: tl.constexpr = L * PH * PW
    lr_at = sample.to(tl.int64) * lr_batch + (frame % frames).to(tl.int64) * lr_frame
    p_rows = patch_ptr + n * K
    k = tl.arange(0, BK)
    for i in range((K + BK - 1) // BK):
        kk = i * BK + k
        y = tl.minimum((row * PH)[:, None] + (kk // PW % PH)[None, :], lr_rows - 1)
        x = tl.minimum((column * PW)[:, None] + (kk % PW)[None, :], lr_columns - 1)
        at = (kk // (PH * PW) * lr_channel)[None, :] + y * lr_row + x
        a = tl.load((lr_ptr + lr_at)[:, None] + at, mask=(kk < K)[None, :], other=0.0)
        mask = (kk < K)[:, None] & n_live[None, :]
        b = tl.load(p_rows[None, :] + kk[:, None], mask=mask, other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        z = tl.dot(a, b, z, input_precision=PRECISION)
    z += tl.load(patch_bias_ptr + n, mask=n_live, other=0.0).to(tl.float32)[None, :]
    per = frames * grid_rows * grid_columns
    at = sample.to(tl.int64) * out_batch + out_first + (token - sample * per).to(tl.int64) * D
    mask = live[:, None] & n_live[None, :]
    tl.store(out_ptr + at[:, None] + n[None, :], z.to(out_ptr.dtype.element_ty), mask=mask)
