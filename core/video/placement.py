"""Size buckets: the size that a video is cached at, and how it is resized and cropped (design §2).

Plain arithmetic that imports nothing heavy.
"""

from __future__ import annotations

import math

from attrs import frozen

from ..errors import UserError

Sizes = tuple[tuple[int, int], ...]
MAX_ASPECT = 3.0


@frozen(kw_only=True)
class Placement:
    """How one video fits its bucket, in pixels: resized with its aspect kept, then cropped."""

    source_height: int
    source_width: int
    resized_height: int
    resized_width: int
    crop_top: int
    crop_left: int
    height: int  # of the bucket
    width: int

    @property
    def upscaled(self) -> bool:
        """Whether the video is smaller than its bucket, so that pixels were made up."""
        return self.resized_height > self.source_height or self.resized_width > self.source_width

    def __str__(self) -> str:
        steps = [f"{self.source_width}x{self.source_height}"]
        if (self.resized_height, self.resized_width) != (self.source_height, self.source_width):
            enlarged = " (upscaled)" if self.upscaled else ""
            steps.append(f"{self.resized_width}x{self.resized_height}{enlarged}")
        if (self.resized_height, self.resized_width) != (self.height, self.width):
            steps.append(f"crop {self.width}x{self.height}")
        return " -> ".join(steps) if len(steps) > 1 else f"{steps[0]} as it is"


def cover(width: int, height: int, size: tuple[int, int]) -> Placement:
    """Return the placement that covers `size` (height, width) with the least resizing, centred.

    Raises:
        UserError: a side of the video or of `size` is not positive.
    """
    if min(width, height, *size) < 1:
        raise UserError(f"a video of {width}x{height} cannot be fitted to {size[1]}x{size[0]}")
    scale = max(size[0] / height, size[1] / width)
    resized_height = max(size[0], round(height * scale))
    resized_width = max(size[1], round(width * scale))
    return Placement(
        source_height=height,
        source_width=width,
        resized_height=resized_height,
        resized_width=resized_width,
        crop_top=(resized_height - size[0]) // 2,
        crop_left=(resized_width - size[1]) // 2,
        height=size[0],
        width=size[1],
    )


def buckets(area: int, multiple: tuple[int, int], max_aspect: float = MAX_ASPECT) -> Sizes:
    """Return the sizes (height, width) that videos are fitted to, flattest first.

    For each row count the narrowest width that holds at least `area` pixels, and for each column
    count the lowest height; sides are multiples of `multiple` (rows, columns) and the longer one is
    at most `max_aspect` times the shorter.

    Raises:
        UserError: a value is not positive, or no such size exists (multiples too uneven for it).
    """
    rows, columns = multiple
    if min(area, rows, columns) < 1 or max_aspect < 1:
        raise UserError(
            f"buckets need a positive area and multiples and an aspect of 1 or more, "
            f"not {area}, {rows}x{columns}, {max_aspect}"
        )
    longest = math.sqrt(area * max_aspect)
    heights = range(rows, math.ceil(longest) + rows, rows)
    widths = range(columns, math.ceil(longest) + columns, columns)
    sizes = {(height, _shortest_side(area, height, columns)) for height in heights}
    sizes |= {(_shortest_side(area, width, rows), width) for width in widths}
    allowed = [size for size in sizes if max(size) <= max_aspect * min(size) + 1e-9]
    if not allowed:
        raise UserError(f"no size in multiples of {rows}x{columns} holds {area} pixels in shape")
    return tuple(sorted(allowed))


def _shortest_side(area: int, other: int, step: int) -> int:
    """Return the least multiple of `step` that holds `area` pixels beside a side of `other`."""
    return step * math.ceil(math.ceil(area / other) / step)


def place(
    width: int,
    height: int,
    area: int,
    multiple: tuple[int, int],
    max_aspect: float = MAX_ASPECT,
) -> Placement:
    """Return where a video of `width` × `height` goes: `cover` of the bucket of nearest aspect.

    Nearest is the least |log ratio| of the aspects; the smaller bucket wins a tie.

    Args:
        width: of the video in square pixels, upright.
        height: the same.
        area: pixels of a bucket, e.g. 96 * 160; no bucket has fewer.
        multiple: the pixel multiple (rows, columns) of codec and patch, `Geometry.multiple`.
        max_aspect: longest side over shortest; a flatter video is cropped more.

    Raises:
        UserError: as `buckets`, or the video has no pixels.
    """
    if min(width, height) < 1:
        raise UserError(f"a video of {width}x{height} has no pixels")
    aspect = math.log(width / height)

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        return round(abs(math.log(size[1] / size[0]) - aspect), 9), size[0] * size[1]

    return cover(width, height, min(buckets(area, multiple, max_aspect), key=distance))
