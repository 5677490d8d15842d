"""Our LoRA as other programs read it (`longtake export`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...core.errors import UserError
from ...core.interfaces.backbone import LoraFile
from ...core.interfaces.spec import BackboneSpec
from ...core.tools.files import open_tensors
from ..blocks.base import DiffusersBackbone
from ..specs import DiTSpec
from ..weights.check import skeleton
from . import layouts as lora_keys
from .adapters import metadata, one_scale
from .layouts import DIFFUSERS, FAMILIES, Family, kind_of
from .read import BESIDES, Lora, read, size_of


def export(cls: type[DiffusersBackbone], spec: BackboneSpec, path: Path, layout: str) -> LoraFile:
    """Return the adapters of a file of ours in a layout of `core.lora_file.LAYOUTS`.

    Where the original model joins linears (HunyuanVideo's q, k and v), so do other programs'
    files, exactly: the ranks add up. In kohya's, zeros stand where diffusers' reader wants all
    linears of a block.

    Args:
        cls: of the model; only its names and widths are read, no weights.
        spec: of the model.
        path: what `save_adapters` wrote.
        layout: to give.

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
    found = read(model, path)
    rank, alpha = one_scale(found, path)
    family = FAMILIES.get(model.diffusers_class)
    facts = {
        "layout": layout,
        "rank": rank,
        "alpha": alpha,
        "linears": sorted({kind_of(linear) for linear in found.pairs}),
        "baked": layout == "comfyui" and family is not None and not family.scales,
    }
    if layout == "diffusers":
        kept = metadata(rank, alpha, found.pairs)
        return LoraFile(tensors=_plain(found), besides=besides, metadata=kept, facts=facts)
    if family is None:
        raise UserError(f"--to {layout}: its names for {model.diffusers_class} are not known")
    tensors = _foreign(model, found, family, layout, alpha / rank)
    network = {"ss_network_module": family.network, "ss_network_dim": str(rank)}
    kept = network | {"ss_network_alpha": f"{alpha:g}"} if layout == "kohya" else {}
    return LoraFile(tensors=tensors, besides=besides, metadata=kept, facts=facts)


def _plain(found: Lora) -> dict[str, Tensor]:
    return {
        f"{DIFFUSERS}{linear}.lora_{end}.weight": tensor
        for linear, (down, up) in found.pairs.items()
        for end, tensor in (("A", down), ("B", up))
    }


def _foreign(
    model: DiffusersBackbone, found: Lora, family: Family, layout: str, scale: float
) -> Mapping[str, Tensor]:
    sizes = size_of(model, Path("of this model"))
    named = lora_keys.original(found.pairs, family, sizes)
    if layout == "comfyui":
        return lora_keys.comfyui(named, scale, scales=family.scales)
    every = [name for name, _ in model.named_modules()]
    return lora_keys.kohya(lora_keys.filled(named, family, every, sizes), scale)
