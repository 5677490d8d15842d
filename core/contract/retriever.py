"""The contract of retrievers: shapes, seeds, and what a learned one may read."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from ..interfaces.codec import frames_of
from ..interfaces.compressor import Needs
from ..interfaces.retriever import LatentFrames, PixelFrames, Retrieved, Retriever, Scene
from ..interfaces.spec import RetrieverSpec
from ..values.history import History
from ..values.memory import Memory
from ..values.shapes import Frames
from .samples import (
    copied,
    names_plugin,
    require,
    require_close,
    require_shape,
    require_unchanged,
)


@names_plugin
def check_retriever(retriever: Retriever[RetrieverSpec], scene: Scene) -> None:
    """Check that a retriever keeps the contract of `core.interfaces.retriever.Retriever`.

    The scene has two latents or more. Shapes and finite values for one frame and for several; one
    seed gives one result; the history is left as it is. A learned retriever gives the same where
    the history's content is gone (it reads memory), a floor where the memory is gone.

    Raises:
        AssertionError: it does not; one line says what.
    """
    require(isinstance(type(retriever).needs(retriever.spec), Needs), "needs gives no Needs")
    last = scene.size.time - 1
    for latents in ([last], [0, last]):
        omega = torch.tensor([latents] * scene.history.batch)
        before = copied(_tensors(scene.history))
        result = _call(retriever, scene, omega)
        require_unchanged(_tensors(scene.history), before, "the history of the scene")
        _check_shape(result, scene, latents)
        again = _call(retriever, scene, omega)
        require_close(_values(again), _values(result), 0.0, "one seed gave two results")
        other = _call(retriever, _without_unread(retriever, scene), omega)
        read = "the history" if retriever.learned else "the memory"
        line = f"learned is {retriever.learned}, but {read} is read"
        require_close(_values(other), _values(result), 1e-6, line)


def _call(retriever: Retriever[RetrieverSpec], scene: Scene, omega: Frames) -> Retrieved:
    return retriever(scene, omega, torch.Generator().manual_seed(3))


def _values(result: Retrieved) -> Tensor:
    return result.latents if isinstance(result, LatentFrames) else result.pixels


def _tensors(history: History) -> dict[str, Tensor]:
    pixels = {} if history.pixels is None else {"pixels": history.pixels}
    lr = {f"lr {rate}": x for rate, x in history.lr.items()}
    return {"latents": history.latents, **lr, **pixels}


def _without_unread(retriever: Retriever[RetrieverSpec], scene: Scene) -> Scene:
    if not retriever.learned:
        return attrs.evolve(scene, memory=Memory())
    history = scene.history
    blank = attrs.evolve(
        history,
        latents=torch.zeros_like(history.latents),
        lr={rate: torch.zeros_like(x) for rate, x in history.lr.items()},
        pixels=None if history.pixels is None else torch.zeros_like(history.pixels),
    )
    return attrs.evolve(scene, history=blank)


def _check_shape(result: Retrieved, scene: Scene, latents: list[int]) -> None:
    kind = type(result).__name__
    require(isinstance(result, LatentFrames | PixelFrames), f"gives {kind}, not frames")
    size, stride, batch = scene.size, scene.codec.stride, scene.history.batch
    if isinstance(result, LatentFrames):
        shape = (batch, scene.codec.channels, len(latents), size.height, size.width)
        require_shape(result.latents, shape, "latents")
        return
    frames = sum(len(frames_of(latent, stride.time)) for latent in latents)
    pixels = scene.history.pixels
    rows, columns = size.height * stride.height, size.width * stride.width
    whole = (rows, columns) if pixels is None else tuple(pixels.shape[-2:])
    require_shape(result.pixels, (batch, 3, frames, *whole), "pixels")
    require(float(result.pixels.abs().max()) <= 1 + 1e-6, "pixels are not in [−1, 1]")
