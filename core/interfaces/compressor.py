"""Compressor φ: history in, memory out; and the encoder that holds several of them.

A compressor never sees a backbone: all that it may know of one is in `Fit`. What it costs and what
it reads are said by its class, before anything is built: `Length` and `Needs`.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar, cast

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from einops import rearrange
from torch import Tensor, nn

from ..errors import ContractError, plugin_label
from ..values.grid import Geometry, Rate, Size3, ceil_div
from ..values.history import History
from ..values.memory import Memory, Part, merge
from ..values.shapes import Latents
from .base import Interface
from .checks import check_shape, check_type
from .spec import CodecSpec, CompressorSpec


@frozen(kw_only=True)
class Needs:
    """What must be in a history, and so in the store, for a plugin; returned by its `needs`.

    Attributes:
        rates: of LR latents, none unless named.
        pixels: whether the frames themselves are read.
        hr: whether the values of the full-size latents are read, not only their shape.
    """

    rates: frozenset[Rate] = frozenset()
    pixels: bool = False
    hr: bool = True

    def __or__(self, other: Needs) -> Needs:
        """Return what both need."""
        return Needs(
            rates=self.rates | other.rates,
            pixels=self.pixels or other.pixels,
            hr=self.hr or other.hr,
        )


@frozen(kw_only=True)
class Length:
    """A context length in tokens; returned by a compressor's `context_length`.

    Attributes:
        tokens: how many a history of the size asked about has.
        exact: False where the content decides, and `tokens` is the most that there can be.
    """

    tokens: int
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.tokens:,}" if self.exact else f"≤ {self.tokens:,}"


@frozen(eq=False, kw_only=True)
class Fit:
    """All that a compressor may know of a backbone: its shapes, and a copy of its first projection.

    A compressor is built as `cls(spec, fit)`, and gives tokens of width `fit.geometry.width`. With
    `tokens` it can make the DiT's own tokens, which a DiT reads untrained.

    Attributes:
        geometry: plain values.
        patch_weight: the DiT's patch embedding `[D, C, p_t, p_h, p_w]`, a detached copy.
        patch_bias: `[D]`.
        codec: the spec of the codec whose latents the DiT reads, for compressors that encode
            pictures of their own; None: it is not known.
    """

    geometry: Geometry
    patch_weight: Tensor
    patch_bias: Tensor
    codec: CodecSpec | None = None

    def tokens(self, latents: Latents) -> Tensor:
        """Return the DiT's own tokens of latents, `[B, T', H', W', D]`.

        Where height or width is no multiple of the patch, the last row or column is repeated
        (the odd-size rule), so that sizes round up.
        """
        return project(latents, self.patch_weight, self.patch_bias)

    def latents(self, tokens: Tensor, height: int, width: int) -> Latents:
        """Return the latents `[B, C, T, height, width]` whose tokens are nearest to some tokens.

        The least-squares inverse of `tokens`: exact where the projection loses nothing. At odd
        sizes the repeated last row and column count as the one row and column that they are.

        Args:
            tokens: `[B, T', H', W', D]`.
            height: of the latents; H' is theirs over the patch, rounded up.
            width: of the latents; as W'.

        Raises:
            ValueError: the tokens are not those of latents of that size.
        """
        return unproject(tokens, self.patch_weight, self.patch_bias, height, width)

    @property
    def digest(self) -> str:
        """Hash of the projection (bf16 values), kept in encoder files: another one is refused."""
        data = b"".join(
            x.detach().cpu().bfloat16().float().numpy().tobytes()
            for x in (self.patch_weight, self.patch_bias)
        )
        return hashlib.sha256(data).hexdigest()[:16]


def project(latents: Latents, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the tokens `[B, T', H', W', D]` of latents under a patch embedding (see `Fit`)."""
    time, rows, columns = (int(n) for n in weight.shape[2:])
    whole = latents[:, :, : latents.shape[2] // time * time]
    patches = rearrange(  # a product: convs whose kernel is their stride are slow on CPUs
        pad_to(whole, rows, columns),
        "b c (t p) (h r) (w q) -> b t h w (c p r q)",
        p=time, r=rows, q=columns,
    )  # fmt: skip
    return F.linear(patches, weight.flatten(1), bias)


def unproject(tokens: Tensor, weight: Tensor, bias: Tensor, height: int, width: int) -> Latents:
    """Return the latents `[B, C, T, height, width]` of tokens, by least squares (`Fit.latents`)."""
    rows, columns = int(weight.shape[3]), int(weight.shape[4])
    grid = (ceil_div(height, rows), ceil_div(width, columns))
    if tuple(tokens.shape[2:4]) != grid:
        raise ValueError(
            f"tokens are {tuple(tokens.shape[2:4])}, of {height}×{width} they are {grid}"
        )
    down, right = grid[0] * rows - height, grid[1] * columns - width
    strips = []
    for row, repeated in _edges(grid[0], down):
        pieces = []
        for column, more in _edges(grid[1], right):
            folded = _fold(_fold(weight, 3, repeated), 4, more)
            pieces.append(_solve(tokens[:, :, row, column], folded, bias))
        strips.append(torch.cat(pieces, dim=4))
    return torch.cat(strips, dim=3)


def _edges(count: int, repeated: int) -> list[tuple[slice, int]]:
    """Return the runs of cells along an axis, and how many of a cell's places repeat its last."""
    if not repeated:
        return [(slice(0, count), 0)]
    return [(slice(0, count - 1), 0), (slice(count - 1, count), repeated)]


def _fold(weight: Tensor, axis: int, repeated: int) -> Tensor:
    """Return the weight over a cell whose last places along an axis repeat the one before them."""
    if not repeated:
        return weight
    own, again = weight.split([weight.shape[axis] - repeated, repeated], dim=axis)
    first, last = own.split([own.shape[axis] - 1, 1], dim=axis)
    return torch.cat([first, last + again.sum(dim=axis, keepdim=True)], dim=axis)


def _solve(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the latents of whole cells, in float64 within."""
    inverse = torch.linalg.pinv(weight.double().flatten(1))  # [numbers of a cell, D]
    cells = (tokens.double() - bias.double()) @ inverse.T
    latents: Tensor = rearrange(
        cells, "b t h w (c pt ph pw) -> b c (t pt) (h ph) (w pw)",
        pt=weight.shape[2], ph=weight.shape[3], pw=weight.shape[4],
    )  # fmt: skip
    return latents.to(tokens.dtype)


def pad_to(latents: Latents, height: int, width: int) -> Tensor:
    """Return latents of a multiple of `height` rows and `width` columns: the last ones repeated."""
    down = ceil_div(latents.shape[-2], height) * height - latents.shape[-2]
    right = ceil_div(latents.shape[-1], width) * width - latents.shape[-1]
    if not (down or right):
        return latents
    return F.pad(latents, (0, right, 0, down, 0, 0), mode="replicate")


S = TypeVar("S", bound=CompressorSpec)
State: TypeAlias = dict[str, Tensor]


class Compressor(Interface, Generic[S]):
    """φ: turns the latents of a video's past into memory tokens of the DiT's width.

    A plugin is this class with five methods, built as `cls(spec, fit)`; every parameter it makes
    is trained and saved:

    - `needs(spec)` and `context_length(spec, geometry, size)`, of the class, say what must be
      cached and what a history costs, without building anything;
    - `forward(history)` makes the memory of a whole window, which is what training runs;
    - `step(state, chunk)` and `pending(state)` make the same memory chunk by chunk, which is what
      generation runs; `cut(state)` is for those that read `history.cuts`.

    `longtake.authors` has bases that ask for less, down to one method (`CellCompressor`).
    Tokens that bring features for cross-attention also name them in `features(spec)`.

    What holds for all (the law of compressors, checked by
    `longtake.authors.check_compressor`): for any way of cutting a history into
    chunks,

        merge([*settled, compressor.pending(state)])  equals  compressor(history)

    where `state, memory = compressor.step(state, chunk)` returned each `settled` memory. What
    `step` returned never changes; what may still change (a block of latents that is not complete)
    comes from `pending`. The state is a dict of tensors of a size that does not grow with the
    history, unless the compressor must retract (`settles = False`): then `step` returns empty
    memories and the state keeps what it needs. No later call changes what an earlier one returned,
    for this video or another: what lies in a buffer that is used again is copied (`own_copy`).

    `history.start` makes positions absolute, `history.offset` says how much of the window came
    before a chunk, `history.length` marks shorter samples of a batch: each sample's tokens must be
    those it would get alone, with `valid` False behind them. Histories may be of any size, also
    empty: then there are no tokens, but the graph still holds every parameter.
    """

    settles: bool = True

    def __init__(self, spec: S, fit: Fit) -> None:
        super().__init__()
        self.spec = spec
        self.geometry = fit.geometry

    @classmethod
    @abstractmethod
    def needs(cls, spec: S) -> Needs:
        """Return the LR rates (and pixels) that must be in the history."""

    @classmethod
    @abstractmethod
    def context_length(cls, spec: S, geometry: Geometry, size: Size3) -> Length:
        """Return the tokens that a history of `size` latents costs, without building anything."""

    @classmethod
    def features(cls, spec: S) -> dict[str, int]:
        """Return the widths of the features that tokens bring, by `part.feature`, as in `Memory`.

        The backbone reads them in every block through cross-attention that starts at zero.
        """
        return {}

    @abstractmethod
    def forward(self, history: History) -> Memory:
        """Return the memory of a whole window; its batch may hold different lengths."""

    @abstractmethod
    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk (state None: the first); return the new state and what has settled.

        Chunks hold one or more latents, all samples of a chunk equally many. The state given stays
        as it is.
        """

    @abstractmethod
    def pending(self, state: State) -> Memory:
        """Return the tokens that may still change, from the state alone; leaves the state as is."""

    def cut(self, state: State) -> State:
        """Return the state after a hard cut behind all that it has seen: another shot follows.

        It is told where a take decides on the cut after the state was made; then `pending` must be
        that of a history with the cut among its `cuts`. Here nothing changes: memory reaches across
        cuts. The state given stays as it is.
        """
        return state

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which what the spec asks for does not run; here all is taken.

        Raises:
            UserError: (in subclasses) it does not run there; the message says what would.
        """


class MemoryEncoder(Interface):
    """All compressors of an experiment side by side: their parts stand in one memory.

    It is called as one compressor is (`encoder(history)`, `step`, `pending`); its state is a list
    of theirs. Where there are several, the part names begin with the place of their compressor
    (`0.conv-...`), so that two of one kind and rate stay apart.
    """

    def __init__(self, compressors: Sequence[Compressor[CompressorSpec]]) -> None:
        super().__init__()
        self.compressors = nn.ModuleList(compressors)

    @property
    def members(self) -> list[Compressor[CompressorSpec]]:
        """The compressors in the order of the spec."""
        return [c for c in self.compressors if isinstance(c, Compressor)]

    @property
    def features(self) -> dict[str, int]:
        """The widths of all features, by the names that they have in `Memory.features`."""
        return features_side_by_side([c.features(c.spec) for c in self.members])

    def forward(self, history: History) -> Memory:
        """Return the parts of every compressor on the same history.

        Raises:
            ContractError: a compressor's memory is not what it should be (`check_memory`).
        """
        batch = history.batch
        return side_by_side([check_memory(c, c(history), batch) for c in self.members])

    def step(self, state: list[State] | None, chunk: History) -> tuple[list[State], Memory]:
        """Take the next chunk; return each compressor's state, and all that has settled."""
        before: Sequence[State | None] = state or [None] * len(self.members)
        results = [c.step(s, chunk) for c, s in zip(self.members, before, strict=True)]
        pairs = zip(self.members, results, strict=True)
        settled = [check_memory(c, memory, chunk.batch) for c, (_, memory) in pairs]
        states = [s for s, _ in results]
        if state is None and len(states) > 1:
            # Parts stand in the order of the compressors, also before they have tokens.
            empty = [
                c.pending(s).without_tokens() for c, s in zip(self.members, states, strict=True)
            ]
            settled = [merge(pair) for pair in zip(settled, empty, strict=True)]
        return states, side_by_side(settled)

    def pending(self, state: list[State]) -> Memory:
        """Return all that may still change."""
        pairs = zip(self.members, state, strict=True)
        return side_by_side([check_memory(c, c.pending(s)) for c, s in pairs])

    def cut(self, state: list[State]) -> list[State]:
        """Return each compressor's state after a hard cut behind all that it has seen."""
        return [c.cut(s) for c, s in zip(self.members, state, strict=True)]

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which a compressor does not run: UserError."""
        for compressor in self.members:
            compressor.check_device(device)

    def maker(self, part: str) -> Compressor[CompressorSpec]:
        """Return the compressor that makes the part of that name in the memory of all."""
        place = part.partition(".")[0]
        return self.members[int(place) if len(self.members) > 1 else 0]


def check_memory(
    compressor: Compressor[CompressorSpec], made: object, batch: int | None = None
) -> Memory:
    """Return a compressor's memory, after its shapes were held to what the backbone reads.

    Args:
        compressor: that made it.
        made: what it gave for a memory.
        batch: samples that it must have; None: any number.

    Raises:
        ContractError: tokens are not of the width of the DiT; positions, extents, `valid` or a
            feature do not belong to the tokens; or features are not those that `features` names.
    """
    check_type(compressor, "its memory", made, Memory)
    memory = cast(Memory, made)
    widths = compressor.features(compressor.spec)
    for part in memory.parts:
        what, width = f"part {part.name}:", compressor.geometry.width
        check_type(compressor, f"{what} tokens", part.tokens, Tensor)
        shape = (*part.tokens.shape, 0, 0)
        samples, count = shape[0] if batch is None else batch, shape[1]
        check_shape(compressor, f"{what} tokens", part.tokens, (samples, count, width), "B N D")
        for name, places in (("positions", part.positions), ("extents", part.extents)):
            check_shape(compressor, f"{what} {name}", places, (samples, count, 3), "B N 3")
        check_shape(compressor, f"{what} valid", part.valid, (samples, count), "B N")
        _check_features(compressor, part, widths)
    return memory


def _check_features(
    compressor: Compressor[CompressorSpec], part: Part, widths: Mapping[str, int]
) -> None:
    """Raise ContractError if a part's features are not those that its compressor names for it."""
    prefix = f"{part.name}."
    declared = {n.removeprefix(prefix): w for n, w in widths.items() if n.startswith(prefix)}
    absent = sorted(declared.keys() - part.features.keys()) if part.tokens.shape[1] else []
    others = sorted(part.features.keys() - declared.keys())
    if absent or others:
        fault = f"lacks feature {absent[0]}" if absent else f"has feature {others[0]}"
        raise ContractError(
            f"{plugin_label(compressor)}: part {part.name} {fault}, but "
            f"features(spec) names {sorted(widths) or 'none'}"
        )
    for name, values in part.features.items():
        expected = (*part.valid.shape, declared[name])
        check_shape(compressor, f"part {part.name}: feature {name}", values, expected, "B N F")


def side_by_side(memories: Sequence[Memory]) -> Memory:
    """Return the memories of several compressors as one; of one alone as it is; of none, empty."""
    if len(memories) == 1:
        return memories[0]
    parts = [
        attrs.evolve(part, name=f"{place}.{part.name}")
        for place, memory in enumerate(memories)
        for part in memory.parts
    ]
    size = merge([Memory(size=memory.size) for memory in memories]).size
    return Memory(parts=tuple(parts), size=size)


def features_side_by_side(features: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the features of several compressors, named as their parts in `side_by_side` are."""
    if len(features) == 1:
        return features[0]
    return {
        f"{place}.{name}": width
        for place, widths in enumerate(features)
        for name, width in widths.items()
    }
