"""Each conv of the encoder alone, beside what the device's limits allow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...core.fit import pad_to
from ...plugins.compressors.conv_layers import CausalConv, ConvTrunk
from .timing import floor, paced


@torch.no_grad()
def layers(
    trunk: ConvTrunk, latents: Tensor, repeats: int, found: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Give shape, work, floor and time of every conv on what the ones before it give."""
    x, rows = pad_to(latents, *_multiple(trunk)), []
    for layer in trunk.layers:
        assert isinstance(layer, CausalConv)
        with FlopCounterMode(display=False) as counter:
            y = layer(x, None)
        flops = counter.get_total_flops()
        moved = x.nbytes + y.nbytes + layer.weight.nbytes
        rows.append(
            {
                "in": list(x.shape),
                "out": list(y.shape),
                "stride": list(layer.stage.stride),
                "gflop": flops / 1e9,
                "mib": moved / 2**20,
                "floor_seconds": floor(flops, moved, found),
                **_timed(layer, x, repeats),
            }
        )
        x = y
    return rows


def _timed(layer: CausalConv, x: Tensor, repeats: int) -> dict[str, Any]:
    apart = x.contiguous(memory_format=torch.channels_last_3d)
    return {
        "channels_first": paced(lambda: layer(x, None), x.device, repeats),
        "channels_last": paced(lambda: layer(apart, None), x.device, repeats),
    }


def _multiple(trunk: ConvTrunk) -> tuple[int, int]:
    """Give the rows and columns that the strides together divide."""
    high = wide = 1
    for layer in trunk.layers:
        assert isinstance(layer, CausalConv)
        high, wide = high * layer.stage.stride[1], wide * layer.stage.stride[2]
    return high, wide
