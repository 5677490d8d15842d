"""The contract of codecs: shapes, streaming, states, margin, identity, on a small video."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..interfaces.codec import Codec, decode_among, decode_whole, encode_whole, frames_of
from ..interfaces.compressor import State
from ..interfaces.spec import CodecSpec
from .samples import copied, require, require_close, require_shape, require_unchanged

Step = Callable[[Tensor, State | None], tuple[Tensor, State]]
Rest = Callable[[State], Tensor | None]


@torch.no_grad()
def check_codec(
    codec: Codec[CodecSpec],
    *,
    cells: tuple[int, int] = (2, 3),
    latents: int = 5,
    tolerance: float = 1e-5,
) -> None:
    """Check that a codec keeps the contract of `core.interfaces.codec.Codec`.

    Streaming equals one pass for every codec, causal or not: what chunks settle, with the rest at
    the end, is what one chunk gives. A causal codec settles all and has no rest.

    Args:
        codec: the codec, ready to run; its parameters say the dtype (none: float64).
        cells: latent rows and columns of the random video it is tried on.
        latents: its latent frames; for a codec that is exact at tiles, some more than two tiles.
        tolerance: of the greatest value, for streaming against one pass.

    Raises:
        AssertionError: it does not; one line says what.
    """
    require(bool(codec.identity), "identity is empty: stores could not tell codecs apart")
    require(codec.margin >= 0, f"margin is {codec.margin}, must be 0 or more")
    require(codec.boundary >= 1, f"boundary is {codec.boundary}, must be 1 or more")
    pixels = _video(codec, cells, latents)
    coded = encode_whole(codec, pixels)
    require_shape(coded, (2, codec.channels, latents, *cells), "encode gives what")
    back = decode_whole(codec, coded)
    require_shape(back, tuple(pixels.shape), "decode(encode(x)) gives what")
    stride = codec.stride.time
    for chunks in _cuts(latents):
        frames = [stride * n - (stride - 1 if not i else 0) for i, n in enumerate(chunks)]
        where = f"streamed in chunks of {chunks} latents"
        streamed = _streamed(codec, codec.encode, codec.encode_rest, pixels, frames)
        require_close(streamed, coded, tolerance, f"encode {where}")
        streamed = _streamed(codec, codec.decode, codec.decode_rest, coded, chunks)
        require_close(streamed, back, tolerance, f"decode {where}")
    _check_margin(codec, coded, back, tolerance)


def _cuts(latents: int) -> list[tuple[int, ...]]:
    """Return ways to cut a video into chunks, each as numbers of latents; first all one by one."""
    ways = [(1,) * latents, (1, latents - 1), (2, latents - 2), (latents - 2, 1, 1)]
    return [tuple(n for n in way if n > 0) for way in ways if min(way) >= 0]


def _video(codec: Codec[CodecSpec], cells: tuple[int, int], latents: int) -> Tensor:
    stride = codec.stride
    shape = (2, 3, 1 + stride.time * (latents - 1), cells[0] * stride.height)
    first = next(codec.parameters(), torch.zeros((), dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(*shape, cells[1] * stride.width, generator=generator) * 2 - 1
    return video.to(first.device, first.dtype)


def _streamed(
    codec: Codec[CodecSpec], step: Step, rest: Rest, whole: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Return what chunks of these lengths give; check that no state and no chunk is changed."""
    state: State = {}
    parts: list[Tensor] = []
    for chunk in whole.split(list(lengths), dim=2):
        inputs = {"chunk": chunk, **state}
        before = copied(inputs)
        part, state = step(chunk, state if parts else None)
        require_unchanged(inputs, before, "the state or the chunk that was given")
        parts.append(part)
        _check_rest(codec, rest, state)
    last = rest(state)
    return torch.cat(parts if last is None else [*parts, last], dim=2)


def _check_rest(codec: Codec[CodecSpec], rest: Rest, state: State) -> None:
    """Check that asking for the rest changes nothing, and that a causal codec has none."""
    before = copied(state)
    remaining = rest(state)
    require_unchanged(state, before, "the state that was asked for its rest")
    require(remaining is None or not codec.causal, "a causal codec holds nothing back")


def _check_margin(codec: Codec[CodecSpec], latents: Tensor, back: Tensor, tolerance: float) -> None:
    for index in range(latents.shape[2]):
        alone = decode_among(codec, latents, index, latents[:, :, index : index + 1])
        at = frames_of(index, codec.stride.time)
        what = f"latent {index} decoded among its {codec.margin} predecessors (margin)"
        require_close(alone, back[:, :, at.start : at.stop].clamp(-1, 1), tolerance, what)
