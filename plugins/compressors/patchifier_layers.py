"""One strided projection, begun as FramePack begins it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.compressor import Fit, pad_to
from ...core.tools.files import open_tensors
from ...core.values.grid import Rate, Size3, ceil_div
from ...core.values.memory import Part, spans
from .specs import Patchifier


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
        missing = ceil_div(latents.shape[2], kernel[0]) * kernel[0] - latents.shape[2]
        if missing:
            last = latents[:, :, -1:].expand(-1, -1, missing, -1, -1)
            latents = torch.cat([latents, last], dim=2)
        padded = pad_to(latents, kernel[1], kernel[2])
        tokens = F.conv3d(padded, self.weight, self.bias, stride=kernel)
        return tokens.flatten(3).permute(0, 2, 3, 1)


def spread(weight: Tensor, rate: Rate) -> Tensor:
    """Return a patch embedding `[D, C, t, h, w]` repeated over rate's cells, divided by their number.

    It then gives the DiT's own token of the mean over each group of rate's cells.

    Source: FramePack's code, `initialize_weight_from_another_conv3d`.
    """
    for axis, times in ((2, rate.time), (3, rate.height), (4, rate.width)):
        weight = weight.repeat_interleave(times, dim=axis)
    return weight / (rate.time * rate.height * rate.width)


# ⟦plugins/compressors/patchifier_groups.py⟧ Which latents a schedule of ages gives to which rate, and where their tokens sit.


@frozen(kw_only=True)
class Group:
    """Latents first … last − 1 of the window, in blocks of `rate`; `mean`: all as one frame."""

    rate: int
    first: int
    last: int
    mean: bool = False

    @property
    def frames(self) -> int:
        """Memory frames."""
        return 1 if self.mean else ceil_div(self.last - self.first, self.rate)

    def after(self, first: int) -> Group:
        """Return the group without latents before `first` (a mean stays whole)."""
        return self if self.mean else attrs.evolve(self, first=max(self.first, first))

    def tokens(self, patch: Size3, size: Size3) -> int:
        """Return the tokens of it in a history of `size`."""
        rows, columns = ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)
        return self.frames * ceil_div(rows, self.rate) * ceil_div(columns, self.rate)


def ages(spec: Patchifier, count: int) -> list[Group]:
    """Return the groups of a history of `count` latents, oldest first; empty ones are left out."""
    groups: list[Group] = []
    last = count
    for rate, latents in spec.schedule:
        whole = spec.tail == "rest" and rate == spec.schedule[-1][0]
        first = 0 if whole else max(0, last - latents)
        groups.append(Group(rate=rate, first=first, last=last))
        last = first
    if spec.tail == "mean" and last:
        groups.append(Group(rate=spec.schedule[-1][0], first=0, last=last, mean=True))
    return [group for group in reversed(groups) if group.last > group.first]


def keeps(spec: Patchifier, count: int) -> int:
    """Return the first latent that is still read after `count` were seen.

    Under `tail: rest` those before it stand in complete blocks of the last rate, which are final;
    else they are too old for the schedule.
    """
    if spec.tail != "rest":
        return max(0, count - sum(latents for _, latents in spec.schedule))
    newer = sum(latents for _, latents in spec.schedule[:-1])
    rate = spec.schedule[-1][0]
    return max(0, count - newer) // rate * rate


def place(
    name: str, tokens: Tensor, group: Group, cells: Sequence[int], patch: Size3, start: Tensor
) -> Part:
    """Return tokens `[B, T', S, D]` of a group with their places.

    Args:
        name: of the part.
        tokens: of the group.
        group: which latents.
        cells: latent rows and columns.
        patch: of the DiT.
        start: absolute latent frame of the window, `[B]`.
    """
    batch, frames = tokens.shape[:2]
    if group.mean:
        t0, t1 = torch.zeros(1).double(), torch.full((1,), group.last - 1.0).double()
    else:
        t0, t1 = (x + group.first for x in spans(group.last - group.first, group.rate, frames))
    rows, columns = ceil_div(cells[0], patch.height), ceil_div(cells[1], patch.width)
    h0, h1 = spans(rows, group.rate, ceil_div(rows, group.rate))
    w0, w1 = spans(columns, group.rate, ceil_div(columns, group.rate))

    def spread(t: Tensor, h: Tensor, w: Tensor) -> Tensor:
        grid = torch.meshgrid(t, h, w, indexing="ij")
        return torch.stack([x.flatten() for x in grid], dim=-1).expand(batch, -1, 3)

    origin = torch.zeros(batch, 1, 3, dtype=torch.float64)
    origin[:, 0, 0] = start.cpu().double()
    return Part(
        name=name,
        tokens=tokens.flatten(1, 2),
        positions=spread((t0 + t1) / 2, (h0 + h1) / 2, (w0 + w1) / 2) + origin,
        extents=spread(t1 - t0 + 1, h1 - h0 + 1, w1 - w0 + 1).clone(),
        valid=torch.ones(batch, tokens.shape[1] * tokens.shape[2], dtype=torch.bool),
    )


def pad_part(part: Part, total: int) -> Part:
    """Return a part of one sample with padding behind it, so that it has `total` tokens."""
    count = part.tokens.shape[1]
    if count == total:
        return part

    def pad(x: Tensor, value: float) -> Tensor:
        return torch.cat([x, x.new_full((1, total - count, x.shape[2]), value)], dim=1)

    return Part(
        name=part.name,
        tokens=pad(part.tokens, 0.0),
        positions=pad(part.positions, 0.0),
        extents=pad(part.extents, 1.0),
        valid=torch.cat([part.valid, part.valid.new_zeros(1, total - count)], dim=1),
    )


# ⟦plugins/compressors/patchifier_weights.py⟧ FramePack's projections out of its transformer's safetensors files.


PREFIX = "clean_x_embedder."
NAMES = {"1": "proj", "2": "proj_2x", "4": "proj_4x"}


def framepack_weights(text: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the projections that a FramePack transformer holds, under the names of `like`.

    Args:
        text: a safetensors file, or a diffusers folder (also one with transformer/ in it).
        like: names (`projections.<rate>.weight`), shapes and dtypes that are wanted.

    Raises:
        UserError: there is no such file, none of them has FramePack's projections, or they are of
            another width or number of channels.
    """
    wanted = {_key(name): name for name in like}
    found: dict[str, Tensor] = {}
    for path in _files(text):
        with open_tensors(path) as file:
            present = wanted.keys() & set(file.keys())
            found |= {wanted[key]: file.get_tensor(key) for key in present}
    for key, name in wanted.items():
        _check(text, key, found.get(name), like[name])
    return {name: found[name].to(like[name].dtype) for name in like}


def _key(name: str) -> str:
    _, rate, end = name.split(".")
    return f"{PREFIX}{NAMES[rate]}.{end}"


def _files(text: str) -> list[Path]:
    place = Path(text)
    if place.is_file():
        return [place]
    for folder in (place, place / "transformer"):
        if files := sorted(folder.glob("*.safetensors")):
            return files
    raise UserError(
        f"weights {text}: there is no such safetensors file, nor a folder that holds some; name a "
        "FramePack transformer"
    )


def _check(text: str, key: str, found: Tensor | None, wanted: Tensor) -> None:
    if found is None:
        raise UserError(f"weights {text} are no FramePack transformer: {key} is missing")
    if found.shape != wanted.shape:
        raise UserError(
            f"weights {text} do not fit: {key} is {list(found.shape)}, this DiT asks for "
            f"{list(wanted.shape)}"
        )
