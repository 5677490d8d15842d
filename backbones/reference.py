"""A backbone's velocity without memory by diffusers' own code: what contracts hold it against."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from einops import rearrange
from torch import Tensor

from ..core.interfaces.backbone import Reference
from ..core.values.text import Text
from .blocks.base import DiffusersBackbone

STEPS = 1000.0  # diffusers' flow models count time in thousandths
PACKED = frozenset({"num_frames", "height", "width"})  # arguments of models that read packed tokens

Inputs = Callable[[Tensor, Tensor, Text], dict[str, Any]]


def diffusers_velocity(model: DiffusersBackbone, inputs: Inputs) -> Reference | None:
    """Return the velocity of `diffusers_class` with a model's weights.

    Args:
        model: without adapters; its weights are shared, not copied.
        inputs: gives the arguments of diffusers' `forward` for noisy latents, times and prompts.

    Returns:
        None where diffusers has no such class, or where not all of its weights are in the model by
        their names, as under LoRA or quantised; what the model has besides is left out.
    """
    cls = getattr(diffusers, model.diffusers_class, None)
    if cls is None:
        return None
    twin, state = cls.from_config(dict(model.config)), model.state_dict()
    names = twin.state_dict().keys()
    if not names <= state.keys():
        return None
    try:
        twin.load_state_dict({name: state[name] for name in names}, strict=True, assign=True)
    except RuntimeError:  # other shapes
        return None
    twin.eval()

    @torch.no_grad()
    def velocity(noisy: Tensor, t: Tensor, text: Text) -> Tensor:
        (out,) = twin(**inputs(noisy, t, text), return_dict=False)[:1]
        return _unpacked(model, out, noisy) if out.ndim == 3 else out

    return velocity


def diffusers_inputs(
    model: DiffusersBackbone, noisy: Tensor, t: Tensor, text: Text
) -> dict[str, Any]:
    """Return the arguments of diffusers' `forward` by the names that its video models share.

    Latents are packed to tokens for models that ask for the number of frames, rows and columns.
    Arguments that the model does not name are left out.
    """
    names = inspect.signature(getattr(diffusers, model.diffusers_class).forward).parameters
    patch, stride = model.geometry.patch, model.geometry.vae_stride
    known: dict[str, Any] = {
        "rope_interpolation_scale": (stride.time / model.geometry.fps, stride.height, stride.width),
        "hidden_states": noisy,
        "timestep": t * STEPS,
        "encoder_hidden_states": text.embeddings,
        "encoder_attention_mask": text.mask,
        "pooled_projections": text.pooled,
    }
    if names.keys() >= PACKED:
        known["hidden_states"] = rearrange(
            noisy, "b c (k pt) (h ph) (w pw) -> b (k h w) (c pt ph pw)",
            pt=patch.time, ph=patch.height, pw=patch.width,
        )  # fmt: skip
        frames, rows, columns = noisy.shape[2:]
        known |= {
            "num_frames": frames // patch.time,
            "height": rows // patch.height,
            "width": columns // patch.width,
        }
    return {name: value for name, value in known.items() if name in names}


def _unpacked(model: DiffusersBackbone, tokens: Tensor, noisy: Tensor) -> Tensor:
    patch, (frames, rows, columns) = model.geometry.patch, noisy.shape[2:]
    latents: Tensor = rearrange(
        tokens, "b (k h w) (c pt ph pw) -> b c (k pt) (h ph) (w pw)",
        k=frames // patch.time, h=rows // patch.height, w=columns // patch.width,
        pt=patch.time, ph=patch.height, pw=patch.width,
    )  # fmt: skip
    return latents
