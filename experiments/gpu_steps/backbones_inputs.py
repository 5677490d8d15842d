"""Random inputs of the right shapes and places: latents, memory, histories, and weights."""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from torch import Tensor

from ...backbones.dit.specs import DiTSpec
from ...core.backbone import Backbone
from ...core.errors import LongtakeError
from ...core.grid import Size3
from ...core.history import History
from ...core.memory import Memory, Part
from ...core.positions import token_places
from ...core.registry import registry
from .backbones_plan import Subject

STD = 0.02  # of weights, as transformers begin


def random_backbone(spec: DiTSpec, device: torch.device, seed: int = 0) -> Backbone:
    """Give the real model of a spec with random weights, made on the device in their own types.

    It is loaded on the meta device first, where types are settled (what diffusers keeps in
    float32 stays so) and nothing is filled. Buffers are computed as ever.

    Raises:
        LongtakeError: something was left without numbers.
    """
    with init_empty_weights():
        backbone: Backbone = registry().load(spec).load(spec)
    generator = torch.Generator(device).manual_seed(seed)
    state = {
        name: _drawn(name, x, device, generator) if x.is_meta else x
        for name, x in backbone.state_dict().items()
    }
    backbone.load_state_dict(state, assign=True)
    left = [n for n, x in (*backbone.named_parameters(), *backbone.named_buffers()) if x.is_meta]
    if left:
        raise LongtakeError(f"{type(backbone).__name__}: {len(left)} empty, such as {left[0]}")
    return backbone.to(device).eval()


def _drawn(name: str, like: Tensor, device: torch.device, generator: torch.Generator) -> Tensor:
    """Give small normal numbers; around one where it is the scale of a norm."""
    empty = torch.empty(like.shape, dtype=like.dtype, device=device)
    scale = like.dim() == 1 and name.endswith(".weight")
    return empty.normal_(mean=1.0 if scale else 0.0, std=STD, generator=generator)


def random_latents(subject: Subject, size: Size3, device: torch.device) -> Tensor:
    """Give standard normal latents `[1, C, T, H, W]`, float32."""
    shape = (1, subject.spec.geometry.channels, size.time, size.height, size.width)
    return normal(shape, device, torch.float32)


def random_history(subject: Subject, tokens: int, device: torch.device) -> History:
    """Give a history that makes so many tokens or a few more, with its LR latents."""
    size, rate = subject.past(tokens), subject.rate
    lr = random_latents(subject, rate.lr_size(size), device)
    return History(latents=random_latents(subject, size, device), lr={rate: lr})


def random_memory(
    subject: Subject, tokens: int, device: torch.device, dtype: torch.dtype
) -> Memory:
    """Give exactly so many tokens, where an encoder puts the newest ones of such a history."""
    if not tokens:
        return Memory()
    size, shapes, rate = subject.past(tokens), subject.spec.geometry, subject.rate
    places = token_places(
        rate,
        size,
        shapes.patch,
        rate.token_grid(size, shapes.patch),
        start=torch.zeros(1, dtype=torch.int64),
        length=torch.tensor([size.time]),
        skip=0,
    )
    positions, extents, valid = (x[:, -tokens:] for x in places)
    part = Part(
        name=f"random-{rate}",
        tokens=normal((1, tokens, shapes.width), device, dtype),
        positions=positions,
        extents=extents,
        valid=valid,
    )
    return Memory(parts=(part,), size=size)


def normal(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Give standard normal numbers of a fixed seed, made on the device."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype)
