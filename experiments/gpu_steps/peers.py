"""Ways to run the same encoder: eager in two layouts, torch.compile, a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from ...core.grid import Size3
from ...plugins.compressors.conv import ConvCompressor

Call = Callable[[], Tensor]


@frozen
class Peer:
    """A name, and what makes the call that is timed of encoder, latents and LR latents."""

    name: str
    make: Callable[[ConvCompressor, Tensor, Tensor], Call]


def peers(device: torch.device, *, tiny: bool) -> list[Peer]:
    """Give the peers of a device; graphs are CUDA's."""
    found = [Peer("eager", eager), Peer("channels last", channels_last)]
    if tiny:  # traced, and run as it was: compiling would take longer than all the rest
        return [*found, Peer("torch.compile", compiled(backend="aot_eager"))]
    found += [Peer("torch.compile", compiled())]
    if device.type == "cuda":
        found += [Peer("CUDA graph", graphed)]
    return [*found, Peer("torch.compile max-autotune", compiled("max-autotune-no-cudagraphs"))]


def plain(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Tensor:
    """Give the tokens of complete blocks by tensor operations alone, so that they compile."""
    assert encoder.hr is not None and encoder.lr is not None
    time, height, width = latents.shape[2:]
    hidden, _ = encoder.hr.convolve(latents, {})
    hidden, _ = encoder.hr.attend(hidden, {})
    features = F.linear(hidden, encoder.hr.out.weight, encoder.hr.out.bias)
    return features + encoder.lr.tokens(lr, Size3(time=time, height=height, width=width))


def eager(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Call:
    """Give the call as it ships."""
    return lambda: plain(encoder, latents, lr)


def channels_last(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Call:
    """Give the call on channels-last tensors and weights."""
    layout = torch.channels_last_3d
    encoder.to(memory_format=layout)  # type: ignore[call-overload]
    return eager(encoder, latents.contiguous(memory_format=layout), lr)


def compiled(
    mode: str | None = None, backend: str = "inductor"
) -> Callable[[ConvCompressor, Tensor, Tensor], Call]:
    """Give the maker of a compiled call, channels last."""

    def make(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Call:
        torch.compiler.reset()
        layout = torch.channels_last_3d
        encoder.to(memory_format=layout)  # type: ignore[call-overload]
        x = latents.contiguous(memory_format=layout)
        fast = torch.compile(plain, mode=mode, backend=backend, dynamic=False)
        return lambda: fast(encoder, x, lr)

    return make


def graphed(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Call:
    """Give the replay of a CUDA graph of the eager call, channels last."""
    call = channels_last(encoder, latents, lr)
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay
