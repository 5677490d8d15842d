"""The memory encoder's operations in plain torch: what fused kernels must match."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
TOO_SMALL = 20480  # channels × frames × rows of one sample that torch takes past oneDNN


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
    parts = [tail, x] if tail.shape[2] else [x]
    if _wants_channels_last(x):
        parts = [part.contiguous(memory_format=torch.channels_last_3d) for part in parts]
    frames = torch.cat(parts, dim=2) if tail.shape[2] else parts[0]
    y = _conv3d(frames, weight, bias, stride)
    if norm is not None:
        y = rms_norm(y, norm)
    # Without a gradient nobody reads y again, and new memory costs a CPU as much as the SiLU.
    return F.silu(y, inplace=not y.requires_grad) if activation else y


def _conv3d(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Return the conv of `[B, C, T, H, W]`, padded by one zero a side in space.

    torch takes one small sample, such as a second that is appended, past oneDNN, and then needs
    three to five times as long for it on a CPU.
    """
    if x.dtype == weight.dtype and _is_for_onednn(x) and _is_small(x):
        y: Tensor = torch.ops.aten.mkldnn_convolution(
            x, weight, bias, (0, 1, 1), stride, (1, 1, 1), 1
        )
        return y
    return F.conv3d(x, weight, bias, stride=stride, padding=(0, 1, 1))


def _wants_channels_last(x: Tensor) -> bool:
    """Say whether a conv of `x` is faster channels last: an eighth on a CPU, where it is large.

    With gradients the layout stays, since their convs would convert it back and forth.
    """
    return not torch.is_grad_enabled() and _is_for_onednn(x) and not _is_small(x)


def _is_for_onednn(x: Tensor) -> bool:
    """Say whether oneDNN can do a conv of `x`, as it is called now."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_small(x: Tensor) -> bool:
    """Say whether `x` is so small that torch takes its conv past oneDNN."""
    batch, channels, time, height, _ = x.shape
    return batch == 1 and channels * time * height <= TOO_SMALL


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
    if lr_tokens is None:
        return tokens
    if tokens.dtype == torch.promote_types(tokens.dtype, lr_tokens.dtype):
        return tokens.add_(lr_tokens)  # its own memory: no other reads it
    return tokens + lr_tokens
