"""LoRA files of any layout: told apart by keys, read by diffusers' names, held to the model.

The names of original releases are those of weights (`weights.original`): what cuts a weight there
cuts the rows of B alike. Files that `longtake export` wrote come back as they were: what was
joined for other programs is cut apart, and a scale that went into B comes out again.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft.utils.other import get_pattern_key
from torch import Tensor

from ...core.errors import UserError
from ...core.tools.files import open_tensors, read_object
from ..blocks.base import DiffusersBackbone
from ..weights.original import Convert, original_converter
from .layouts import (
    COMFYUI,
    DIFFUSERS,
    KOHYA,
    Family,
    LinearSize,
    Pair,
    SizeOf,
    linear_kind,
    scaled,
)

BESIDES = "memory."  # what else a file of ours may hold: the encoder, enhancers
KEYS = f"{DIFFUSERS}*.lora_A.weight, {COMFYUI}*.lora_A.weight or {KOHYA}*.lora_down.weight"
PEFT, PEFT_FILE = "base_model.model.", "adapter_model.safetensors"
# What programs put before the names of a model's modules.
PREFIXES = (PEFT, "model.diffusion_model.", COMFYUI, DIFFUSERS, KOHYA, "lycoris_")
# What stands behind them, in the spellings of several programs.
ENDINGS = {
    "A": (".lora_A.weight", ".lora_down.weight", ".lora.down.weight", ".lora_A"),
    "B": (".lora_B.weight", ".lora_up.weight", ".lora.up.weight", ".lora_B"),
    "bias": (".lora_B.bias", ".diff_b", ".b_norm"),
    "diff": (".diff", ".w_norm"),
    "alpha": (".alpha",),
}
_ADAPTER = re.compile(r"\.lora_([AB])\.\w+\.(weight|bias)$")  # peft's name of it in between
# Keys by which other kinds of adapters are told, whose numbers A and B alone do not give.
OTHER_KINDS = {
    "LoHa": (".hada_",),
    "LoKr": (".lokr_",),
    "DoRA": (".dora_scale", ".lora_magnitude_vector"),
    "OFT": (".oft_",),
    "BOFT": (".boft_",),
    "GLoRA": (".a1.weight", ".b1.weight"),
    "(IA)³": (".on_input", ".ia3_l"),
    "VeRA": (".vera_lambda_",),
    "LoCon with a core (Tucker)": (".lora_mid.",),
}
LEFT_OUT = ".diff_m"  # LightX2V's changes of `modulation`, which ComfyUI leaves out as well
# What reading metadata may raise where it holds other types or numbers.
FAULTS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, re.error)
_A, _B, _BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"
Tensors = dict[str, Tensor]


@frozen(eq=False, kw_only=True)
class Lora:
    """What a LoRA file holds, by diffusers' names.

    Attributes:
        pairs: A and B of a linear, as they are in the file.
        alphas: the scale of a linear is its alpha / rank.
        biases: what some add to the bias of a linear; alpha does not scale it.
        diffs: what some add to other parameters, by name, such as to a norm's weight.
    """

    pairs: Mapping[str, Pair]
    alphas: Mapping[str, float]
    biases: Mapping[str, Tensor]
    diffs: Mapping[str, Tensor] = field(factory=dict)


def read_lora(model: DiffusersBackbone, path: Path) -> Lora:
    """Read the LoRA of a file, with tensors that fit the model.

    Raises:
        UserError: no safetensors file, keys of no layout that is known, adapters that are no LoRA
            (LoHa, LoKr, DoRA), modules that the model does not have, or other widths.
    """
    with open_tensors(path) as file:
        names = [name for name in file.keys() if not name.startswith(BESIDES)]
        tensors = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata() or {}
    family, size_of = model.known_family, linear_sizes(model, path)
    config = _json_object(metadata.get(LORA_ADAPTER_METADATA_KEY), path)
    config = config or _config_beside(path, names)
    _refuse_other_kinds(path, names, config)
    _warn_of_lost_alpha(path, names, metadata)
    lora = _lora_of(path, _by_module(path, tensors), config, _Names(model, family))
    facts = _json_object(metadata.get("longtake"), path).get("lora")
    if facts:
        with _metadata_faults(path):
            lora = _before_export(lora, facts, family)
    _check_shapes(lora, model, size_of, path)
    return lora


def _config_beside(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the config that peft writes beside its file, none where it is not there.

    It is read for peft's keys and for peft's file name, under which diffusion-pipe and others write
    keys of their own.
    """
    by_keys = any(name.startswith(PEFT) for name in names)
    if not by_keys and path.name != PEFT_FILE:
        return {}
    place = path.with_name("adapter_config.json")
    if place.is_file():
        return read_object(place, "config of peft")
    if by_keys and not any(name.endswith(ENDINGS["alpha"]) for name in names):
        logging.getLogger(__name__).warning(
            "LoRA %s is peft's, and its adapter_config.json with alpha is not beside it: its alpha "
            "counts as its rank", path,
        )  # fmt: skip
    return {}


def _warn_of_lost_alpha(path: Path, names: Sequence[str], metadata: Mapping[str, str]) -> None:
    """Log that alpha counts as the rank although kohya's metadata has another one.

    Its tensors of alpha are gone, without which other programs count it so, too.
    """
    rank, alpha = (metadata.get(f"ss_network_{name}") for name in ("dim", "alpha"))
    own = "longtake" in metadata or any(name.endswith(ENDINGS["alpha"]) for name in names)
    if own or alpha in (None, rank):
        return
    logging.getLogger(__name__).warning(
        "LoRA %s has no tensor of alpha, and its metadata says alpha %s of rank %s: alpha counts "
        "as the rank, as in other programs", path, alpha, rank,
    )  # fmt: skip


def _refuse_other_kinds(path: Path, names: list[str], config: Mapping[str, Any]) -> None:
    for kind, marks in OTHER_KINDS.items():
        for name in names:
            if any(mark in name for mark in marks):
                raise UserError(
                    f"LoRA {path}: {kind} is not read; take a plain LoRA, of A and B alone (it "
                    f"holds {name})"
                )
    if any(value is True for key, value in config.items() if key.endswith("use_dora")):
        raise UserError(f"LoRA {path}: DoRA is not read; take a plain LoRA, of A and B alone")


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


def _by_module(path: Path, tensors: Tensors) -> dict[str, Tensors]:
    """Return the tensors of each module by what they are (`ENDINGS`), in the file's own names.

    Raises:
        UserError: there are none, a key is of no known layout, or they are no numbers.
    """
    if not tensors:
        raise UserError(f"LoRA {path} is empty: {KEYS} are read")
    modules: dict[str, Tensors] = {}
    left_out = sorted(name for name in tensors if name.endswith(LEFT_OUT))
    for name in sorted(set(tensors) - set(left_out)):
        _check_numbers(path, name, tensors[name])
        spelled = _ADAPTER.sub(r".lora_\1.\2", name)
        for kind, endings in ENDINGS.items():
            ending = next((end for end in endings if spelled.endswith(end)), None)
            if ending is not None:
                module = modules.setdefault(spelled.removesuffix(ending), {})
                if kind in module:
                    raise UserError(
                        f"LoRA {path} holds several adapters of one module, {name} and another: "
                        "one is read; write each into a file of its own"
                    )
                module[kind] = tensors[name]
                break
        else:
            raise UserError(f"LoRA {path} has keys such as {name}: {KEYS} are read")
    if left_out:
        nonzero = sum(bool(torch.any(tensors[name] != 0)) for name in left_out)
        logging.getLogger(__name__).warning(
            "LoRA %s: %d of its tensors, such as %s, are left out, as ComfyUI leaves them out; %s",
            path, len(left_out), left_out[0],
            f"{nonzero} of them are not zero" if nonzero else "all of them are zero",
        )  # fmt: skip
    return modules


class _Names:
    """Finds the modules of a model that a file's names stand for."""

    def __init__(self, model: DiffusersBackbone, family: Family | None) -> None:
        self.model, self.family = model, family
        self.modules: set[str] = {name for name, _ in model.named_modules() if name}
        self.parameters = set(parameters(model))
        self.flat: dict[str, str] = {name.replace(".", "_"): name for name in self.modules}
        self.convert: Convert = original_converter(model)

    def own(self, raw: str) -> str | None:
        """Return the model's module that a name is, after prefixes, or with `_` for its dots."""
        for name in _stripped(raw):
            if name in self.modules:
                return name
            if found := self.flat.get(name.replace(".", "_")):
                return found
        return None

    def original(self, raw: str) -> str | None:
        """Return the original name of a module of the model that a name is."""
        for name in _stripped(raw):
            flat = self.family.dotted(name.replace(".", "_")) if self.family else None
            dotted = name if "." in name else None
            for candidate in (dotted, flat):
                if candidate and self._is_known(candidate):
                    return candidate
        return None

    def _is_known(self, name: str) -> bool:
        return all(x in self.modules or x in self.parameters for x in self.targets(name))

    def targets(self, name: str) -> list[str]:
        """Return diffusers' names of the modules, or of the parameter, that an original one is."""
        stub = torch.empty(12, device="meta")  # rows that can be cut in 2, 3 and 4
        found = self.convert({f"{name}.weight": stub})
        modules = [target.removesuffix(".weight") for target in found]
        if not self.modules.issuperset(modules):  # ComfyUI names parameters such as a `scale`
            whole = list(self.convert({name: stub}))
            return whole if self.parameters.issuperset(whole) else modules
        return modules

    def of(self, path: Path, raws: Mapping[str, Tensors]) -> tuple[dict[str, str], bool]:
        """Return the name of each of a file's modules, and whether these are the original's.

        Raises:
            UserError: the model has no such module.
        """
        own = {raw: self.own(raw) for raw in raws}
        original = {raw: self.original(raw) for raw in raws}
        adapted = [raw for raw, kinds in raws.items() if {"A", "B"} & set(kinds)]
        counts = [sum(found[raw] is not None for raw in adapted) for found in (own, original)]
        # changes of norms are in no file of diffusers' names, and a norm is called otherwise there
        is_original = not adapted or counts[1] > counts[0]
        chosen = original if is_original else own
        lost = sorted(raw for raw in raws if chosen[raw] is None)
        if len(lost) == len(raws):
            what = f"has keys such as {lost[0]}.*, which this model does not have"
            raise UserError(f"LoRA {path} {what}: {KEYS} are read")
        if lost:
            raise UserError(f"LoRA {path} adapts {lost[0]}, which this model does not have")
        twice = Counter(name for name in chosen.values())
        for raw in sorted(raws):
            if twice[chosen[raw]] > 1:
                raise UserError(
                    f"LoRA {path} holds {chosen[raw]} twice, once as {raw}: write each LoRA into a "
                    "file of its own"
                )
        return {raw: name for raw, name in chosen.items() if name is not None}, is_original


def parameters(model: DiffusersBackbone) -> dict[str, torch.nn.Parameter]:
    """Return a model's own parameters by name, as they are called without any LoRA."""
    return {
        name.replace(".base_layer.", "."): weight
        for name, weight in model.named_parameters()
        if ".lora_" not in name
    }


def _stripped(name: str) -> Iterator[str]:
    """Yield a name as it is, and without what programs put before it."""
    yield name
    for prefix in PREFIXES:
        if name.startswith(prefix):
            yield from _stripped(name.removeprefix(prefix).lstrip("_"))


def _lora_of(
    path: Path, modules: Mapping[str, Tensors], config: Mapping[str, Any], names: _Names
) -> Lora:
    """Return the LoRA of a file's tensors; a linear without an alpha has scale 1.

    Raises:
        UserError: A without B, modules that the model does not have, or a damaged alpha.
    """
    found, is_original = names.of(path, modules)
    convert: Convert = names.convert if is_original else dict
    pairs: dict[str, Pair] = {}
    alphas: dict[str, float] = {}
    biases: Tensors = {}
    diffs: Tensors = {}
    for raw, kinds in modules.items():
        name = found[raw]
        if {"A", "B"} & set(kinds):
            targets = names.targets(name) if is_original else [name]
            for kind, end in (("A", _A), ("B", _B)):
                if kind not in kinds:
                    lost = f"{targets[0]}{end}"
                    raise UserError(f"LoRA {path} lacks {lost}: A and B go together")
            parts = convert({f"{name}.weight": kinds["B"]})
            own = {key.removesuffix(".weight"): Pair(kinds["A"], up) for key, up in parts.items()}
            pairs |= own
            with _metadata_faults(path):
                alpha = _alpha(kinds.get("alpha"), config, name, pairs[targets[0]].rank)
            if not math.isfinite(alpha):
                raise UserError(f"LoRA {path} is damaged: alpha of {name} is {alpha}")
            alphas |= dict.fromkeys(own, alpha)
        if "bias" in kinds:
            for key, bias in convert({f"{name}.bias": kinds["bias"]}).items():
                linear = key.removesuffix(".bias")
                if _is_linear(names.model, linear):
                    biases[linear] = bias
                else:
                    diffs[key] = bias
        if "diff" in kinds and bool(kinds["diff"].any()):
            whole = f"{name}.weight"
            if names.parameters.issuperset(convert({name: kinds["diff"]})):
                whole = name  # a parameter by itself, such as Wan's `modulation`
            diffs |= convert({whole: kinds["diff"]})
    size_of = linear_sizes(names.model, path)
    for linear in sorted(set(biases) - set(pairs)):  # a bias alone: its A and B are zero
        inputs, outputs = size_of(linear)
        zeros = biases[linear].new_zeros
        pairs[linear], alphas[linear] = Pair(zeros(1, inputs), zeros(outputs, 1)), 1.0
    diffs = {name: x for name, x in diffs.items() if bool(x.any())}
    return Lora(pairs=pairs, alphas=alphas, biases=biases, diffs=diffs)


def _is_linear(model: DiffusersBackbone, name: str) -> bool:
    return "in_features" in vars(model.get_submodule(name))


def _alpha(tensor: Tensor | None, config: Mapping[str, Any], linear: str, rank: int) -> float:
    """Return alpha of a linear: the file's own, or that of peft's config, or the rank."""
    if tensor is not None:
        return float(tensor)
    bare = {key.removeprefix(DIFFUSERS): value for key, value in config.items()}
    if "lora_alpha" not in bare:
        elsewhere = [key for key in config if key.endswith(".lora_alpha")]
        if elsewhere:
            raise ValueError(f"it has {elsewhere[0]}, not {DIFFUSERS}lora_alpha")
        return float(rank)
    patterns = bare.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(list(patterns), linear), bare["lora_alpha"])
    return float(alpha) * (rank**0.5 if bare.get("use_rslora") else 1.0)


def _check_numbers(path: Path, name: str, x: Tensor) -> None:
    """Refuse what is no matrix of a rank of 1 or more, and numbers that are not finite."""
    spelled = _ADAPTER.sub(r".lora_\1.\2", name)
    if spelled.endswith(ENDINGS["A"] + ENDINGS["B"]) and (x.ndim != 2 or not x.numel()):
        raise UserError(
            f"LoRA {path} does not fit: {name} is {tuple(x.shape)}, not a matrix of rank ≥ 1"
        )
    if name.endswith(ENDINGS["alpha"]):
        if x.numel() != 1:
            raise UserError(f"LoRA {path}: {name} is {tuple(x.shape)}, not one number")
        if x.dtype == torch.bool or not bool(x.float().isfinite().all()):
            raise UserError(f"LoRA {path} is damaged: {name} is {x.item()}")
        return
    if not x.is_floating_point():
        raise UserError(f"LoRA {path}: {name} is {str(x.dtype)[6:]}, not a floating type")
    if not x.ndim:
        raise UserError(f"LoRA {path}: {name} is one number, not a tensor of a module")
    if not bool(x.float().isfinite().all()):
        raise UserError(f"LoRA {path} is damaged: {name} holds values that are not finite")


def _before_export(lora: Lora, facts: Mapping[str, Any], family: Family | None) -> Lora:
    """Return a LoRA that `longtake export` wrote as it was before: what it joined, apart again.

    Args:
        lora: as diffusers reads it.
        facts: of the file's header (`LoraFile.facts`).
        family: of the model; None: its names in other programs are not known.
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
        pairs = {linear: Pair(p.down, scaled(p.up, 1.0 / scale)) for linear, p in pairs.items()}
    return Lora(pairs=pairs, alphas=dict.fromkeys(pairs, alpha), biases={})


def _own_rows(linear: str, pair: Pair, family: Family | None, kinds: set[str], rank: int) -> Pair:
    """Return a linear's own rows and columns of what was joined with its neighbours."""
    original = family.original(linear) if family else None
    joined = [m for m in original.members if linear_kind(m) in kinds] if original else []
    if len(joined) < 2 or pair.rank == rank:
        return pair
    first = joined.index(linear) * rank
    return Pair(pair.down[first : first + rank], pair.up[:, first : first + rank])


def _check_shapes(lora: Lora, model: DiffusersBackbone, size_of: SizeOf, path: Path) -> None:
    """Refuse a LoRA whose tensors do not fit what they adapt: UserError."""
    for linear, (down, up) in lora.pairs.items():
        inputs, outputs = size_of(linear)
        _check_shape(path, f"{linear}{_A}", down, (up.shape[-1], inputs), inputs)
        _check_shape(path, f"{linear}{_B}", up, (outputs, down.shape[0]), outputs)
    for linear, bias in lora.biases.items():
        outputs = size_of(linear).outputs
        _check_shape(path, f"{linear}{_BIAS}", bias, (outputs,), outputs)
    expected = parameters(model)
    for name, diff in lora.diffs.items():
        if name not in expected:
            raise UserError(f"LoRA {path} changes {name}, which this model does not have")
        if diff.shape != expected[name].shape:
            shapes = f"is {tuple(diff.shape)}, not {tuple(expected[name].shape)}"
            raise UserError(f"LoRA {path} does not fit: the change of {name} {shapes}")


def _check_shape(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...], width: int) -> None:
    if tuple(tensor.shape) != shape:
        linear = name.partition(".lora_")[0]
        raise UserError(
            f"LoRA {path} does not fit: {name} is {tuple(tensor.shape)}, {linear} has {width}"
        )
