"""Codec: pixels to latents and back, in chunks; and what a slice of a video must see around it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from attrs import frozen
from einops import reduce
from torch import Tensor

from ..errors import ContractError, plugin_label
from ..values.grid import Size3, ceil_div
from ..values.shapes import Latents, Pixels, Targets
from .base import Interface
from .checks import check_shape, check_type
from .compressor import State
from .spec import CodecSpec

S = TypeVar("S", bound=CodecSpec)
HALF_A_LEVEL = 1 / 255  # of pixels in [−1, 1]: less than this is no other byte, but for ties
HUNDREDTH = 0.01  # of the standard deviation that latents are normalised to


class Codec(Interface, Generic[S]):
    """Turns video into latents and back, a chunk at a time; built as `cls(spec)`.

    A plugin answers `encode` and `decode`, says its shapes (`channels`, `stride`), what a slice
    must see around it (`causal`, `margin`) and its `identity`. What is not abstract fits a causal
    codec that has its weights.

    Pixels are RGB in [−1, 1]. The first chunk holds 1 + 4k frames (for a time stride of 4), later
    ones 4k; likewise the first decoded latent gives one frame, every other four. State is a dict
    of tensors, None before the first chunk; the functions never change a state they were given.
    """

    def __init__(self, spec: S) -> None:
        super().__init__()
        self.spec = spec

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels C of a latent cell."""

    @property
    @abstractmethod
    def stride(self) -> Size3:
        """Pixels to a latent cell."""

    @property
    @abstractmethod
    def causal(self) -> bool:
        """Whether a latent depends on no later frame, so that streaming equals one pass."""

    @property
    @abstractmethod
    def margin(self) -> int:
        """Latents before a slice that a fresh decode of it must see to give the same pixels.

        For a codec that is exact at `boundary` only, the slice then begins at the one before.
        """

    @property
    def margin_after(self) -> int:
        """Latents behind a slice that its decode must see too; 0 for a causal codec."""
        return 0

    @property
    def boundary(self) -> int:
        """Latents between the places where a slice may begin, from the video's first; 1: any."""
        return 1

    @property
    def decode_reach(self) -> int | None:
        """Latents before a place whose decode alone gives the state there, bit for bit.

        None: that is not known, and a stream is only rebuilt from the video's first latent. A
        codec that is exact at `boundary` only then begins at the one before.
        """
        return None

    @property
    def encode_reach(self) -> int | None:
        """Latents before a place whose frames, encoded alone, give the state there, bit for bit.

        None: as `decode_reach`.
        """
        return None

    @property
    def rgb(self) -> tuple[Tensor, Tensor] | None:
        """A matrix `[3, C]` and an offset `[3]` from a latent cell to its colour in [−1, 1].

        A preview of latents that costs nothing; None: there is no such matrix.
        """
        return None

    @property
    def margin_is_bound(self) -> bool:
        """Whether `margin` is more than can be seen, so that `cache` should measure it."""
        return False

    def use_margin(self, latents: int) -> None:
        """Take a measured margin in place of a bound; a codec that knows its own keeps that."""
        return None

    def unload(self) -> None:
        """Let go of weights, where there are any; the next chunk loads them again."""
        return None

    @property
    def channel_reach(self) -> Tensor:
        """How far a unit of each channel reaches into pixels, `[C]`, mean 1; default: alike."""
        return torch.ones(self.channels)

    @property
    @abstractmethod
    def identity(self) -> str:
        """Name and hash of the weights: stores made with another codec are refused."""

    @property
    def available_offline(self) -> bool:
        """Whether weights are on this machine, if it needs any: `identity` fetches nothing then."""
        return True

    @abstractmethod
    def encode(self, chunk: Pixels, state: State | None = None) -> tuple[Latents, State]:
        """Return the normalised latents of the next frames, and the state after them."""

    @abstractmethod
    def decode(self, chunk: Latents, state: State | None = None) -> tuple[Pixels, State]:
        """Return the pixels of the next latents (not clamped), and the state after them."""

    def encode_rest(self, state: State) -> Latents | None:
        """Return the provisional latents of frames held back (of a tile that is not full), or None.

        A codec that is exact at tile boundaries only (HunyuanVideo's) answers here what `encode`
        would still change; the state stays as it is. A causal codec holds nothing back.
        """
        return None

    def decode_rest(self, state: State) -> Pixels | None:
        """Return the provisional pixels of latents held back by `decode`, or None."""
        return None


def encode_chunk(
    codec: Codec[CodecSpec], chunk: Pixels, state: State | None = None
) -> tuple[Latents, State]:
    """Return what a codec's `encode` gives, its shapes checked.

    Raises:
        ContractError: it gives no pair, or the latents are not of the chunk's cells; of a causal
            codec also not as many as the chunk has frames for.
    """
    latents, state_after = _pair(codec, "encode", codec.encode(chunk, state))
    count = ceil_div(chunk.shape[2], codec.stride.time)
    _check_latents(codec, "its latents", latents, chunk, count if codec.causal else None)
    return latents, state_after


def join_latents(
    codec: Codec[CodecSpec], settled: Sequence[Tensor], rest: Tensor | None, pixels: int
) -> Latents:
    """Return all latents of a video of `pixels` frames, provisional ones behind those settled.

    Raises:
        ContractError: they are more or fewer than the video has.
    """
    behind = [] if rest is None else [rest.to(settled[0].device)]
    joined = torch.cat([*settled, *behind], dim=2)
    shape, count = joined.shape, ceil_div(pixels, codec.stride.time)
    expected = (*shape[:2], count, *shape[3:])
    check_shape(codec, f"the latents of {pixels} frames", joined, expected, "B C T H W")
    return joined


def encode_whole(codec: Codec[CodecSpec], pixels: Pixels) -> Latents:
    """Return the latents of a whole video of 1 + 4k frames, provisional ones included.

    Raises:
        ContractError: they are not of the video's shape.
    """
    latents, state = encode_chunk(codec, pixels)
    return join_latents(codec, [latents], codec.encode_rest(state), pixels.shape[2])


def decode_whole(codec: Codec[CodecSpec], latents: Latents) -> Pixels:
    """Return the pixels of a whole video (not clamped), provisional ones included.

    Raises:
        ContractError: they are not of the video's shape.
    """
    pixels, state = _pair(codec, "decode", codec.decode(latents))
    check_type(codec, "its pixels", pixels, Tensor)
    rest = codec.decode_rest(state)
    whole = pixels if rest is None else torch.cat([pixels, rest], dim=2)
    (batch, _, count, height, width), stride = latents.shape, codec.stride
    frames = 1 + stride.time * (count - 1)
    shape = (batch, 3, frames, height * stride.height, width * stride.width)
    check_shape(codec, "its pixels", whole, shape, "B 3 F P Q")
    return whole


def _pair(codec: Codec[CodecSpec], what: str, made: Any) -> tuple[Tensor, State]:
    if not isinstance(made, tuple) or len(made) != 2:
        raise ContractError(
            f"{plugin_label(codec)}: {what}: it gives a {type(made).__name__}, but a tensor and "
            "the state after it are expected"
        )
    return made


def _check_latents(
    codec: Codec[CodecSpec], what: str, latents: Tensor, pixels: Tensor, count: int | None
) -> None:
    """Raise ContractError if latents are not of the cells of pixels; None: of any number.

    Of sides that are no multiple of the stride a codec may drop or keep what is left over.
    """
    stride, (batch, _, _, rows, columns) = codec.stride, pixels.shape
    if count is None and isinstance(latents, Tensor) and latents.dim() == 5:
        count = latents.shape[2]
    cells = [rows // stride.height, columns // stride.width]
    up = [ceil_div(rows, stride.height), ceil_div(columns, stride.width)]
    if isinstance(latents, Tensor) and list(latents.shape[3:]) == up:
        cells = up
    check_shape(codec, what, latents, (batch, codec.channels, count or 0, *cells), "B C T H W")


def decode_among(codec: Codec[CodecSpec], latents: Latents, index: int, latent: Targets) -> Pixels:
    """Return the frames of one retrieved latent, decoded among its true predecessors.

    A latent decoded alone gives one frame and other pixels (design §7.9), so the codec first sees
    the true latents before it.

    Args:
        codec: of these latents.
        latents: the true latents of the window `[B, C, T, H, W]`.
        index: where the latent stands in the window.
        latent: `[B, C, 1, H, W]`, put in its place.

    Returns:
        `[B, 3, f, P, Q]` in [−1, 1]; f is 1 at index 0, else the time stride.
    """
    first = max(0, index - max(codec.margin, 1)) // codec.boundary * codec.boundary
    last = index + 1 + codec.margin_after
    around = [latents[:, :, first:index], latent, latents[:, :, index + 1 : last]]
    pixels = decode_whole(codec, torch.cat(around, dim=2))
    # the slice decodes as a video of its own: its first latent gives one frame
    shown = frames_of(index - first, codec.stride.time)
    return pixels[:, :, shown.start : shown.stop].clamp(-1, 1)


def frames_of(latent: int, stride: int) -> range:
    """Return the video frames that a latent frame stands for: 0 → 0; i → 4(i − 1) + 1 … 4i."""
    return range(stride * (latent - 1) + 1, stride * latent + 1) if latent else range(1)


def frame_to_latent(frame: int, stride: int) -> int:
    """Return the latent frame that stands for a video frame."""
    return ceil_div(frame, stride)


def to_unit(pixels: Tensor) -> Tensor:
    """Return pixels of [−1, 1] as [0, 1], clamped."""
    return (pixels.clamp(-1, 1) + 1) / 2


def from_bytes(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 pixels as floats in [−1, 1]."""
    return frames.to(dtype) / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Return pixels of [−1, 1] as uint8, rounded and clamped."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@frozen(kw_only=True)
class Margins:
    """How far before a slice a causal codec must see, as `measure_margins` found it on pixels.

    A slice that is coded alone differs from the whole video near its start: the codec has not seen
    the frames before it. What is left of that a few latents later cannot be seen.

    Attributes:
        margin: latents before a slice that its decode must see to give the same pixels.
        encode_margin: latents at the start of a slice whose fresh encode differs; None: all did.
        pixels: greatest difference of pixels in [−1, 1] that counts as none.
        latents: greatest difference of latents that counts as none.
    """

    margin: int
    encode_margin: int | None
    pixels: float = HALF_A_LEVEL
    latents: float = HUNDREDTH


@torch.no_grad()
def measure_margins(
    codec: Codec[CodecSpec],
    video: Tensor,
    *,
    pixels: float = HALF_A_LEVEL,
    latents: float = HUNDREDTH,
) -> Margins:
    """Measure the margins of a causal codec on a video, the greatest of slices from three places.

    The places lie in the first quarter. A slice that does not come near the whole by the video's
    end gives the codec's own margin.

    Args:
        codec: to measure.
        video: `[B, 3, 1 + 4k, P, Q]` in [−1, 1], of more latents than the margin that is expected.
        pixels: greatest difference of pixels that counts as none.
        latents: greatest difference of latents that counts as none.

    Raises:
        ValueError: the codec is not causal, or the video has less than two latents.
    """
    if not codec.causal or video.shape[2] <= codec.stride.time:
        raise ValueError("margins are measured with a causal codec, on two latents or more")
    coded, _ = codec.encode(video)
    shown, _ = codec.decode(coded)
    starts = sorted({1, max(1, coded.shape[2] // 8), max(1, coded.shape[2] // 4)})
    decodes = [_settled(_decode_gaps(codec, coded, shown, s), pixels, first=1) for s in starts]
    encodes = [_settled(_encode_gaps(codec, video, coded, s), latents, first=0) for s in starts]
    settled = [m for m in encodes if m is not None]
    return Margins(
        margin=min(codec.margin, max(codec.margin if m is None else m for m in decodes)),
        encode_margin=max(settled) if len(settled) == len(encodes) else None,
        pixels=pixels,
        latents=latents,
    )


def _decode_gaps(codec: Codec[CodecSpec], coded: Tensor, shown: Tensor, start: int) -> Tensor:
    """Return how far a slice decoded alone is from the whole, by latent after its first."""
    step = codec.stride.time
    alone, _ = codec.decode(coded[:, :, start:])
    # the first latent of a slice gives one frame, in the whole it gives more
    gaps = (alone[:, :, 1:] - shown[:, :, 1 + step * start :]).abs()
    return reduce(gaps, "b c (t step) p q -> t", "max", step=step)


def _encode_gaps(codec: Codec[CodecSpec], video: Tensor, coded: Tensor, start: int) -> Tensor:
    """Return how far a slice encoded alone is from the whole, by latent."""
    fresh, _ = codec.encode(video[:, :, codec.stride.time * start :])
    return reduce((fresh - coded[:, :, start:]).abs(), "b c t h w -> t", "max")


def _settled(gaps: Tensor, tolerance: float, *, first: int) -> int | None:
    """Return the latent of a slice from which on no gap counts, None where the last one does.

    `gaps` begin with that of latent `first`.
    """
    if not len(gaps):
        return None
    large = (gaps > tolerance).nonzero().flatten().tolist()
    if not large:
        return first
    return None if large[-1] == len(gaps) - 1 else first + large[-1] + 1
