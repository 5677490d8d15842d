"""The guide `linear`: the best that a linear code of as many numbers as the memory's could hold.

Latents are cut into the cells that the memory's tokens stand for, and each cell is kept as its
strongest principal components, as many as the memory has numbers for a cell. Errors are counted in
pixels: exactly where the codec is linear, else by how far each channel reaches into pixels. Fitted
on a training store and measured on clips that it has not seen, it says what a memory of that size
could hold if it knew every cell by itself and nothing of its neighbours; a network may do better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import define, field, frozen
from einops import rearrange
from torch import Tensor

from ..data.store import Record, Store, check_fits
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.codec import Codec, decode_whole
from ..interfaces.compressor import pad_to
from ..interfaces.retriever import LatentFrames, Retriever, Scene
from ..interfaces.spec import CodecSpec, RetrieverSpec
from ..registry import registry
from ..tools.files import open_tensors, read_header, write_tensors
from ..tools.progress import Report
from ..values.draws import step_generator
from ..values.grid import Geometry, Rate, Size3, ceil_div
from ..values.shapes import Frames, Latents
from .result import CodeInfo

NAME = "linear"  # of the guide among retrievers
FILE = "linear.safetensors"  # beside a run
KIND = "linear code"  # what the file says it is
TENSORS = ("root", "mean", "components", "first_mean", "first_components")
MOST = 4096  # numbers of a cell: principal components of more take minutes
MOST_CELLS = 200_000  # that are counted: more of a store move nothing but the clock
CHUNK = 64  # latents read at a time
RATE = Rate(height=2, width=2, time=2)  # of cells where no compressor names a rate
PROBED = Size3(time=4, height=16, width=16)  # of the latents that the codec's reach is measured on
STEP = 0.25  # how far they are moved, in standard deviations
MARK = 12  # hex digits of a file's fingerprint by which it is known again
LINEAR = 1e-3  # of a response, that the same step elsewhere may differ by in a linear codec


@frozen(eq=False, kw_only=True)
class LinearCode:
    """Principal components of cells of latents.

    Attributes:
        cell: latents of a cell: time, height, width.
        root: `[C, C]` by which channels are mixed so that errors count as in pixels.
        mean: of whole cells, `[d]`; `first_mean` of cells one latent long, for the video's first
            latent, which stands for one frame (fitted on all others, of which there are more).
        components: `[d, k]`, orthonormal, strongest first; `first_components` the same of those.
        header: what its file says.
    """

    cell: Size3
    root: Tensor
    mean: Tensor
    components: Tensor
    first_mean: Tensor
    first_components: Tensor
    header: dict[str, Any]

    @property
    def digest(self) -> str:
        """16 hex digits of the code."""
        tensors = (getattr(self, name) for name in TENSORS)
        whole = hashlib.sha256(b"".join(x.numpy(force=True).tobytes() for x in tensors))
        return whole.hexdigest()[:16]

    def info(self, records: Sequence[Record]) -> CodeInfo:
        """Return what it was fitted on, of which some clips that are measured may be part."""
        marks = self.header.get("origins")
        known = None if marks is None else set(marks)
        return CodeInfo(
            store=self.header["store"],
            cells=self.header["cells"],
            numbers=self.components.shape[1],
            seen=None if known is None else sum(bool(known & _marks([r])) for r in records),
        )

    def cells(self, size: Size3) -> int:
        """Return how many cells latents of a size have."""
        return count_cells(size, self.cell)

    def code(self, latents: Latents, numbers: int) -> Latents:
        """Return what is left of latents `[B, C, T, H, W]` kept as `numbers` numbers a cell."""
        root, cell = self.root.to(latents), self.cell
        mixed = torch.einsum("dc,bcthw->bdthw", root, latents)
        first = _projected(
            to_cells(mixed[:, :, :1], attrs.evolve(cell, time=1)),
            self.first_mean,
            self.first_components,
            numbers,
        )
        parts = [from_cells(first, mixed[:, :, :1].shape, attrs.evolve(cell, time=1))]
        rest = mixed[:, :, 1:]
        if rest.shape[2]:
            kept = _projected(to_cells(rest, cell), self.mean, self.components, numbers)
            parts.append(from_cells(kept, rest.shape, cell))
        back = torch.linalg.inv(self.root.double()).to(latents)
        return torch.einsum("cd,bdthw->bcthw", back, torch.cat(parts, dim=2))

    def to(self, device: torch.device) -> LinearCode:
        """Return the code on a device."""
        return attrs.evolve(self, **{name: getattr(self, name).to(device) for name in TENSORS})


def _marks(records: Iterable[Record]) -> set[str]:
    """Return short marks of all files that some clips show."""
    return {origin[:MARK] for record in records for origin in record.origins}


def _projected(cells: Tensor, mean: Tensor, components: Tensor, numbers: int) -> Tensor:
    kept = components[:, :numbers].to(cells)
    centred = cells - mean.to(cells)
    return centred @ kept @ kept.T + mean.to(cells)


class LinearGuide(Retriever[RetrieverSpec]):
    """Shows what a linear code keeps of the history, of as many numbers as the memory has."""

    learned = False
    guide = True

    def __init__(self, code: LinearCode) -> None:
        super().__init__(RetrieverSpec())
        self.linear = code

    def numbers(self, scene: Scene) -> int:
        """Return the numbers of the memory, less what does not divide evenly over the cells."""
        return self._each(scene) * self.linear.cells(scene.size)

    def _each(self, scene: Scene) -> int:
        """Return the numbers of one cell."""
        numbers = sum(part.tokens[0].numel() for part in scene.memory.parts)
        return int(min(numbers // self.linear.cells(scene.size), len(self.linear.mean)))

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> LatentFrames:
        """Return the latents of Ω, as the code keeps them.

        Raises:
            UserError: the code holds fewer components than the memory has numbers.
        """
        each = self._each(scene)
        if each > self.linear.components.shape[1]:
            raise UserError(
                f"the linear code has {self.linear.components.shape[1]} components, this memory "
                f"has {each} numbers for a cell: fit it again (`longtake measure --fit STORE`)"
            )
        kept = self.linear.code(scene.history.latents, each)
        return LatentFrames(
            latents=torch.stack([x[:, i] for x, i in zip(kept, omega, strict=True)])
        )


def cell_of(experiment: Experiment) -> Size3:
    """Return the latents of a cell: those of a token of the coarsest rate that a compressor names.

    Of 2×2×2 where none names a rate that joins latents. A code of larger cells is never worse, but
    one of more than `MOST` numbers takes too long: such cells are halved until they have fewer.
    """
    geometry = experiment.backbone.geometry
    specs = [attrs.astuple(spec, recurse=False) for spec in experiment.compressors]
    rates = [value for values in specs for value in values if isinstance(value, Rate)]
    rate = max(rates, key=_volume, default=RATE)
    rate = rate if _volume(rate) > 1 else RATE
    patch = geometry.patch
    cell = Size3(
        time=rate.time * patch.time,
        height=rate.height * patch.height,
        width=rate.width * patch.width,
    )
    while geometry.channels * cell.time * cell.height * cell.width > MOST:
        name = max(("height", "width", "time"), key=lambda side: getattr(cell, side))
        cell = attrs.evolve(cell, **{name: ceil_div(getattr(cell, name), 2)})
    return cell


def _volume(rate: Rate) -> int:
    return rate.height * rate.width * rate.time


def count_cells(size: Size3, cell: Size3) -> int:
    """Return how many cells cover latents of a size; the first latent has cells of its own."""
    times = 1 + ceil_div(size.time - 1, cell.time)
    return times * ceil_div(size.height, cell.height) * ceil_div(size.width, cell.width)


def to_cells(latents: Tensor, cell: Size3) -> Tensor:
    """Return latents `[B, C, T, H, W]` as cells `[n, d]`; the last latents of each axis repeat."""
    short = -latents.shape[2] % cell.time
    whole = torch.cat([latents, *[latents[:, :, -1:]] * short], dim=2)
    return rearrange(
        pad_to(whole, cell.height, cell.width),
        "b c (nt t) (nh h) (nw w) -> (b nt nh nw) (c t h w)",
        t=cell.time, h=cell.height, w=cell.width,
    )  # fmt: skip


def from_cells(cells: Tensor, shape: torch.Size, cell: Size3) -> Tensor:
    """Return cells `[n, d]` as the latents of a shape that they were made of."""
    batch, channels, time, height, width = shape
    whole = rearrange(
        cells,
        "(b nt nh nw) (c t h w) -> b c (nt t) (nh h) (nw w)",
        b=batch, c=channels, t=cell.time, h=cell.height, w=cell.width,
        nh=ceil_div(height, cell.height), nw=ceil_div(width, cell.width),
    )  # fmt: skip
    return whole[:, :, :time, :height, :width]


@define
class Moments:
    """Mean and covariance of vectors that come in any portions: memory does not grow with them."""

    count: int = 0
    first: Tensor = field(factory=lambda: torch.zeros(0))
    second: Tensor = field(factory=lambda: torch.zeros(0))

    def add(self, vectors: Tensor) -> None:
        """Count vectors `[n, d]`."""
        if not self.count:
            d = vectors.shape[1]
            self.first = vectors.new_zeros(d, dtype=torch.float64)
            self.second = vectors.new_zeros(d, d, dtype=torch.float64)
        self.count += len(vectors)
        self.first += vectors.sum(dim=0, dtype=torch.float64)
        self.second += (vectors.T @ vectors).double()

    def principal(self, numbers: int) -> tuple[Tensor, Tensor, float]:
        """Return mean `[d]`, the strongest components `[d, k]`, and the share they explain."""
        mean = self.first / self.count
        covariance = self.second / self.count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        strongest = vectors.flip(1)[:, :numbers]
        explained = float(values.flip(0)[:numbers].clamp_min(0).sum() / values.clamp_min(0).sum())
        return mean.float(), strongest.float().contiguous(), explained


@torch.no_grad()
def fit_linear_code(
    experiment: Experiment,
    store: Store,
    codec: Codec[CodecSpec],
    *,
    progress: Report | None = None,
) -> LinearCode:
    """Return the code of the cells of a store, fitted for memories of an experiment.

    The store is read once, a few latents at a time; of a large one every so many cells count.

    Args:
        experiment: its compressors say how large a cell is and how many numbers it has.
        store: the one that the memory was trained on.
        codec: of the experiment, on the device to compute on.
        progress: called with done, total and a note.

    Raises:
        UserError: the store was made for something else, or a file of it is damaged.
    """
    check_fits(experiment, store, (), codec=codec)
    cell = cell_of(experiment)
    records = store.records
    longest = max(records, key=lambda record: record.latents)
    if longest.latents <= cell.time:
        raise UserError(f"{store.root}: no clip is longer than {cell.time} latents")
    root, linear = pixel_metric(codec, _probed(store, longest))
    whole, first = Moments(), Moments()
    sizes = [Size3(time=r.latents, height=r.height, width=r.width) for r in records]
    every = max(1, ceil_div(sum(count_cells(size, cell) for size in sizes), MOST_CELLS))
    for done, record in enumerate(records):
        for latents in _read(store, record, cell):
            mixed = torch.einsum("dc,bcthw->bdthw", root, latents.to(root))
            first.add(to_cells(mixed, attrs.evolve(cell, time=1))[:: every * cell.time])
            whole.add(to_cells(mixed, cell)[::every])
        if progress:
            progress(done + 1, len(records), f"{NAME}: {record.name}")
    numbers = most_numbers(experiment, sizes, cell)
    mean, components, explained = whole.principal(numbers)
    first_mean, first_components, _ = first.principal(numbers)
    header = {
        "kind": KIND, **identity(experiment, codec), "store": store.root.absolute().name,
        "clips": len(records), "cells": whole.count, "codec_is_linear": linear,
        "explained": explained, "origins": sorted(_marks(records)),
    }  # fmt: skip
    return LinearCode(
        cell=cell, root=root.cpu(), mean=mean.cpu(), components=components.cpu(),
        first_mean=first_mean.cpu(), first_components=first_components.cpu(), header=header,
    )  # fmt: skip


def identity(experiment: Experiment, codec: Codec[CodecSpec]) -> dict[str, Any]:
    """Return what a code is bound to: the codec, and the cells that it is of."""
    cell = cell_of(experiment)
    return {"codec": codec.identity, "cell": [cell.time, cell.height, cell.width]}


def most_numbers(experiment: Experiment, sizes: list[Size3], cell: Size3) -> int:
    """Return the most numbers for a cell that memories have of histories of these sizes.

    Args:
        experiment: its compressors.
        sizes: of clips; shorter windows of them count, too.
        cell: latents of a cell.
    """
    geometry = experiment.backbone.geometry
    lengths = {
        attrs.evolve(size, time=time)
        for size in set(sizes)
        for time in {size.time, *range(1, min(size.time, 4 * cell.time + 2))}
    }
    most = max(
        memory_numbers(experiment, geometry, one) // count_cells(one, cell) for one in lengths
    )
    return min(most, geometry.channels * cell.time * cell.height * cell.width)


def memory_numbers(experiment: Experiment, geometry: Geometry, size: Size3) -> int:
    """Return the numbers of a memory of latents of a size: tokens times width."""
    tokens: int = sum(
        registry().load(spec).context_length(spec, geometry, size).tokens
        for spec in experiment.compressors
    )
    return tokens * geometry.width


def _probed(store: Store, record: Record) -> Latents:
    """Return a few latents of a clip, which the codec's reach is measured around."""
    time = min(record.latents, PROBED.time)
    latents = store.window(record, 0, time, ()).latents
    return latents[..., : PROBED.height, : PROBED.width]


def _read(store: Store, record: Record, cell: Size3) -> Iterator[Latents]:
    """Yield a clip's latents behind its first, a whole number of cells at a time."""
    step = ceil_div(CHUNK, cell.time) * cell.time
    last = 1 + (record.latents - 1) // cell.time * cell.time
    for start in range(1, last, step):
        yield store.window(record, start, min(step, last - start), ()).latents


@torch.no_grad()
def pixel_metric(codec: Codec[CodecSpec], latents: Latents) -> tuple[Tensor, bool]:
    """Return R `[C, C]` so that |R δ|² is how far pixels move with latents, and if that is exact.

    Each channel is moved by the same noise, and what its decoded pixels do is compared with what
    they do for every other one. Where the codec is linear that is the same everywhere; elsewhere
    only how far each channel reaches counts, and R is diagonal.

    Args:
        codec: on the device to compute on.
        latents: to measure around, `[1, C, T, H, W]`.
    """
    device = next((x.device for x in [*codec.parameters(), *codec.buffers()]), None)
    latents = latents.to(device or torch.device("cpu"))
    channels, noise = latents.shape[1], torch.zeros_like(latents[:, 0])
    random = step_generator(0, 0, 0, "pixel metric")
    noise.copy_(STEP * torch.randn(noise.shape, generator=random))
    noise[:, 0] = 0.0  # the first latent shows one frame, of which others know nothing

    def moved(around: Tensor, channel: int) -> Tensor:
        other = around.clone()
        other[:, channel] += noise
        return (decode_whole(codec, other) - decode_whole(codec, around)).flatten().double()

    responses = torch.stack([moved(latents, channel) for channel in range(channels)])
    elsewhere = torch.stack([moved(-latents, channel) for channel in range(channels)])
    gram = responses @ responses.T
    scale = gram.diagonal().mean()
    linear = bool((responses - elsewhere).square().sum() < LINEAR**2 * responses.square().sum())
    if not linear:
        gram = torch.diag(gram.diagonal())
    values, vectors = torch.linalg.eigh(gram / scale)
    root = vectors @ torch.diag(values.clamp_min(1e-6).sqrt()) @ vectors.T
    return root.float(), linear


def write_linear_code(path: Path, code: LinearCode) -> None:
    """Write a code to a safetensors file, whole or not at all.

    Raises:
        UserError: the disk refuses.
    """
    write_tensors(path, {name: getattr(code, name) for name in TENSORS}, code.header)


def read_linear_code(path: Path, experiment: Experiment, codec: Codec[CodecSpec]) -> LinearCode:
    """Read a code that was fitted for an experiment.

    Raises:
        UserError: the file is missing, damaged, or of another codec or other cells.
    """
    with open_tensors(path) as file:
        header = read_header(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise UserError(f"{path} is no linear code: make one with `longtake measure --fit STORE`")
    for key, value in identity(experiment, codec).items():
        if header.get(key) != value:
            raise UserError(
                f"{path} was fitted for {key} {header.get(key)}, this run has {value}: fit it "
                "again (`longtake measure --fit STORE`)"
            )
    time, height, width = header["cell"]
    cell = Size3(time=time, height=height, width=width)
    if fault := _fault(header, tensors, cell, codec.channels):
        raise UserError(
            f"{path} is damaged: {fault}: fit it again (`longtake measure --fit STORE`)"
        )
    return LinearCode(cell=cell, header=header, **{name: tensors[name] for name in TENSORS})


def _fault(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], cell: Size3, channels: int
) -> str:
    """Return what is wrong with the contents of a file of a code; "" where nothing is."""
    wanted = {"store": str, "clips": int, "cells": int}
    if odd := [key for key, kind in wanted.items() if not isinstance(header.get(key), kind)]:
        return f"its header has no {odd[0]}"
    first = channels * cell.height * cell.width
    whole = cell.time * first
    if missing := [name for name in TENSORS if name not in tensors]:
        return f"it has no {missing[0]}"
    numbers = tensors["components"].shape[-1] if tensors["components"].ndim else 0
    shapes = {
        "root": (channels, channels), "mean": (whole,), "components": (whole, min(numbers, whole)),
        "first_mean": (first,), "first_components": (first, min(numbers, first)),
    }  # fmt: skip
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            return f"{name} is {list(tensor.shape)}, not {list(shape)}"
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            return f"{name} has values that are no numbers"
    return ""
