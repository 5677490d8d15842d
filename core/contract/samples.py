"""Small random inputs to try plugins on, and the assertions that every check is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor

from ..interfaces.compressor import Fit, Needs
from ..interfaces.spec import CodecSpec
from ..values.grid import Geometry, Size3
from ..values.history import History

SMALL = Geometry(
    channels=3,
    vae_stride=Size3(time=4, height=8, width=8),
    patch=Size3(time=1, height=2, width=2),
    width=8,
    blocks=2,
    fps=8.0,
)


def sample_fit(
    geometry: Geometry = SMALL,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    codec: CodecSpec | None = None,
) -> Fit:
    """Return a fit with a random first projection, of the size that keeps unit variance."""
    random = torch.Generator().manual_seed(seed)
    patch = geometry.patch
    shape = (geometry.width, geometry.channels, patch.time, patch.height, patch.width)
    weight = torch.randn(shape, generator=random, dtype=dtype)
    bias = torch.randn(geometry.width, generator=random, dtype=dtype)
    return Fit(
        geometry=geometry,
        patch_weight=weight / (geometry.channels * patch.cells) ** 0.5,
        patch_bias=bias / 2,
        codec=codec,
    )


def sample_history(
    size: Size3,
    needs: Needs,
    batch: int = 2,
    *,
    geometry: Geometry = SMALL,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    start: int = 0,
) -> History:
    """Return a random history of `size` latents with the LR latents and pixels of `needs`."""
    random = torch.Generator().manual_seed(seed)

    def latents(extent: Size3) -> Tensor:
        shape = (batch, geometry.channels, extent.time, extent.height, extent.width)
        return torch.randn(shape, generator=random, dtype=dtype)

    return History(
        latents=latents(size),
        lr={rate: latents(rate.lr_size(size)) for rate in sorted(needs.rates)},
        start=torch.full((batch,), start, dtype=torch.int64),
        pixels=_pixels(size, geometry, batch, random) if needs.pixels else None,
    )


def _pixels(size: Size3, geometry: Geometry, batch: int, random: torch.Generator) -> Tensor:
    stride = geometry.vae_stride
    rows, columns = size.height * stride.height, size.width * stride.width
    shape = (batch, 3, _frames(size.time, geometry), rows, columns)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)


def _frames(latents: int, geometry: Geometry) -> int:
    return 1 + (latents - 1) * geometry.vae_stride.time if latents else 0


def shortened(history: History, length: Sequence[int], *, seed: int = 1) -> History:
    """Return the history with samples of `length` latents; what lies behind them is large noise."""
    random = torch.Generator().manual_seed(seed)

    def spoil(x: Tensor, real: Sequence[int]) -> Tensor:
        noise = 1e3 * torch.randn(x.shape, generator=random, dtype=x.dtype)
        behind = torch.arange(x.shape[2])[None] >= torch.tensor(real)[:, None]
        return torch.where(behind[:, None, :, None, None], noise, x)

    return attrs.evolve(
        history,
        latents=spoil(history.latents, length),
        lr={r: spoil(x, [r.settled_tokens(n) for n in length]) for r, x in history.lr.items()},
        length=torch.tensor(length, dtype=torch.int64),
    )


def alone(history: History, index: int, geometry: Geometry = SMALL) -> History:
    """Return one sample of a ragged batch as a history of its own length."""
    count = int(history.length[index])
    one = history.select([index])
    pixels = one.pixels
    return attrs.evolve(
        one,
        latents=one.latents[:, :, :count],
        lr={rate: x[:, :, : rate.settled_tokens(count)] for rate, x in one.lr.items()},
        pixels=None if pixels is None else pixels[:, :, : _frames(count, geometry)],
    )


def require(condition: bool, line: str) -> None:
    """Check that `condition` holds.

    Raises:
        AssertionError: it does not; the message is `line`.
    """
    if not condition:
        raise AssertionError(line)


def require_shape(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Check that a tensor has a shape and holds finite values only."""
    require(tuple(x.shape) == shape, f"{what} is {tuple(x.shape)}, must be {shape}")
    require(bool(torch.isfinite(x).all()), f"{what} holds values that are not finite")


def require_close(x: Tensor, y: Tensor, tolerance: float, what: str) -> None:
    """Check that two tensors agree to `tolerance` of the greatest value (0: to the bit)."""
    require(x.shape == y.shape, f"{what}: shapes {tuple(x.shape)} and {tuple(y.shape)} differ")
    if not y.numel():
        return
    gap = float((x.double() - y.double()).abs().max())
    scale = max(1.0, float(y.double().abs().max()))
    require(gap <= tolerance * scale, f"{what}: differs by {gap:.3g}")


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies, to see later whether the originals were changed."""
    return {name: x.clone() for name, x in tensors.items()}


def require_unchanged(now: Mapping[str, Tensor], before: Mapping[str, Tensor], what: str) -> None:
    """Check that tensors still are what `copied` saw."""
    same = now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)
    require(same, f"{what} was changed in place")
