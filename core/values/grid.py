"""Grid arithmetic: sizes, compression rates and the time grid of memory tokens (design §2).

Everything is counted in latent frames and latent cells unless a name says otherwise. Nothing here
needs torch, so specs can use it without cost.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from attrs import Attribute, field, frozen

Rounding = Literal["ceil", "floor", "whole"]
STEPS = (1, 2, 4, 8)


def ceil_div(a: int, b: int) -> int:
    """Return ⌈a / b⌉ for b > 0."""
    return -(-a // b)


@frozen(kw_only=True)
class Size3:
    """An extent in time, height and width; the unit (pixels, latents, tokens) is the owner's."""

    time: int
    height: int
    width: int

    @property
    def cells(self) -> int:
        """The number of cells, time × height × width."""
        return self.time * self.height * self.width

    def __str__(self) -> str:
        return f"{self.time}x{self.height}x{self.width}"


def _power_of_two(rate: Rate, attribute: Attribute[int], value: int) -> None:
    if value not in STEPS:
        raise ValueError(f"a rate has steps of 1, 2, 4 or 8, not {value} ({attribute.name})")


@frozen(kw_only=True, order=True)
class Rate:
    """How many latent cells one memory cell stands for, before patchifying; written HxWxT.

    `4x4x2` is 4 latent rows × 4 latent columns × 2 latent frames. Each step is 1, 2, 4 or 8.
    """

    height: int = field(validator=_power_of_two)
    width: int = field(validator=_power_of_two)
    time: int = field(validator=_power_of_two)

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Return the rate written as `HxWxT`.

        Raises:
            ValueError: the text is not three numbers joined by `x`, or a step is not 1, 2, 4, 8.
        """
        match = re.fullmatch(r"\s*(\d+)[x×](\d+)[x×](\d+)\s*", text)
        if not match:
            raise ValueError(f"a rate is written HxWxT, such as 4x4x2, not {text!r}")
        height, width, time = map(int, match.groups())
        return cls(height=height, width=width, time=time)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.time}"

    def time_tokens(self, latents: int) -> int:
        """Return how many memory frames T = `latents` latents make: 1 + ⌈(T − 1) / r⌉, 0 for none.

        The last one is provisional where its block is incomplete.
        """
        return 1 + ceil_div(latents - 1, self.time) if latents > 0 else 0

    def settled_tokens(self, latents: int) -> int:
        """Return how many memory frames are complete, and so final, after `latents` latents."""
        return 1 + (latents - 1) // self.time if latents > 0 else 0

    def settled_latents(self, latents: int) -> int:
        """Return how many of the first `latents` latent frames the complete memory frames cover."""
        return 1 + (self.settled_tokens(latents) - 1) * self.time if latents > 0 else 0

    def lr_size(self, size: Size3) -> Size3:
        """Return the size of the LR latents of a video of `size` latents (rounded up in space)."""
        return Size3(
            time=self.settled_tokens(size.time),
            height=ceil_div(size.height, self.height),
            width=ceil_div(size.width, self.width),
        )

    def token_grid(self, size: Size3, patch: Size3, rounding: Rounding = "ceil") -> Size3:
        """Return the grid of memory tokens of a video of `size` latents under the DiT's `patch`.

        Time always keeps everything (design §2); `rounding` decides what an incomplete cell at the
        right or bottom does: `ceil` and `whole` make a token of it, `floor` drops it, as the paper
        prints.
        """
        rows, columns = self.height * patch.height, self.width * patch.width
        down = rounding == "floor"
        return Size3(
            time=self.time_tokens(size.time),
            height=size.height // rows if down else ceil_div(size.height, rows),
            width=size.width // columns if down else ceil_div(size.width, columns),
        )


def shared_period(rates: frozenset[Rate] | tuple[Rate, ...]) -> int:
    """Return the lcm of the time rates: training windows start on it and hold 1 + k·lcm latents."""
    return math.lcm(1, *(rate.time for rate in rates))


@frozen(kw_only=True)
class MemoryLimit:
    """How much of a memory stays while a video grows: the oldest goes first, by whole blocks.

    Blocks stand on an absolute grid: block 0 is latent 0, block j holds latents b(j − 1) + 1 … bj.
    A token belongs to the block of the last latent that it covers.

    Attributes:
        block: latents of a block, b: a multiple of all time rates.
        latents: the most latents that memory may cover, the first ones counted; None: any number.
        tokens: the most tokens that it may have, likewise; None: any number.
        first: latents at the beginning of the video whose blocks stay whatever comes; 0: none.

    Raises:
        ValueError: the first blocks and one more are longer than `latents`.
    """

    block: int = field()
    latents: int | None = None
    tokens: int | None = None
    first: int = 0

    def __attrs_post_init__(self) -> None:
        least = self.first_covered + self.block
        if self.latents is not None and self.latents < least:
            raise ValueError(f"a memory of {self.latents} latents must hold {least}")

    @property
    def first_blocks(self) -> int:
        """How many blocks at the beginning stay whatever comes."""
        return 1 + ceil_div(self.first - 1, self.block) if self.first > 0 else 0

    @property
    def first_covered(self) -> int:
        """How many latents these blocks hold."""
        return 1 + (self.first_blocks - 1) * self.block if self.first_blocks else 0


@frozen(kw_only=True)
class Geometry:
    """What a compressor may know of a backbone's shapes: plain values, hashable (design §3)."""

    channels: int  # of a latent cell
    vae_stride: Size3  # pixels to a latent cell
    patch: Size3  # latent cells to a token of the DiT
    width: int  # of the DiT's hidden space, D
    blocks: int  # of the DiT
    fps: float  # frames a second that the backbone knows

    def frames(self, seconds: float, fps: float | None = None) -> int:
        """Return the frames that `seconds` of video have: 1 + 4·⌊(fps·s − 1) / 4⌋ for a 4× VAE.

        At 24 fps 20 s are 477 frames; less than one frame gives 0.
        """
        raw = math.floor(round((fps or self.fps) * seconds, 6))
        step = self.vae_stride.time
        return 1 + step * ((raw - 1) // step) if raw > 0 else 0

    def latents(self, frames: int) -> int:
        """Return how many latents `frames` video frames make: 1 + 4k → 1 + k, the rest dropped."""
        return 1 + (frames - 1) // self.vae_stride.time if frames > 0 else 0

    def latent_size(self, *, frames: int, height: int, width: int) -> Size3:
        """Return the latent size of a video of `frames` × `height` × `width` pixels, rounded up."""
        return Size3(
            time=self.latents(frames),
            height=ceil_div(height, self.vae_stride.height),
            width=ceil_div(width, self.vae_stride.width),
        )

    def tokens(self, size: Size3) -> int:
        """Return how many tokens the DiT makes of latents of `size`, incomplete ones counted."""
        patch = self.patch
        rows, columns = ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)
        return ceil_div(size.time, patch.time) * rows * columns

    @property
    def token_numbers(self) -> int:
        """The numbers that one token of the DiT holds of latents, channels × patch."""
        return self.channels * self.patch.cells

    def cell_numbers(self, rate: Rate) -> int:
        """Return the numbers of latents that one memory token stands for at a rate."""
        return self.token_numbers * rate.height * rate.width * rate.time

    @property
    def multiple(self) -> tuple[int, int]:
        """The pixel multiple (height, width) that the VAE and the patch ask of a frame."""
        return (
            self.vae_stride.height * self.patch.height,
            self.vae_stride.width * self.patch.width,
        )
