"""The LR video and its latents, streamed and exact (design §2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..codec import Codec
from ..compressor import State
from ..fit import pad_to
from ..grid import Rate, Size3
from ..shapes import Latents, Pixels
from ..spec import CodecSpec


class LowRes:
    """Gives the LR video of a rate, in chunks of any number of frames.

    LR frame 0 is frame 0; LR frame i is the mean of frames r(i − 1) + 1 … ri. In space last row
    and column are repeated to whole LR latent cells (rate × VAE stride), then boxes are averaged,
    so LR latents have ⌈H / rate⌉ rows and stand exactly over the HR cells that they cover.
    """

    def __init__(self, rate: Rate, stride: Size3) -> None:
        self.rate = rate
        self.stride = stride

    def push(self, pixels: Pixels, state: State | None = None) -> tuple[Pixels, State]:
        """Give the LR frames that the next frames complete (maybe none), and the state.

        The state holds the frames that wait for more, fewer than the time rate, and whether
        frame 0 is behind.

        Raises:
            ValueError: `pixels` are no floats, no frame, or of another size than those before.
        """
        if not pixels.is_floating_point() or not pixels.shape[2]:
            raise ValueError(
                f"a chunk holds one frame or more as floats in [−1, 1], not {pixels.shape[2]} as "
                f"{pixels.dtype}"
            )
        small = self._shrink(pixels)
        if state is None:
            lone, rest = small[:, :, :1], small[:, :, 1:]
        else:
            lone, rest = small[:, :, :0], torch.cat([_waiting(state, small), small], dim=2)
        count, extra = divmod(rest.shape[2], self.rate.time)
        whole, left = rest.split([rest.shape[2] - extra, extra], dim=2)
        means = whole.unflatten(2, (count, self.rate.time)).mean(dim=3)
        return torch.cat([lone, means], dim=2), {"waiting": left.clone()}

    def _shrink(self, pixels: Pixels) -> Tensor:
        rate, stride = self.rate, self.stride
        padded = pad_to(pixels, rate.height * stride.height, rate.width * stride.width)
        rows, columns = padded.shape[-2] // rate.height, padded.shape[-1] // rate.width
        boxes = padded.reshape(*padded.shape[:3], rows, rate.height, columns, rate.width)
        return boxes.mean(dim=(-3, -1))


def _waiting(state: State, small: Tensor) -> Tensor:
    before, now = tuple(state["waiting"].shape[-2:]), tuple(small.shape[-2:])
    if before != now:
        raise ValueError(f"frames of another size than before: LR {now} after {before}")
    return state["waiting"]


class LowResEncoder:
    """Gives the LR latents of a rate of a video that comes in chunks of any number of frames.

    LR latent j comes with the chunk that completes LR frame 4j, which is frame 4·r·j: the last of
    HR latent rj, with which it travels. T HR latents give 1 + ⌊(T − 1) / r⌋ of them.
    """

    def __init__(self, codec: Codec[CodecSpec], rate: Rate) -> None:
        self.codec = codec
        self.lowres = LowRes(rate, codec.stride)

    def push(self, pixels: Pixels, state: State | None = None) -> tuple[Latents, State]:
        """Give the LR latents that the next frames complete (maybe none), and the state.

        Raises:
            ValueError: as `LowRes.push`.
        """
        frames, reduced = self.lowres.push(pixels, _part(state, "lowres."))
        if state is not None:
            frames = torch.cat([state["frames"], frames], dim=2)
        stride = self.codec.stride.time
        first = int(state is None)
        ready = first + (frames.shape[2] - first) // stride * stride
        latents, coded = self._encode(frames[:, :, :ready], _part(state, "codec."))
        left = {"frames": frames[:, :, ready:].clone()}
        return latents, left | _named(reduced, "lowres.") | _named(coded, "codec.")

    def rest(self, state: State) -> Latents | None:
        """Give the provisional LR latents that a codec which is not causal holds back, or None."""
        coded = _part(state, "codec.")
        return None if coded is None else self.codec.encode_rest(coded)

    def _encode(self, frames: Pixels, state: State | None) -> tuple[Latents, State]:
        if state is None or frames.shape[2]:
            return self.codec.encode(frames, state)
        stride = self.codec.stride
        size = (frames.shape[-2] // stride.height, frames.shape[-1] // stride.width)
        return frames.new_zeros(frames.shape[0], self.codec.channels, 0, *size), state


def encode_lowres(codec: Codec[CodecSpec], rate: Rate, chunks: Iterable[Pixels]) -> Latents:
    """Give all LR latents `[B, C, 1 + ⌊(T − 1) / r⌋, ⌈H / rate⌉, ⌈W / rate⌉]` of a video.

    Args:
        codec: of the HR latents.
        rate: of the LR latents.
        chunks: of the video, of any number of frames each, in [−1, 1].
    """
    encoder = LowResEncoder(codec, rate)
    state: State | None = None
    latents = []
    for chunk in chunks:
        out, state = encoder.push(chunk, state)
        latents.append(out)
    rest = None if state is None else encoder.rest(state)
    return torch.cat(latents if rest is None else [*latents, rest], dim=2)


def _part(state: State | None, prefix: str) -> State | None:
    if state is None:
        return None
    return {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}


def _named(state: State, prefix: str) -> State:
    return {prefix + key: x for key, x in state.items()}
