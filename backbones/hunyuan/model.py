"""HunyuanVideo as a backbone: diffusers' own model that reads memory beside text."""

from __future__ import annotations

import functools
from typing import Any, Self

from diffusers import HunyuanVideoTransformer3DModel

from ...core.errors import UserError
from ...core.spec import BackboneSpec
from ..dit.setup import Setup
from ..weights.files import load_model
from ..weights.sources import Release
from . import specs
from .facts import facts
from .reader import HunyuanReader

RELEASE = Release(facts=facts)


class Hunyuan(HunyuanReader, HunyuanVideoTransformer3DModel):  # type: ignore[misc]
    """`hunyuan` and `tiny-hunyuan`; see `HunyuanReader` for what is exact.

    The weights of a `token_replace` checkpoint (image to video) have the same names: its clean
    first frame is a memory of one latent at time 0.
    """

    diffusers_class = "HunyuanVideoTransformer3DModel"

    # `wraps` keeps diffusers' signature, which its config loader reads.
    @functools.wraps(HunyuanVideoTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._use_memory_blocks()

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Give the model of the spec: its weights where it names some, else random from `seed`.

        Raises:
            UserError: weights are missing, damaged, of another class or of another shape.
        """
        if not isinstance(spec, specs.HunyuanSpec) or isinstance(spec, specs.FramePack):
            raise UserError(f"{cls.__name__} needs the spec of one, not {type(spec).__name__}")
        model = load_model(cls, spec, seed, release=RELEASE)
        model.setup, model.guidance = Setup.of(spec), spec.guidance
        return model
