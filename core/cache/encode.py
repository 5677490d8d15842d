"""Encode one video: read, fitted into its bucket, and turned into latents chunk by chunk.

Beside the latents of the video itself (HR) stand those of its LR videos, one for every rate:
smaller and slower copies, whose latents lie exactly over the HR latents that they cover (design
§2). Every class here takes a video in chunks of any number of frames, with the same result as of
the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
import numpy as np
import torch
from attrs import define, field, frozen
from einops import rearrange, reduce
from numpy.typing import NDArray
from torch import Tensor

from ..data.films import Film, film_chunks, film_size
from ..errors import UserError
from ..experiment import CacheSpec
from ..interfaces.codec import Codec, encode_chunk, from_bytes, join_latents
from ..interfaces.compressor import State, pad_to
from ..interfaces.spec import CodecSpec
from ..values.grid import Geometry, Rate, Size3
from ..values.history import History
from ..values.shapes import Latents, Pixels
from ..video.decode import probe
from ..video.placement import Placement, place
from ..video.read import FrameChunks, iter_frames


@frozen(eq=False, kw_only=True)
class Encoded:
    """A video as latents, one sample.

    Attributes:
        latents: `[1, C, T, H, W]` float32; `lr` the same by rate.
        pixels: uint8 `[1, 3, F, P, Q]`, or None where they are not kept.
        frames: F = 1 + stride·(T − 1); `fps` of them a second.
        placement: how frames were fitted into their bucket, or what they were filmed at.
        note: what was wrong with the file, "" where nothing was.
    """

    latents: Tensor
    lr: dict[Rate, Tensor]
    pixels: Tensor | None
    frames: int
    fps: float
    placement: Placement | str
    note: str = ""

    def history(self) -> History:
        """Return it as a history that starts at latent 0."""
        return History(latents=self.latents, lr=self.lr, pixels=self.pixels)


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
    """Encode a video file, with one chunk of frames in memory at a time.

    Args:
        path: the video.
        codec: of the experiment.
        geometry: shapes of its backbone.
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
    read = _read_fitted(path, geometry, spec, fps, count)
    pixels = map(_tensor, read)
    encoded = encode_pixels(codec, pixels, rates, keep_pixels, fps, read.placement)
    if encoded.frames < least:
        raise UserError(
            f"{path.name}: too short: {encoded.frames} frames at {fps:g} fps, "
            f"{least} ({spec.min_seconds:g} s) are needed (cache.min_seconds)"
            + (f"; {read.warning}" if read.warning else "")
        )
    return attrs.evolve(encoded, note=read.warning)


def encode_film(
    film: Film,
    codec: Codec[CodecSpec],
    geometry: Geometry,
    spec: CacheSpec,
    *,
    rates: frozenset[Rate],
    keep_pixels: bool,
) -> Encoded:
    """Make and encode a film at the backbone's frame rate; arguments as of `encode_file`.

    Raises:
        UserError: a photograph cannot be read, or the film is shorter than the spec allows.
    """
    least = geometry.frames(spec.min_seconds)
    if geometry.frames(film.spec.seconds) < least:
        raise UserError(
            f"films of {film.spec.seconds:g} s (cache.film.seconds) are too short: "
            f"{spec.min_seconds:g} s are needed (cache.min_seconds)"
        )
    placement, chunks = filmed_chunks(film, geometry, spec, fps=geometry.fps)
    return encode_pixels(codec, chunks, rates, keep_pixels, geometry.fps, placement)


def filmed_chunks(
    film: Film, geometry: Geometry, spec: CacheSpec, *, fps: float, count: int | None = None
) -> tuple[str, Iterator[Tensor]]:
    """Return what a film is filmed at, in words, and its frames, uint8 `[1, 3, n, P, Q]`.

    Raises:
        UserError: a photograph cannot be read; while iterating.
    """
    size = film_size(film.spec, spec.area, geometry, spec.max_aspect)
    chunks = film_chunks(film, size, fps, spec.chunk, count)
    return f"filmed at {size[0]}x{size[1]}", map(_tensor, chunks)


def file_chunks(
    path: Path, geometry: Geometry, spec: CacheSpec, *, fps: float, count: int | None = None
) -> tuple[Placement, Iterator[Tensor]]:
    """Return how a video fits its bucket, and its frames so fitted, uint8 `[1, 3, n, P, Q]`.

    Raises:
        UserError: the file is no video; while iterating, where it cannot be decoded.
    """
    read = _read_fitted(path, geometry, spec, fps, count)
    return read.placement, map(_tensor, read)


def _read_fitted(
    path: Path, geometry: Geometry, spec: CacheSpec, fps: float, count: int | None
) -> FrameChunks:
    info = probe(path)
    placement = place(info.width, info.height, spec.area, geometry.multiple, spec.max_aspect)
    return iter_frames(path, fps=fps, size=placement, count=count, chunk=spec.chunk)


def _tensor(chunk: NDArray[np.uint8]) -> Tensor:
    return rearrange(torch.from_numpy(chunk), "n p q c -> 1 c n p q")


def encode_pixels(
    codec: Codec[CodecSpec],
    chunks: Iterator[Tensor],
    rates: frozenset[Rate],
    keep_pixels: bool,
    fps: float,
    placement: Placement | str,
) -> Encoded:
    """Encode a video that comes as uint8 chunks `[1, 3, n, P, Q]`, of any n each.

    Raises:
        UserError: the chunks hold no frame.
    """
    state: State | None = None
    device, pixels, latents, count = _device(codec), [], [], 0
    lowres = MultiRateEncoder.of(codec, rates)
    for chunk in regroup(chunks, codec.stride.time):
        frames = from_bytes(chunk.to(device))
        count += frames.shape[2]
        out, state = encode_chunk(codec, frames, state)
        latents.append(out.cpu())
        lowres.push(frames)
        pixels += [chunk] if keep_pixels else []
    if state is None:
        raise UserError("the video has no frame")
    joined = join_latents(codec, latents, codec.encode_rest(state), count)
    return Encoded(
        latents=joined,
        lr=lowres.joined(),
        pixels=torch.cat(pixels, dim=2) if keep_pixels else None,
        frames=1 + codec.stride.time * (joined.shape[2] - 1),
        fps=fps,
        placement=placement,
    )


def regroup(chunks: Iterator[Tensor], stride: int) -> Iterator[Tensor]:
    """Yield chunks of 1 + k·stride frames, then of k·stride; a rest that fills no latent is cut."""
    rest: Tensor | None = None
    first = True
    for chunk in chunks:
        rest = chunk if rest is None else torch.cat([rest, chunk], dim=2)
        head = 1 if first else 0
        usable = head + (rest.shape[2] - head) // stride * stride
        if usable > 0:
            yield rest[:, :, :usable]
            rest, first = rest[:, :, usable:], False


def encode_rates(
    codec: Codec[CodecSpec], chunks: Iterable[Tensor], rates: Iterable[Rate]
) -> dict[Rate, Tensor]:
    """Encode only the LR latents of uint8 chunks `[1, 3, n, P, Q]`, as `encode_pixels` would."""
    device, lowres = _device(codec), MultiRateEncoder.of(codec, rates)
    for chunk in regroup(iter(chunks), codec.stride.time):
        lowres.push(from_bytes(chunk.to(device)))
    return lowres.joined()


def _device(codec: Codec[CodecSpec]) -> torch.device:
    tensors = [*codec.parameters(), *codec.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


@define
class MultiRateEncoder:
    """Encodes the LR latents of several rates, and gathers them on the CPU."""

    encoders: dict[Rate, LowResEncoder]
    states: dict[Rate, State] = field(factory=dict)
    latents: dict[Rate, list[Tensor]] = field(factory=dict)

    @classmethod
    def of(cls, codec: Codec[CodecSpec], rates: Iterable[Rate]) -> MultiRateEncoder:
        """Return the encoder before the first frame."""
        return cls({rate: LowResEncoder(codec, rate) for rate in sorted(rates)})

    def push(self, frames: Tensor) -> None:
        """Encode the next frames, in [−1, 1]."""
        for rate, encoder in self.encoders.items():
            out, self.states[rate] = encoder.push(frames, self.states.get(rate))
            self.latents.setdefault(rate, []).append(out.cpu())

    def joined(self) -> dict[Rate, Tensor]:
        """Return the LR latents by rate, as if no frame came any more; no rate where none came."""
        return {rate: torch.cat(self._with_rest(rate), dim=2) for rate in self.latents}

    def _with_rest(self, rate: Rate) -> list[Tensor]:
        rest = self.encoders[rate].rest(self.states[rate])
        return self.latents[rate] if rest is None else [*self.latents[rate], rest.cpu()]


class LowResEncoder:
    """Encodes the LR latents of a rate of a video that comes in chunks of any number of frames.

    LR latent j comes with the chunk that completes LR frame 4j, which is frame 4·r·j: the last of
    HR latent rj, with which it travels. T HR latents give 1 + ⌊(T − 1) / r⌋ of them.
    """

    def __init__(self, codec: Codec[CodecSpec], rate: Rate) -> None:
        self.codec = codec
        self.lowres = LowRes(rate, codec.stride)

    def push(self, pixels: Pixels, state: State | None = None) -> tuple[Latents, State]:
        """Return the LR latents that the next frames complete (maybe none), and the state.

        Raises:
            ValueError: as `LowRes.push`.
        """
        frames, reduced = self.lowres.push(pixels, _without_prefix(state, "lowres."))
        if state is not None:
            frames = torch.cat([state["frames"], frames], dim=2)
        stride = self.codec.stride.time
        first = int(state is None)
        ready = first + (frames.shape[2] - first) // stride * stride
        latents, coded = self._encode(frames[:, :, :ready], _without_prefix(state, "codec."))
        left = {"frames": frames[:, :, ready:].clone()}
        return latents, left | _with_prefix(reduced, "lowres.") | _with_prefix(coded, "codec.")

    def begin_at(self, frames: Pixels, lowres: State) -> State:
        """Return the state of a stream that has been going on, from its last LR frames alone.

        Args:
            frames: LR frames 4j, 4j + 1, … up to the last that came; LR latent j lies at a
                `boundary` of the codec, and far enough back (`Codec.encode_reach`).
            lowres: the state of `lowres` behind them.
        """
        stride = self.codec.stride.time
        ready = 1 + (frames.shape[2] - 1) // stride * stride
        _, coded = self.codec.encode(frames[:, :, :ready])
        left = {"frames": frames[:, :, ready:].clone()}
        return left | _with_prefix(lowres, "lowres.") | _with_prefix(coded, "codec.")

    def rest(self, state: State) -> Latents | None:
        """Return the provisional LR latents that a codec holds back, None for a causal one."""
        coded = _without_prefix(state, "codec.")
        return None if coded is None else self.codec.encode_rest(coded)

    def _encode(self, frames: Pixels, state: State | None) -> tuple[Latents, State]:
        if state is None or frames.shape[2]:
            return encode_chunk(self.codec, frames, state)
        stride = self.codec.stride
        size = (frames.shape[-2] // stride.height, frames.shape[-1] // stride.width)
        return frames.new_zeros(frames.shape[0], self.codec.channels, 0, *size), state


def _without_prefix(state: State | None, prefix: str) -> State | None:
    if state is None:
        return None
    return {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}


def _with_prefix(state: State, prefix: str) -> State:
    return {prefix + key: x for key, x in state.items()}


class LowRes:
    """Makes the LR video of a rate out of a video that comes in chunks of any number of frames.

    LR frame 0 is frame 0; LR frame i is the mean of frames r(i − 1) + 1 … ri. In space the last row
    and column are repeated to whole LR latent cells (rate × VAE stride), then boxes are averaged,
    so LR latents have ⌈H / rate⌉ rows and stand exactly over the HR cells that they cover.
    """

    def __init__(self, rate: Rate, stride: Size3) -> None:
        self.rate = rate
        self.stride = stride

    def push(self, pixels: Pixels, state: State | None = None) -> tuple[Pixels, State]:
        """Return the LR frames that the next frames complete (maybe none), and the state.

        The state holds the frames that wait for more, fewer than the time rate; that there is
        one says that frame 0 has come.

        Raises:
            ValueError: `pixels` are no floats, no frame, or of another size than those before.
        """
        if not pixels.is_floating_point() or not pixels.shape[2]:
            raise ValueError(
                f"a chunk holds one frame or more as floats in [−1, 1], not {pixels.shape[2]} as "
                f"{pixels.dtype}"
            )
        small = self.shrink(pixels)
        if state is None:
            lone, rest = small[:, :, :1], small[:, :, 1:]
        else:
            lone, rest = small[:, :, :0], torch.cat([_waiting(state, small), small], dim=2)
        extra = rest.shape[2] % self.rate.time
        whole, left = rest.split([rest.shape[2] - extra, extra], dim=2)
        means = reduce(whole, "b c (n r) p q -> b c n p q", "mean", r=self.rate.time)
        return torch.cat([lone, means], dim=2), {"waiting": left.clone()}

    def between(self, pixels: Pixels) -> State:
        """Return the state between two LR frames, behind the first, of a video of this size."""
        return {"waiting": self.shrink(pixels[:, :, :1])[:, :, :0]}

    def shrink(self, pixels: Pixels) -> Tensor:
        """Return frames at the rate's size in space, each for itself."""
        rate, stride = self.rate, self.stride
        padded = pad_to(pixels, rate.height * stride.height, rate.width * stride.width)
        boxes = {"h": rate.height, "w": rate.width}
        return reduce(padded, "b c f (p h) (q w) -> b c f p q", "mean", **boxes)


def _waiting(state: State, small: Tensor) -> Tensor:
    """Return the frames of a state that wait for more, checked to be of the same size."""
    before, after = tuple(state["waiting"].shape[-2:]), tuple(small.shape[-2:])
    if before != after:
        raise ValueError(f"frames of another size than before: LR {after} after {before}")
    return state["waiting"]
