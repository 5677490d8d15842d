"""An attention layer for a chunk that is appended: norm, QKV, a window, projection and residual.

A chunk of a few memory frames is small: an eager layer spends its time on launches, not on
products. Here they are four. Long inputs keep the library's attention, which is faster there.
chunk_attention.md derives the kernels; `reference.chunk_attention` is their meaning.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .dispatch import (
    DTYPES,
    arch_of,
    autocasts,
    call_dtype,
    choose,
    interpreting,
    say_once,
    trial_fault,
)
from .reference import LAYER_NORM_EPS, AttentionWeights
from .reference import chunk_attention as reference
from .tiles import FUSED, Tile, pick_attention, power_of_two

MOST_CELLS = 2048  # new ones of a call: what more are is bound by products, by prediction
WIDEST_HEAD = 128  # whose queries, keys and values fit into shared memory

Tiles = tuple[Tile, Tile, Tile]  # of QKV, of the window, of the projection


def chunk_attention(
    x: Tensor,
    past: Tensor | None,
    weights: AttentionWeights,
    *,
    heads: int,
    window: int,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return x + out(attention(qkv(norm(x)))) of new frames, and what the next ones go on from.

    Differentiable in x, past and weights; the backward pass runs the reference again.

    Args:
        x: features of the new frames, `[B, T, S, C]`: T frames of S cells.
        past: keys and values `[2, B, n, S, heads, d]` of the n ≤ window − 1 frames before; None:
            there are none.
        weights: of the layer.
        heads: of the attention.
        window: frames that a frame sees as a whole, itself the last of them, ≥ 1.
        kernels: auto, reference or triton (`dispatch.choose`).

    Returns:
        Features as x, and keys and values of the last window − 1 frames (of all, where there are
        fewer), as past, in memory of their own.

    Raises:
        KernelError: `kernels` is triton, and it cannot run on this device.
    """
    dtype = call_dtype(x)
    if choose("chunk_attention", kernels, x.device, dtype, fault).triton:
        refused = refusal(x, past, weights, heads, dtype)
        if not refused:
            past = None if past is None else past.to(dtype)
            if not autocasts(x):
                return _call(x, past, weights, heads, window)
            # every number type of autocast is cast here, once
            weights = AttentionWeights(*(weight.to(dtype) for weight in weights))
            with torch.autocast(x.device.type, enabled=False):
                return _call(x.to(dtype), past, weights, heads, window)
        say_once(f"kernels: a chunk_attention runs by reference ({refused})")
    return reference(x, past, weights, heads=heads, window=window)


def _call(
    x: Tensor, past: Tensor | None, weights: AttentionWeights, heads: int, window: int
) -> tuple[Tensor, Tensor]:
    made: tuple[Tensor, Tensor] = chunk_attention_op(x, past, *weights, heads, window)
    return made


def refusal(
    x: Tensor, past: Tensor | None, weights: AttentionWeights, heads: int, dtype: torch.dtype
) -> str:
    """Return why the kernels do not take these arguments, in words; "" where they do."""
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} numbers are none of a GPU's tensor units"
    if not autocasts(x) and {weight.dtype for weight in weights} != {x.dtype}:
        return "number types of features and weights differ"
    if not x.numel():
        return "there are no new frames"
    batch, new, cells, _ = x.shape
    if batch * new * cells > MOST_CELLS:
        return f"more than {MOST_CELLS} new cells are the library's"
    width = weights.qkv.shape[0] // 3
    if width > heads * WIDEST_HEAD:
        return f"heads are wider than {WIDEST_HEAD}"
    frames = new + (0 if past is None else past.shape[2])
    if max(2 * batch * frames * cells * width, weights.qkv.numel(), x.numel()) >= 2**31:
        return "keys and values are too many for 32 bits"
    return ""


def fault(device: torch.device, dtype: torch.dtype) -> str:
    """Return what is wrong with the kernels on a device, after a small trial; "" where nothing."""
    if dtype not in DTYPES:
        return ""  # `refusal` says it
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, past = random(1, 2, 6, 64), random(2, 1, 1, 6, 2, 32)
    weights = AttentionWeights(
        norm=random(64), norm_bias=random(64), qkv=random(192, 64) / 8, out=random(64, 64) / 8,
        out_bias=random(64),
    )  # fmt: skip
    wide = AttentionWeights(*(weight.float() for weight in weights))
    return trial_fault(
        device,
        lambda: _flat(launch(x, past, weights, heads=2, window=3)),
        lambda: _flat(reference(x.float(), past.float(), wide, heads=2, window=3)),
    )


def _flat(made: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in made])


def launch(
    x: Tensor,
    past: Tensor | None,
    weights: AttentionWeights,
    *,
    heads: int,
    window: int,
    into: tuple[Tensor, Tensor] | None = None,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what `chunk_attention` returns, by the kernels.

    Args:
        x: that `refusal` has nothing to say of, as the others; see `chunk_attention`.
        past: see `chunk_attention`; of the number type of x.
        weights: see `chunk_attention`.
        heads: see `chunk_attention`.
        window: see `chunk_attention`.
        into: where to write, contiguous, as what is returned; None: new memory.
        tiles: of the programs of the three that multiply; None: by the table of the device.
    """
    from .chunk_attention_jit import (
        attention_out_kernel,
        norm_past_kernel,
        qkv_kernel,
        window_attention_kernel,
    )

    x = x.contiguous()
    batch, new, cells, channels = x.shape
    norm, norm_bias, qkv, out_weight, out_bias = (weight.contiguous() for weight in weights)
    inner = qkv.shape[0] // 3
    width = inner // heads
    before = 0 if past is None else past.shape[2]
    held = min(before + new, window - 1)
    # keys and values of all frames that are seen: first those before, then the new ones
    pair = x.new_empty((2, batch, before + new, cells, heads, width))
    query, mixed = x.new_empty((2, batch, new, cells, inner))
    normed = torch.empty_like(x)
    if into is None:
        into = torch.empty_like(x), x.new_empty((2, batch, held, cells, heads, width))
    out, state = into
    rows = batch * new * cells
    first, middle, last = tiles or _tiles(arch_of(x.device), rows, width, x.element_size())
    blocks = norm_blocks(channels, inner)
    exact = x.dtype != torch.float32 or not torch.backends.cuda.matmul.allow_tf32
    how = {
        "PRECISION": "ieee" if exact else "tf32",
        "UPCAST": interpreting() and x.dtype == torch.bfloat16,
        **FUSED,
    }
    with torch.cuda.device_of(x):
        copied = -(-2 * batch * before * cells // blocks["BM"])
        norm_past_kernel[(-(-rows // blocks["BM"]) + copied,)](
            x, norm, norm_bias, x if past is None else past.contiguous(), normed, pair, state,
            rows, batch, new, before, held, LAYER_NORM_EPS,
            C=channels, E=inner, S=cells, num_warps=4, **blocks, **FUSED,
        )  # fmt: skip
        qkv_kernel[(-(-rows // first.bm) * 3 * -(-inner // first.bn),)](
            normed, qkv, query, pair, state, rows, batch, new, before, held,
            C=channels, E=inner, S=cells, BM=first.bm, BN=first.bn, BK=first.bk,
            num_warps=first.warps, num_stages=first.stages, **how,
        )  # fmt: skip
        window_attention_kernel[(batch * new * -(-cells // middle.bm), heads)](
            query, pair, mixed, batch, new, before, math.log2(math.e) / math.sqrt(width),
            E=inner, D=width, S=cells, WINDOW=window,
            BM=middle.bm, BN=middle.bn, BD=middle.bk,
            num_warps=middle.warps, num_stages=middle.stages, **how,
        )  # fmt: skip
        attention_out_kernel[(-(-rows // last.bm) * -(-channels // last.bn),)](
            mixed, out_weight, out_bias, x, out, rows,
            C=channels, E=inner, BM=last.bm, BN=last.bn, BK=last.bk,
            num_warps=last.warps, num_stages=last.stages, **how,
        )  # fmt: skip
    return out, state


def _tiles(arch: int, rows: int, width: int, itemsize: int) -> Tiles:
    first, middle, last = (
        pick_attention(arch, part, rows=rows, head_width=width, itemsize=itemsize)
        for part in ("qkv", "window", "out")
    )
    return first, middle, last


@functools.cache
def norm_blocks(channels: int, inner: int) -> dict[str, int]:
    """Return sizes of a program of the norm: cells, and powers of two that hold C and E."""
    wide = {"CB": power_of_two(channels), "EB": power_of_two(inner)}
    return {**wide, "BM": max(1, 2048 // max(wide.values()))}


@torch.library.custom_op(
    "longtake::chunk_attention",
    mutates_args=(),
    schema="(Tensor x, Tensor? past, Tensor norm, Tensor norm_bias, Tensor qkv, Tensor out, "
    "Tensor out_bias, int heads, int window) -> (Tensor, Tensor)",
)
def chunk_attention_op(
    x: Tensor,
    past: Tensor | None,
    norm: Tensor,
    norm_bias: Tensor,
    qkv: Tensor,
    out: Tensor,
    out_bias: Tensor,
    heads: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    """Return what `chunk_attention` returns; torch knows it as longtake::chunk_attention."""
    weights = AttentionWeights(norm, norm_bias, qkv, out, out_bias)
    return launch(x, past, weights, heads=heads, window=window)


@chunk_attention_op.register_fake
def _(
    x: Tensor,
    past: Tensor | None,
    norm: Tensor,
    norm_bias: Tensor,
    qkv: Tensor,
    out: Tensor,
    out_bias: Tensor,
    heads: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    batch, new, cells, _ = x.shape
    held = min(new + (0 if past is None else past.shape[2]), window - 1)
    width = qkv.shape[0] // (3 * heads)
    made = torch.empty_like(x, memory_format=torch.contiguous_format)
    return made, x.new_empty((2, batch, held, cells, heads, width))


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: object):  # type: ignore[no-untyped-def]
    *tensors, heads, window = inputs
    ctx.save_for_backward(*tensors)  # type: ignore[arg-type]
    ctx.how = {"heads": heads, "window": window}  # type: ignore[attr-defined]


def _backward(ctx, grad: Tensor, grad_state: Tensor):  # type: ignore[no-untyped-def]
    """Return the gradients: those of the reference, run again; nothing of the layer is kept."""
    with torch.enable_grad():
        inputs = [
            None if x is None else x.detach().requires_grad_(needed)
            for x, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        x, past, norm, norm_bias, qkv, out, out_bias = inputs
        weights = AttentionWeights(norm, norm_bias, qkv, out, out_bias)  # type: ignore[arg-type]
        made = reference(x, past, weights, **ctx.how)  # type: ignore[arg-type]
    wanted = [i for i, one in enumerate(inputs) if one is not None and one.requires_grad]
    trained = [inputs[i] for i in wanted]
    found = torch.autograd.grad(made, trained, (grad, grad_state), allow_unused=True)  # type: ignore[arg-type]
    grads: list[Tensor | None] = [None] * (len(inputs) + 2)
    for i, one in zip(wanted, found, strict=True):
        grads[i] = one
    return tuple(grads)


chunk_attention_op.register_autograd(_backward, setup_context=_keep)
for _device in ("cuda", "cpu"):
    chunk_attention_op.register_autocast(_device, torch.bfloat16)


@register_flop_formula(torch.ops.longtake.chunk_attention)
def _(
    x: Sequence[int], past: Sequence[int] | None, norm: object, bias: object, qkv: Sequence[int],
    out: object, out_bias: object, heads: int, window: int, **_: object,
) -> int:  # fmt: skip
    """Return the operations of a call, of its shapes, for torch's counter."""
    batch, new, cells, channels = x
    inner, before = qkv[0] // 3, past[2] if past else 0
    seen = sum(min(before + t + 1, window) for t in range(new)) * cells
    return batch * cells * inner * (8 * new * channels + 4 * seen)
