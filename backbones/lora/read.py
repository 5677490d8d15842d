"""LoRA files in any of three layouts: found out, read by diffusers' names, held to the model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils.other import get_pattern_key
from torch import Tensor

from ...core.errors import UserError
from ...core.files import open_tensors
from .convert import Lora, Tensors, converted, dotted, from_tensors
from .keys import COMFYUI, DIFFUSERS, KOHYA, Pair, SizeOf, Sizes, kind_of
from .names import FAMILIES, Family

if TYPE_CHECKING:
    from ..dit.model import DiT

ODD = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, re.error)
KNOWN = f"{DIFFUSERS}*.lora_A.weight, {COMFYUI}*.lora_A.weight or {KOHYA}*.lora_down.weight"
BESIDES = "memory."  # what else a file of ours may hold: the encoder, enhancers


def read(model: DiT, path: Path) -> Lora:
    """Give the LoRA of a file, with matrices that fit the model.

    Raises:
        UserError: no safetensors file, keys of no layout that is known, linears that the model
            does not have, or other widths.
    """
    with open_tensors(path) as file:
        names = [name for name in file.keys() if not name.startswith(BESIDES)]
        tensors = {name: file.get_tensor(name) for name in names}
        texts = file.metadata() or {}
    family, sizes = FAMILIES.get(model.diffusers_class), size_of(model, path)
    config = _object(texts.get(LORA_ADAPTER_METADATA_KEY), path)
    found = _by_layout(path, tensors, config, family, sizes)
    facts = _object(texts.get("longtake"), path).get("lora")
    if facts and family:
        with _metadata_of(path):
            found = as_exported(found, facts, family)
    check_fit(found, sizes, path)
    return found


def _object(text: str | None, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"LoRA {path} is damaged: its metadata is no JSON object")
    return found


@contextmanager
def _metadata_of(path: Path) -> Iterator[None]:
    try:
        yield
    except ODD as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"LoRA {path} is damaged: what its metadata says of it ({said})") from error


def size_of(model: DiT, path: Path) -> SizeOf:
    """Give the function that gives the sizes of a model's linear, or refuses: UserError."""
    modules = dict(model.named_modules())

    def sizes(linear: str) -> Sizes:
        found = vars(modules[linear]) if linear in modules else {}
        if "in_features" not in found:
            said = "is no linear" if found else "this model does not have"
            raise UserError(f"LoRA {path} adapts {linear}, which {said}")
        return Sizes(int(found["in_features"]), int(found["out_features"]))

    return sizes


def _by_layout(
    path: Path, tensors: Tensors, config: Mapping[str, Any], family: Family | None, sizes: SizeOf
) -> Lora:
    prefix = _prefix(path, tensors)
    bare = {name.removeprefix(prefix): x for name, x in tensors.items()}
    # diffusion-pipe writes original names after diffusers' prefix
    foreign = family is not None and any(name.startswith(family.foreign) for name in bare)
    if prefix == DIFFUSERS and not foreign:
        with _metadata_of(path):
            alphas = _alphas(config, bare)
        return from_tensors(path, bare, alphas, sizes)
    if family is None:
        raise UserError(f"LoRA {path}: for this model {DIFFUSERS}*.lora_A.weight alone is read")
    named = dotted(path, bare, family) if prefix == KOHYA else bare
    return converted(path, named, family, sizes)


def _prefix(path: Path, tensors: Tensors) -> str:
    for prefix in (DIFFUSERS, COMFYUI, KOHYA):
        if tensors and all(name.startswith(prefix) for name in tensors):
            return prefix
    strange = [n for n in tensors if not n.startswith((DIFFUSERS, COMFYUI, KOHYA))]
    what = f"has keys such as {min(strange or tensors)}" if tensors else "is empty"
    raise UserError(f"LoRA {path} {what}: {KNOWN} are read")


def _alphas(config: Mapping[str, Any], tensors: Tensors) -> dict[str, float]:
    """Give alpha by linear out of peft's config, as diffusers writes it; none without one."""
    bare = {key.removeprefix(DIFFUSERS): value for key, value in config.items()}
    if "lora_alpha" not in bare:
        return {}
    patterns = bare.get("alpha_pattern") or {}
    found = {}
    for name, tensor in tensors.items():
        linear, _, rest = name.partition(".lora_")
        if rest == "A.weight":
            alpha = patterns.get(get_pattern_key(list(patterns), linear), bare["lora_alpha"])
            root = tensor.shape[0] ** 0.5 if bare.get("use_rslora") else 1.0
            found[linear] = float(alpha) * root
    return found


def as_exported(lora: Lora, facts: Mapping[str, Any], family: Family) -> Lora:
    """Give a LoRA that `longtake export` wrote as it was before: what it joined, apart again.

    Args:
        lora: as diffusers reads it.
        facts: of the file's header (`core.lora_file.LoraFile.facts`).
        family: of the model.
    """
    kinds, rank, alpha = set(facts["linears"]), int(facts["rank"]), float(facts["alpha"])
    scale = alpha / rank if facts["baked"] else 1.0
    pairs = {
        linear: _own(linear, pair, family, kinds, rank)
        for linear, pair in lora.pairs.items()
        if kind_of(linear) in kinds
    }
    if not pairs or rank < 1:
        raise ValueError(f"no linear of {sorted(kinds)} at rank {rank}")
    if scale != 1.0:
        pairs = {linear: Pair(pair.down, pair.up / scale) for linear, pair in pairs.items()}
    return Lora(pairs=pairs, alphas=dict.fromkeys(pairs, alpha), biases={})


def _own(linear: str, pair: Pair, family: Family, kinds: set[str], rank: int) -> Pair:
    """Give a linear's own rows and columns of what was joined with its neighbours."""
    place = family.place(linear)
    joined = [member for member in place.members if kind_of(member) in kinds] if place else []
    if len(joined) < 2 or pair.rank == rank:
        return pair
    first = joined.index(linear) * rank
    return Pair(pair.down[first : first + rank], pair.up[:, first : first + rank])


def check_fit(lora: Lora, sizes: SizeOf, path: Path) -> None:
    """Refuse a LoRA whose matrices do not fit the linears that it adapts: UserError."""
    for linear, (down, up) in lora.pairs.items():
        size = sizes(linear)
        _check(path, f"{linear}.lora_A.weight", down, (up.shape[-1], size.enter), size.enter)
        _check(path, f"{linear}.lora_B.weight", up, (size.leave, down.shape[0]), size.leave)
    for linear, bias in lora.biases.items():
        _check(path, f"{linear}.lora_B.bias", bias, (sizes(linear).leave,), sizes(linear).leave)


def _check(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...], width: int) -> None:
    if tuple(tensor.shape) != shape:
        linear = name.partition(".lora_")[0]
        raise UserError(
            f"LoRA {path} does not fit: {name} is {tuple(tensor.shape)}, {linear} has {width}"
        )
