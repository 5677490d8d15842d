"""Memory: the short context φ(H), named parts of tokens in the DiT's hidden space (design §2).

Where a token sits is said by the box of latent cells that it covers: its middle is the token's
position, its size the token's extent. `token_places` knows the boxes of a regular grid of memory
frames; `box_places` takes any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs
import torch
import torch.nn.functional as F
from attrs import field, frozen
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from .grid import MemoryLimit, Rate, Rounding, Size3, ceil_div
from .shapes import Coordinates, Tokens, Valid

Ends = tuple[Tensor, Tensor]  # first and last cell of each of several runs of cells, float64
SLACK = 1e-9  # of a block; positions are sums of halves, exact, but a plugin's may be rounded


@frozen(eq=False, kw_only=True)
class Part:
    """The tokens of one compressor.

    Attributes:
        name: parts of one name join when memories merge, such as `conv-2x2x2`.
        tokens: `[B, N, D]` in the DiT's hidden space.
        positions: (time, row, column) of each token's centre in absolute latent frames and patch
            cells, float64 `[B, N, 3]`; token 0 of a video sits at latent 0.
        extents: how many latent frames, rows and columns of patch cells each token covers,
            `[B, N, 3]`. Where a frame ends inside a cell of the memory, tokens may count the whole
            cell, and reach past its right and bottom.
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
        return last_covered(self.positions, self.extents)

    def take(self, order: Tensor) -> Part:
        """Return the tokens along N in `order`, int64 `[B, N']`."""

        def pick(x: Tensor) -> Tensor:
            index = order if x.dim() == 2 else repeat(order, "b n -> b n d", d=x.shape[-1])
            return x.gather(1, index.to(x.device))

        return self._each(pick)

    def keep(self, kept: Tensor) -> Part:
        """Return the tokens that a mask `[B, N]` marks, in their order, as they are.

        Samples that keep fewer than others have padding behind, which is not valid.
        """
        kept = kept.cpu()
        count = int(kept.sum(dim=1).max())
        order = (~kept).int().argsort(dim=1, stable=True)[:, :count]
        part = self.take(order)
        return attrs.evolve(part, valid=part.valid & kept.gather(1, order).to(part.valid.device))

    def select(self, order: Sequence[int]) -> Part:
        """Return the samples in the order of the indices `order`."""
        index = torch.as_tensor(order, dtype=torch.int64)
        return self._each(lambda x: x[index])

    def padded(self, count: int) -> Part:
        """Return the part with `count` tokens: zeros that are not valid stand behind its own."""
        behind = (0, count - self.tokens.shape[1])

        def pad(x: Tensor) -> Tensor:
            return F.pad(x, behind if x.dim() == 2 else (0, 0, *behind))

        extents = F.pad(self.extents, (0, 0, *behind), value=1.0)
        return attrs.evolve(self._each(pad), extents=extents)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Part:
        """Return the part with every tensor changed alike."""
        return Part(
            name=self.name,
            tokens=change(self.tokens),
            positions=change(self.positions),
            extents=change(self.extents),
            valid=change(self.valid),
            features={name: change(x) for name, x in self.features.items()},
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

    def without_tokens(self) -> Memory:
        """Return the same parts with no tokens, yet still in the graph of what made them."""
        none = [torch.empty(len(part.valid), 0, dtype=torch.int64) for part in self.parts]
        parts = [part.take(order) for part, order in zip(self.parts, none, strict=True)]
        return attrs.evolve(self, parts=tuple(parts))

    def anchor(self) -> Tensor:
        """Return 0 times the sum of all tokens and features.

        Added to the loss where memory is dropped, it keeps every parameter of φ in the graph, so
        that no rank of a distributed run waits for a gradient that never comes (design §3).
        """
        floats = [x for part in self.parts for x in (part.tokens, *part.features.values())]
        return sum((x.sum() * 0.0 for x in floats), torch.zeros(()))


def join(parts: Sequence[Part]) -> Part:
    """Return parts of one name as one along N, in the order given."""
    return _concatenated(parts, dim=1)


def stack(parts: Sequence[Part]) -> Part:
    """Return parts of several groups of samples as one batch, the shorter ones padded."""
    count = max(part.tokens.shape[1] for part in parts)
    return _concatenated([part.padded(count) for part in parts], dim=0)


def _concatenated(parts: Sequence[Part], dim: int) -> Part:
    first = parts[0]
    features = {name: x for part in parts for name, x in part.features.items()}
    return Part(
        name=first.name,
        tokens=torch.cat([part.tokens for part in parts], dim),
        positions=torch.cat([part.positions for part in parts], dim),
        extents=torch.cat([part.extents for part in parts], dim),
        valid=torch.cat([part.valid for part in parts], dim),
        features={
            name: torch.cat([_feature(part, name, like) for part in parts], dim)
            for name, like in features.items()
        },
    )


def _feature(part: Part, name: str, like: Tensor) -> Tensor:
    """Return a feature of a part; one without tokens may leave its features away.

    Raises:
        ValueError: it has tokens, yet no such feature.
    """
    if name not in part.features and not part.tokens.shape[1]:
        return like.new_zeros(len(part.tokens), 0, like.shape[-1])
    if name not in part.features:
        raise ValueError(f"tokens of {part.name} have no feature {name}, others of it have")
    return part.features[name]


def merge(memories: Iterable[Memory]) -> Memory:
    """Return one memory of several of the same video: parts of one name join along N.

    Tokens are ordered by the last latent they cover; equal ones keep the order given, padding
    goes last. Parts of different names stand in the order of their first appearance.

    Raises:
        ValueError: the memories come from latents of different height or width.
    """
    memories = list(memories)
    groups: dict[str, list[Part]] = {}
    for part in (part for memory in memories for part in memory.parts):
        groups.setdefault(part.name, []).append(part)
    parts = tuple(
        _in_time_order(join(group)) if len(group) > 1 else group[0] for group in groups.values()
    )
    return Memory(parts=parts, size=_shared_size([m.size for m in memories if m.size is not None]))


def _in_time_order(part: Part) -> Part:
    key = torch.where(part.valid, part.last_covered, torch.inf)
    return part.take(key.argsort(dim=1, stable=True))


def _shared_size(sizes: Sequence[Size3]) -> Size3 | None:
    if not sizes:
        return None
    if len({(size.height, size.width) for size in sizes}) > 1:
        raise ValueError(f"memories of different latent sizes cannot merge: {sizes}")
    return max(sizes, key=lambda size: size.time)


def drop_oldest(memory: Memory, limit: MemoryLimit, beside: Memory | None = None) -> Memory:
    """Return a memory without its oldest blocks of latents, so that it keeps to a limit.

    Of two memories that are read side by side (what has settled, what is pending) each can be
    given with the other one beside it: what stays of both is what stays of them merged. Rows that
    stay are not touched, and where all stay, the memory is returned as it is.

    Args:
        memory: tokens at absolute places.
        limit: what may stay.
        beside: counts, too: its newest latent, and its tokens.

    Raises:
        ValueError: the first blocks and the newest one alone have more tokens than the limit.
    """
    oldest = oldest_block([memory] if beside is None else [memory, beside], limit)
    return memory if oldest is None else from_block(memory, oldest, limit)


def oldest_block(memories: Sequence[Memory], limit: MemoryLimit) -> Tensor | None:
    """Return the oldest block of each sample that stays behind the first ones, float64 `[B]`.

    None: nothing has to go. For the arguments see `drop_oldest`.
    """
    parts = [part for memory in memories for part in memory.parts if part.tokens.shape[1]]
    if not parts:
        return None
    valid = torch.cat([part.valid.cpu() for part in parts], dim=1)
    last = torch.cat([part.last_covered.cpu() for part in parts], dim=1).to(torch.float64)
    last = torch.where(valid, last, -torch.inf)
    blocks = blocks_of(last, limit.block)
    oldest = torch.zeros(len(last), dtype=torch.float64)
    if limit.latents is not None:
        room = limit.latents - limit.first_covered
        beyond = last.amax(dim=1) - room  # the last latent that is too old
        is_over = beyond >= limit.first_covered
        oldest = torch.where(is_over, blocks_of(beyond, limit.block) + 1, oldest)
    if limit.tokens is not None:
        of_tokens = [_oldest_by_tokens(row[row.isfinite()], limit) for row in blocks]
        oldest = torch.maximum(oldest, torch.tensor(of_tokens, dtype=torch.float64))
    return oldest if bool((oldest > 0).any()) else None


def _oldest_by_tokens(blocks: Tensor, limit: MemoryLimit) -> float:
    """Return the oldest block that stays of a sample whose tokens belong to `blocks`, `[N]`."""
    assert limit.tokens is not None
    first = int((blocks < limit.first_blocks).sum())
    numbers, counts = blocks[blocks >= limit.first_blocks].unique(return_counts=True)
    kept = first + counts.flip(0).cumsum(0)  # from the newest on
    least = int(kept[0]) if len(kept) else first
    if least > limit.tokens:
        raise ValueError(
            f"the first {limit.first_blocks} blocks of the memory and its newest one have "
            f"{least} tokens, at most {limit.tokens} may stay"
        )
    fitting = int((kept <= limit.tokens).sum())
    return 0.0 if fitting == len(numbers) else float(numbers[-fitting])


def from_block(memory: Memory, oldest: Tensor, limit: MemoryLimit) -> Memory:
    """Return the tokens of a memory's first blocks and of those from `oldest` on."""
    parts = []
    for part in memory.parts:
        kept = part.valid.cpu() & stays(part.last_covered, oldest, limit)
        same = torch.equal(kept, part.valid.cpu())
        parts.append(part if same else part.keep(kept))
    if all(new is old for new, old in zip(parts, memory.parts, strict=True)):
        return memory
    return attrs.evolve(memory, parts=tuple(parts))


def stays(last: Tensor, oldest: Tensor, limit: MemoryLimit) -> Tensor:
    """Return which tokens, by the last latent that they cover `[B, N]`, stay: bool, on the CPU."""
    blocks = blocks_of(last.cpu().to(torch.float64), limit.block)
    return (blocks < limit.first_blocks) | (blocks >= oldest[:, None])


def blocks_of(latents: Tensor, size: int) -> Tensor:
    """Return the blocks of `size` latents that latent frames belong to, as floats (`MemoryLimit`).

    Block 0 is latent 0, block j holds latents size·(j − 1) + 1 … size·j.
    """
    return (latents / size - SLACK).ceil()


def last_covered(positions: Tensor, extents: Tensor) -> Tensor:
    """Return the last latent frame that tokens cover, `[B, N]`."""
    return positions[..., 0] + (extents[..., 0] - 1) / 2


def grid_part(
    name: str,
    tokens: Tensor,
    *,
    rate: Rate,
    size: Size3,
    patch: Size3,
    start: Tensor,
    length: Tensor,
    skip: int = 0,
    rounding: Rounding = "ceil",
    features: Mapping[str, Tensor] | None = None,
) -> Part:
    """Return tokens on a regular grid of memory frames as a part, placed by `token_places`.

    Args:
        name: of the part.
        tokens: `[B, T', S, D]`, of T' memory frames of S = rows × columns cells.
        rate: latents and patch cells to a token.
        size: of the history in latents (only height and width are read).
        patch: of the DiT.
        start: absolute latent frame of the window, `[B]`.
        length: real latents of the window so far, `[B]`.
        skip: memory frames of the window before the first of `tokens`.
        rounding: whether incomplete cells at the right and the bottom have tokens, and where:
            `ceil` in the middle of what they cover, `whole` where whole cells would have them.
        features: named features `[B, T', S, F]`.
    """
    grid = attrs.evolve(rate.token_grid(size, patch, rounding), time=tokens.shape[1])
    positions, extents, valid = token_places(
        rate, size, patch, grid, start=start, length=length, skip=skip, cut=rounding != "whole"
    )
    return Part(
        name=name,
        tokens=rearrange(tokens, "b t s d -> b (t s) d"),
        positions=positions,
        extents=extents,
        valid=valid,
        features={key: rearrange(x, "b t s f -> b (t s) f") for key, x in (features or {}).items()},
    )


def token_places(
    rate: Rate,
    size: Size3,
    patch: Size3,
    grid: Size3,
    *,
    start: Tensor,
    length: Tensor,
    skip: int,
    cut: bool = True,
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
        cut: whether incomplete cells at the right and the bottom end with the frame.
    """
    time = _time_spans(rate, length.cpu(), range(skip, skip + grid.time))
    height, width = ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)
    if not cut:
        height, width = grid.height * rate.height, grid.width * rate.width
    rows = spans(height, rate.height, grid.height)
    columns = spans(width, rate.width, grid.width)
    positions, extents = box_places(time, rows, columns, start)
    real = time[0] < length.cpu()[:, None].to(torch.float64)
    return positions, extents, repeat(real, "b t -> b (t s)", s=grid.height * grid.width)


def _time_spans(rate: Rate, length: Tensor, tokens: range) -> Ends:
    """Return first and last latent that memory frames cover, `[B, len(tokens)]`.

    Frame 0 covers latent 0; frame j covers r(j − 1) + 1 … rj, cut at the history's end (a
    provisional frame covers what is there).
    """
    j = torch.arange(tokens.start, tokens.stop, dtype=torch.float64)
    first = torch.where(j > 0, rate.time * (j - 1) + 1, 0.0)
    last = torch.minimum(rate.time * j, length[:, None].to(torch.float64) - 1)
    return first.expand_as(last), torch.maximum(last, first)


def spans(cells: int, step: int, count: int) -> Ends:
    """Return first and last cell of `count` blocks of `step` cells, cut at `cells`; float64."""
    first = torch.arange(count, dtype=torch.float64) * step
    last = torch.clamp(first + step, max=cells) - 1
    return first, last


def box_places(time: Ends, rows: Ends, columns: Ends, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions and extents `[B, T·R·C, 3]` of the tokens of boxes of cells, float64.

    Args:
        time: first and last latent of the window that each memory frame covers, `[B, T]`, or
            `[1, T]` where all samples are alike.
        rows: first and last row of patch cells that each row of tokens covers, `[R]`.
        columns: the same of columns, `[C]`.
        start: absolute latent frame of the window's first latent, `[B]`.
    """
    origin = start.cpu().to(torch.float64)[:, None]
    middles = [(first + last) / 2 for first, last in (time, rows, columns)]
    sizes = [last - first + 1 for first, last in (time, rows, columns)]
    positions = grid_points(middles[0] + origin, middles[1], middles[2])
    return positions, grid_points(sizes[0].expand(len(start), -1), sizes[1], sizes[2])


def grid_points(time: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (time, row, column) of every point of a grid, `[B, T·R·C, 3]`, time slowest.

    Args:
        time: `[B, T]`.
        rows: `[R]`, on the device and of the dtype of `time`.
        columns: `[C]`, likewise.
    """
    axes = torch.broadcast_tensors(
        rearrange(time, "b t -> b t 1 1"), rearrange(rows, "r -> r 1"), columns
    )
    return rearrange(torch.stack(axes, dim=-1), "b t r c place -> b (t r c) place")
