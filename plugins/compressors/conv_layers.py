"""The HR branch's convs: causal in time, streaming exactly by a tail of frames a layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import frozen
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.grid import Geometry, Rate, Rounding, Size3
from ...kernels.reference import conv3d_act
from ..specs import Conv

Triple = tuple[int, int, int]
SILU_GAIN = 1.68  # 1 / rms of SiLU(z), z ~ N(0, 1): without norms the signal keeps its size


@frozen(kw_only=True)
class Stage:
    """Shape of one conv: widths, kernel and stride in (time, height, width)."""

    inputs: int
    outputs: int
    kernel: Triple
    stride: Triple


def halvings(rate: Rate, patch: Size3) -> list[Triple]:
    """Give the strides of the strided convs, time first: together (T, 2H, 2W) for a 2×2 patch.

    Raises:
        UserError: rate × patch is no power of two, so that halving cannot reach it.
    """
    time = _log2(rate.time)
    height, width = _log2(rate.height * patch.height), _log2(rate.width * patch.width)
    space = [(1, 1 + (i < height), 1 + (i < width)) for i in range(max(height, width))]
    return [(2, 1, 1)] * time + space


def _log2(cells: int) -> int:
    if cells & (cells - 1):
        raise UserError(f"conv halves: rate × patch must be a power of two, not {cells}")
    return cells.bit_length() - 1


def stages(spec: Conv, geometry: Geometry) -> list[Stage]:
    """Give the convs: conv_in, one a halving; stride 1 to the last width where halvings are few.

    Source: method.md §2 (64→128→256→512, time strides first, then space).
    """
    first = geometry.channels if spec.stem == "latents" else spec.channels[0]
    strides = halvings(spec.rate, geometry.patch)
    last = len(spec.channels) - 1
    widths = [spec.channels[min(i, last)] for i in range(len(strides) + 1)]
    if len(strides) < last:
        widths.append(spec.channels[last])
    steps = [(1, 1, 1), *strides, (1, 1, 1)][: len(widths)]
    return [
        Stage(inputs=a, outputs=b, kernel=_kernel(stride, spec.kernel), stride=stride)
        for a, b, stride in zip([first, *widths[:-1]], widths, steps, strict=True)
    ]


def _kernel(stride: Triple, space: int) -> Triple:
    return 3, space if stride[1] == 2 else 3, space if stride[2] == 2 else 3


class CausalConv(nn.Module):
    """One conv with SiLU: output j of a stride-s conv reads inputs up to s·j, never later ones."""

    def __init__(self, stage: Stage, *, norm: bool, replicate: bool) -> None:
        super().__init__()
        self.stage = stage
        self.replicate = replicate
        self.weight = nn.Parameter(torch.empty(stage.outputs, stage.inputs, *stage.kernel))
        self.bias = nn.Parameter(torch.zeros(stage.outputs))
        self.norm = nn.Parameter(torch.ones(stage.outputs)) if norm else None
        fan_in = self.weight[0].numel()
        nn.init.normal_(self.weight, std=SILU_GAIN / fan_in**0.5)

    def forward(self, x: Tensor, tail: Tensor | None) -> Tensor:
        """Give the outputs of new frames `[B, C, T, H, W]`; tail None: they start the video."""
        before = self._start(x) if tail is None else tail
        return conv3d_act(
            x, self.weight, self.bias, stride=self.stage.stride, tail=before, norm=self.norm
        )

    def tail(self, x: Tensor, tail: Tensor | None) -> Tensor:
        """Give the k − s frames that the next output will read again, as a copy of their own."""
        count = self.stage.kernel[0] - self.stage.stride[0]
        if x.shape[2] < count:
            x = torch.cat([self._start(x) if tail is None else tail, x], dim=2)
        return x[:, :, x.shape[2] - count :].clone(memory_format=torch.contiguous_format)

    def _start(self, x: Tensor) -> Tensor:
        first = x[:, :, :1] if self.replicate else torch.zeros_like(x[:, :, :1])
        return first.expand(-1, -1, self.stage.kernel[0] - 1, -1, -1)


class ConvTrunk(nn.Module):
    """All convs of the HR branch; its state is one tail a layer, of constant size."""

    def __init__(self, spec: Conv, geometry: Geometry) -> None:
        super().__init__()
        replicate = spec.time_padding == "replicate"
        self.layers = nn.ModuleList(
            CausalConv(stage, norm=spec.norm == "rms", replicate=replicate)
            for stage in stages(spec, geometry)
        )

    def forward(self, x: Tensor, past: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Give features `[B, C', T', H', W']` of new frames, and the tails to go on from.

        Args:
            x: `[B, C, T, H, W]`, H and W multiples of the strides' product; T completes blocks.
            past: the tails that the call before gave; empty at the start of a video.
        """
        tails: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, CausalConv)
            name = f"conv.{index}"
            tails[name] = layer.tail(x, past.get(name))
            x = layer(x, past.get(name))
        return x, tails


def token_grid(spec: Conv, geometry: Geometry, size: Size3) -> Size3:
    """Give the grid of memory tokens of a history of `size` latents."""
    rounding: Rounding = "floor" if spec.rounding == "floor" else "ceil"
    return spec.rate.token_grid(size, geometry.patch, rounding)
