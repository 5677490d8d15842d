"""`tiny-wan`: the real Wan transformer with small numbers."""

from __future__ import annotations

from typing import Any, Self

import torch

from ...core.errors import UserError
from ...core.spec import BackboneSpec
from ..dit.files import pretrained_model, random_model, weights_folder
from ..dit.setup import Setup
from . import specs
from .model import Wan
from .tiny_init import begin_local


class TinyWan(Wan):
    """Wan by the numbers of its spec, in float32; random until `weights` names a checkpoint."""

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Give the model of the spec: its weights where it names some, else random from `seed`.

        Raises:
            UserError: weights are missing, damaged, of another class or of another shape.
        """
        if not isinstance(spec, specs.TinyWan):
            raise UserError(f"tiny-wan needs its own spec, not {type(spec).__name__}")
        config = tiny_config(spec)
        if spec.weights is None:
            model = random_model(cls, config, seed)
            if spec.begin == "local":
                begin_local(model)
        else:
            model = pretrained_model(cls, config, weights_folder(spec.weights), torch.float32)
        model.setup = Setup.of(spec, time=spec.time)
        return model


def tiny_config(spec: specs.TinyWan) -> dict[str, Any]:
    """Give diffusers' config of a spec; what is not a field is as in Wan 2.2."""
    patch, channels = spec.geometry.patch, spec.codec.channels
    return {
        "patch_size": (patch.time, patch.height, patch.width),
        "num_attention_heads": spec.heads,
        "attention_head_dim": spec.head_width,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": spec.text_encoder.width,
        "freq_dim": 256,
        "ffn_dim": spec.ffn,
        "num_layers": spec.layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": None,
        "added_kv_proj_dim": None,
    }
