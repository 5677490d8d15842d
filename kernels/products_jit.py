# mypy: ignore-errors
# triton compiles this text; to a type checker it is no Python
"""The loop over products that kernels of tokens and of attention have in them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def products(
    a_rows, w_rows, n_live, K: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return the products `[BM, BN]` of BM rows of K numbers with BN of the N rows of a weight."""
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in range((K + BK - 1) // BK):
        kk = i * BK + k
        if K % BK != 0:
            a = tl.load(a_rows[:, None] + kk[None, :], mask=(kk < K)[None, :], other=0.0)
        else:
            a = tl.load(a_rows[:, None] + kk[None, :])
        if K % BK != 0 or N % BN != 0:
            mask = (kk < K)[:, None] & n_live[None, :]
            w = tl.load(w_rows[None, :] + kk[:, None], mask=mask, other=0.0)
        else:
            w = tl.load(w_rows[None, :] + kk[:, None])
        if UPCAST:
            a = a.to(tl.float32)
            w = w.to(tl.float32)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc
