"""What codecs of diffusers' VAEs share: weights that are loaded at the first chunk."""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...core.codec import Codec
from ...core.grid import Size3
from .load import load
from .specs import VaeSpec
from .weights import Kind, Source, at_hand, digest, find

V = TypeVar("V", bound=VaeSpec)


class VaeCodec(Codec[V]):
    """A VAE of diffusers as a codec.

    Building one reads nothing. `identity` finds the weights, and fetches those of a hub id; the
    first `encode` or `decode` loads them to where the codec is by then (`.to(device)`); `unload`
    lets go of them. The VAE computes in the spec's number type, whatever autocast says; results
    have the type of the chunk that was given. Nothing of it trains.
    """

    anchor: Tensor
    model: nn.Module | None

    def __init__(self, spec: V) -> None:
        super().__init__(spec)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # says where we are
        self.register_module("model", None)

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """Which weights the spec asks for."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What `identity` says before the hash of the weights."""

    @abstractmethod
    def prepare(self, vae: Any) -> None:
        """Take what encoding and decoding need from a VAE that was just loaded."""

    @property
    def channels(self) -> int:
        """Channels C of a latent cell."""
        return self.spec.channels

    @property
    def stride(self) -> Size3:
        """Pixels to a latent cell."""
        return self.spec.stride

    @property
    def identity(self) -> str:
        """Name, hash of the weights, and what else latents depend on: tiles, number type.

        Raises:
            UserError: there are no weights, or others than the spec says (`weights.find`).
        """
        spec = self.spec
        tiles = "" if spec.tile is None else f"-tile{spec.tile}-{spec.overlap}"
        dtype = "" if spec.dtype == "float32" else f"-{spec.dtype}"
        return f"{self.label}-{self._digest}{tiles}{dtype}"

    @property
    def at_hand(self) -> bool:
        """Whether a VAE is where `weights` says, or in the hub's cache."""
        return at_hand(self.spec.weights)

    @functools.cached_property
    def source(self) -> Source:
        """Where the weights are; errors as `identity`."""
        return find(self.spec.weights, self.kind)

    @functools.cached_property
    def _digest(self) -> str:
        return digest(self.source)

    @property
    def vae(self) -> Any:
        """The model, loaded now if it was not.

        Raises:
            UserError: the weights are damaged, or as `identity`.
        """
        if self.model is None:
            import diffusers

            cls = getattr(diffusers, self.kind.cls)
            vae = load(self.source, cls, getattr(torch, self.spec.dtype))
            self.prepare(vae)
            self.model = vae.to(self.anchor.device)
        return self.model

    def unload(self) -> None:
        """Let go of the weights; the next chunk loads them again."""
        self.model = None

    def computing(self, chunk: Tensor) -> Tensor:
        """Give a chunk in the number type of the VAE."""
        found: torch.dtype = getattr(torch, self.spec.dtype)
        return chunk.to(found)

    def exactly(self) -> torch.autocast:
        """Give a context without autocast: it would change the numbers."""
        return torch.autocast(self.anchor.device.type, enabled=False)
