"""LoRA files in any of three layouts: found out, read by diffusers' names, held to the model."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from diffusers.loaders import lora_conversion_utils as diffusers
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils.other import get_pattern_key
from torch import Tensor

from ...core.errors import UserError
from ...core.tools.files import open_tensors
from ...core.tools.hub import first_line
from ..blocks.base import DiffusersBackbone
from .layouts import (
    COMFYUI,
    DIFFUSERS,
    FAMILIES,
    HUNYUAN,
    KOHYA,
    WAN,
    Family,
    Pair,
    SizeOf,
    Sizes,
    kind_of,
    pairs_of,
)

# ⟦backbones/lora/convert.py⟧ LoRA tensors by original names to diffusers' names, through diffusers' own converters.


Tensors = dict[str, Tensor]
Converter = Callable[[Tensors], Tensors]
SPELLINGS = (  # of the same thing, the last as diffusers' converters want it
    (".default.weight", ".weight"), (".lora_down.", ".lora_A."), (".lora_up.", ".lora_B."),
)  # fmt: skip
_A, _B, _BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"


@frozen(eq=False, kw_only=True)
class Lora:
    """What a LoRA file holds, by diffusers' names of linears.

    Attributes:
        pairs: A and B, as they are in the file.
        alphas: the scale of a linear is its alpha / rank.
        biases: what some add to the bias of a linear; alpha does not scale it.
    """

    pairs: Mapping[str, Pair]
    alphas: Mapping[str, float]
    biases: Mapping[str, Tensor]


def from_tensors(
    path: Path, tensors: Tensors, alphas: Mapping[str, float], size_of: SizeOf
) -> Lora:
    """Return a LoRA of tensors by diffusers' names; a linear without an alpha has scale 1.

    Raises:
        UserError: other keys, A without B, or what are no matrices of numbers.
    """
    _check_numbers(path, tensors, alphas)
    strange = sorted(n for n in tensors if not n.endswith((_A, _B, _BIAS)))
    if strange:
        raise UserError(f"LoRA {path} holds {strange[0]}, which is neither A, B nor a bias of LoRA")
    biases = {n.removesuffix(_BIAS): x for n, x in tensors.items() if n.endswith(_BIAS)}
    try:
        pairs = pairs_of({n: x for n, x in tensors.items() if not n.endswith(_BIAS)})
    except KeyError as error:
        raise UserError(f"LoRA {path} lacks {error.args[0]}: A and B go together") from None
    for linear in sorted(set(biases) - set(pairs)):  # a bias alone: its A and B are zero
        size = size_of(linear)
        zeros = biases[linear].new_zeros
        pairs[linear] = Pair(zeros(1, size.enter), zeros(size.leave, 1))
    every = {linear: alphas.get(linear, float(pair.rank)) for linear, pair in pairs.items()}
    return Lora(pairs=pairs, alphas=every, biases=biases)


def _check_numbers(path: Path, tensors: Tensors, alphas: Mapping[str, float]) -> None:
    """Refuse what is no matrix of a rank of 1 or more, and numbers that are not finite."""
    for name, x in tensors.items():
        if name.endswith((_A, _B)) and (x.ndim != 2 or not x.numel()):
            raise UserError(
                f"LoRA {path} does not fit: {name} is {tuple(x.shape)}, not a matrix of rank ≥ 1"
            )
        if not x.is_floating_point():
            raise UserError(f"LoRA {path}: {name} is {str(x.dtype)[6:]}, not a floating type")
        if not bool(x.float().isfinite().all()):
            raise UserError(f"LoRA {path} is damaged: {name} holds values that are not finite")
    for linear, alpha in alphas.items():
        if not math.isfinite(alpha):
            raise UserError(f"LoRA {path} is damaged: alpha of {linear} is {alpha}")


def dotted(path: Path, tensors: Tensors, family: Family) -> Tensors:
    """Return kohya's tensors (`blocks_0_self_attn_q.lora_down.weight`) by original names.

    Raises:
        UserError: a linear is none of this family's.
    """
    named = {}
    for name, tensor in tensors.items():
        flat, _, rest = name.partition(".")
        linear = family.dotted(flat)
        if linear is None:
            raise UserError(f"LoRA {path} adapts {KOHYA}{flat}, which no block here has")
        named[f"{linear}.{rest}"] = tensor
    return named


def converted(path: Path, tensors: Tensors, family: Family, size_of: SizeOf) -> Lora:
    """Return the LoRA of tensors by original names (`blocks.0.self_attn.q.lora_A.weight`, `.alpha`).

    What diffusers leaves out is left out, and said.

    Raises:
        UserError: diffusers' converter does not know a key, or misses one.
    """
    scales = {n: x for n, x in tensors.items() if _is_alpha(n)}
    for name, x in scales.items():
        if x.numel() != 1:
            raise UserError(f"LoRA {path}: {name} is {tuple(x.shape)}, not one number")
    alphas = {n.removesuffix(".alpha"): float(x) for n, x in scales.items()}
    given = {_spelled(n): x for n, x in tensors.items() if not _is_alpha(n)}
    try:
        out = _convert(_split(given, family, size_of), family)
    except (ValueError, KeyError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        said = f"{type(error).__name__}: {first_line(error)}"[:200]
        raise UserError(f"LoRA {path}: diffusers cannot read its keys ({said})") from error
    _say_dropped(path, given, out)
    at = {given[f"{n}{_A}"].data_ptr(): a for n, a in alphas.items() if f"{n}{_A}" in given}
    scaled = {
        name.removesuffix(_A): at[x.data_ptr()]
        for name, x in out.items()
        if name.endswith(_A) and x.data_ptr() in at
    }
    return from_tensors(path, out, scaled, size_of)


def _is_alpha(name: str) -> bool:
    return name.endswith(".alpha")


def _spelled(name: str) -> str:
    for old, new in SPELLINGS:
        name = name.replace(old, new)
    return name


def _convert(tensors: Tensors, family: Family) -> Tensors:
    # Alphas are kept from the converters: without them no number changes, nor any A's place.
    converters: list[tuple[Family, Any]] = [
        (WAN, diffusers._convert_non_diffusers_wan_lora_to_diffusers),
        (HUNYUAN, diffusers._convert_hunyuan_video_lora_to_diffusers),
    ]
    convert: Converter = next(found for known, found in converters if known is family)
    out = convert({f"{COMFYUI}{name}": x for name, x in tensors.items()})
    return {name.removeprefix(DIFFUSERS): x for name, x in out.items()}


def _split(tensors: Tensors, family: Family, size_of: SizeOf) -> Tensors:
    """Return the tensors with what diffusers splits at one width only split by the model's own."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        linear, _, rest = name.partition(".lora_")
        members = family.members(linear) if linear.endswith(family.split or ("\0",)) else ()
        parts: list[Tensor] = [tensor] * len(members)
        if members and rest.startswith("B"):
            parts = list(tensor.split([size_of(member).leave for member in members]))
        out |= {f"{m}.lora_{rest}": x for m, x in zip(members, parts, strict=True)}
        out |= {} if members else {name: tensor}
    return out


def _say_dropped(path: Path, given: Tensors, out: Tensors) -> None:
    kept = {x.data_ptr() for x in out.values()}
    lost = sorted(name for name, x in given.items() if x.data_ptr() not in kept)
    if lost:
        loud = sum(bool(torch.any(given[name] != 0)) for name in lost)
        logging.getLogger(__name__).warning(
            "LoRA %s: diffusers knows no place for %d of its tensors, such as %s; they are left "
            "out, and %s", path, len(lost), lost[0],
            f"{loud} of them are not zero" if loud else "all of them are zero",
        )  # fmt: skip


ODD = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, re.error)
KNOWN = f"{DIFFUSERS}*.lora_A.weight, {COMFYUI}*.lora_A.weight or {KOHYA}*.lora_down.weight"
BESIDES = "memory."  # what else a file of ours may hold: the encoder, enhancers


def read(model: DiffusersBackbone, path: Path) -> Lora:
    """Return the LoRA of a file, with matrices that fit the model.

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


def size_of(model: DiffusersBackbone, path: Path) -> SizeOf:
    """Return the function that gives the sizes of a model's linear, or refuses: UserError."""
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
    """Return alpha by linear out of peft's config, as diffusers writes it; none without one."""
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
    """Return a LoRA that `longtake export` wrote as it was before: what it joined, apart again.

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
    """Return a linear's own rows and columns of what was joined with its neighbours."""
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
