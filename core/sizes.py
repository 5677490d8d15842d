"""Real sizes without real memory: models built on the meta device, and their parameters counted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import nn

from .compressor import MemoryEncoder
from .fit import Fit
from .grid import Geometry
from .registry import build, registry
from .spec import BackboneSpec, CompressorSpec


@frozen(kw_only=True)
class Sizes:
    """What a backbone and encoders on it hold.

    Attributes:
        geometry: of the backbone, as built.
        parameters: of the backbone.
        encoders: parameters of each encoder that was asked for.
    """

    geometry: Geometry
    parameters: int
    encoders: tuple[int, ...]


def sizes(spec: BackboneSpec, compressors: Sequence[CompressorSpec] = ()) -> Sizes:
    """Give the sizes of a backbone and of encoders on it, through their real classes.

    Nothing is read, and no memory is taken but for the modules themselves: Wan 14B takes seconds.

    Args:
        spec: whose weights are random; weights that it named would be read.
        compressors: each counted as an encoder of its own.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        backbone = registry().load(spec).load(spec)
        fit = _of_zeros(backbone.fit())
        encoders = [MemoryEncoder([build(each, fit)]) for each in compressors]
    return Sizes(
        geometry=backbone.geometry,
        parameters=count(backbone),
        encoders=tuple(count(encoder) for encoder in encoders),
    )


def _of_zeros(fit: Fit) -> Fit:
    """Give the fit with values, which encoders hash."""
    weight, bias = (torch.zeros(x.shape, device="cpu") for x in (fit.patch_weight, fit.patch_bias))
    return Fit(geometry=fit.geometry, patch_weight=weight, patch_bias=bias)


def count(module: nn.Module) -> int:
    """Give the number of parameters of a module; what two places share counts once."""
    return sum(parameter.numel() for parameter in module.parameters())
