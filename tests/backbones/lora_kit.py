"""What the tests of LoRA share: adapters that do something, and diffusers' side of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import save_file
from torch import Tensor

from longtake.core.interfaces.backbone import Backbone
from longtake.core.interfaces.spec import LoRA

ALL = ("attention", "cross-attention", "feed-forward")


def stir(model: Any, seed: int = 2, std: float = 0.3) -> Any:
    """Give the model with adapters that are anything but zero."""
    random = torch.Generator().manual_seed(seed)
    for weight in model.adapters().values():
        torch.nn.init.normal_(weight, std=std, generator=random)
    return model


def trained(kit: Any, rank: int = 3, alpha: float = 7.0, **changes: Any) -> Any:
    """A small model whose adapters do something."""
    targets = changes.pop("targets", ALL)
    model = kit.small(**changes)
    model.add_lora(LoRA(rank=rank, alpha=alpha, targets=targets))
    return stir(model)


def velocity(model: Backbone, kit: Any, memory: bool = False) -> Tensor:
    with torch.no_grad():
        context = model.context(kit.text(1), kit.memory(1, 3) if memory else None)
        x = kit.noise(1, 16, 2, 4, 4)
        return model.velocity(x, torch.tensor([0.5]), kit.frames(0, 2), context)


def theirs(model: Any, kit: Any) -> Tensor:
    """What diffusers' model gives for the same."""
    if not isinstance(model, WanTransformer3DModel):
        out: Tensor = kit.reference(
            model, kit.noise(1, 16, 2, 4, 4), torch.tensor([0.5]), kit.text(1)
        )
        return out
    with torch.no_grad():
        return model(
            kit.noise(1, 16, 2, 4, 4), torch.tensor([500.0]), kit.text(1).embeddings
        ).sample


def pipeline(kit: Any, base: Any) -> Any:
    """diffusers' pipeline around the twin of a small model."""
    twin, scheduler = kit.twin(base), FlowMatchEulerDiscreteScheduler()
    if isinstance(twin, WanTransformer3DModel):
        return WanPipeline(None, None, None, scheduler, transformer=twin)
    return HunyuanVideoPipeline(None, None, twin, None, scheduler, None, None)


def exported(model: Any, kit: Any, layout: str, path: Path, **changes: Any) -> Path:
    """Write a model's LoRA in a layout, as `longtake export` does without the encoder."""
    plain = path.with_suffix(".plain.safetensors")
    model.save_adapters(plain)
    (file,) = type(model).export_adapters(kit.spec(**changes), plain, layout).values()
    texts = {"format": "pt", "longtake": json.dumps({"lora": dict(file.facts)}), **file.metadata}
    save_file({name: x.contiguous() for name, x in file.tensors.items()}, path, metadata=texts)
    return path
