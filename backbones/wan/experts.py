"""Two experts as one backbone: Wan 2.2 14B, where time says which one answers.

Each has its own text projection, its own keys and values of a memory and its own adapters, so a
context and a cache hold those of both. The memory's tokens are one: the experts were trained
apart and their first projections differ a little, but φ copies one projection, the high-noise
expert's, which is where a memory is read first. The low-noise expert's adapters learn to read it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, cast

import attrs
import torch
import torch.distributed as dist
from attrs import frozen
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from ...core.errors import UserError
from ...core.interfaces.backbone import (
    Backbone,
    Cache,
    Call,
    Context,
    ContextCall,
    LoraFile,
    RememberCall,
    VelocityCall,
)
from ...core.interfaces.compressor import Fit
from ...core.interfaces.spec import BackboneSpec, LoRA
from ...core.tools.files import open_tensors, whole_file, whole_folder
from ...core.values.grid import Geometry
from ...core.values.text import Text
from ..lora import export as lora_export
from ..weights.find import find_source
from . import specs
from .model import Wan
from .published import HIGH_NOISE, LOW_NOISE, PublishedWan

# ⟦backbones/wan/expert_files.py⟧ The adapters of two experts in one file: each one's own file, by the prefix of its name.


# what a single model's files call the same: LoRA, and cross-attention to features of a memory
PREFIXES = {
    "transformer": {"transformer.": "transformer.", "memory.enhancer.": "memory.enhancer."},
    "transformer_2": {"transformer.": "transformer_2.", "memory.enhancer.": "memory.enhancer_2."},
}


def save(experts: Mapping[str, Wan], path: Path) -> None:
    """Write the adapters of experts by diffusers' names (`transformer.*`, `transformer_2.*`).

    Raises:
        ValueError: there are none.
    """
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, expert in experts.items():
            own = Path(folder) / f"{name}.safetensors"
            expert.save_adapters(own)
            found, said = _read(own)
            tensors |= _renamed(found, PREFIXES[name])
            config |= _renamed(said, PREFIXES[name])
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(config, sort_keys=True)}
    with whole_file(path) as part:
        save_file(tensors, part, metadata=metadata if config else {"format": "pt"})


def load(experts: Mapping[str, Wan], path: Path) -> None:
    """Read such a file into the experts.

    Raises:
        UserError: no such file, one of a single model, or what an expert refuses of its part.
    """
    for name, expert in experts.items():
        with part_of(path, name) as own:
            expert.load_adapters(own)


@contextmanager
def part_of(path: Path, name: str) -> Iterator[Path]:
    """Yield a file with the adapters of one expert alone, by the keys of a single model.

    Raises:
        UserError: no such file, or it holds nothing for the expert; what is raised while the part
            is read names `path`.
    """
    found, said = _read(path)
    back = {there: here for here, there in PREFIXES[name].items()}
    tensors, config = _renamed(found, back), _renamed(said, back)
    if not tensors:
        raise UserError(f"{path} holds nothing for {name}: it is of one expert, not of two")
    kept = {LORA_ADAPTER_METADATA_KEY: json.dumps(config)} if config else None
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "adapters.safetensors"
        save_file(tensors, own, metadata=kept)
        try:
            yield own
        except UserError as error:
            raise UserError(str(error).replace(str(own), f"{path} ({name})")) from error


def export(cls: type[Wan], spec: BackboneSpec, path: Path, layout: str) -> dict[str, LoraFile]:
    """Return the adapters of each expert in a layout (`Backbone.export_adapters`)."""
    found = {}
    for expert, name in (("high", "transformer"), ("low", "transformer_2")):
        with part_of(path, name) as own:
            file = lora_export.export(cls, spec, own, layout)
        found[expert] = attrs.evolve(file, besides=_renamed(file.besides, PREFIXES[name]))
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file, and what its metadata says of the LoRA."""
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    return tensors, json.loads(text) if text else {}


def _renamed(values: Mapping[str, Any], prefixes: Mapping[str, str]) -> dict[str, Any]:
    """Return what begins with one of the prefixes, under the other one."""
    return {
        there + name.removeprefix(here): value
        for name, value in values.items()
        for here, there in prefixes.items()
        if name.startswith(here)
    }


# ⟦backbones/wan/rows.py⟧ Some samples of a batch, out of anything that has the batch first in every tensor.


def take_rows(value: Any, rows: Tensor) -> Any:
    """Return the same value with the samples `rows` alone.

    Args:
        value: a tensor `[B, ...]`, or a tuple, mapping or attrs value of such; other things, and
            tensors of no sample (an empty cache), are given back as they are.
        rows: indices, int64 `[B']`.
    """
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.shape[0] else value
    if isinstance(value, tuple):
        members = [take_rows(member, rows) for member in value]
        return type(value)(*members) if type(value) is not tuple else tuple(members)
    if isinstance(value, Mapping):
        return {name: take_rows(member, rows) for name, member in value.items()}
    if attrs.has(type(value)):
        fields = attrs.fields(type(value))
        return attrs.evolve(
            value, **{f.name: take_rows(getattr(value, f.name), rows) for f in fields}
        )
    return value


@frozen(eq=False, kw_only=True)
class ExpertCache(Cache):
    """The cache of the high-noise expert, and beside it that of the other."""

    low: Cache


@frozen(eq=False, kw_only=True)
class ExpertContext(Context):
    """The context of the high-noise expert, and beside it that of the other."""

    low: Context


class Experts(Backbone):
    """The high-noise expert where t ≥ `boundary`, the low-noise one elsewhere, sample by sample.

    Attributes:
        transformer: the high-noise expert, under diffusers' name.
        transformer_2: the low-noise one.
        boundary: a time in (0, 1].
    """

    _no_split_modules = Wan._no_split_modules
    awake_within = 64  # a batch may ask one expert alone for a few steps

    def __init__(self, high: Wan, low: Wan, boundary: float) -> None:
        super().__init__()
        self.transformer, self.transformer_2, self.boundary = high, low, boundary

    @property
    def experts(self) -> dict[str, Wan]:
        """The experts by diffusers' names, the high-noise one first."""
        return {"transformer": self.transformer, "transformer_2": self.transformer_2}

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Return the experts of a spec whose `expert` is both."""
        return cast(Self, Wan22Moe.load(spec, seed=seed))

    @property
    def geometry(self) -> Geometry:
        """Shapes as built, the same for both."""
        return self.transformer.geometry

    @property
    def caches(self) -> bool:
        """Whether `remember` serves all steps and prompts."""
        return self.transformer.caches

    def fit(self) -> Fit:
        """Return what compressors may know; the first projection is the high-noise expert's."""
        return self.transformer.fit()

    def fitted(self) -> list[Parameter]:
        """Return the parameters that `fit` copies."""
        return self.transformer.fitted()

    def blank_text(self, batch: int, length: int) -> Text:
        """Return empty embeddings of the width that both read."""
        return self.transformer.blank_text(batch, length)

    def add_lora(self, lora: LoRA) -> None:
        """Freeze both and add adapters to each, of one seed."""
        for expert in self.experts.values():
            expert.add_lora(lora)

    def add_enhancer(self, widths: Mapping[str, int], seed: int = 0) -> None:
        """Add cross-attention to a memory's features in every block of both."""
        for expert in self.experts.values():
            expert.add_enhancer(widths, seed)

    def adapters(self) -> dict[str, Parameter]:
        """Return the adapters of both, such as `transformer_2.blocks.0.attn1.to_q.lora_A.weight`."""
        return {
            f"{name}.{key}": parameter
            for name, expert in self.experts.items()
            for key, parameter in expert.adapters().items()
        }

    def save_adapters(self, path: Path) -> None:
        """Write the adapters of both to one file, by the prefixes of their names."""
        save(self.experts, path)

    def load_adapters(self, path: Path) -> None:
        """Read such a file into the adapters here, or as new ones."""
        load(self.experts, path)

    def save_weights(self, folder: Path) -> None:
        """Write `transformer` and `transformer_2`, as a diffusers pipeline has them."""
        with whole_folder(folder) as part:
            for name, expert in self.experts.items():
                expert.save_weights(part / name)

    def set_checkpointing(self, on: bool) -> None:
        """Turn gradient checkpointing on or off in both."""
        for expert in self.experts.values():
            expert.set_checkpointing(on)

    def forward(self, call: Call) -> Cache | Context | Tensor:
        """Answer one of the three calls."""
        if isinstance(call, RememberCall):
            return self._remember(call)
        if isinstance(call, ContextCall):
            return self._context(call)
        return self._velocity(call)

    def _remember(self, call: RememberCall) -> Cache:
        old = call.cache
        low = old.low if isinstance(old, ExpertCache) else None
        high = self.transformer(RememberCall(memory=call.memory, cache=old))
        other = self.transformer_2(RememberCall(memory=call.memory, cache=low))
        return ExpertCache(**_fields(high, Cache), low=other)

    def _context(self, call: ContextCall) -> Context:
        memory = call.memory
        low = memory.low if isinstance(memory, ExpertCache) else memory
        high = self.transformer(call)
        other = self.transformer_2(ContextCall(text=call.text, memory=low))
        return ExpertContext(**_fields(high, Context), low=other)

    def _velocity(self, call: VelocityCall) -> Tensor:
        high = call.t.reshape(call.t.shape[0], -1)[:, 0] >= self.boundary  # [B]
        context = call.context
        low = context.low if isinstance(context, ExpertContext) else context
        asked = ((self.transformer, high, context), (self.transformer_2, ~high, low))
        order, answers, idle = [], [], call.noisy.new_zeros(())
        for expert, chosen, own in asked:
            rows = chosen.nonzero().flatten()
            if rows.numel():
                order.append(rows)
                answers.append(_answer(expert, attrs.evolve(call, context=own), rows))
            elif _is_sharded(expert):  # other ranks may run it, and wait for this one's part of it
                idle = _answer(expert, attrs.evolve(call, context=own), rows.new_zeros(1)).sum()
            elif torch.is_grad_enabled():  # so that optimizers do the same for any number of ranks
                trained = [p for p in expert.parameters() if p.requires_grad]
                idle = sum((p.sum() for p in trained), idle)
        velocity = torch.cat(answers)[torch.cat(order).argsort()]
        return velocity + 0.0 * idle if idle.requires_grad else velocity


def _is_sharded(expert: Wan) -> bool:
    if not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in expert.modules())


def _answer(expert: Wan, call: VelocityCall, rows: Tensor) -> Tensor:
    some = call if rows.numel() == call.t.shape[0] else take_rows(call, rows)
    return cast(Tensor, expert(some))


def _fields(value: Cache | Context, of: type[Cache] | type[Context]) -> dict[str, Any]:
    # an empty memory is answered with the very cache that was given, which may hold both experts'
    return {field.name: getattr(value, field.name) for field in attrs.fields(of)}


# ⟦backbones/wan/moe.py⟧ Wan 2.2 T2V A14B: one of its experts, or both with a switch by time.


class Wan22Moe(PublishedWan):
    """One expert of Wan 2.2 14B; for both, `load` gives `Experts`, which hold two of these."""

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Return the expert that the spec names, or both behind the same interface.

        Raises:
            UserError: weights are missing, damaged, of another class or shape, or of one model
                where both experts are asked for.
        """
        if not isinstance(spec, specs.Wan22Moe14B):
            raise UserError(f"wan22-14b needs its own spec, not {type(spec).__name__}")
        if spec.expert == "both":  # another class, with the same interface
            return cast(Self, cls.both(spec, seed))
        return cls._one(spec, spec.expert, seed)

    @classmethod
    def export_adapters(cls, spec: BackboneSpec, path: Path, layout: str) -> dict[str, LoraFile]:
        """Return the adapters of a file by another program's keys; those of both experts apart."""
        if isinstance(spec, specs.Wan22Moe14B) and spec.expert == "both":
            return export(cls, spec, path, layout)
        return super().export_adapters(spec, path, layout)

    @classmethod
    def both(cls, spec: specs.Wan22Moe14B, seed: int) -> Experts:
        """Return both experts; random ones differ."""
        high, low = _places(spec.weights)
        return Experts(
            cls._one(attrs.evolve(spec, weights=high), "high", seed),
            cls._one(attrs.evolve(spec, weights=low), "low", seed + 1),
            spec.boundary,
        )

    @classmethod
    def _one(cls, spec: specs.Wan22Moe14B, expert: str, seed: int) -> Self:
        loras = tuple(x.removeprefix(f"{expert}:") for x in spec.loras if _for(x, expert))
        release = LOW_NOISE if expert == "low" else HIGH_NOISE
        return cls.load_release(attrs.evolve(spec, loras=loras), seed, release)


def _for(lora: str, expert: str) -> bool:
    owner = lora.partition(":")[0]
    return owner == expert or owner not in ("high", "low")


def _places(weights: str | None) -> tuple[str | None, str | None]:
    """Return the places of the high-noise and of the low-noise expert; None: random weights.

    Raises:
        UserError: both are one place.
    """
    if weights is None:
        return None, None
    first, comma, second = weights.partition(",")
    high = find_source(first.strip(), HIGH_NOISE.parts)
    low = find_source((second if comma else first).strip(), LOW_NOISE.parts)
    if high.path == low.path:
        raise UserError(
            f"weights {weights} hold one model, and expert both needs two: name a pipeline with "
            "transformer and transformer_2, or `high,low` with a comma"
        )
    return str(high.path), str(low.path)
