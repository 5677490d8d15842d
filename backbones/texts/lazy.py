"""A text encoder with weights: loaded when first asked, freed when told."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch

from ...core.data.batch import stack_texts
from ...core.text import Text, TextEncoder
from .specs import WeightsSpec
from .weights import at_hand, origin

W = TypeVar("W", bound=WeightsSpec)
AT_ONCE = 16  # prompts in one pass


class WeightsEncoder(TextEncoder[W]):
    """Loads its parts at the first `encode`, and again after `release`.

    Attributes:
        parts: the subfolders of a diffusers folder that it needs.
    """

    parts: ClassVar[tuple[str, ...]]

    def __init__(self, spec: W) -> None:
        super().__init__(spec)
        self._loaded: dict[str, Any] = {}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Text:
        """Give the embeddings of the prompts on the CPU, in the dtype of the weights."""
        self._loaded = self._loaded or self._load()
        texts = [_readable(prompt) for prompt in prompts]
        passes = [texts[i : i + AT_ONCE] for i in range(0, len(texts), AT_ONCE)]
        return stack_texts([self._embed(each).to("cpu") for each in passes])

    def release(self) -> None:
        """Free the weights; the next `encode` loads them again."""
        if not self._loaded:
            return
        self._loaded = {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def identity(self) -> str:
        """Name, weights and what else changes the numbers; nothing is loaded."""
        spec = self.spec
        numbers = spec.dtype if spec.quantize == "none" else f"{spec.dtype}-{spec.quantize}"
        return f"{self._name} {origin(spec.weights, self.parts)} {numbers}"

    @property
    def at_hand(self) -> bool:
        """Whether its parts are where `weights` says, or in the hub's cache."""
        return at_hand(self.spec.weights, self.parts)

    @property
    @abstractmethod
    def _name(self) -> str:
        """Name of the kind of encoder, with all fields that change embeddings."""

    @abstractmethod
    def _load(self) -> dict[str, Any]:
        """Give models and tokenizers by the name of their part."""

    @abstractmethod
    def _embed(self, prompts: list[str]) -> Text:
        """Give the embeddings of prompts in one pass."""


def _readable(prompt: str) -> str:
    """Give a prompt that tokenizers read: lone surrogates become question marks."""
    return prompt.encode("utf-8", "replace").decode("utf-8")
