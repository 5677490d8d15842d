"""A contact sheet: the newest frames, shrunk into one picture that the codec encodes as a still."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import define
from einops import rearrange, repeat
from torch import Tensor

from ...core.errors import UserError
from ...core.interfaces.codec import Codec, encode_whole, from_bytes
from ...core.interfaces.compressor import Compressor, Fit, Length, Needs, State
from ...core.interfaces.spec import CodecSpec
from ...core.interfaces.streaming import advance, own_copy, seen_size
from ...core.registry import build
from ...core.values.grid import Geometry, Size3, ceil_div
from ...core.values.history import History
from ...core.values.memory import Memory, Part
from .frames import checked_pixels, fill_frames
from .keyframes import NEVER, newest_in_order
from .specs import ContactSheet
from .tokens import OwnTokens


class ContactSheetCompressor(Compressor[ContactSheet]):
    """One part, `contact-sheet`: the DiT's own tokens of one still of side × side small frames.

    The frames are the last ones of the newest latents, every `every`-th of the window, row by row,
    oldest first; where there are fewer, the oldest is shown again. Each is shrunk to a tile of the
    sheet, which is as large as a frame, and the codec encodes the sheet as a video of one frame.
    A token stands where the tile that its middle is in shows it: at the frame's time, over the
    side × side cells that were shrunk into it.

    Nothing is trained, and nothing settles: a new frame moves all others. State: `tiles`, the small
    frames that are kept, `[B, n, 3, p, q]`; `at`, where in the window they stand, `[B, n]`.

    Source: a baseline that users of other programs make by hand.
    """

    settles = False

    def __init__(self, spec: ContactSheet, fit: Fit) -> None:
        super().__init__(spec, fit)
        if fit.codec is None:
            raise UserError("contact-sheet needs to know the backbone's codec, which encodes it")
        self.own = OwnTokens(fit)
        self.still = StillEncoder(fit.codec)

    @classmethod
    def needs(cls, spec: ContactSheet) -> Needs:
        """Return pixels; of latents only the shape is read."""
        return Needs(pixels=True, hr=False)

    @classmethod
    def context_length(cls, spec: ContactSheet, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens: those of one latent."""
        rows, columns = _grid(geometry, size)
        return Length(tokens=rows * columns if size.time else 0)

    def forward(self, history: History) -> Memory:
        """Return the memory of a whole window; its batch may hold different lengths."""
        return self.pending(self.step(None, history)[0])

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; all that is kept stays pending.

        Raises:
            ValueError: the chunk does not follow what the state has seen, or lacks its pixels.
        """
        new, size = advance(state, chunk), chunk.size
        inside = torch.arange(size.time)[None] < chunk.length.cpu()[:, None]
        latents = chunk.offset + torch.arange(size.time)
        at = torch.where(inside & (latents % self.spec.every == 0), latents, NEVER)
        tiles = self._tiles(chunk)
        if state:
            at = torch.cat([state["at"], at], dim=1)
            tiles = torch.cat([state["tiles"], tiles], dim=1)
        order = newest_in_order(at, self.spec.side**2) if at.shape[1] else at
        samples = torch.arange(len(at))[:, None]
        new |= {"at": at.gather(1, order), "tiles": own_copy(tiles[samples, order])}
        return new, Memory(size=seen_size(new))

    def pending(self, state: State) -> Memory:
        """Return the tokens of the sheet as it is now."""
        at, size = state["at"], seen_size(state)
        if not at.shape[1]:
            return Memory(size=size)
        places = self.spec.side**2
        count = (at != NEVER).sum(dim=1, keepdim=True)
        shown = (torch.arange(places)[None] - (places - count)).clamp(min=0)
        samples = torch.arange(len(at))[:, None]
        latents = self.still.encode(self._sheet(state["tiles"][samples, shown], size))
        tokens = self.own.project(self.own.cut(latents))
        places_of = self._places(size)
        at_time = at.gather(1, shown)[:, places_of.tile].to(torch.float64)
        times = at_time.clamp(min=0) + state["start"].cpu().double()[:, None]
        around = [repeat(x, "n -> b n", b=len(at)) for x in (places_of.rows, places_of.columns)]
        high, wide = (repeat(x, "n -> b n", b=len(at)) for x in places_of.extents)
        part = Part(
            name="contact-sheet",
            tokens=rearrange(tokens, "b 1 h w d -> b (h w) d")[:, places_of.order],
            positions=torch.stack([times, *around], dim=-1),
            extents=torch.stack([torch.ones_like(times), high, wide], dim=-1),
            valid=at_time != NEVER,
        )
        return Memory(parts=(part,), size=size)

    def _tiles(self, chunk: History) -> Tensor:
        """Return the last frame of each latent of a chunk, small: `[B, T, 3, p, q]` in [−1, 1]."""
        stride, size = self.geometry.vae_stride, chunk.size
        pixels = checked_pixels(chunk, stride, "contact-sheet")
        before = 0 if chunk.offset == 0 else stride.time * (chunk.offset - 1) + 1
        last = [stride.time * (chunk.offset + t) - before for t in range(size.time)]
        high, wide = self._tile(size)
        frames = fill_frames(
            pixels[:, :, last], size.height * stride.height, size.width * stride.width
        )
        small = [  # frame by frame, so that floats stay few
            F.adaptive_avg_pool2d(from_bytes(frame, self.own.weight.dtype), (high, wide))
            for frame in frames.unbind(dim=2)
        ]
        none = self.own.weight.new_zeros(chunk.batch, 0, 3, high, wide)
        return torch.stack(small, dim=1) if small else none

    def _tile(self, size: Size3) -> tuple[int, int]:
        """Return rows and columns of a tile: what goes into a frame `side` times."""
        stride, side = self.geometry.vae_stride, self.spec.side
        return (
            max(1, size.height * stride.height // side),
            max(1, size.width * stride.width // side),
        )

    def _sheet(self, tiles: Tensor, size: Size3) -> Tensor:
        """Return sheets `[B, 3, 1, P, Q]` of tiles `[B, side², 3, p, q]`, the ends repeated."""
        side, stride = self.spec.side, self.geometry.vae_stride
        whole = rearrange(tiles, "b (r c) k p q -> b k 1 (r p) (c q)", r=side, c=side)
        rows, columns = size.height * stride.height, size.width * stride.width
        return fill_frames(whole[..., :rows, :columns], rows, columns)

    def _places(self, size: Size3) -> _SheetPlaces:
        rows, columns = _grid(self.geometry, size)
        stride, patch, side = self.geometry.vae_stride, self.geometry.patch, self.spec.side
        high, wide = self._tile(size)
        row_tile, row, tall = _spread(rows, patch.height * stride.height, high, side)
        column_tile, column, broad = _spread(columns, patch.width * stride.width, wide, side)
        tile = rearrange(row_tile[:, None] * side + column_tile[None], "r c -> (r c)")
        order = tile.argsort(stable=True)

        def by_token(x: Tensor, *, down: bool) -> Tensor:
            grid = x[:, None] if down else x[None]
            return grid.expand(rows, columns).flatten()[order]

        return _SheetPlaces(
            order=order,
            tile=tile[order],
            rows=by_token(row, down=True),
            columns=by_token(column, down=False),
            extents=(by_token(tall, down=True), by_token(broad, down=False)),
        )


@define(eq=False, kw_only=True)
class _SheetPlaces:
    """Where the tokens of a sheet stand, in the order of the tiles that their middles are in.

    Attributes:
        order: of the tokens, from row by row.
        tile: of each token, counted row by row.
        rows, columns: middle of what it shows, in patch cells; `extents` how high and wide that is.
    """

    order: Tensor
    tile: Tensor
    rows: Tensor
    columns: Tensor
    extents: tuple[Tensor, Tensor]


def _grid(geometry: Geometry, size: Size3) -> tuple[int, int]:
    patch = geometry.patch
    return ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)


def _spread(cells: int, pixels: int, tile: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tile that each cell of an axis of the sheet is in, and what it shows of a frame.

    Args:
        cells: patch cells of a frame along the axis, and of the sheet.
        pixels: of a cell.
        tile: pixels of a tile.
        side: tiles along the axis.

    Returns:
        The tile's number; middle and length, in patch cells of the frame, float64 `[cells]`.
    """
    first = torch.arange(cells, dtype=torch.float64) * pixels
    number = ((first + pixels / 2) // tile).clamp(max=side - 1)
    # in millionths of a cell, as powers of two: sums are exact, so that nothing lies outside
    ends = [((x - number * tile) / tile).clamp(0, 1) * cells for x in (first, first + pixels)]
    low, high = [(end * 2**20).round() / 2**20 for end in ends]
    return number.long(), (low + high) / 2 - 0.5, high - low


@define
class StillEncoder:
    """Encodes pictures with the backbone's codec, which is loaded at the first and never trained.

    It is no module: its weights are the codec's own, and in no file of the encoder.
    """

    spec: CodecSpec
    codec: Codec[CodecSpec] | None = None

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """Return the latents `[B, C, 1, H, W]` of pictures `[B, 3, 1, P, Q]` in [−1, 1]."""
        if self.codec is None:
            self.codec = build(self.spec)
            self.codec.eval().requires_grad_(False)
        self.codec.to(pictures.device, pictures.dtype)
        return encode_whole(self.codec, pictures)
