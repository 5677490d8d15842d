"""The contract of codecs: shapes, streaming, states, margin, identity, on a small video."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..interfaces.codec import Codec, decode_among, decode_whole, encode_whole, frames_of
from ..interfaces.compressor import State
from ..interfaces.spec import CodecSpec
from ..values.grid import Size3
from .samples import (
    copied,
    names_plugin,
    require,
    require_close,
    require_shape,
    require_type,
    require_unchanged,
)

Step = Callable[[Tensor, State | None], tuple[Tensor, State]]
Rest = Callable[[State], Tensor | None]
ROUNDING = 1e-4  # between a sample alone and in a batch: one that reads others differs by far more


@names_plugin
@torch.no_grad()
def check_codec(
    codec: Codec[CodecSpec],
    *,
    cells: tuple[int, int] = (2, 3),
    latents: int = 5,
    tolerance: float = 1e-5,
    trained: bool = True,
) -> None:
    """Check that a codec keeps the contract of `core.interfaces.codec.Codec`.

    Streaming equals one pass for every codec, causal or not: what chunks settle, with the rest at
    the end, is what one chunk gives. A causal codec settles all and has no rest. Samples do not
    depend on each other, and a smooth video comes back nearer than a grey one is.

    Args:
        codec: the codec, ready to run; its parameters say the dtype (none: float64).
        cells: latent rows and columns of the random video it is tried on.
        latents: its latent frames; for a codec that is exact at tiles, some more than two tiles.
        tolerance: of the greatest value, for streaming against one pass.
        trained: whether its weights mean anything; False: that videos come back is not asked.

    Raises:
        AssertionError: it does not; one line says what.
    """
    _check_answers(codec)
    pixels = _video(codec, cells, latents)
    before = copied({"pixels": pixels})
    coded = encode_whole(codec, pixels)
    require_unchanged({"pixels": pixels}, before, "what was given to encode")
    require_shape(coded, (2, codec.channels, latents, *cells), "encode gives what")
    before = copied({"latents": coded})
    back = decode_whole(codec, coded)
    require_unchanged({"latents": coded}, before, "what was given to decode")
    require_shape(back, tuple(pixels.shape), "decode(encode(x)) gives what")
    _check_alone(codec, pixels, coded, back, tolerance)
    stride = codec.stride.time
    for chunks in _cuts(latents):
        frames = [stride * n - (stride - 1 if not i else 0) for i, n in enumerate(chunks)]
        where = f"streamed in chunks of {chunks} latents"
        streamed = _streamed(codec, codec.encode, codec.encode_rest, pixels, frames)
        require_close(streamed, coded, tolerance, f"encode {where}")
        streamed = _streamed(codec, codec.decode, codec.decode_rest, coded, chunks)
        require_close(streamed, back, tolerance, f"decode {where}")
    for what, call, given in (("encode", codec.encode, pixels), ("decode", codec.decode, coded)):
        part, state = call(given)
        made = {"what it gave": part, **state}
        before = copied(made)
        call(-given)  # of the same shape, for another video
        require_unchanged(made, before, f"what {what} gave before, by another call,")
    _check_margin(codec, coded, back, tolerance)
    _check_reach(codec, "decode_reach", coded, tolerance)
    _check_reach(codec, "encode_reach", pixels, tolerance)
    if trained:
        _check_fidelity(codec, cells, latents)


def _check_answers(codec: Codec[CodecSpec]) -> None:
    """Check the types and ranges of what a codec says of itself."""
    require(bool(codec.identity), "identity is empty: stores could not tell codecs apart")
    require_type(codec.identity, str, "identity")
    require(codec.identity == codec.identity, "identity is another one each time it is asked for")
    require_type(codec.causal, bool, "causal")
    require_type(codec.stride, Size3, "stride")
    least = {"channels": 1, "margin": 0, "margin_after": 0, "boundary": 1}
    reaches = {"decode_reach": 0, "encode_reach": 0}
    for name, low in (least | reaches).items():
        value = getattr(codec, name)
        if name in reaches and value is None:
            continue
        require_type(value, int, name)
        require(value >= low, f"{name} is {value}, must be {low} or more")
    require_shape(codec.channel_reach, (codec.channels,), "channel_reach")
    if codec.rgb is not None:
        require(len(codec.rgb) == 2, "rgb is no pair of a matrix and an offset")
        require_shape(codec.rgb[0], (3, codec.channels), "rgb: the matrix")
        require_shape(codec.rgb[1], (3,), "rgb: the offset")


def _check_alone(
    codec: Codec[CodecSpec], pixels: Tensor, coded: Tensor, back: Tensor, tolerance: float
) -> None:
    """Check that a sample of a batch is coded as it is alone, up to rounding."""
    near = max(tolerance, ROUNDING)
    for row in range(len(pixels)):
        one = slice(row, row + 1)
        line = "a sample alone and in a batch"
        require_close(encode_whole(codec, pixels[one]), coded[one], near, f"encode: {line}")
        require_close(decode_whole(codec, coded[one]), back[one], near, f"decode: {line}")


def _check_fidelity(codec: Codec[CodecSpec], cells: tuple[int, int], latents: int) -> None:
    """Check that colours come back where they were: each channel is a ramp along another axis."""
    like = _video(codec, cells, latents)
    ramps = [torch.linspace(-0.8, 0.8, n, dtype=like.dtype) for n in like.shape[2:]]
    grid = torch.stack(torch.meshgrid(*ramps, indexing="ij"))
    smooth = torch.stack([grid, -grid]).to(like.device)
    coded = encode_whole(codec, smooth)
    back = decode_whole(codec, coded)
    gap, grey = (back - smooth).abs().mean(dim=(0, 2, 3, 4)), smooth.abs().mean(dim=(0, 2, 3, 4))
    share = ", ".join(f"{x:.2f}" for x in (gap / grey).tolist())
    require(
        bool((gap < grey).all()),
        "decode(encode(x)) of a smooth RGB video in [−1, 1] is farther from it than a grey one is "
        f"(error of R, G, B over that of grey: {share}; weights that are random: trained=False)",
    )
    if codec.rgb is not None:
        matrix, offset = (x.to(coded) for x in codec.rgb)
        seen = torch.einsum("rc,bcthw->brthw", matrix, coded) + offset[:, None, None, None]
        shown = [smooth[:, :, frames_of(i, codec.stride.time)] for i in range(latents)]
        true = torch.cat([F.adaptive_avg_pool3d(x, (1, *cells)) for x in shown], dim=2)
        nearer = bool((seen - true).abs().mean() < true.abs().mean())
        require(nearer, "rgb: the colours that it gives are farther from the video than grey is")


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
    """Return what chunks of these lengths give; check that no state and no chunk is changed.

    Nor, at the end, any state that was given on the way: streams begin anew from such ones.
    """
    state: State = {}
    parts: list[Tensor] = []
    states: list[tuple[State, State]] = []
    for chunk in whole.split(list(lengths), dim=2):
        inputs = {"chunk": chunk, **state}
        before = copied(inputs)
        part, state = step(chunk, state if parts else None)
        plain = isinstance(state, dict) and all(isinstance(x, Tensor) for x in state.values())
        require(plain, "the state is no dict of tensors")
        require_unchanged(inputs, before, "the state or the chunk that was given")
        parts.append(part)
        states.append((dict(state), copied(state)))
        _check_rest(codec, rest, state)
    last = rest(state)
    for now, before in states:
        require_unchanged(now, before, "a state that was returned before, by a later step,")
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


def _check_reach(codec: Codec[CodecSpec], name: str, whole: Tensor, tolerance: float) -> None:
    """Check that a stream begun `name` latents before a place goes on there as that of the whole.

    The slice begins as takes begin it: with the last frame of the latent that far before. Where
    that is the first latent, there is nothing to check.
    """
    reach, stride = getattr(codec, name), codec.stride.time
    encodes = name == "encode_reach"
    count = 1 + (whole.shape[2] - 1) // stride if encodes else whole.shape[2]
    at = count - 1
    start = 0 if reach is None else max(0, at - reach) // codec.boundary * codec.boundary
    if not start:
        return

    def chunk(latent: int, *, first: bool) -> Tensor:
        if not encodes:
            return whole[:, :, latent : latent + 1]
        frames = frames_of(latent, stride)
        return whole[:, :, frames.stop - 1 if first else frames.start : frames.stop]

    step = codec.encode if encodes else codec.decode
    rest = codec.encode_rest if encodes else codec.decode_rest
    results = []
    for begin in (0, start):
        state: State | None = None
        for latent in range(begin, at):
            _, state = step(chunk(latent, first=latent == begin), state)
        made, state = step(chunk(at, first=False), state)
        held = rest(state)
        results.append(made if held is None else torch.cat([made, held.to(made.device)], dim=2))
    line = f"{name} is {reach}, but a stream begun {at - start} latents before goes on otherwise"
    require_close(results[1], results[0], tolerance, line)
