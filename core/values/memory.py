"""Memory: the short context φ(H), named parts of tokens in the DiT's hidden space (design §2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch
from attrs import field, frozen
from jaxtyping import Float
from torch import Tensor

from .grid import Rate, Size3, ceil_div
from .shapes import Coordinates, Tokens, Valid


@frozen(eq=False, kw_only=True)
class Part:
    """The tokens of one compressor.

    Attributes:
        name: parts of one name join when memories merge, such as `conv-2x2x2`.
        tokens: `[B, N, D]` in the DiT's hidden space.
        positions: (time, row, column) of each token's centre in absolute latent frames and patch
            cells, float64 `[B, N, 3]`; token 0 of a video sits at latent 0.
        extents: how many latent frames, rows and columns of patch cells each token covers,
            `[B, N, 3]`.
        valid: `[B, N]`, False on padding.
        features: named features `[B, N, F]` of each token for cross-attention enhancing.
    """

    name: str
    tokens: Tokens
    positions: Coordinates
    extents: Coordinates
    valid: Valid
    features: Mapping[str, Float[Tensor, "B N F"]] = field(factory=dict)

    @property
    def last_covered(self) -> Tensor:
        """The last latent frame that each token covers, `[B, N]`."""
        return self.positions[..., 0] + (self.extents[..., 0] - 1) / 2

    def take(self, order: Tensor) -> Part:
        """Return the tokens along N in `order`, int64 `[B, N']`."""

        def pick(x: Tensor) -> Tensor:
            index = order if x.dim() == 2 else order[..., None].expand(-1, -1, x.shape[-1])
            return x.gather(1, index.to(x.device))

        return Part(
            name=self.name,
            tokens=pick(self.tokens),
            positions=pick(self.positions),
            extents=pick(self.extents),
            valid=pick(self.valid),
            features={name: pick(x) for name, x in self.features.items()},
        )

    def select(self, order: Sequence[int]) -> Part:
        """Return the samples in the order of the indices `order`."""
        index = torch.as_tensor(order, dtype=torch.int64)
        return Part(
            name=self.name,
            tokens=self.tokens[index],
            positions=self.positions[index],
            extents=self.extents[index],
            valid=self.valid[index],
            features={name: x[index] for name, x in self.features.items()},
        )


@frozen(eq=False, kw_only=True)
class Memory:
    """What the DiT reads of the past. A memory without tokens is legal and costs nothing.

    Attributes:
        parts: one a compressor, names unique.
        size: the latent size it was made from; time counts all latents of the history seen so
            far, those still pending included, so that merging takes the largest.
    """

    parts: tuple[Part, ...] = ()
    size: Size3 | None = None

    def __attrs_post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"two parts of a memory have one name: {sorted(names)}")

    @property
    def length(self) -> int:
        """The number of tokens N over all parts, padding included: the context length."""
        return sum(int(part.tokens.shape[1]) for part in self.parts)

    @property
    def dense(self) -> bool:
        """Whether every token of every sample is real, so that no mask is needed."""
        return all(bool(part.valid.all()) for part in self.parts)

    @property
    def features(self) -> dict[str, Tensor]:
        """The features of all parts, by `part.name`."""
        return {f"{p.name}.{name}": x for p in self.parts for name, x in p.features.items()}

    def joined(self) -> Part | None:
        """Return all parts side by side as one part named `memory` (without features), or None."""
        if self.length == 0:
            return None
        return join([attrs.evolve(part, name="memory", features={}) for part in self.parts])

    def select(self, order: Sequence[int]) -> Memory:
        """Return the samples in the order of `order`: shuffled memories are one call away."""
        return attrs.evolve(self, parts=tuple(part.select(order) for part in self.parts))

    def anchor(self) -> Tensor:
        """Return 0 times the sum of all tokens and features.

        Added to the loss where memory is dropped, it keeps every parameter of φ in the graph, so
        that no rank of a distributed run waits for a gradient that never comes (design §3).
        """
        floats = [x for part in self.parts for x in (part.tokens, *part.features.values())]
        return sum((x.sum() * 0.0 for x in floats), torch.zeros(()))


def join(parts: Sequence[Part]) -> Part:
    """Return parts of one name as one along N, in the order given."""
    first = parts[0]
    return Part(
        name=first.name,
        tokens=torch.cat([part.tokens for part in parts], dim=1),
        positions=torch.cat([part.positions for part in parts], dim=1),
        extents=torch.cat([part.extents for part in parts], dim=1),
        valid=torch.cat([part.valid for part in parts], dim=1),
        features={
            name: torch.cat([part.features[name] for part in parts], dim=1)
            for name in first.features
        },
    )


def merge(memories: Iterable[Memory]) -> Memory:
    """Return one memory of several of the same video: parts of one name join along N.

    Tokens are ordered by the last latent they cover; equal ones keep the order given, padding
    goes last. Parts of different names stand in the order of their first appearance.

    Raises:
        ValueError: the memories come from latents of different height or width.
    """
    kept = list(memories)
    groups: dict[str, list[Part]] = {}
    for part in (part for memory in kept for part in memory.parts):
        groups.setdefault(part.name, []).append(part)
    parts = tuple(
        _in_time_order(join(group)) if len(group) > 1 else group[0] for group in groups.values()
    )
    return Memory(parts=parts, size=_shared_size([m.size for m in kept if m.size is not None]))


def _in_time_order(part: Part) -> Part:
    key = torch.where(part.valid, part.last_covered, torch.inf)
    return part.take(key.argsort(dim=1, stable=True))


def _shared_size(sizes: Sequence[Size3]) -> Size3 | None:
    if not sizes:
        return None
    if len({(size.height, size.width) for size in sizes}) > 1:
        raise ValueError(f"memories of different latent sizes cannot merge: {sizes}")
    return max(sizes, key=lambda size: size.time)


# ⟦core/positions.py⟧ Where memory tokens sit: midpoint and extent of the latent cells that each covers (design §2).


def spans(cells: int, step: int, count: int) -> tuple[Tensor, Tensor]:
    """Return first and last cell of `count` blocks of `step` cells, cut at `cells`; float64."""
    first = torch.arange(count, dtype=torch.float64) * step
    last = torch.clamp(first + step, max=cells) - 1
    return first, last


def time_spans(rate: Rate, length: Tensor, tokens: range) -> tuple[Tensor, Tensor]:
    """Return first and last latent that memory frames cover, `[B, len(tokens)]`, float64.

    Frame 0 covers latent 0; frame j covers r(j − 1) + 1 … rj, cut at the history's end (a
    provisional frame covers what is there).
    """
    j = torch.arange(tokens.start, tokens.stop, dtype=torch.float64)
    first = torch.where(j > 0, rate.time * (j - 1) + 1, 0.0)
    last = torch.minimum(rate.time * j, length[:, None].to(torch.float64) - 1)
    return first.expand_as(last), torch.maximum(last, first)


def token_places(
    rate: Rate, size: Size3, patch: Size3, grid: Size3, *, start: Tensor, length: Tensor, skip: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions and extents `[B, N, 3]` and validity `[B, N]` of a grid of memory tokens.

    Args:
        rate: the compression rate.
        size: of the latents (only height and width are read).
        patch: of the DiT; rows and columns are counted in its cells.
        grid: of the tokens; N = time × height × width, time slowest.
        start: absolute latent frame of the window, `[B]`.
        length: real latents of the window so far, `[B]`.
        skip: memory frames of the window before the first of `grid`.
    """
    t0, t1 = time_spans(rate, length.cpu(), range(skip, skip + grid.time))
    h0, h1 = spans(ceil_div(size.height, patch.height), rate.height, grid.height)
    w0, w1 = spans(ceil_div(size.width, patch.width), rate.width, grid.width)
    shape = (t0.shape[0], grid.time, grid.height, grid.width)

    def spread(t: Tensor, h: Tensor, w: Tensor) -> Tensor:
        cells = (t[:, :, None, None], h[:, None], w[None, :])
        return torch.stack([x.expand(shape) for x in cells], dim=-1).flatten(1, 3)

    origin = start.cpu().to(torch.float64)[:, None]
    positions = spread((t0 + t1) / 2 + origin, (h0 + h1) / 2, (w0 + w1) / 2)
    extents = spread(t1 - t0 + 1, h1 - h0 + 1, w1 - w0 + 1)
    real = t0 < length.cpu()[:, None].to(torch.float64)
    valid = real[:, :, None].expand(-1, -1, grid.height * grid.width).flatten(1)
    return positions, extents, valid


# ⟦core/parts.py⟧ Tokens on a regular grid of memory frames as a part of memory.


def grid_part(
    name: str,
    tokens: Tensor,
    *,
    rate: Rate,
    size: Size3,
    patch: Size3,
    grid: Size3,
    start: Tensor,
    length: Tensor,
    skip: int = 0,
    features: dict[str, Tensor] | None = None,
) -> Part:
    """Return a part of tokens `[B, T', S, D]`, placed by `core.positions.token_places`.

    Args:
        name: of the part.
        tokens: of T' memory frames of S = rows × columns cells.
        rate: latents and patch cells to a token.
        size: of the history in latents (only height and width are read).
        patch: of the DiT.
        grid: rows and columns of the tokens (its time is not read).
        start: absolute latent frame of the window, `[B]`.
        length: real latents of the window so far, `[B]`.
        skip: memory frames of the window before the first of `tokens`.
        features: named features `[B, T', S, F]`.
    """
    shown = Size3(time=tokens.shape[1], height=grid.height, width=grid.width)
    positions, extents, valid = token_places(
        rate, size, patch, shown, start=start, length=length, skip=skip
    )
    return Part(
        name=name,
        tokens=tokens.flatten(1, 2),
        positions=positions,
        extents=extents,
        valid=valid,
        features={key: x.flatten(1, 2) for key, x in (features or {}).items()},
    )
