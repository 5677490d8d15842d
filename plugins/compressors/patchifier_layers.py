"""Parts of the Large Patchifier: projections as FramePack begins them, and ages of latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from einops import rearrange
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.compressor import Fit, pad_to
from ...core.tools.files import TensorFile
from ...core.tools.hub import locate
from ...core.values.grid import Rate, Size3, ceil_div
from ...core.values.memory import Part, box_places, spans
from .frames import repeat_ends
from .specs import Patchifier

PREFIX = "clean_x_embedder."  # of FramePack's projections, in its transformer's files
NAMES = {"1": "proj", "2": "proj_2x", "4": "proj_4x"}  # of them, by rate


class Projection(nn.Module):
    """Latents in blocks of rate × patch cells to tokens; kernel and stride are the block."""

    def __init__(self, rate: Rate, fit: Fit) -> None:
        super().__init__()
        self.rate = rate
        self.weight = nn.Parameter(spread(fit.patch_weight.detach(), rate))
        self.bias = nn.Parameter(fit.patch_bias.detach().clone())

    def forward(self, latents: Tensor) -> Tensor:
        """Return tokens `[B, T', S, D]` of latents `[B, C, T, H, W]`, T ≥ 1.

        Incomplete blocks at the end, the bottom and the right are filled by repeating the last
        frame, row and column, as FramePack does.
        """
        kernel = tuple(self.weight.shape[2:])
        latents = latents.to(self.weight.dtype)
        blocks = repeat_ends(latents, after=-latents.shape[2] % kernel[0])
        padded = pad_to(blocks, kernel[1], kernel[2])
        tokens = F.conv3d(padded, self.weight, self.bias, stride=kernel)
        return rearrange(tokens, "b d t h w -> b t (h w) d")


def spread(weight: Tensor, rate: Rate) -> Tensor:
    """Return a patch embedding `[D, C, t, h, w]` repeated over a rate's cells, over their number.

    It then gives the DiT's own token of the mean over each group of rate's cells.

    Source: FramePack's code, `initialize_weight_from_another_conv3d`.
    """
    for axis, times in ((2, rate.time), (3, rate.height), (4, rate.width)):
        weight = weight.repeat_interleave(times, dim=axis)
    return weight / (rate.time * rate.height * rate.width)


@frozen(kw_only=True)
class AgeGroup:
    """Latents first … last − 1 of the window, in blocks of `rate`; `mean`: all as one frame."""

    rate: int
    first: int
    last: int
    mean: bool = False

    @property
    def frames(self) -> int:
        """Memory frames."""
        return 1 if self.mean else ceil_div(self.last - self.first, self.rate)

    def after(self, first: int) -> AgeGroup:
        """Return the group without latents before `first` (a mean stays whole)."""
        return self if self.mean else attrs.evolve(self, first=max(self.first, first))

    def grid(self, patch: Size3, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of tokens in a history of so many latent rows and columns."""
        rows, columns = ceil_div(height, patch.height), ceil_div(width, patch.width)
        return ceil_div(rows, self.rate), ceil_div(columns, self.rate)

    def part(
        self,
        name: str,
        tokens: Tensor,
        cells: Sequence[int],
        patch: Size3,
        start: Tensor,
        *,
        cut: bool = True,
    ) -> Part:
        """Return tokens `[B, T', S, D]` of the group with their places.

        Args:
            name: of the part.
            tokens: of the group; none: a part without tokens.
            cells: latent rows and columns.
            patch: of the DiT.
            start: absolute latent frame of the window, `[B]`.
            cut: whether incomplete cells at the right and the bottom end with the frame.
        """
        if self.mean:
            t0, t1 = torch.zeros(1).double(), torch.full((1,), self.last - 1.0).double()
        else:
            times = spans(self.last - self.first, self.rate, tokens.shape[1])
            t0, t1 = (x + self.first for x in times)
        rows, columns = self.grid(patch, cells[0], cells[1])
        high, wide = ceil_div(cells[0], patch.height), ceil_div(cells[1], patch.width)
        if not cut:
            high, wide = rows * self.rate, columns * self.rate
        positions, extents = box_places(
            (t0[None], t1[None]),
            spans(high, self.rate, rows),
            spans(wide, self.rate, columns),
            start,
        )
        flat = rearrange(tokens, "b t s d -> b (t s) d")
        valid = torch.ones(flat.shape[:2], dtype=torch.bool)
        return Part(name=name, tokens=flat, positions=positions, extents=extents, valid=valid)


def ages(spec: Patchifier, count: int) -> list[AgeGroup]:
    """Return the groups of a history of `count` latents, oldest first; empty ones are left out."""
    groups: list[AgeGroup] = []
    last = count
    for rate, latents in spec.schedule:
        whole = spec.tail == "rest" and rate == spec.schedule[-1][0]
        first = 0 if whole else max(0, last - latents)
        groups.append(AgeGroup(rate=rate, first=first, last=last))
        last = first
    if spec.tail == "mean" and last:
        groups.append(AgeGroup(rate=spec.schedule[-1][0], first=0, last=last, mean=True))
    return [group for group in reversed(groups) if group.last > group.first]


def oldest_read(spec: Patchifier, count: int) -> int:
    """Return the first latent that is still read after `count` were seen.

    Under `tail: rest` those before it stand in complete blocks of the last rate, which are final;
    else they are too old for the schedule.
    """
    if spec.tail != "rest":
        return max(0, count - sum(latents for _, latents in spec.schedule))
    newer = sum(latents for _, latents in spec.schedule[:-1])
    rate = spec.schedule[-1][0]
    return max(0, count - newer) // rate * rate


def framepack_weights(text: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Load the projections that a FramePack transformer holds, under the names of `like`.

    Args:
        text: what `framepack` reads: a safetensors file (with ComfyUI's prefixes, too), a folder
            (or one with transformer/ in it), a hub id or a file on the hub.
        like: names (`projections.<rate>.weight`), shapes and dtypes that are expected.

    Raises:
        UserError: there is no such file, none of them has FramePack's projections, or they are of
            another width or number of channels.
    """
    names = {_framepack_key(name): name for name in like}
    weights: dict[str, Tensor] = {}
    for path in _weight_files(text):
        file = _opened(path)
        for key in file.entries:
            bare = key[max(0, key.find(PREFIX)) :]  # whatever programs put before it
            if bare in names:
                weights[names[bare]] = file.read(key)
    for key, name in names.items():
        if name not in weights:
            raise UserError(f"weights {text} are no FramePack transformer: {key} is missing")
        shape, expected = weights[name].shape, like[name].shape
        if shape != expected:
            raise UserError(
                f"weights {text} do not fit: {key} is {list(shape)}, this DiT asks for "
                f"{list(expected)}"
            )
    return {name: weights[name].to(like[name].dtype) for name in like}


def _opened(path: Path) -> TensorFile:
    from safetensors import SafetensorError

    try:
        return TensorFile(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file that can be read: {error}") from None


def _framepack_key(name: str) -> str:
    _, rate, end = name.split(".")
    return f"{PREFIX}{NAMES[rate]}.{end}"


def _weight_files(text: str) -> list[Path]:
    expected = "a FramePack transformer: a safetensors file, a diffusers folder or a hub id"
    patterns = ("transformer/*.safetensors", "*.safetensors")
    path = locate(text, patterns, expected=expected, suffixes=(".safetensors",))
    if path.is_file():
        return [path]
    for folder in (path, path / "transformer"):
        if files := sorted(folder.glob("*.safetensors")):
            return files
    raise UserError(f"weights {text} hold no safetensors file; name {expected}")
