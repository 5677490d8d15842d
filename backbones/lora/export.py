"""Our LoRA as other programs read it (`longtake export`)."""

from __future__ import annotations

from pathlib import Path

from ...core.errors import UserError
from ...core.interfaces.backbone import LoraFile
from ...core.interfaces.spec import BackboneSpec
from ...core.tools.files import open_tensors
from ..blocks.base import DiffusersBackbone
from ..specs import DiTSpec
from ..weights.check import skeleton
from .adapters import diffusers_metadata, one_scale
from .layouts import (
    DIFFUSERS,
    comfyui,
    kohya,
    linear_kind,
    original_pairs,
    scaled,
    with_required,
)
from .read import BESIDES, linear_sizes, read_lora


def export(cls: type[DiffusersBackbone], spec: BackboneSpec, path: Path, layout: str) -> LoraFile:
    """Return the adapters of a file of ours in another layout.

    diffusers' has alpha / rank in B, in float32, and says alpha = rank: the outputs are right where
    its metadata is not read, too. Where the original model joins linears (HunyuanVideo's q, k and
    v), so do other programs' files, exactly: the ranks add up. In kohya's, zeros stand where
    diffusers' reader wants all linears of a block.

    Args:
        cls: of the model; only its names and widths are read, no weights.
        spec: of the model.
        path: what `save_adapters` wrote.
        layout: one of `core.interfaces.backbone.LAYOUTS`.

    Raises:
        UserError: the file cannot be read, or the names of this model there are not known.
    """
    if not isinstance(spec, DiTSpec):
        raise UserError(f"{cls.__name__} needs the spec of a DiT, not {type(spec).__name__}")
    model = skeleton(cls, spec.config)
    with open_tensors(path) as file:
        names = list(file.keys())
        besides = {name: file.get_tensor(name) for name in names if name.startswith(BESIDES)}
    if len(besides) == len(names):
        return LoraFile(besides=besides)
    lora = read_lora(model, path)
    rank, alpha = one_scale(lora, path)
    family = model.known_family
    facts = {
        "layout": layout,
        "rank": rank,
        "alpha": alpha,
        "linears": sorted({linear_kind(linear) for linear in lora.pairs}),
        # readers that know no alpha, or leave the metadata unread, scale by 1: alpha goes into B
        "baked": layout == "diffusers"
        or (layout == "comfyui" and family is not None and not family.reads_alpha),
    }
    dtype = next(iter(lora.pairs.values())).up.dtype
    if layout == "diffusers":
        tensors = {
            f"{DIFFUSERS}{linear}.lora_{end}.weight": tensor
            for linear, (down, up) in lora.pairs.items()
            for end, tensor in (("A", down), ("B", scaled(up, alpha / rank)))
        }
        texts = diffusers_metadata(rank, float(rank), lora.pairs)
        return LoraFile(tensors=tensors, besides=besides, metadata=texts, facts=facts, dtype=dtype)
    if family is None:
        raise UserError(f"--to {layout}: its names for {model.diffusers_class} are not known")
    named = original_pairs(lora.pairs, family, linear_sizes(model, path))
    if layout == "comfyui":
        tensors = comfyui(named, alpha / rank, with_alpha=family.reads_alpha)
        return LoraFile(tensors=tensors, besides=besides, facts=facts, dtype=dtype)
    every = [name for name, _ in model.named_modules()]
    named = with_required(named, family, every, linear_sizes(model, path))
    texts = {
        "ss_network_module": family.network,
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }
    tensors = kohya(named, alpha / rank)
    return LoraFile(tensors=tensors, besides=besides, metadata=texts, facts=facts)
