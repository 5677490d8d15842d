"""The plain operations against sums written out, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.kernels.reference import (
    EPS,
    AttentionWeights,
    _is_for_onednn,
    _is_small,
    _wants_channels_last,
    chunk_attention,
    conv3d_act,
    out_tokens,
    rms_norm,
)


def naive_conv(
    frames: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int, int]
) -> Tensor:
    """The conv as a sum over taps, each a slice of the zero-padded frames."""
    padded = F.pad(frames, (1, 1, 1, 1))
    counts = [
        (n - k) // s + 1 for n, k, s in zip(padded.shape[2:], weight.shape[2:], stride, strict=True)
    ]
    out = bias[None, :, None, None, None].repeat(frames.shape[0], 1, *counts)
    for t, h, w in torch.cartesian_prod(*[torch.arange(k) for k in weight.shape[2:]]).tolist():
        cut = [
            slice(a, a + (n - 1) * s + 1, s)
            for a, n, s in zip((t, h, w), counts, stride, strict=True)
        ]
        out = out + torch.einsum(
            "bcthw,oc->bothw", padded[:, :, cut[0], cut[1], cut[2]], weight[:, :, t, h, w]
        )
    return out


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 1, 1)), ((3, 3, 3), (1, 2, 2)),
     ((3, 4, 4), (1, 2, 2)), ((3, 4, 3), (1, 2, 1))],
)  # fmt: skip
@pytest.mark.parametrize("normed", [False, True])
def test_conv3d_act_is_a_sum_over_taps(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], normed: bool
) -> None:
    torch.manual_seed(0)
    x, tail = torch.randn(2, 3, 4, 6, 8).double(), torch.randn(2, 3, 3 - stride[0], 6, 8).double()
    weight, bias = torch.randn(5, 3, *kernel).double(), torch.randn(5).double()
    norm = torch.rand(5).double() if normed else None
    y = naive_conv(torch.cat([tail, x], 2), weight, bias, stride)
    if norm is not None:
        y = y / (y.square().mean(1, keepdim=True) + EPS).sqrt() * norm[:, None, None, None]
    plain = conv3d_act(x, weight, bias, stride=stride, tail=tail, norm=norm, activation=False)
    assert plain.shape == (2, 5, 4 // stride[0], 6 // stride[1], 8 // stride[2])
    torch.testing.assert_close(plain, y, rtol=0, atol=1e-12)
    active = conv3d_act(x, weight, bias, stride=stride, tail=tail, norm=norm)
    torch.testing.assert_close(active, y * y.sigmoid(), rtol=0, atol=1e-12)


def test_conv3d_act_never_reads_later_frames() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, 6, 4, 4).double(), torch.randn(2, 2, 3, 3, 3).double()
    tail, bias = torch.zeros(1, 2, 2, 4, 4).double(), torch.zeros(2).double()
    other = x.clone()
    other[:, :, 3:] = 7.0
    a, b = (conv3d_act(v, weight, bias, stride=(1, 1, 1), tail=tail) for v in (x, other))
    assert torch.equal(a[:, :, :3], b[:, :, :3])
    assert not torch.equal(a[:, :, 3], b[:, :, 3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rms_norm_of_large_halves_does_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((1, 8, 1, 1, 1), 3e4, dtype=dtype)
    y = rms_norm(x, torch.ones(8, dtype=dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), torch.ones_like(y).float(), rtol=0, atol=1e-2)


def test_out_tokens_is_a_1x1_conv_plus_lr_tokens() -> None:
    torch.manual_seed(0)
    hidden, lr = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 7).double()
    weight, bias = torch.randn(7, 5).double(), torch.randn(7).double()
    want = torch.einsum("btsc,dc->btsd", hidden, weight) + bias
    torch.testing.assert_close(out_tokens(hidden, weight, bias), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(out_tokens(hidden, weight, bias, lr), want + lr, rtol=0, atol=1e-12)
    nothing = out_tokens(hidden, torch.zeros_like(weight), torch.zeros_like(bias), lr)
    assert torch.equal(nothing, lr)


@pytest.mark.parametrize(
    ("width", "batch", "small"), [(3, 1, True), (3, 2, False), (900, 1, False)]
)
def test_one_small_sample_is_told_from_others(width: int, batch: int, small: bool) -> None:
    x = torch.randn(batch, width, 6, 4, 4)
    assert _is_small(x) is small and _is_for_onednn(x) and not _wants_channels_last(x)
    with torch.no_grad():
        assert _wants_channels_last(x) is not small
    assert not _is_for_onednn(x.double()) and not _is_for_onednn(x[:0])
    with torch.autocast("cpu", torch.bfloat16):
        assert not _is_for_onednn(x)


@torch.no_grad()
@pytest.mark.parametrize("before", [0, 2])
def test_a_large_conv_is_the_same_channels_last(before: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 4, 6, 8), torch.randn(3, 5, 3, 3, 3), torch.randn(3)
    tail = torch.randn(2, 5, 1, 6, 8).expand(-1, -1, before, -1, -1)
    assert _wants_channels_last(x)
    single = conv3d_act(x, weight, bias, stride=(1, 2, 2), tail=tail)
    double = conv3d_act(
        x.double(), weight.double(), bias.double(), stride=(1, 2, 2), tail=tail.double()
    )
    assert single.is_contiguous(memory_format=torch.channels_last_3d)
    assert (single.double() - double).norm() / double.norm() < 1e-6


def test_a_small_conv_is_that_of_torch_with_its_gradients() -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(1, 3, 4, 5, 6), torch.randn(2, 3, 3, 3, 3), torch.randn(2)]
    tail, found = torch.randn(1, 3, 2, 5, 6), []
    for dtype in (torch.float32, torch.float64):
        x, weight, bias = (leaf.detach().to(dtype, copy=True).requires_grad_() for leaf in leaves)
        y = conv3d_act(x, weight, bias, stride=(1, 2, 2), tail=tail.to(dtype))
        y.square().sum().backward()
        found.append([y.detach(), x.grad, weight.grad, bias.grad])
    for single, double in zip(*found, strict=True):
        assert single is not None and double is not None
        error = (single.double() - double).norm() / double.norm()
        assert error < 1e-6


@torch.no_grad()
def test_nothing_that_is_given_is_written_to() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 3, 4, 5, 6), torch.randn(2, 3, 3, 3, 3), torch.randn(2)
    hidden, low = torch.randn(1, 2, 3), torch.randn(1, 2, 2)
    given = [x, weight, bias, hidden, low]
    before = [one.clone() for one in given]
    conv3d_act(x, weight, bias, stride=(1, 1, 1), tail=x[:, :, :0])
    out_tokens(hidden, weight[:, :, 0, 0, 0], bias, low)
    assert all(torch.equal(one, old) for one, old in zip(given, before, strict=True))


@pytest.mark.parametrize(("before", "new", "window"), [(3, 3, 4), (1, 3, 4), (0, 5, 3), (2, 1, 1)])
def test_chunk_attention_is_a_masked_layer(before: int, new: int, window: int) -> None:
    """Written out over all frames, and what it keeps is the newest of them, a copy."""
    torch.manual_seed(0)
    batch, cells, width, heads, d = 2, 3, 5, 2, 4
    inner, frames = heads * d, before + new
    x, past = torch.randn(batch, new, cells, width), torch.randn(2, batch, before, cells, heads, d)
    weights = AttentionWeights(
        norm=torch.rand(width), norm_bias=torch.randn(width), qkv=torch.randn(3 * inner, width),
        out=torch.randn(width, inner), out_bias=torch.randn(width),
    )  # fmt: skip
    x, past, weights = x.double(), past.double(), AttentionWeights(*(w.double() for w in weights))
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    q, k, v = (
        part.unflatten(-1, (heads, d))
        for part in ((unit * weights.norm + weights.norm_bias) @ weights.qkv.T).chunk(3, dim=-1)
    )
    keys, values = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
    scores = torch.einsum("btshd,bfrhd->bhtsfr", q, keys) / d**0.5
    apart = torch.arange(before, frames)[:, None] - torch.arange(frames)[None]
    hidden = ((apart < 0) | (apart >= window))[:, None, :, None]
    shares = scores.masked_fill(hidden, -torch.inf).flatten(-2).softmax(-1).view_as(scores)
    mixed = torch.einsum("bhtsfr,bfrhd->btshd", shares, values).flatten(-2)
    wanted = x + mixed @ weights.out.T + weights.out_bias
    found, state = chunk_attention(x, past if before else None, weights, heads=heads, window=window)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    kept = torch.stack([keys, values])[:, :, max(frames - window + 1, 0) :]
    torch.testing.assert_close(state, kept, rtol=0, atol=1e-12)
    assert state.untyped_storage().nbytes() == state.nbytes
