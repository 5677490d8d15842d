"""One video into latents: read, fitted into its bucket, encoded in chunks at every rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from attrs import define, field, frozen
from torch import Tensor

from ..codec import Codec, from_bytes
from ..compressor import State
from ..errors import UserError
from ..experiment import CacheSpec
from ..grid import Geometry, Rate
from ..history import History
from ..spec import CodecSpec
from .bucket import Placement, place
from .lowres import LowResEncoder
from .video import iter_frames, probe


@frozen(eq=False, kw_only=True)
class Encoded:
    """A video as latents, one sample.

    Attributes:
        latents: `[1, C, T, H, W]` float32; `lr` the same by rate.
        pixels: uint8 `[1, 3, F, P, Q]`, or None where they are not kept.
        frames: F = 1 + stride·(T − 1).
        placement: how frames were fitted into their bucket.
    """

    latents: Tensor
    lr: dict[Rate, Tensor]
    pixels: Tensor | None
    frames: int
    fps: float
    placement: Placement

    def history(self) -> History:
        """Give it as a history that starts at latent 0."""
        return History(latents=self.latents, lr=self.lr, pixels=self.pixels)

    def mirrored(self, codec: Codec[CodecSpec], rates: frozenset[Rate]) -> Encoded:
        """Give the same video mirrored left to right, encoded afresh from its pixels."""
        assert self.pixels is not None
        return encode_pixels(
            codec, iter([self.pixels.flip(-1)]), rates, True, self.fps, self.placement
        )


def encode_file(
    path: Path,
    codec: Codec[CodecSpec],
    geometry: Geometry,
    spec: CacheSpec,
    *,
    fps: float,
    rates: frozenset[Rate],
    keep_pixels: bool,
    seconds: float | None = None,
) -> Encoded:
    """Give a video file as latents, with one chunk of frames in memory at a time.

    Args:
        path: the video.
        codec: of the experiment; `geometry` of its backbone, `spec` of its cache.
        geometry: shapes of the backbone.
        spec: bucket area, shortest length and chunk.
        fps: frames a second to read at.
        rates: LR rates to encode.
        keep_pixels: whether the frames are kept.
        seconds: read no more than so much; None reads all.

    Raises:
        UserError: the file is no video, or shorter than the spec allows (one line, with reason).
    """
    count = None if seconds is None else geometry.frames(seconds, fps)
    least = geometry.frames(spec.min_seconds, fps)
    placement, pixels = file_chunks(path, geometry, spec, fps=fps, count=count)
    encoded = encode_pixels(codec, pixels, rates, keep_pixels, fps, placement)
    if encoded.frames < least:
        raise UserError(
            f"{path.name}: too short: {encoded.frames} frames at {fps:g} fps, "
            f"{least} ({spec.min_seconds:g} s) are needed (cache.min_seconds)"
        )
    return encoded


def file_chunks(
    path: Path, geometry: Geometry, spec: CacheSpec, *, fps: float, count: int | None = None
) -> tuple[Placement, Iterator[Tensor]]:
    """Give how a video is fitted into its bucket, and its frames so, uint8 `[1, 3, n, P, Q]`.

    Raises:
        UserError: the file is no video; while iterating, where it cannot be decoded.
    """
    info = probe(path)
    placement = place(info.width, info.height, spec.area, geometry.multiple, spec.max_aspect)
    chunks = iter_frames(path, fps=fps, size=placement, count=count, chunk=spec.chunk)
    return placement, (torch.from_numpy(chunk).movedim(-1, 0)[None] for chunk in chunks)


def encode_pixels(
    codec: Codec[CodecSpec],
    chunks: Iterator[Tensor],
    rates: frozenset[Rate],
    keep_pixels: bool,
    fps: float,
    placement: Placement,
) -> Encoded:
    """Give uint8 chunks `[1, 3, n, P, Q]` of a video as latents; n may vary as it likes.

    Raises:
        UserError: the chunks hold no frame.
    """
    state: State | None = None
    device, kept, latents = _device(codec), [], []
    lowres = LowStreams.of(codec, rates)
    for chunk in regroup(chunks, codec.stride.time):
        frames = from_bytes(chunk.to(device))
        out, state = codec.encode(frames, state)
        latents.append(out.cpu())
        lowres.push(frames)
        kept += [chunk] if keep_pixels else []
    if state is None:
        raise UserError("the video has no frame")
    rest = codec.encode_rest(state)
    joined = torch.cat(latents if rest is None else [*latents, rest.cpu()], dim=2)
    return Encoded(
        latents=joined,
        lr=lowres.joined(),
        pixels=torch.cat(kept, dim=2) if keep_pixels else None,
        frames=1 + codec.stride.time * (joined.shape[2] - 1),
        fps=fps,
        placement=placement,
    )


def encode_rates(
    codec: Codec[CodecSpec], chunks: Iterable[Tensor], rates: Iterable[Rate]
) -> dict[Rate, Tensor]:
    """Give the LR latents alone of uint8 chunks `[1, 3, n, P, Q]`, as `encode_pixels` does."""
    device, lowres = _device(codec), LowStreams.of(codec, rates)
    for chunk in regroup(iter(chunks), codec.stride.time):
        lowres.push(from_bytes(chunk.to(device)))
    return lowres.joined()


@define
class LowStreams:
    """LR latents of several rates, gathered chunk by chunk."""

    encoders: dict[Rate, LowResEncoder]
    states: dict[Rate, State] = field(factory=dict)
    latents: dict[Rate, list[Tensor]] = field(factory=dict)

    @classmethod
    def of(cls, codec: Codec[CodecSpec], rates: Iterable[Rate]) -> LowStreams:
        """Begin with no frame."""
        return cls({rate: LowResEncoder(codec, rate) for rate in sorted(rates)})

    def push(self, frames: Tensor) -> None:
        """Take the next frames in [−1, 1]."""
        for rate, encoder in self.encoders.items():
            out, self.states[rate] = encoder.push(frames, self.states.get(rate))
            self.latents.setdefault(rate, []).append(out.cpu())

    def joined(self) -> dict[Rate, Tensor]:
        """Give the LR latents by rate, as if no frame came any more; no rate where none came."""
        return {rate: torch.cat(self._all(rate), dim=2) for rate in self.latents}

    def _all(self, rate: Rate) -> list[Tensor]:
        rest = self.encoders[rate].rest(self.states[rate])
        return self.latents[rate] if rest is None else [*self.latents[rate], rest.cpu()]


def regroup(chunks: Iterator[Tensor], stride: int) -> Iterator[Tensor]:
    """Give chunks of 1 + k·stride frames, then of k·stride; a rest that fills no latent is cut."""
    rest: Tensor | None = None
    first = True
    for chunk in chunks:
        rest = chunk if rest is None else torch.cat([rest, chunk], dim=2)
        head = 1 if first else 0
        usable = head + (rest.shape[2] - head) // stride * stride
        if usable > 0:
            yield rest[:, :, :usable]
            rest, first = rest[:, :, usable:], False


def _device(codec: Codec[CodecSpec]) -> torch.device:
    tensors = [*codec.parameters(), *codec.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
