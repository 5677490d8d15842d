"""The memory tokens in one: last 1×1 conv, the DiT's patches of the LR latents, both biases, a sum.

out_tokens.md derives the kernel; `reference.out_tokens` is its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .dispatch import (
    DTYPES,
    Choice,
    arch_of,
    autocasts,
    call_dtype,
    choose,
    interpreting,
    say_once,
    trial_fault,
)
from .reference import out_tokens as reference
from .tiles import FUSED, Tile, pick_tokens


def out_tokens(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    *,
    grid: tuple[int, int],
    kernels: str = "auto",
) -> Tensor:
    """Return the tokens of both branches, differentiable in hidden, weight and bias.

    Args:
        hidden: features of the HR branch, `[B, T, S, C]`, S = rows × columns of the grid.
        weight: of the last conv, `[D, C]`.
        bias: `[D]`.
        lr: LR latents `[B, L, T, h, w]`; a patch that reaches over an edge reads the last row or
            column again, and patches beyond the grid are left out.
        patch_weight: the DiT's first projection, `[D, L, 1, p_h, p_w]`.
        patch_bias: `[D]`.
        grid: rows and columns of tokens.
        kernels: auto, reference or triton (`dispatch.choose`).

    Returns:
        `[B, T, S, D]`.

    Raises:
        KernelError: `kernels` is triton, and it cannot run on this device.
    """
    dtype = call_dtype(hidden)
    if runs(kernels, hidden.device, dtype):
        refused = refusal(hidden, weight, lr, patch_weight, grid, dtype)
        if not refused:
            # every number type of autocast is cast here, once: the LR branch is not trained
            tensors = (hidden, weight, bias, lr, patch_weight, patch_bias)
            cast = [x.to(dtype) for x in tensors]
            with torch.autocast(hidden.device.type, enabled=False):
                out: Tensor = out_tokens_op(*cast, list(grid))
                return out
        say_once(f"kernels: an out_tokens runs by reference ({refused})")
    return by_reference(hidden, weight, bias, lr, patch_weight, patch_bias, grid=grid)


def runs(kernels: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether `out_tokens` runs by Triton on a device, shapes aside; said once.

    Raises:
        KernelError: `kernels` is triton, and it cannot run there.
    """
    choice: Choice = choose("out_tokens", kernels, device, dtype, fault)
    return choice.triton


def by_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    *,
    grid: Sequence[int],
) -> Tensor:
    """Return what `out_tokens` returns, by plain torch."""
    high, wide = patch_weight.shape[3:]
    down, right = -lr.shape[3] % high, -lr.shape[4] % wide
    padded = F.pad(lr, (0, right, 0, down, 0, 0), mode="replicate")
    tokens = F.conv3d(padded, patch_weight, patch_bias, stride=(1, high, wide))
    lr_tokens = rearrange(tokens[..., : grid[0], : grid[1]], "b d t h w -> b t (h w) d")
    return reference(hidden, weight, bias, lr_tokens)


def refusal(
    hidden: Tensor,
    weight: Tensor,
    lr: Tensor,
    patch_weight: Tensor,
    grid: Sequence[int],
    dtype: torch.dtype,
) -> str:
    """Return why the kernel does not take these arguments, in words; "" where it does."""
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} numbers are none of a GPU's tensor units"
    if not autocasts(hidden) and {x.dtype for x in (weight, lr, patch_weight)} != {hidden.dtype}:
        return "number types of features, weights and LR latents differ"
    if patch_weight.shape[2] != 1:
        return f"a patch spans {patch_weight.shape[2]} latent frames"
    if lr.requires_grad or patch_weight.requires_grad:
        return "LR latents or their projection are trained"
    if not hidden.numel():
        return "there are no tokens"
    batch, frames, cells, _ = hidden.shape
    patches = [-(-n // p) for n, p in zip(lr.shape[3:], patch_weight.shape[3:], strict=True)]
    if (lr.shape[0], lr.shape[2]) != (batch, frames) or cells != grid[0] * grid[1]:
        return f"features {tuple(hidden.shape)} and LR latents {tuple(lr.shape)} do not belong"
    if patches[0] < grid[0] or patches[1] < grid[1]:
        return f"LR latents {tuple(lr.shape)} do not fill a grid of {grid[0]}×{grid[1]}"
    if max(batch * frames * cells + 2**12, lr[0].numel()) >= 2**31:
        return f"features {tuple(hidden.shape)} are too many for 32 bits"
    return ""


def fault(device: torch.device, dtype: torch.dtype) -> str:
    """Return what is wrong with the kernel on a device, after a small trial; "" where nothing."""
    if dtype not in DTYPES:
        return ""  # `refusal` says it
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    hidden, weight, bias = random(1, 2, 6, 64), random(128, 64) / 8, random(128)
    lr, patch_weight, patch_bias = random(1, 16, 2, 4, 6), random(128, 16, 1, 2, 2) / 8, bias
    given = (hidden, weight, bias, lr, patch_weight, patch_bias)
    return trial_fault(
        device,
        lambda: launch(*given, grid=(2, 3)),
        lambda: by_reference(*(x.float() for x in given), grid=(2, 3)),
    )


def launch(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    *,
    grid: Sequence[int],
    out: Tensor | None = None,
    first: int = 0,
    tile: Tile | None = None,
) -> Tensor:
    """Return tokens `[B, T · S, D]`, or a buffer of more tokens that these were written into.

    Args:
        hidden: that `refusal` has nothing to say of, as the others; see `out_tokens`.
        weight: see `out_tokens`.
        bias: see `out_tokens`.
        lr: see `out_tokens`.
        patch_weight: see `out_tokens`.
        patch_bias: see `out_tokens`.
        grid: see `out_tokens`.
        out: token buffer `[B, N, D]`, tokens contiguous; None: new memory for these alone.
        first: token of the buffer that the first one is written to.
        tile: of a program; None: by the table of the device.
    """
    from .out_tokens_jit import out_tokens_kernel

    batch, frames, cells, channels = hidden.shape
    width = weight.shape[0]
    hidden, weight = hidden.contiguous(), weight.contiguous()
    lr = lr if lr.stride(4) == 1 or lr.shape[4] == 1 else lr.contiguous()
    patches = patch_weight.reshape(width, -1).contiguous()
    if out is None:
        out = hidden.new_empty((batch, frames * cells, width))
    rows = batch * frames * cells
    if tile is None:
        tile = pick_tokens(arch_of(hidden.device), rows=rows, itemsize=hidden.element_size())
    exact = hidden.dtype != torch.float32 or not torch.backends.cuda.matmul.allow_tf32
    with torch.cuda.device_of(hidden):
        out_tokens_kernel[(-(-rows // tile.bm) * -(-width // tile.bn),)](
            hidden, weight, bias, lr, patches, patch_bias, out,
            rows, frames, *grid, *lr.shape[3:],
            lr.stride(0), lr.stride(1), lr.stride(2), lr.stride(3), out.stride(0), first * width,
            C=channels, D=width, L=lr.shape[1], PH=patch_weight.shape[3], PW=patch_weight.shape[4],
            PRECISION="ieee" if exact else "tf32",
            UPCAST=interpreting() and hidden.dtype == torch.bfloat16,
            BM=tile.bm, BN=tile.bn, BK=tile.bk, num_warps=tile.warps, num_stages=tile.stages,
            **FUSED,
        )  # fmt: skip
    return out


@torch.library.custom_op(
    "longtake::out_tokens",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor bias, Tensor lr, Tensor patch_weight, "
    "Tensor patch_bias, int[] grid) -> Tensor",
)
def out_tokens_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    grid: Sequence[int],
) -> Tensor:
    """Return what `out_tokens` returns, by the kernel; torch knows it as longtake::out_tokens."""
    out = launch(hidden, weight, bias, lr, patch_weight, patch_bias, grid=grid)
    return out.view(*hidden.shape[:3], -1)


@out_tokens_op.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    lr: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    grid: Sequence[int],
) -> Tensor:
    return hidden.new_empty((*hidden.shape[:3], weight.shape[0]))


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[0], inputs[1])  # type: ignore[arg-type]


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    hidden, weight = ctx.saved_tensors
    flat = grad.flatten(0, 2)
    return grad @ weight, flat.T @ hidden.flatten(0, 2), flat.sum(dim=0), *[None] * 4


out_tokens_op.register_autograd(_backward, setup_context=_keep)
for _device in ("cuda", "cpu"):
    out_tokens_op.register_autocast(_device, torch.bfloat16)


@register_flop_formula(torch.ops.longtake.out_tokens)
def _(
    hidden: Sequence[int], weight: Sequence[int], bias: object, lr: object, patch: Sequence[int],
    *_: object, **__: object,
) -> int:  # fmt: skip
    """Return the operations of a call, of its shapes, for torch's counter."""
    return 2 * math.prod(hidden[:-1]) * weight[0] * (weight[1] + math.prod(patch[1:]))
