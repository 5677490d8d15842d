"""LoRA files of any layout: told apart by their keys, read by diffusers' names, held to the model.

Files with the names of the original models go through diffusers' own converters. Those that
`longtake export` wrote come back as they were: what was joined for other programs is cut apart.
"""

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
    HUNYUAN,
    KOHYA,
    WAN,
    Family,
    LinearSize,
    Pair,
    SizeOf,
    linear_kind,
    pairs_of,
)

BESIDES = "memory."  # what else a file of ours may hold: the encoder, enhancers
KEYS = f"{DIFFUSERS}*.lora_A.weight, {COMFYUI}*.lora_A.weight or {KOHYA}*.lora_down.weight"
SPELLINGS = (  # of the same thing, the last as diffusers' converters want it
    (".default.weight", ".weight"), (".lora_down.", ".lora_A."), (".lora_up.", ".lora_B."),
)  # fmt: skip
# What reading metadata may raise where it holds other types or numbers.
FAULTS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, re.error)
_A, _B, _BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
Tensors = dict[str, Tensor]
Converter = Callable[[Tensors], Tensors]


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


def read_lora(model: DiffusersBackbone, path: Path) -> Lora:
    """Read the LoRA of a file, with matrices that fit the model.

    Raises:
        UserError: no safetensors file, keys of no layout that is known, linears that the model
            does not have, or other widths.
    """
    with open_tensors(path) as file:
        names = [name for name in file.keys() if not name.startswith(BESIDES)]
        tensors = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata() or {}
    family, size_of = model.known_family, linear_sizes(model, path)
    config = _json_object(metadata.get(LORA_ADAPTER_METADATA_KEY), path)
    lora = _by_layout(path, tensors, config, family, size_of)
    facts = _json_object(metadata.get("longtake"), path).get("lora")
    if facts and family:
        with _metadata_faults(path):
            lora = _before_export(lora, facts, family)
    _check_widths(lora, size_of, path)
    return lora


def linear_sizes(model: DiffusersBackbone, path: Path) -> SizeOf:
    """Return a function that returns the sizes of a model's linear, by name.

    It raises UserError, which calls the LoRA `path`, where the model has no such linear.
    """
    modules = dict(model.named_modules())

    def size_of(linear: str) -> LinearSize:
        fields = vars(modules[linear]) if linear in modules else {}
        if "in_features" not in fields:
            reason = "is no linear" if fields else "this model does not have"
            raise UserError(f"LoRA {path} adapts {linear}, which {reason}")
        return LinearSize(int(fields["in_features"]), int(fields["out_features"]))

    return size_of


def _json_object(text: str | None, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"LoRA {path} is damaged: its metadata is no JSON object")
    return value


@contextmanager
def _metadata_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"LoRA {path} is damaged: what its metadata says of it ({reason})"
        ) from error


def _by_layout(
    path: Path, tensors: Tensors, config: Mapping[str, Any], family: Family | None, size_of: SizeOf
) -> Lora:
    """Return the LoRA of tensors as they are in the file."""
    prefix = _prefix(path, tensors)
    bare = {name.removeprefix(prefix): x for name, x in tensors.items()}
    # diffusion-pipe writes original names after diffusers' prefix
    foreign = family is not None and any(name.startswith(family.foreign) for name in bare)
    if prefix == DIFFUSERS and not foreign:
        with _metadata_faults(path):
            alphas = _alphas(config, bare)
        return _checked_lora(path, bare, alphas, size_of)
    if family is None:
        raise UserError(f"LoRA {path}: for this model {DIFFUSERS}*.lora_A.weight alone is read")
    named = _dotted(path, bare, family) if prefix == KOHYA else bare
    return _converted(path, named, family, size_of)


def _prefix(path: Path, tensors: Tensors) -> str:
    for prefix in (DIFFUSERS, COMFYUI, KOHYA):
        if tensors and all(name.startswith(prefix) for name in tensors):
            return prefix
    strange = [n for n in tensors if not n.startswith((DIFFUSERS, COMFYUI, KOHYA))]
    what = f"has keys such as {min(strange or tensors)}" if tensors else "is empty"
    raise UserError(f"LoRA {path} {what}: {KEYS} are read")


def _alphas(config: Mapping[str, Any], tensors: Tensors) -> dict[str, float]:
    """Return alpha by linear out of peft's config, as diffusers writes it; none without one."""
    bare = {key.removeprefix(DIFFUSERS): value for key, value in config.items()}
    if "lora_alpha" not in bare:
        return {}
    patterns = bare.get("alpha_pattern") or {}
    alphas = {}
    for name, tensor in tensors.items():
        linear, _, rest = name.partition(".lora_")
        if rest == "A.weight":
            alpha = patterns.get(get_pattern_key(list(patterns), linear), bare["lora_alpha"])
            root = tensor.shape[0] ** 0.5 if bare.get("use_rslora") else 1.0
            alphas[linear] = float(alpha) * root
    return alphas


def _dotted(path: Path, tensors: Tensors, family: Family) -> Tensors:
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


def _converted(path: Path, tensors: Tensors, family: Family, size_of: SizeOf) -> Lora:
    """Return the LoRA of tensors by original names (`blocks.0.self_attn.q.lora_A.weight`).

    What diffusers leaves out is left out, with a warning.

    Raises:
        UserError: diffusers' converter does not know a key, or misses one.
    """
    # Alphas are kept from the converters: without them no number changes, nor any A's place.
    scales = {n: x for n, x in tensors.items() if n.endswith(".alpha")}
    for name, x in scales.items():
        if x.numel() != 1:
            raise UserError(f"LoRA {path}: {name} is {tuple(x.shape)}, not one number")
    alphas = {n.removesuffix(".alpha"): float(x) for n, x in scales.items()}
    matrices = {_respelled(n): x for n, x in tensors.items() if n not in scales}
    try:
        converted = _convert(_split(matrices, family, size_of), family)
    except (ValueError, KeyError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"[:200]
        raise UserError(f"LoRA {path}: diffusers cannot read its keys ({reason})") from error
    _warn_of_dropped(path, matrices, converted)
    by_storage = {
        matrices[f"{n}{_A}"].data_ptr(): alpha
        for n, alpha in alphas.items()
        if f"{n}{_A}" in matrices
    }
    alpha_by_linear = {
        name.removesuffix(_A): by_storage[x.data_ptr()]
        for name, x in converted.items()
        if name.endswith(_A) and x.data_ptr() in by_storage
    }
    return _checked_lora(path, converted, alpha_by_linear, size_of)


def _respelled(name: str) -> str:
    for old, new in SPELLINGS:
        name = name.replace(old, new)
    return name


def _split(tensors: Tensors, family: Family, size_of: SizeOf) -> Tensors:
    """Return the tensors with what diffusers splits at one width only split by the model's own."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        linear, _, rest = name.partition(".lora_")
        members = family.members(linear) if linear.endswith(family.split or ("\0",)) else ()
        parts: list[Tensor] = [tensor] * len(members)
        if members and rest.startswith("B"):
            parts = list(tensor.split([size_of(member).outputs for member in members]))
        out |= {f"{m}.lora_{rest}": x for m, x in zip(members, parts, strict=True)}
        out |= {} if members else {name: tensor}
    return out


def _convert(tensors: Tensors, family: Family) -> Tensors:
    """Return tensors by diffusers' names, through diffusers' converter of the family."""
    converters: list[tuple[Family, Any]] = [
        (WAN, diffusers._convert_non_diffusers_wan_lora_to_diffusers),
        (HUNYUAN, diffusers._convert_hunyuan_video_lora_to_diffusers),
    ]
    convert: Converter | None = next((c for known, c in converters if known is family), None)
    if convert is None:
        return _renamed(tensors, family)
    out = convert({f"{COMFYUI}{name}": x for name, x in tensors.items()})
    return {name.removeprefix(DIFFUSERS): x for name, x in out.items()}


def _renamed(tensors: Tensors, family: Family) -> Tensors:
    """Return tensors by diffusers' names, of a family that diffusers has no converter for.

    Raises:
        KeyError: a linear is not known to the family, or is several of diffusers' and not split.
    """
    out = {}
    for name, x in tensors.items():
        linear, dot, rest = name.partition(".lora_")
        members = (linear,) if family.original(linear) else family.members(linear)
        if len(members) != 1:
            raise KeyError(linear)
        out[f"{members[0]}{dot}{rest}"] = x
    return out


def _warn_of_dropped(path: Path, before: Tensors, after: Tensors) -> None:
    storages = {x.data_ptr() for x in after.values()}
    lost = sorted(name for name, x in before.items() if x.data_ptr() not in storages)
    if lost:
        nonzero = sum(bool(torch.any(before[name] != 0)) for name in lost)
        logging.getLogger(__name__).warning(
            "LoRA %s: diffusers knows no place for %d of its tensors, such as %s; they are left "
            "out, and %s", path, len(lost), lost[0],
            f"{nonzero} of them are not zero" if nonzero else "all of them are zero",
        )  # fmt: skip


def _checked_lora(
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
        inputs, outputs = size_of(linear)
        zeros = biases[linear].new_zeros
        pairs[linear] = Pair(zeros(1, inputs), zeros(outputs, 1))
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


def _before_export(lora: Lora, facts: Mapping[str, Any], family: Family) -> Lora:
    """Return a LoRA that `longtake export` wrote as it was before: what it joined, apart again.

    Args:
        lora: as diffusers reads it.
        facts: of the file's header (`LoraFile.facts`).
        family: of the model.
    """
    kinds, rank, alpha = set(facts["linears"]), int(facts["rank"]), float(facts["alpha"])
    scale = alpha / rank if facts["baked"] else 1.0
    pairs = {
        linear: _own_rows(linear, pair, family, kinds, rank)
        for linear, pair in lora.pairs.items()
        if linear_kind(linear) in kinds
    }
    if not pairs or rank < 1:
        raise ValueError(f"no linear of {sorted(kinds)} at rank {rank}")
    if scale != 1.0:
        pairs = {linear: Pair(pair.down, pair.up / scale) for linear, pair in pairs.items()}
    return Lora(pairs=pairs, alphas=dict.fromkeys(pairs, alpha), biases={})


def _own_rows(linear: str, pair: Pair, family: Family, kinds: set[str], rank: int) -> Pair:
    """Return a linear's own rows and columns of what was joined with its neighbours."""
    original = family.original(linear)
    joined = [m for m in original.members if linear_kind(m) in kinds] if original else []
    if len(joined) < 2 or pair.rank == rank:
        return pair
    first = joined.index(linear) * rank
    return Pair(pair.down[first : first + rank], pair.up[:, first : first + rank])


def _check_widths(lora: Lora, size_of: SizeOf, path: Path) -> None:
    """Refuse a LoRA whose matrices do not fit the linears that it adapts: UserError."""
    for linear, (down, up) in lora.pairs.items():
        inputs, outputs = size_of(linear)
        _check_shape(path, f"{linear}{_A}", down, (up.shape[-1], inputs), inputs)
        _check_shape(path, f"{linear}{_B}", up, (outputs, down.shape[0]), outputs)
    for linear, bias in lora.biases.items():
        outputs = size_of(linear).outputs
        _check_shape(path, f"{linear}{_BIAS}", bias, (outputs,), outputs)


def _check_shape(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...], width: int) -> None:
    if tuple(tensor.shape) != shape:
        linear = name.partition(".lora_")[0]
        raise UserError(
            f"LoRA {path} does not fit: {name} is {tuple(tensor.shape)}, {linear} has {width}"
        )
