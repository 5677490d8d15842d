"""Small random inputs to try plugins on, and the assertions that every check is made of."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import attrs
import torch
from torch import Tensor

from ..errors import LongtakeError, plugin_label
from ..interfaces.compressor import Fit, Needs
from ..interfaces.spec import CodecSpec
from ..values.grid import Geometry, Size3
from ..values.history import History

P = ParamSpec("P")
R = TypeVar("R")
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


def names_plugin(check: Callable[P, R]) -> Callable[P, R]:
    """Return a check that says of what plugin, and of what file, its line is.

    The plugin, or its class, is the check's first argument. What a plugin's own code raises becomes
    an AssertionError, too: one line with the class of the exception and its place.
    """

    @functools.wraps(check)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        plugin = args[0] if args else next(iter(kwargs.values()))
        label = plugin_label(plugin)
        try:
            return check(*args, **kwargs)
        except AssertionError as error:
            line = first_line(error) or f"an assertion failed{_place(error, plugin)}"
            if line.startswith(label):
                raise
            raise AssertionError(f"{label}: {line}") from error
        except LongtakeError:
            raise
        except Exception as error:
            line = f"{type(error).__name__}: {first_line(error) or 'no message'}"
            raise AssertionError(f"{label}: {line}{_place(error, plugin)}") from error

    return named


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, "" where it says nothing."""
    return (str(error).strip().splitlines() or [""])[0]


def _place(error: BaseException, plugin: object) -> str:
    """Return where in the plugin's own file an exception came up, in brackets; "": nowhere."""
    cls = plugin if isinstance(plugin, type) else type(plugin)
    try:
        own = inspect.getsourcefile(cls)
    except TypeError:  # a class of no file
        return ""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_code.co_filename == own:
            return f" (line {line}, in {frame.f_code.co_name})"
    return ""


def require(condition: bool, line: str) -> None:
    """Check that `condition` holds.

    Raises:
        AssertionError: it does not; the message is `line`.
    """
    if not condition:
        raise AssertionError(line)


def require_type(x: object, expected: type, what: str) -> None:
    """Check that something is of a class."""
    line = f"{what} is of type {type(x).__name__}, must be of type {expected.__name__}"
    require(isinstance(x, expected), line)


def require_shape(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Check that a tensor has a shape and holds finite values only."""
    require(isinstance(x, Tensor), f"{what} is a {type(x).__name__}, must be a tensor {shape}")
    require(tuple(x.shape) == shape, f"{what} is {tuple(x.shape)}, must be {shape}")
    require(bool(torch.isfinite(x).all()), f"{what} holds values that are not finite")


def require_close(x: Tensor, y: Tensor, tolerance: float, what: str) -> None:
    """Check that two tensors agree to `tolerance` of the greatest value (0: to the bit)."""
    for each in (x, y):
        require(isinstance(each, Tensor), f"{what}: it is a {type(each).__name__}, not a tensor")
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
