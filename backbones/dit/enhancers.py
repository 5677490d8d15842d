"""The enhancers of a whole model: added, counted, fed and saved (`enhance`: one of them)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ...core.calls import Feature
from ...core.errors import UserError
from ...core.files import open_tensors
from ...core.memory import Memory, Part
from ..lora.read import BESIDES
from .enhance import Enhancer

if TYPE_CHECKING:
    from .model import DiT

PREFIX = "memory.enhancer."  # of keys in files; LoRA's begin with `transformer.`
MIDDLE = ".enhancer."  # of names of parameters


def add(model: DiT, widths: Mapping[str, int], seed: int) -> None:
    """Give every block an enhancer, in float32 or wider; drawn on the CPU, so alike anywhere.

    Raises:
        ValueError: the blocks have some already.
    """
    if parameters(model):
        raise ValueError("this model has an enhancer already")
    width, heads = model.geometry.width, model.config.num_attention_heads
    dtype = torch.promote_types(model.dtype, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for block in model.memory_blocks:
        with torch.random.fork_rng(devices=[]):  # linears draw before we do
            made = Enhancer(width, heads, widths)
        made.draw(generator)
        block.enhancer = made.to(model.device, dtype)
    model.feature_widths = dict(widths)
    whole: Any = model  # what diffusers gives is not typed
    skipped = whole._skip_layerwise_casting_patterns or ()
    whole._skip_layerwise_casting_patterns = [*skipped, "enhancer"]  # it casts its inputs itself


def parameters(model: DiT) -> dict[str, Parameter]:
    """Give the enhancers' parameters by name, such as `blocks.0.enhancer.to_q.weight`."""
    return {name: p for name, p in model.named_parameters() if MIDDLE in name}


def features_of(model: DiT, memory: Memory) -> dict[str, Feature]:
    """Give the features that the model reads of a memory, on its device and in its dtype.

    A part without tokens, or one that is not there yet, has none.

    Raises:
        ValueError: a feature is missing though its part has tokens, or has another width.
    """
    wanted, parts = model.feature_widths, [p for p in memory.parts if p.tokens.shape[1]]
    found = {f"{p.name}.{name}": (p, x) for p in parts for name, x in p.features.items()}
    missing = [n for n in wanted if n not in found and any(_of(n, part) for part in parts)]
    if missing or (wanted and parts and not found.keys() & wanted.keys()):
        name = min(missing or wanted)
        raise ValueError(f"the memory lacks {name}, which this backbone reads: has {sorted(found)}")
    read = {name: found[name] for name in sorted(found.keys() & wanted.keys())}
    for name, (_, values) in read.items():
        if values.shape[-1] != wanted[name]:
            raise ValueError(
                f"{name} has width {values.shape[-1]}, this backbone reads {wanted[name]}"
            )
    return {name: _feature(model, part, values) for name, (part, values) in read.items()}


def _of(name: str, part: Part) -> bool:
    return name.startswith(f"{part.name}.")


def _feature(model: DiT, part: Part, values: Tensor) -> Feature:
    values = values.to(model.device, model.dtype)
    if bool(part.valid.all()):
        return Feature(values, None)
    valid = part.valid.to(model.device)
    return Feature(values.masked_fill(~valid[..., None], 0.0), valid)  # padding may hold NaN


def enhancer_state(model: DiT) -> dict[str, Tensor]:
    """Give what a file holds of the enhancers: `memory.enhancer.blocks.0.to_q.weight` and so on."""
    return {PREFIX + name.replace(MIDDLE, "."): p.detach() for name, p in parameters(model).items()}


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Give the enhancers' tensors of an adapters file, and whether it holds LoRA, too.

    Raises:
        UserError: it is missing or no safetensors file.
    """
    with open_tensors(path) as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names if name.startswith(PREFIX)}
    return tensors, not all(name.startswith(BESIDES) for name in names)


def check_state(model: DiT, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not those of the enhancers here: UserError."""
    here = enhancer_state(model)
    if tensors and not here:
        raise UserError(f"{path} reads features of a memory, but no compressor here brings any")
    if here and not tensors:
        raise UserError(f"{path} holds no {PREFIX}* tensors, but memory here has features to read")
    odd = min(here.keys() ^ tensors.keys(), default=None)
    if odd is not None:
        where = "lacks" if odd in here else "has"
        raise UserError(f"{path} reads other features of a memory: it {where} {odd}")
    for name, tensor in tensors.items():
        if tensor.shape != here[name].shape:
            shapes = f"{tuple(tensor.shape)}, here it is {tuple(here[name].shape)}"
            raise UserError(f"{path} does not fit: {name} is {shapes}")


@torch.no_grad()
def load_enhancer_state(model: DiT, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors of a file into the enhancers here, and let them train.

    Raises:
        UserError: they are of other features, widths or blocks.
    """
    check_state(model, tensors, path)
    for name, weight in enhancer_state(model).items():
        weight.copy_(tensors[name])
    train(model)


def train(model: DiT) -> None:
    """Let the enhancers train, whatever else is frozen."""
    for weight in parameters(model).values():
        weight.requires_grad_(True)


@contextmanager
def without(model: DiT) -> Iterator[None]:
    """Take the enhancers out of the model for a while: files of its own weights hold none."""
    taken = [(block, block.enhancer) for block in model.memory_blocks]
    try:
        for block, _ in taken:
            block.enhancer = None
        yield
    finally:
        for block, enhancer in taken:
            block.enhancer = enhancer
