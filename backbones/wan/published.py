"""The published Wans of one transformer: 2.1, 2.2's 5B, and either expert of 2.2's 14B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import attrs
from torch import Tensor

from ...core.errors import UserError
from ...core.spec import BackboneSpec
from ..dit.setup import Setup
from ..weights.files import load_model
from ..weights.sources import Release
from . import published_specs as specs
from .model import Wan


def facts(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give numbers of diffusers' config from the shapes of a Wan's tensors (heads are not there).

    Args:
        tensors: by diffusers' names; what is missing is left out.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    found: dict[str, Any] = {"num_layers": len(blocks)}
    if first := shapes.get("patch_embedding.weight"):
        found |= {"in_channels": first[1], "patch_size": list(first[2:])}
        if last := shapes.get("proj_out.weight"):
            found["out_channels"] = last[0] // (first[2] * first[3] * first[4])
    if ffn := shapes.get("blocks.0.ffn.net.0.proj.weight"):
        found["ffn_dim"] = ffn[0]
    if text := shapes.get("condition_embedder.text_embedder.linear_1.weight"):
        found["text_dim"] = text[1]
    image = shapes.get("condition_embedder.image_embedder.norm1.weight")
    return found | {"image_dim": image[0] if image else None}


RELEASE = Release(original="WanModel", experts=False, facts=facts)
HIGH_NOISE, LOW_NOISE = (  # of 2.2's 14B
    attrs.evolve(RELEASE, parts=parts, experts=True)
    for parts in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model"))
)


class PublishedWan(Wan):
    """Wan by the numbers of its spec, with the weights that it names."""

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Give the model of the spec: its weights where it names some, else random from `seed`.

        Raises:
            UserError: weights are missing, damaged, of another class or of another shape.
        """
        if not isinstance(spec, specs.PublishedWan):
            raise UserError(f"{cls.__name__} needs the spec of a Wan, not {type(spec).__name__}")
        return cls.of_release(spec, seed, RELEASE)

    @classmethod
    def of_release(cls, spec: specs.PublishedWan, seed: int, release: Release) -> Self:
        """Give the model of the spec, found as `release` says."""
        model = load_model(cls, spec, seed, release=release)
        model.setup = Setup.of(spec, time=spec.time)
        return model
