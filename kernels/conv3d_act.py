"""Causal 3D conv, bias, RMSNorm and SiLU in one, from one frame buffer into the next.

A frame buffer is `[B, C, F, H, W]`, channels last in memory: the tail (frames that a conv reads
again) and behind it the new frames. `conv3d_act` reads a whole buffer and returns the buffer of the
next conv, its tail in front: streaming needs no concatenation, padding or permutation between
convs. conv3d_act.md derives the kernel; `reference.conv3d_act` is its meaning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
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
    refuse_device,
    say_once,
    trial_fault,
)
from .reference import EPS
from .reference import conv3d_act as reference
from .tiles import FUSED, Tile, pick, power_of_two, shares

Triple = tuple[int, int, int]
MOST_TAPS = 31  # in space: a bit each says whether it lies inside the picture
HALF_SUMS = (0, 86, 89, 120)  # GeForce sums twice as fast in float16; the interpreter tries it
FUSED_NORM = 256  # channels up to which one program holds all of a cell


class Ahead(NamedTuple):
    """What stands in front of the new frames in the buffer that a conv writes.

    Attributes:
        frames: how many; at the start of a video k_t − 1 of the next conv.
        replicate: they are copies of the first new frame, else zeros.
        tail: the frames themselves, `[B, C', frames, H', W']`; None: the video starts.
    """

    frames: int = 0
    replicate: bool = False
    tail: Tensor | None = None


def conv3d_act(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: Triple,
    norm: Tensor | None = None,
    activation: bool = True,
    ahead: Ahead | None = None,
    half_sums: bool = False,
    kernels: str = "auto",
) -> Tensor:
    """Return the buffer of the next conv: what is ahead, then SiLU(RMSNorm(conv3d(frames))).

    Causal in time, padded by one zero a side in space, as `reference.conv3d_act`. Differentiable in
    frames, weight, bias, norm and the tail ahead; the backward pass keeps no activation but the
    frames.

    Args:
        frames: `[B, C, F, H, W]`, tail and new frames, channels last in memory for the kernel.
        weight: `[C', C, k_t, k_h, k_w]`; channels last in memory it is not packed anew.
        bias: `[C']`.
        stride: in time, height and width.
        norm: weight `[C']` of an RMSNorm over channels before the activation; None: no norm.
        activation: whether SiLU follows.
        ahead: what stands in front; None: nothing.
        half_sums: sum in float16, promoted to float32 at every step: up to twice as fast on
            GeForce, for float16 alone (others, and other GPUs, sum in float32).
        kernels: auto, reference or triton (`dispatch.choose`).

    Returns:
        `[B, C', ahead + T', H', W']`, channels last where the kernel made it.

    Raises:
        KernelError: `kernels` is triton, and it cannot run on this device.
    """
    ahead = Ahead() if ahead is None else ahead
    dtype = call_dtype(frames)
    if runs(kernels, frames.device, dtype):
        refused = refusal(frames, weight, stride, dtype)
        if not refused:
            half = half_sums and dtype == torch.float16 and halves(frames.device)
            if dtype == torch.bfloat16 or not autocasts(frames):
                return _call(frames, weight, bias, norm, stride, activation, ahead, half)
            # torch registers one number type of autocast an operation: another is cast here
            frames, weight, bias, norm = _cast(dtype, frames, weight, bias, norm)
            with torch.autocast(frames.device.type, enabled=False):
                return _call(frames, weight, bias, norm, stride, activation, ahead, half)
        say_once(f"kernels: a conv3d_act runs by reference ({refused})")
    return by_reference(
        frames, weight, bias, stride=stride, norm=norm, activation=activation, ahead=ahead
    )


def runs(kernels: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether `conv3d_act` runs by Triton on a device, shapes aside; said once.

    Raises:
        KernelError: `kernels` is triton, and it cannot run there.
    """
    choice: Choice = choose("conv3d_act", kernels, device, dtype, fault)
    return choice.triton


def halves(device: torch.device) -> bool:
    """Return whether sums in float16 are faster on a device, so that they are made if asked for."""
    return arch_of(device) in HALF_SUMS


def check_device(kernels: str, device: torch.device) -> None:
    """Raise KernelError if `kernels` is triton, and it cannot run on a device; tries nothing."""
    refuse_device("conv3d_act", kernels, device)


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(None if x is None else x.to(dtype) for x in tensors)  # type: ignore[return-value]


def _call(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Tensor | None,
    stride: Triple,
    activation: bool,
    ahead: Ahead,
    half_sums: bool,
) -> Tensor:
    tail = None if ahead.tail is None else ahead.tail.to(call_dtype(frames))
    out: Tensor = conv3d_act_op(
        frames, weight, bias, norm, tail, list(stride), activation,
        ahead.frames, ahead.replicate, half_sums,
    )  # fmt: skip
    return out


def by_reference(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: Sequence[int],
    norm: Tensor | None = None,
    activation: bool = True,
    ahead: Ahead | None = None,
) -> Tensor:
    """Return what `conv3d_act` returns, by plain torch."""
    time, height, width = stride
    y = reference(
        frames, weight, bias, stride=(time, height, width), tail=frames[:, :, :0], norm=norm,
        activation=activation,
    )  # fmt: skip
    if ahead is None or not ahead.frames:
        return y
    first = y[:, :, :1] if ahead.replicate else torch.zeros_like(y[:, :, :1])
    tail = first.expand(-1, -1, ahead.frames, -1, -1) if ahead.tail is None else ahead.tail
    return torch.cat([tail.to(y.dtype), y], dim=2)


def out_size(frames: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> Triple:
    """Return frames, rows and columns of a conv's output, of frames (time, height, width)."""
    time, height, width = (
        (n + 2 * pad - k) // s + 1
        for n, pad, k, s in zip(frames, (0, 1, 1), kernel, stride, strict=True)
    )
    return time, height, width


def channels_last(x: Tensor) -> bool:
    """Return whether channels lie side by side, then columns, rows and frames, without gaps.

    Samples may stand apart: a buffer's last frames are fine where it holds one sample or more.
    """
    _, channels, frames, height, width = x.shape
    wanted = (1, height * width * channels, width * channels, channels)
    sizes = (channels, frames, height, width)
    strides = zip(sizes, x.stride()[1:], wanted, strict=True)
    return all(size == 1 or found == want for size, found, want in strides)


def refusal(frames: Tensor, weight: Tensor, stride: Sequence[int], dtype: torch.dtype) -> str:
    """Return why the kernel does not take these arguments, in words; "" where it does."""
    kernel = tuple(weight.shape[2:])
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} numbers are none of a GPU's tensor units"
    if frames.dtype != weight.dtype and not autocasts(frames):
        return f"frames are {frames.dtype}, weights {weight.dtype}"
    if not channels_last(frames):
        return f"frames {tuple(frames.shape)} are not channels last"
    if kernel[1] * kernel[2] > MOST_TAPS:
        return f"a kernel of {kernel[1]}×{kernel[2]} has more than {MOST_TAPS} taps"
    size = out_size(frames.shape[2:], kernel, stride)
    if min(size) < 1 or not frames.shape[0]:
        return f"nothing comes of frames {tuple(frames.shape)}"
    # offsets within a conv's reach, and numbers of cells, are counted in 32 bits
    reach = (kernel[0] + 1) * frames[0, :, 0].numel()
    if max(reach, frames.shape[0] * size[0] * size[1] * size[2] + 2**12) >= 2**31:
        return f"frames {tuple(frames.shape)} are too large for 32 bits"
    return ""


def fault(device: torch.device, dtype: torch.dtype) -> str:
    """Return what is wrong with the kernel on a device, after a small trial; "" where nothing."""
    if dtype not in DTYPES:
        return ""  # `refusal` says it
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 32, 4, 6, 10, generator=generator).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    weight = (torch.randn(64, 32, 3, 3, 3, generator=generator) / 30).to(device, dtype)
    bias = torch.randn(64, generator=generator).to(device, dtype)
    return trial_fault(
        device,
        lambda: launch(x, weight, bias, stride=(1, 2, 2)),
        lambda: by_reference(x.float(), weight.float(), bias.float(), stride=(1, 2, 2)),
    )


def launch(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: Sequence[int],
    norm: Tensor | None = None,
    activation: bool = True,
    ahead: int = 0,
    half_sums: bool = False,
    out: Tensor | None = None,
    tile: Tile | None = None,
    split: int | None = None,
) -> Tensor:
    """Return `[B, C', ahead + T', H', W']` whose frames behind `ahead` the kernel wrote.

    Args:
        frames: that `refusal` has nothing to say of, as weight and stride.
        weight: see `conv3d_act`.
        bias: see `conv3d_act`.
        stride: see `conv3d_act`.
        norm: see `conv3d_act`.
        activation: see `conv3d_act`.
        ahead: frames in front that are left as they are.
        half_sums: see `conv3d_act`.
        out: where to write, channels last; None: new memory.
        tile: of a program; None: by the table of the device.
        split: shares of the sums, added by a second kernel; None: as many as keep it busy.
    """
    from .conv3d_act_jit import conv3d_act_kernel, conv3d_finish_kernel

    outputs, channels, *kernel = weight.shape
    batch, size = frames.shape[0], out_size(frames.shape[2:], kernel, stride)
    packed = weight.contiguous(memory_format=torch.channels_last_3d)
    if out is None:
        out = torch.empty(
            (batch, outputs, ahead + size[0], *size[1:]),
            dtype=frames.dtype, device=frames.device, memory_format=torch.channels_last_3d,
        )  # fmt: skip
    cells = size[0] * size[1] * size[2]
    rows = batch * cells
    fused = norm is None or outputs <= FUSED_NORM
    if tile is None:
        tile = pick(
            arch_of(frames.device), channels=channels, outputs=outputs, rows=rows,
            norm=norm is not None and fused, itemsize=frames.element_size(),
        )  # fmt: skip
    merge = merges(channels, kernel[2], tile.bk)
    grid = -(-rows // tile.bm) * -(-outputs // tile.bn)
    if split is None:
        steps = step_count(channels, kernel, tile.bk)
        split = shares(grid, steps, _processors(frames.device))
    partial = split > 1 or not fused
    sums = frames.new_empty((split, rows, outputs), dtype=torch.float32) if partial else out
    place = (out.stride(0), ahead * size[1] * size[2] * outputs)
    exact = frames.dtype != torch.float32 or not torch.backends.cudnn.allow_tf32
    with torch.cuda.device_of(frames):
        conv3d_act_kernel[(grid, split)](
            frames, packed, bias, bias if norm is None else norm, sums,
            rows, *size, *frames.shape[3:], frames.stride(0), _frame_stride(frames), *place, EPS,
            C=channels, N=outputs, KT=kernel[0], KH=kernel[1], KW=kernel[2],
            ST=stride[0], SH=stride[1], SW=stride[2],
            NORM=norm is not None and fused, ACTIVATION=activation, HALF_SUMS=half_sums,
            MERGE=merge, SPLIT=split, PARTIAL=partial,
            PRECISION="ieee" if exact else "tf32",
            UPCAST=interpreting() and frames.dtype == torch.bfloat16,
            BM=tile.bm, BN=tile.bn, BK=tile.bk, num_warps=tile.warps, num_stages=tile.stages,
            **FUSED,
        )  # fmt: skip
        if partial:
            wide = power_of_two(outputs)
            high = max(1, 2048 // wide)
            conv3d_finish_kernel[(-(-rows // high),)](
                sums, bias, bias if norm is None else norm, out, rows, cells, *place, EPS,
                N=outputs, SPLIT=split, NORM=norm is not None, ACTIVATION=activation,
                BM=high, BN=wide, num_warps=4, **FUSED,
            )  # fmt: skip
    return out


def merges(channels: int, columns: int, bk: int) -> bool:
    """Return whether a step of K runs over a row of taps: where fewer of its products are zero."""
    return -(-columns * channels // bk) < columns * -(-channels // bk)


def step_count(channels: int, kernel: Sequence[int], bk: int) -> int:
    """Return the steps of bk products that a conv's sums take."""
    taps, length = kernel[0] * kernel[1], kernel[2] * channels
    if merges(channels, kernel[2], bk):
        return taps * -(-length // bk)
    return taps * kernel[2] * -(-channels // bk)


def _frame_stride(frames: Tensor) -> int:
    """Return numbers from frame to frame, also where there is one and torch says anything."""
    return frames.shape[1] * frames.shape[3] * frames.shape[4]


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@torch.library.custom_op(
    "longtake::conv3d_act",
    mutates_args=(),
    schema="(Tensor frames, Tensor weight, Tensor bias, Tensor? norm, Tensor? tail, int[] stride, "
    "bool activation, int ahead, bool replicate, bool half_sums) -> Tensor",
)
def conv3d_act_op(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Tensor | None,
    tail: Tensor | None,
    stride: Sequence[int],
    activation: bool,
    ahead: int,
    replicate: bool,
    half_sums: bool,
) -> Tensor:
    """Return what `conv3d_act` returns, by the kernel; torch knows it as longtake::conv3d_act."""
    out = launch(
        frames, weight, bias, stride=stride, norm=norm, activation=activation,
        ahead=ahead, half_sums=half_sums,
    )  # fmt: skip
    if ahead:
        front = out[:, :, :ahead]
        if tail is not None:
            front.copy_(tail)
        elif replicate:
            front.copy_(out[:, :, ahead : ahead + 1].expand_as(front))
        else:
            front.zero_()
    return out


@conv3d_act_op.register_fake
def _(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Tensor | None,
    tail: Tensor | None,
    stride: Sequence[int],
    activation: bool,
    ahead: int,
    replicate: bool,
    half_sums: bool,
) -> Tensor:
    time, height, width = out_size(frames.shape[2:], weight.shape[2:], stride)
    shape = (frames.shape[0], weight.shape[0], ahead + time, height, width)
    return torch.empty(
        shape, dtype=frames.dtype, device=frames.device, memory_format=torch.channels_last_3d
    )


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor):  # type: ignore[no-untyped-def]
    frames, weight, bias, norm, tail, stride, activation, ahead, replicate, half_sums = inputs
    ctx.save_for_backward(frames, weight, bias, norm)  # type: ignore[arg-type]
    ctx.how = (stride, activation, ahead, replicate, half_sums, tail is not None)  # type: ignore[attr-defined]


def _backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
    """Return the gradients; what comes before SiLU and norm is computed again, not kept."""
    frames, weight, bias, norm = ctx.saved_tensors
    stride, activation, ahead, replicate, half_sums, has_tail = ctx.how
    grad_tail = grad[:, :, :ahead] if has_tail else None
    new = grad[:, :, ahead:]
    if ahead and replicate and not has_tail:
        first = new[:, :, :1] + grad[:, :, :ahead].sum(dim=2, keepdim=True)
        new = torch.cat([first, new[:, :, 1:]], dim=2)
    grad_norm = None
    if activation or norm is not None:
        z = conv3d_act_op(
            frames, weight, bias, None, None, stride, False, 0, False, half_sums
        ).float()
        new, grad_norm = _before_activation(new.float(), z, norm, activation)
        new = new.to(frames.dtype)
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
    grad_frames, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        new.contiguous(memory_format=torch.channels_last_3d), frames, weight, [weight.shape[0]],
        list(stride), [0, 1, 1], [1, 1, 1], False, [0, 0, 0], 1, wanted,
    )  # fmt: skip
    if grad_norm is not None:
        grad_norm = grad_norm.to(norm.dtype)
    return grad_frames, grad_weight, grad_bias, grad_norm, grad_tail, *[None] * 5


def _before_activation(
    grad: Tensor, z: Tensor, norm: Tensor | None, activation: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of the conv's output z, and that of the norm's weight, in float32."""
    if norm is None:
        return _through_silu(grad, z), None
    scale = torch.rsqrt(z.square().mean(dim=1, keepdim=True) + EPS)
    unit, weight = z * scale, norm.float()[:, None, None, None]
    grad = _through_silu(grad, unit * weight) if activation else grad
    grad_norm = (grad * unit).sum(dim=(0, 2, 3, 4))
    grad = grad * weight
    return scale * (grad - unit * (grad * unit).mean(dim=1, keepdim=True)), grad_norm


def _through_silu(grad: Tensor, z: Tensor) -> Tensor:
    gate = z.sigmoid()
    return grad * gate * (1 + z * (1 - gate))


conv3d_act_op.register_autograd(_backward, setup_context=_keep)
for _device in ("cuda", "cpu"):
    conv3d_act_op.register_autocast(_device, torch.bfloat16)


@register_flop_formula(torch.ops.longtake.conv3d_act)
def _(
    frames: Sequence[int], weight: Sequence[int], bias: object, norm: object, tail: object,
    stride: object, activation: object, ahead: int, *_: object, out_shape: Sequence[int],
    **__: object,
) -> int:  # fmt: skip
    """Return the operations of a call, of its shapes, for torch's counter."""
    batch, outputs, time, height, width = out_shape
    return 2 * batch * (time - ahead) * height * width * outputs * math.prod(weight[1:])
