"""How far before a slice a causal codec must see, measured on pixels (conventions A).

A slice that is coded alone differs from the whole video near its start: the codec lacks the frames
before it. What is left of that a few latents later cannot be seen.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from .codec import Codec
from .spec import CodecSpec

HALF_A_LEVEL = 1 / 255  # of pixels in [−1, 1]: less than this is no other byte, but for ties
HUNDREDTH = 0.01  # of the standard deviation that latents are normalised to


@frozen(kw_only=True)
class Margins:
    """What was measured.

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
    """Give the margins of a causal codec on a video, the greatest of slices from three places.

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
    known = [m for m in encodes if m is not None]
    return Margins(
        margin=min(codec.margin, max(codec.margin if m is None else m for m in decodes)),
        encode_margin=max(known) if len(known) == len(encodes) else None,
        pixels=pixels,
        latents=latents,
    )


def _decode_gaps(codec: Codec[CodecSpec], coded: Tensor, shown: Tensor, start: int) -> Tensor:
    """Give how far a slice decoded alone is from the whole, by latent after its first."""
    step = codec.stride.time
    alone, _ = codec.decode(coded[:, :, start:])
    # the first latent of a slice gives one frame, in the whole it gives more
    off = (alone[:, :, 1:] - shown[:, :, 1 + step * start :]).unflatten(2, (-1, step))
    gaps: Tensor = off.abs().amax(dim=(0, 1, 3, 4, 5))
    return gaps


def _encode_gaps(codec: Codec[CodecSpec], video: Tensor, coded: Tensor, start: int) -> Tensor:
    """Give how far a slice encoded alone is from the whole, by latent."""
    fresh, _ = codec.encode(video[:, :, codec.stride.time * start :])
    gaps: Tensor = (fresh - coded[:, :, start:]).abs().amax(dim=(0, 1, 3, 4))
    return gaps


def _settled(gaps: Tensor, tolerance: float, *, first: int) -> int | None:
    """Give the latent of a slice from which on no gap counts, None where the last one does.

    `gaps` begin with that of latent `first`.
    """
    if not len(gaps):
        return None
    large = (gaps > tolerance).nonzero().flatten().tolist()
    if not large:
        return first
    return None if large[-1] == len(gaps) - 1 else first + large[-1] + 1
