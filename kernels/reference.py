"""The memory encoder's operations in plain torch: what fused kernels must match."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def conv3d_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: tuple[int, int, int],
    tail: Tensor,
    norm: Tensor | None = None,
    activation: bool = True,
) -> Tensor:
    """Return SiLU(RMSNorm(conv3d([tail, x]))): causal in time, padded by one zero a side in space.

    Args:
        x: new frames `[B, C, T, H, W]`.
        weight: `[C', C, k_t, k_h, k_w]`; space is halved exactly by k = 3 or 4 at stride 2.
        bias: `[C']`.
        stride: in time, height and width.
        tail: the input frames before `x` that the first output reads, `[B, C, n, H, W]`:
            k_t − 1 at the start of a video (padding), k_t − stride in time later on.
        norm: weight `[C']` of an RMSNorm over channels before the activation; None: no norm.
        activation: whether SiLU follows.

    Returns:
        `[B, C', T', H', W']` with T' = ⌊(n + T − k_t) / stride⌋ + 1.

    Source: method.md §2; kernels.md §5, K1.
    """
    frames = torch.cat([tail, x], dim=2) if tail.shape[2] else x
    y = F.conv3d(frames, weight, bias, stride=stride, padding=(0, 1, 1))
    if norm is not None:
        y = rms_norm(y, norm)
    return F.silu(y) if activation else y


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Return x / rms(x) · weight, normalised over the channels of `[B, C, T, H, W]`.

    Args:
        x: `[B, C, T, H, W]`; half precisions are summed in float32.
        weight: `[C]`.

    Returns:
        As x in shape and dtype; ε = 1e-6 is added to the mean square.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    scale = torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + EPS)
    return (wide * scale * weight[:, None, None, None]).to(x.dtype)


def out_tokens(
    hidden: Tensor, weight: Tensor, bias: Tensor, lr_tokens: Tensor | None = None
) -> Tensor:
    """Return the memory tokens: the last 1×1×1 conv of the HR features, plus the LR tokens.

    Args:
        hidden: features of the high-resolution (HR) branch, `[..., C]`, channels last.
        weight: `[D, C]`.
        bias: `[D]`.
        lr_tokens: `[..., D]`, the DiT's own tokens of the low-resolution (LR) latents; None: the
            HR branch alone.

    Returns:
        `[..., D]`.

    Source: method.md §2; kernels.md §5, K2.
    """
    tokens = F.linear(hidden, weight, bias)
    return tokens if lr_tokens is None else tokens + lr_tokens
