"""Cross-attention to a memory's features in every block, beside the blocks' own (IP-Adapter).

Source: method.md §5, "cross-attention enhancing"; IP-Adapter, arXiv 2308.06721.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn
from torch.nn import Parameter

from ...core.errors import UserError
from ...core.interfaces.backbone import Feature
from ...core.tools.files import open_tensors
from ...core.values.memory import Memory, Part
from ..lora.read import BESIDES
from .base import DiffusersBackbone


class Enhancer(nn.Module):
    """What one block reads of a memory's features: a query of its own, keys and values by feature.

    Features have no places here: what they hold of time and space their encoder put there. The
    output projection starts at zero, so that a fresh one adds nothing.
    """

    def __init__(self, width: int, heads: int, features: Mapping[str, int]) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.ModuleDict(_linears(features, width))
        self.to_v = nn.ModuleDict(_linears(features, width))
        self.to_out = nn.Linear(width, width, bias=False)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Start the output at zero and the rest at random."""
        for name, weight in self.named_parameters():
            if name.startswith("to_out"):
                weight.zero_()
            else:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)

    def forward(
        self, hidden: Tensor, features: Mapping[str, Feature], backend: Any = None
    ) -> Tensor:
        """Return what to add to the hidden tokens `[B, N, D]`.

        Args:
            hidden: the noisy tokens, as they left the block's own attention.
            features: by name; those that are missing (a part without tokens) add nothing.
            backend: of diffusers' attention, as the user chose it; None: the active one.
        """
        idle = self._idle(set(features))
        if not features:
            return idle
        query = self._heads(self.to_q, self.norm(hidden.float()), hidden)
        read = [self._read(query, name, x, backend) for name, x in features.items()]
        out = _apply(self.to_out, torch.stack(read).sum(dim=0).flatten(2))
        return out.type_as(hidden) + idle

    def _read(self, query: Tensor, name: str, feature: Feature, backend: Any) -> Tensor:
        values, valid = feature
        values = F.rms_norm(values.float(), values.shape[-1:], eps=1e-6)
        # softmax over nothing is NaN: without features a sample reads padding, and drops it
        some = None if valid is None else valid.any(dim=1, keepdim=True)
        out: Tensor = dispatch_attention_fn(
            query,
            self._heads(self.to_k[_key(name)], values, query),
            self._heads(self.to_v[_key(name)], values, query),
            attn_mask=None if valid is None or some is None else valid | ~some,
            backend=backend,
        )
        return out if some is None else out.masked_fill(~some[:, :, None, None], 0.0)

    def _heads(self, linear: nn.Module, x: Tensor, like: Tensor) -> Tensor:
        heads: Tensor = _apply(linear, x).type_as(like).unflatten(2, (self.heads, -1))
        return heads

    def _idle(self, read: set[str]) -> Tensor:
        """Return 0 times the weights that are not read: every rank has a gradient for each."""
        idle = torch.zeros((), device=self.to_q.weight.device)
        if not torch.is_grad_enabled():
            return idle
        modules: list[nn.Module] = [] if read else [self.to_q, self.to_out]
        keys = set(self.to_k) - {_key(name) for name in read}
        modules += [linears[key] for linears in (self.to_k, self.to_v) for key in sorted(keys)]
        return sum((p.sum() * 0.0 for module in modules for p in module.parameters()), idle)


def _key(name: str) -> str:
    return name.replace(".", "/")  # torch splits names of modules at dots


def _linears(features: Mapping[str, int], width: int) -> dict[str, nn.Linear]:
    return {_key(name): nn.Linear(f, width, bias=False) for name, f in sorted(features.items())}


def _apply(linear: nn.Module, x: Tensor) -> Tensor:
    # trained in float32 beside a base in bfloat16
    out: Tensor = linear(x.to(next(linear.parameters()).dtype))
    return out


def enhanced(
    enhancer: Enhancer | None, hidden: Tensor, features: Mapping[str, Feature], backend: Any = None
) -> Tensor:
    """Return the hidden tokens `[B, N, D]` with what an enhancer reads added, where there is one."""
    if enhancer is None or not (features or torch.is_grad_enabled()):
        return hidden
    added: Tensor = enhancer(hidden, features, backend)
    return hidden + added


# ⟦backbones/dit/enhancers.py⟧ The enhancers of a whole model: added, counted, fed and saved (`enhance`: one of them).


PREFIX = "memory.enhancer."  # of keys in files; LoRA's begin with `transformer.`
MIDDLE = ".enhancer."  # of names of parameters


def add(model: DiffusersBackbone, widths: Mapping[str, int], seed: int) -> None:
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


def parameters(model: DiffusersBackbone) -> dict[str, Parameter]:
    """Return the enhancers' parameters by name, such as `blocks.0.enhancer.to_q.weight`."""
    return {name: p for name, p in model.named_parameters() if MIDDLE in name}


def features_of(model: DiffusersBackbone, memory: Memory) -> dict[str, Feature]:
    """Return the features that the model reads of a memory, on its device and in its dtype.

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


def _feature(model: DiffusersBackbone, part: Part, values: Tensor) -> Feature:
    values = values.to(model.device, model.dtype)
    if bool(part.valid.all()):
        return Feature(values, None)
    valid = part.valid.to(model.device)
    return Feature(values.masked_fill(~valid[..., None], 0.0), valid)  # padding may hold NaN


def enhancer_state(model: DiffusersBackbone) -> dict[str, Tensor]:
    """Return what a file holds of the enhancers: `memory.enhancer.blocks.0.to_q.weight` and so on."""
    return {PREFIX + name.replace(MIDDLE, "."): p.detach() for name, p in parameters(model).items()}


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Return the enhancers' tensors of an adapters file, and whether it holds LoRA, too.

    Raises:
        UserError: it is missing or no safetensors file.
    """
    with open_tensors(path) as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names if name.startswith(PREFIX)}
    return tensors, not all(name.startswith(BESIDES) for name in names)


def check_state(model: DiffusersBackbone, tensors: Mapping[str, Tensor], path: Path) -> None:
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
def load_enhancer_state(
    model: DiffusersBackbone, tensors: Mapping[str, Tensor], path: Path
) -> None:
    """Copy tensors of a file into the enhancers here, and let them train.

    Raises:
        UserError: they are of other features, widths or blocks.
    """
    check_state(model, tensors, path)
    for name, weight in enhancer_state(model).items():
        weight.copy_(tensors[name])
    train(model)


def train(model: DiffusersBackbone) -> None:
    """Let the enhancers train, whatever else is frozen."""
    for weight in parameters(model).values():
        weight.requires_grad_(True)


@contextmanager
def without(model: DiffusersBackbone) -> Iterator[None]:
    """Take the enhancers out of the model for a while: files of its own weights hold none."""
    taken = [(block, block.enhancer) for block in model.memory_blocks]
    try:
        for block, _ in taken:
            block.enhancer = None
        yield
    finally:
        for block, enhancer in taken:
            block.enhancer = enhancer
