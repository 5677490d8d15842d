"""Probe: what a memory holds, asked without the generator (a small head fitted on it)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from attrs import frozen
from torch import Tensor, nn

from .errors import UserError
from .files import open_tensors, read_header
from .grid import Geometry, Size3
from .memory import Memory
from .retriever import LatentFrames, Retriever, Scene
from .shapes import Counts, Frames, Targets
from .spec import RetrieverSpec

S = TypeVar("S", bound=RetrieverSpec)
KIND = "probe"


class Head(nn.Module, ABC):
    """A regression from memory to latent frames; all its parameters are trained."""

    def begin(self, memory: Memory) -> None:
        """See the first memory before fitting, to set scales kept in buffers; default: nothing."""

    @abstractmethod
    def forward(self, memory: Memory, omega: Frames, start: Counts, size: Size3) -> Targets:
        """Give the latents of frames Ω `[B, C, K, H, W]`, float32.

        Args:
            memory: of the window; an empty one is legal.
            omega: frames in the window, `[B, K]`.
            start: absolute latent frame of the window, `[B]`; memory's places are absolute.
            size: of the window's latents (only height and width are read).
        """


@frozen(kw_only=True)
class Budget:
    """What a head is fitted with: optimizer steps, samples in each, learning rate, seed."""

    steps: int
    batch: int
    rate: float
    seed: int


class Probing(Retriever[S], ABC, Generic[S]):
    """A retriever whose answer is a head that was fitted beforehand (`core.train.probe`).

    A plugin is this class with three class methods: the head as it begins, the budget, and the file
    of the fitted head. The encoder stays as it is, so a probe says how much of the past is in the
    tokens at all, whatever the generator makes of them.
    """

    def __init__(self, spec: S) -> None:
        super().__init__(spec)
        place = type(self).weights(spec)
        if place is None:
            raise UserError(
                "a probe needs its head: fit it with `longtake probe RUN --data STORE`, which says "
                "how to name it"
            )
        self.path = Path(place)
        self.header, self.state = read_probe(self.path)
        self.fitted: Head | None = None

    @classmethod
    @abstractmethod
    def head(cls, spec: S, geometry: Geometry) -> Head:
        """Give a fresh head for a backbone's shapes."""

    @classmethod
    @abstractmethod
    def budget(cls, spec: S) -> Budget:
        """Give what the head is fitted with."""

    @classmethod
    @abstractmethod
    def weights(cls, spec: S) -> str | None:
        """Give the file of the fitted head, or None."""

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> LatentFrames:
        """Give the latents of Ω, frame by frame; nothing is random.

        Raises:
            UserError: the head was fitted on another memory or another head's spec.
        """
        head = self._head(scene)
        start = scene.history.start
        each = omega.to(start.device).split(1, dim=1)
        found = [head(scene.memory, one, start, scene.size) for one in each]
        return LatentFrames(latents=torch.cat(found, dim=2))

    def _head(self, scene: Scene) -> Head:
        if self.fitted is None:
            check_header(
                self.path, self.header, memory_facts(scene.backbone.geometry, scene.memory)
            )
            head = type(self).head(self.spec, scene.backbone.geometry)
            _load(self.path, head, self.state)
            self.fitted = head.eval().to(scene.text.embeddings.device)
        return self.fitted


def memory_facts(geometry: Geometry, memory: Memory) -> dict[str, Any]:
    """Give what a head depends on: the width of tokens, a latent's channels, the parts' names."""
    return {
        "width": geometry.width,
        "channels": geometry.channels,
        "parts": [part.name for part in memory.parts],
    }


def read_probe(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Give the header and the tensors of a fitted head.

    Raises:
        UserError: the file is missing, damaged or of something else.
    """
    with open_tensors(path) as file:
        header = read_header(file, path)
        state = {name: file.get_tensor(name) for name in file.keys()}
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise UserError(f"{path} is no fitted probe: make one with `longtake probe`")
    return header, state


def check_header(path: Path, header: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a head that was fitted on another memory: UserError."""
    for key, value in wanted.items():
        if key == "parts" and not value:
            continue  # an empty memory says nothing
        if header.get(key) != value:
            raise UserError(
                f"{path} was fitted on a memory with {key} {_shown(header.get(key))}, this one has "
                f"{_shown(value)}"
            )


def _shown(value: Any) -> str:
    many = isinstance(value, Sequence) and not isinstance(value, str)
    return ", ".join(map(str, value)) if many else str(value)


def _load(path: Path, head: Head, state: dict[str, Tensor]) -> None:
    wanted = {name: x.shape for name, x in head.state_dict().items()}
    if wanted != {name: x.shape for name, x in state.items()}:
        raise UserError(f"{path} is of another head: give the probe the spec it was fitted with")
    head.load_state_dict(state)
