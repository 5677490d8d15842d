"""The memory encoder's operations in plain torch: what fused kernels must match."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

EPS = 1e-6
LAYER_NORM_EPS = 1e-5  # torch's own
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


class AttentionWeights(NamedTuple):
    """The parameters of an attention layer, C wide, its heads side by side `heads · d` wide.

    Attributes:
        norm, norm_bias: of the LayerNorm before it, `[C]`.
        qkv: of queries, keys and values in one, `[3 · heads · d, C]`; they have no bias.
        out: of the projection behind it, `[C, heads · d]`.
        out_bias: `[C]`.
    """

    norm: Tensor
    norm_bias: Tensor
    qkv: Tensor
    out: Tensor
    out_bias: Tensor


def chunk_attention(
    x: Tensor, past: Tensor | None, weights: AttentionWeights, *, heads: int, window: int
) -> tuple[Tensor, Tensor]:
    """Return x + out(attention(qkv(norm(x)))) of new frames, and what the next ones go on from.

    Args:
        x: features of the new frames, `[B, T, S, C]`: T frames of S cells.
        past: keys and values `[2, B, n, S, heads, d]` of the n ≤ window − 1 frames before; None:
            there are none.
        weights: of the layer.
        heads: of the attention.
        window: frames that a frame sees as a whole, itself the last of them, ≥ 1.

    Returns:
        Features as x, and keys and values of the last window − 1 frames (of all, where there are
        fewer), as past, in memory of their own.

    Source: method.md §2; kernels.md §5, K3.
    """
    shape = weights.norm.shape
    normed = F.layer_norm(x, shape, weights.norm, weights.norm_bias, LAYER_NORM_EPS)
    query, key, value = split_heads(F.linear(normed, weights.qkv), heads)
    mixed, state = streamed_attention(query, key, value, past, window)
    return x + F.linear(mixed.flatten(-2), weights.out, weights.out_bias), state


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values `[B, T, S, heads, d]` of their projection in one."""
    query, key, value = rearrange(qkv, "b t s (n heads d) -> n b t s heads d", n=3, heads=heads)
    return query, key, value


def streamed_attention(
    query: Tensor, key: Tensor, value: Tensor, past: Tensor | None, window: int
) -> tuple[Tensor, Tensor]:
    """Return windowed attention of new frames, and the keys and values to go on from.

    Args:
        query: `[B, T, S, heads, d]`, as key and value.
        key: see query.
        value: see query.
        past: keys and values `[2, B, n, S, heads, d]` of the n ≤ window − 1 frames before; None:
            there are none.
        window: frames that a frame sees, itself the last of them.
    """
    pair = torch.stack([key, value])
    if past is not None:
        pair = torch.cat([past, pair], dim=2)
    mixed = windowed_attention(query, pair[0], pair[1], window)
    kept = pair[:, :, max(pair.shape[2] - window + 1, 0) :]
    # memory of its own: a slice would keep alive all that it was cut from
    return mixed, kept.clone(memory_format=torch.contiguous_format)


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Return attention in which each frame sees `window` frames, itself the last, without a mask.

    Frames with fewer before them go one by one, the others as one batch.

    Args:
        query: of the new frames, `[B, T, S, heads, d]`.
        key: of n frames before them and of the new ones, `[B, n + T, S, heads, d]`.
        value: as key.
        window: ≥ 1.
    """
    new, before = query.shape[1], key.shape[1] - query.shape[1]
    short = min(max(window - 1 - before, 0), new)
    parts = []
    for i in range(short):
        last = before + i + 1
        past = [rearrange(x[:, :last], "b t s heads d -> b (t s) heads d") for x in (key, value)]
        parts.append(attend(query[:, i], *past)[:, None])
    if short < new:
        parts.append(_full_windows(query[:, short:], key, value, window))
    return torch.cat(parts, dim=1)


def _full_windows(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Return the attention of frames that all have `window` frames to see."""

    def windows(x: Tensor) -> Tensor:
        spans = x[:, x.shape[1] - query.shape[1] - window + 1 :].unfold(1, window, 1)
        return rearrange(spans, "b t s heads d window -> (b t) (window s) heads d")

    frames = rearrange(query, "b t s heads d -> (b t) s heads d")
    return attend(frames, windows(key), windows(value)).reshape(query.shape)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return attention of `[B, L, heads, d]` on `[B, M, heads, d]`."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
