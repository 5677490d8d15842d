"""Retriever φ⁻¹: frames of the past out of memory (design §3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeAlias, TypeVar

import torch
from attrs import frozen

from ..values.grid import Size3
from ..values.history import History
from ..values.memory import Memory
from ..values.shapes import Frames, Pixels, Targets
from ..values.text import Text
from .backbone import Backbone
from .checks import check_shape, check_type
from .codec import Codec, frames_of
from .compressor import Needs
from .spec import CodecSpec, RetrieverSpec

S = TypeVar("S", bound=RetrieverSpec)


@frozen(eq=False, kw_only=True)
class Scene:
    """All that a retriever may look at. An honest one reads memory; a floor reads the history.

    Attributes:
        memory: φ of the history (masked or not, as measured).
        history: the clean history.
        size: of its latents.
        text: the caption; `null_text` the empty prompt, for guidance.
        backbone, codec: of the experiment.
        shift: the timestep shift of the backbone's flow (its spec's `shift`), > 0.
    """

    memory: Memory
    history: History
    size: Size3
    text: Text
    null_text: Text
    backbone: Backbone
    codec: Codec[CodecSpec]
    shift: float


@frozen(eq=False, kw_only=True)
class LatentFrames:
    """Retrieved latents `[B, C, K, H, W]`; they are decoded among their true predecessors."""

    latents: Targets


@frozen(eq=False, kw_only=True)
class PixelFrames:
    """Retrieved pixels in [−1, 1], `[B, 3, F, P, Q]`: the frames of every latent of Ω in order."""

    pixels: Pixels


Retrieved: TypeAlias = LatentFrames | PixelFrames


class Retriever(ABC, Generic[S]):
    """Retrieves the latent frames Ω; built as `cls(spec)`.

    A plugin answers `__call__`, with latents or with pixels; one that reads more of the history
    than its shape also names that in `needs`.

    `learned` is False on floors: they read the history itself, not the memory, are measured once
    (masking changes nothing for them) and drawn as lines to beat. A floor that is a
    `guide` is drawn, too, but nothing is asked of the distance to it: it passes no codec, or says
    what could be reached.
    """

    learned: ClassVar[bool] = True
    guide: ClassVar[bool] = False

    def __init__(self, spec: S) -> None:
        self.spec = spec

    @classmethod
    def needs(cls, spec: S) -> Needs:
        """Return what the history of the scene must hold."""
        return Needs()

    def numbers(self, scene: Scene) -> int | None:
        """Return how many numbers a sample of the scene is kept as; None where it cannot be said.

        Those of the memory here; floors say what they keep themselves.
        """
        if not self.learned:
            return None
        return sum(part.tokens[0].numel() for part in scene.memory.parts)

    @property
    def samples(self) -> bool:
        """Whether it gives a sample, of which detail is asked, instead of a mean, which blurs."""
        return False

    def retrieve(self, scene: Scene, omega: Frames, generator: torch.Generator) -> Retrieved:
        """Return the frames Ω `[B, K]`: what the plugin gives, its shape checked.

        Raises:
            ContractError: it is neither latents nor pixels, or not as many or as large as asked.
        """
        retrieved = self(scene, omega, generator)
        check_type(self, "what it retrieved", retrieved, LatentFrames, PixelFrames)
        size, (batch, count) = scene.size, omega.shape
        if isinstance(retrieved, LatentFrames):
            channels = scene.history.latents.shape[1]
            shape = (batch, channels, count, size.height, size.width)
            check_shape(self, "its latents", retrieved.latents, shape, "B C K H W")
            return retrieved
        stride = scene.codec.stride
        frames = sum(len(frames_of(int(i), stride.time)) for i in omega[0])
        shape = (batch, 3, frames, size.height * stride.height, size.width * stride.width)
        check_shape(self, "its pixels", retrieved.pixels, shape, "B 3 F P Q")
        return retrieved

    @abstractmethod
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> Retrieved:
        """Return the frames Ω `[B, K]`, in the window; alike over the batch for pixels."""
