"""FramePack as a backbone: HunyuanVideo's blocks, an image beside the text, a packed past."""

from __future__ import annotations

import functools
from typing import Any, Self

import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from torch import Tensor

from ...core.errors import UserError
from ...core.spec import BackboneSpec
from ...core.text import Text
from ..dit.rotary import Rotary
from ..dit.setup import Setup
from ..weights.files import load_model
from ..weights.sources import Release
from . import specs
from .facts import facts
from .reader import HunyuanReader
from .rotary import axes_of, replicated

RELEASE = Release(original="HunyuanVideoTransformer3DModelPacked", facts=facts)


class FramePack(HunyuanReader, HunyuanVideoFramepackTransformer3DModel):  # type: ignore[misc]
    """FramePack's transformer, whose past is a memory like any other.

    With the tokens of its own projections (`clean_x_embedder`; compressor `patchifier` reads them
    out of these weights, here they are kept only for files) and the rotary embedding `averaged`, it
    is diffusers' model. An image is read where `Text.image` brings its embeddings: they stand
    before the words. Without one there are no image tokens.
    """

    diffusers_class = "HunyuanVideoFramepackTransformer3DModel"

    # `wraps` keeps diffusers' signature, which its config loader reads.
    @functools.wraps(HunyuanVideoFramepackTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._use_memory_blocks()

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Give the model of the spec: its weights where it names some, else random from `seed`.

        Raises:
            UserError: weights are missing, damaged, of another class or of another shape.
        """
        if not isinstance(spec, specs.FramePack):
            raise UserError(f"framepack needs its own spec, not {type(spec).__name__}")
        model = load_model(cls, spec, seed, release=RELEASE)
        model.setup, model.guidance = Setup.of(spec), spec.guidance
        return model

    def _words(self, text: Text, t: Tensor) -> tuple[Tensor, Tensor]:
        words, mask = super()._words(text, t)
        if text.image is None:
            return words, mask
        image = self.image_projection(text.image)
        real = mask.new_ones(image.shape[:2])
        return torch.cat([image, words], dim=1), torch.cat([real, mask], dim=1)

    def _turns(self, positions: Tensor, extents: Tensor | None = None) -> Rotary:
        if extents is None:
            return super()._turns(positions)
        turns = replicated(axes_of(self.config), positions, extents)
        device = self.device  # asked once: diffusers looks through all modules for it
        return Rotary(*(x.to(device) for x in turns))
