"""Cross-attention to a memory's features in every block, beside the blocks' own (IP-Adapter).

`Enhancer` and `enhanced` are what a block needs. The functions below them are for a whole model,
and read best with the module's name: `enhancer.add(model, widths, seed)`, `enhancer.state(model)`.

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
from einops import rearrange
from torch import Tensor, nn
from torch.nn import Parameter

from ...core.errors import UserError
from ...core.interfaces.backbone import Feature
from ...core.interfaces.base import Interface
from ...core.tools.files import open_tensors
from ...core.values.memory import Memory, Part
from ..lora.read import BESIDES
from .base import DiffusersBackbone

KEY_PREFIX = "memory.enhancer."  # of keys in files; LoRA's begin with `transformer.`
NAME_INFIX = ".enhancer."  # of names of parameters


class Enhancer(Interface):
    """Cross-attention of one block to a memory's features: one query, keys and values by feature.

    Features have no positions here: what they hold of time and space their encoder put there. The
    output projection starts at zero, so that a fresh enhancer adds nothing.
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
        """Set the output projection to zero, and draw the other weights."""
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
        zero = self._zero_of_unread(set(features))
        if not features:
            return zero
        query = self._heads(self.to_q, self.norm(hidden.float()), hidden)
        read = [self._read(query, name, x, backend) for name, x in features.items()]
        summed = rearrange(torch.stack(read).sum(dim=0), "b n heads width -> b n (heads width)")
        return _apply(self.to_out, summed).type_as(hidden) + zero

    def _read(self, query: Tensor, name: str, feature: Feature, backend: Any) -> Tensor:
        values, valid = feature
        values = F.rms_norm(values.float(), values.shape[-1:], eps=1e-6)
        # softmax over nothing is NaN: without features a sample reads padding, and drops it
        some = None if valid is None else valid.any(dim=1, keepdim=True)
        out: Tensor = dispatch_attention_fn(
            query,
            self._heads(self.to_k[_module_name(name)], values, query),
            self._heads(self.to_v[_module_name(name)], values, query),
            attn_mask=None if valid is None or some is None else valid | ~some,
            backend=backend,
        )
        return out if some is None else out.masked_fill(~some[:, :, None, None], 0.0)

    def _heads(self, linear: nn.Module, x: Tensor, like: Tensor) -> Tensor:
        projected = _apply(linear, x).type_as(like)
        return rearrange(projected, "b n (heads width) -> b n heads width", heads=self.heads)

    def _zero_of_unread(self, features: set[str]) -> Tensor:
        """Return 0 times the weights that no feature is read by: every rank has their gradient."""
        zero = torch.zeros((), device=self.to_q.weight.device)
        if not torch.is_grad_enabled():
            return zero
        modules: list[nn.Module] = [] if features else [self.to_q, self.to_out]
        names = set(self.to_k) - {_module_name(feature) for feature in features}
        modules += [linears[name] for linears in (self.to_k, self.to_v) for name in sorted(names)]
        return sum((p.sum() * 0.0 for module in modules for p in module.parameters()), zero)


def _module_name(feature: str) -> str:
    return feature.replace(".", "/")  # torch splits names of modules at dots


def _linears(features: Mapping[str, int], width: int) -> dict[str, nn.Linear]:
    return {
        _module_name(name): nn.Linear(feature_width, width, bias=False)
        for name, feature_width in sorted(features.items())
    }


def _apply(linear: nn.Module, x: Tensor) -> Tensor:
    # trained in float32 beside a base in bfloat16
    out: Tensor = linear(x.to(next(linear.parameters()).dtype))
    return out


def enhanced(
    enhancer: Enhancer | None, hidden: Tensor, features: Mapping[str, Feature], backend: Any = None
) -> Tensor:
    """Return the hidden tokens `[B, N, D]`, with what the enhancer reads added if there is one."""
    if enhancer is None or not (features or torch.is_grad_enabled()):
        return hidden
    added: Tensor = enhancer(hidden, features, backend)
    return hidden + added


def add(model: DiffusersBackbone, widths: Mapping[str, int], seed: int) -> None:
    """Add an enhancer to every block, in float32 or wider; drawn on the CPU, so alike anywhere.

    Args:
        model: without enhancers.
        widths: of the features, by `part.name`.
        seed: of the weights that do not start at zero.

    Raises:
        ValueError: the blocks have some already.
    """
    if parameters(model):
        raise ValueError("this model has an enhancer already")
    width, heads = model.geometry.width, model.config.num_attention_heads
    dtype = torch.promote_types(model.dtype, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for block in model.memory_blocks:
        with torch.random.fork_rng(devices=[]):  # linears draw weights of their own first
            enhancer = Enhancer(width, heads, widths)
        enhancer.draw(generator)
        block.enhancer = enhancer.to(model.device, dtype)
    model.feature_widths = dict(widths)
    untyped: Any = model  # what diffusers' models have is not typed
    skipped = untyped._skip_layerwise_casting_patterns or ()
    # an enhancer casts its inputs itself
    untyped._skip_layerwise_casting_patterns = [*skipped, "enhancer"]


def parameters(model: DiffusersBackbone) -> dict[str, Parameter]:
    """Return the enhancers' parameters by name, such as `blocks.0.enhancer.to_q.weight`."""
    return {name: p for name, p in model.named_parameters() if NAME_INFIX in name}


def unfreeze(model: DiffusersBackbone) -> None:
    """Let the enhancers train, whatever else is frozen."""
    for weight in parameters(model).values():
        weight.requires_grad_(True)


@contextmanager
def removed(model: DiffusersBackbone) -> Iterator[None]:
    """Remove the enhancers within the `with` block: files of the model's own weights hold none."""
    enhancers = [(block, block.enhancer) for block in model.memory_blocks]
    try:
        for block, _ in enhancers:
            block.enhancer = None
        yield
    finally:
        for block, enhancer in enhancers:
            block.enhancer = enhancer


def read_features(model: DiffusersBackbone, memory: Memory) -> dict[str, Feature]:
    """Return the features that the model reads of a memory, on its device and in its dtype.

    Parts add what they have: one without tokens, one that is not there (the memory of a single
    compressor, a memory that is not complete yet) and one of no features add nothing.

    Raises:
        ValueError: a feature is missing though its part has tokens, or has another width.
    """
    widths, parts = model.feature_widths, [p for p in memory.parts if p.tokens.shape[1]]
    present = {f"{p.name}.{name}": (p, x) for p in parts for name, x in p.features.items()}
    prefixes = tuple(f"{part.name}." for part in parts)
    missing = [name for name in widths if name not in present and name.startswith(prefixes)]
    read = {name: present[name] for name in sorted(present.keys() & widths.keys())}
    if missing:
        raise ValueError(
            f"the memory lacks {missing[0]}, which this backbone reads: it has {sorted(present)}"
        )
    for name, (_, values) in read.items():
        if values.shape[-1] != widths[name]:
            raise ValueError(
                f"{name} has width {values.shape[-1]}, this backbone reads {widths[name]}"
            )
    return {name: _feature(model, part, values) for name, (part, values) in read.items()}


def _feature(model: DiffusersBackbone, part: Part, values: Tensor) -> Feature:
    values = values.to(model.device, model.dtype)
    if bool(part.valid.all()):
        return Feature(values, None)
    valid = part.valid.to(model.device)
    return Feature(values.masked_fill(~valid[..., None], 0.0), valid)  # padding may hold NaN


def state(model: DiffusersBackbone) -> dict[str, Tensor]:
    """Return the enhancers' tensors by a file's keys, as `memory.enhancer.blocks.0.to_q.weight`."""
    return {
        KEY_PREFIX + name.replace(NAME_INFIX, "."): p.detach()
        for name, p in parameters(model).items()
    }


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the enhancers' tensors of an adapters file, and whether it holds LoRA, too.

    Raises:
        UserError: it is missing or no safetensors file.
    """
    with open_tensors(path) as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names if name.startswith(KEY_PREFIX)}
    return tensors, not all(name.startswith(BESIDES) for name in names)


def check_state(model: DiffusersBackbone, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError if the tensors of a file are not those of the model's enhancers."""
    expected = state(model)
    if tensors and not expected:
        raise UserError(f"{path} reads features of a memory, but no compressor here brings any")
    if expected and not tensors:
        raise UserError(
            f"{path} holds no {KEY_PREFIX}* tensors, but memory here has features to read"
        )
    odd = min(expected.keys() ^ tensors.keys(), default=None)
    if odd is not None:
        verb = "lacks" if odd in expected else "has"
        raise UserError(f"{path} reads other features of a memory: it {verb} {odd}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, here it is {tuple(expected[name].shape)}"
            raise UserError(f"{path} does not fit: {name} is {shapes}")


@torch.no_grad()
def load_state(model: DiffusersBackbone, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of a file into the model's enhancers, and let them train.

    Raises:
        UserError: they are of other features, widths or blocks.
    """
    check_state(model, tensors, path)
    for name, weight in state(model).items():
        weight.copy_(tensors[name])
    unfreeze(model)
