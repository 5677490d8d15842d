"""What every codec must hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..codec import Codec, decode_among, frames_of
from ..compressor import State
from ..spec import CodecSpec
from .expect import copied, require, require_close, require_shape, require_unchanged

Pass = Callable[[Tensor, State | None], tuple[Tensor, State]]
LATENTS = 5
CHUNKS = ((1, 1, 1, 1, 1), (1, 4), (2, 3), (3, 1, 1))


@torch.no_grad()
def check_codec(
    codec: Codec[CodecSpec], *, cells: tuple[int, int] = (2, 3), tolerance: float = 1e-5
) -> None:
    """Make sure that a codec keeps its word: shapes, streaming, states, margin, identity.

    Args:
        codec: the codec, ready to run; its parameters say the dtype (none: float64).
        cells: latent rows and columns of the random video it is tried on.
        tolerance: of the greatest value, for streaming against one pass.

    Raises:
        AssertionError: it does not; one line says what.
    """
    require(bool(codec.identity), "identity is empty: stores could not tell codecs apart")
    require(codec.margin >= 0, f"margin is {codec.margin}, must be 0 or more")
    pixels = _video(codec, cells)
    latents, _ = codec.encode(pixels, None)
    require_shape(latents, (2, codec.channels, LATENTS, *cells), "encode gives what")
    back, _ = codec.decode(latents, None)
    require_shape(back, tuple(pixels.shape), "decode(encode(x)) gives what")
    if not codec.causal:
        return
    stride = codec.stride.time
    for chunks in CHUNKS:
        frames = [stride * n - (stride - 1 if not i else 0) for i, n in enumerate(chunks)]
        where = f"streamed in chunks of {chunks} latents"
        require_close(
            _streamed(codec.encode, pixels, frames), latents, tolerance, f"encode {where}"
        )
        require_close(_streamed(codec.decode, latents, chunks), back, tolerance, f"decode {where}")
    _check_margin(codec, latents, back, tolerance)


def _video(codec: Codec[CodecSpec], cells: tuple[int, int]) -> Tensor:
    stride = codec.stride
    shape = (2, 3, 1 + stride.time * (LATENTS - 1), cells[0] * stride.height)
    first = next(codec.parameters(), torch.zeros((), dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(*shape, cells[1] * stride.width, generator=generator) * 2 - 1
    return video.to(first.device, first.dtype)


def _streamed(step: Pass, whole: Tensor, lengths: Sequence[int]) -> Tensor:
    """Give what chunks of these lengths give, and see that no state and no chunk is changed."""
    state: State | None = None
    parts = []
    for chunk in whole.split(list(lengths), dim=2):
        given = {"chunk": chunk, **(state or {})}
        before = copied(given)
        part, state = step(chunk, state)
        require_unchanged(given, before, "the state or the chunk that was given")
        parts.append(part)
    return torch.cat(parts, dim=2)


def _check_margin(codec: Codec[CodecSpec], latents: Tensor, back: Tensor, tolerance: float) -> None:
    for index in range(latents.shape[2]):
        alone = decode_among(codec, latents, index, latents[:, :, index : index + 1])
        at = frames_of(index, codec.stride.time)
        what = f"latent {index} decoded among its {codec.margin} predecessors (margin)"
        require_close(alone, back[:, :, at.start : at.stop].clamp(-1, 1), tolerance, what)
