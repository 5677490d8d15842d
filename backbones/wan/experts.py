"""Wan 2.2 T2V A14B: one of its two experts, or both as one backbone with a switch by time.

Each expert has its own text projection, its own keys and values of a memory and its own adapters,
so a context and a cache hold those of both. The memory's tokens are one: the experts were trained
apart and their first projections differ a little, but φ copies one projection, the high-noise
expert's, which is where a memory is read first. The low-noise expert's adapters learn to read it.
The adapters of both are one file, where each has a prefix of its own.
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
    Reference,
    RememberCall,
    VelocityCall,
)
from ...core.interfaces.compressor import Fit
from ...core.interfaces.spec import BackboneSpec, LoRA
from ...core.tools.files import open_tensors, whole_file, whole_folder
from ...core.values.grid import Geometry, MemoryLimit
from ...core.values.text import Text
from ..weights.find import find_dit
from . import specs
from .model import WanBackbone
from .published import HIGH_NOISE, LOW_NOISE, PublishedWanBackbone

# Beginnings of keys: in a file of a single model, and in one of both experts.
KEY_PREFIXES = {
    "transformer": {"transformer.": "transformer.", "memory.enhancer.": "memory.enhancer."},
    "transformer_2": {"transformer.": "transformer_2.", "memory.enhancer.": "memory.enhancer_2."},
}


class Wan22MoeBackbone(PublishedWanBackbone):
    """One expert of Wan 2.2 14B; for both, `load` returns `Experts`, which hold two of these."""

    spec_class = specs.Wan22Moe14B

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Load the expert that the spec names, or both behind the same interface.

        Raises:
            UserError: weights are missing, damaged, of another class or shape, or of one model
                where both experts are asked for.
        """
        if isinstance(spec, specs.Wan22Moe14B):
            if spec.expert == "both":  # another class, with the same interface
                return cast(Self, Experts.load(spec, seed=seed))
            return cls.load_expert(spec, spec.expert, seed)
        return super().load(spec, seed=seed)  # refuses it

    @classmethod
    def load_expert(cls, spec: specs.Wan22Moe14B, expert: str, seed: int) -> Self:
        """Load the expert `high` or `low`, with the LoRAs of the spec that are for it."""
        other = {"high": "low:", "low": "high:"}[expert]
        own = (lora for lora in spec.loras if not lora.startswith(other))
        loras = tuple(lora.removeprefix(f"{expert}:") for lora in own)
        release = LOW_NOISE if expert == "low" else HIGH_NOISE
        return cls.load_release(attrs.evolve(spec, loras=loras), seed, release)

    @classmethod
    def export_adapters(cls, spec: BackboneSpec, path: Path, layout: str) -> dict[str, LoraFile]:
        """Return the adapters of a file by another program's keys; those of both experts apart."""
        if not isinstance(spec, specs.Wan22Moe14B) or spec.expert != "both":
            return super().export_adapters(spec, path, layout)
        files = {}
        for expert, name in (("high", "transformer"), ("low", "transformer_2")):
            with expert_file(path, name) as own:
                (file,) = super().export_adapters(spec, own, layout).values()
            besides = _with_prefixes(file.besides, KEY_PREFIXES[name])
            files[expert] = attrs.evolve(file, besides=besides)
        return files


@frozen(eq=False, kw_only=True)
class ExpertCache(Cache):
    """The cache of the high-noise expert, and beside it that of the other."""

    low: Cache

    def from_block(self, oldest: Tensor, limit: MemoryLimit) -> Self:
        """Return the rows of the first blocks and of those from `oldest` on, of both."""
        own = super().from_block(oldest, limit)
        return attrs.evolve(own, low=self.low.from_block(oldest, limit))


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

    _no_split_modules = WanBackbone._no_split_modules
    awake_within = 64  # for a few steps, all samples of a batch may belong to one expert

    def __init__(self, high: WanBackbone, low: WanBackbone, boundary: float) -> None:
        super().__init__()
        self.transformer, self.transformer_2, self.boundary = high, low, boundary

    @property
    def experts(self) -> dict[str, WanBackbone]:
        """The experts by diffusers' names, the high-noise one first."""
        return {"transformer": self.transformer, "transformer_2": self.transformer_2}

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Load both experts of a spec; random ones differ.

        Raises:
            UserError: the spec is another model's, or weights are missing, damaged, of another
                class or shape, or of one model only.
        """
        if not isinstance(spec, specs.Wan22Moe14B):
            raise UserError(f"{cls.__name__} needs a Wan22Moe14B spec, not {type(spec).__name__}")
        high, low = _expert_weights(spec.weights)
        return cls(
            Wan22MoeBackbone.load_expert(attrs.evolve(spec, weights=high), "high", seed),
            Wan22MoeBackbone.load_expert(attrs.evolve(spec, weights=low), "low", seed + 1),
            spec.boundary,
        )

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
        """Return all-zero embeddings of the width that both read."""
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
        """Return the adapters of both, as `transformer_2.blocks.0.attn1.to_q.lora_A.weight`."""
        return {
            f"{name}.{key}": parameter
            for name, expert in self.experts.items()
            for key, parameter in expert.adapters().items()
        }

    def save_adapters(self, path: Path) -> None:
        """Write the adapters of both to one file, each expert's by prefixes of its own.

        Raises:
            ValueError: there are none.
        """
        tensors: dict[str, Tensor] = {}
        config: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, expert in self.experts.items():
                own = Path(folder) / f"{name}.safetensors"
                expert.save_adapters(own)
                own_tensors, own_config = _read_adapters(own)
                tensors |= _with_prefixes(own_tensors, KEY_PREFIXES[name])
                config |= _with_prefixes(own_config, KEY_PREFIXES[name])
        metadata = {"format": "pt"}
        if config:
            metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(config, sort_keys=True)
        with whole_file(path) as part:
            save_file(tensors, part, metadata=metadata)

    def load_adapters(self, path: Path) -> None:
        """Read such a file into the adapters here, or as new ones.

        `x.high.safetensors` with `x.low.safetensors` beside it are those of an export, in any
        layout.

        Raises:
            UserError: no such file, one of a single model, or what an expert refuses of its part.
        """
        if pair := _exported_pair(path):
            for expert, own in zip(self.experts.values(), pair, strict=True):
                expert.load_adapters(own)
            return
        for name, expert in self.experts.items():
            with expert_file(path, name) as own:
                expert.load_adapters(own)

    def save_weights(self, folder: Path) -> None:
        """Write `transformer` and `transformer_2`, as a diffusers pipeline has them."""
        with whole_folder(folder) as part:
            for name, expert in self.experts.items():
                expert.save_weights(part / name)

    def set_checkpointing(self, on: bool) -> None:
        """Turn gradient checkpointing on or off in both."""
        for expert in self.experts.values():
            expert.set_checkpointing(on)

    def joint(self, memory_time: float | None = None) -> Self | None:
        """Return a copy of both as their `joint`, whose law holds where t ≥ `boundary`.

        Below it the memory is of the other expert's first projection. None at a time of the
        memory's own: an expert is chosen by the time of the first frame, which it then would be.
        """
        high, low = self.transformer.joint(), self.transformer_2.joint()
        if memory_time is not None or high is None or low is None:
            return None
        return type(self)(high, low, self.boundary)

    def reference(self) -> Reference | None:
        """Return the velocity by diffusers' own class, of the expert that each time asks for."""
        high, low = self.transformer.reference(), self.transformer_2.reference()
        if high is None or low is None:
            return None

        def velocity(noisy: Tensor, t: Tensor, text: Text) -> Tensor:
            is_high = (t >= self.boundary)[:, None, None, None, None]
            return torch.where(is_high, high(noisy, t, text), low(noisy, t, text))

        return velocity

    def forward(self, call: Call) -> Cache | Context | Tensor:
        """Answer one of the three calls."""
        if isinstance(call, RememberCall):
            return self._remember(call)
        if isinstance(call, ContextCall):
            return self._context(call)
        return self._velocity(call)

    def _remember(self, call: RememberCall) -> Cache:
        cached = call.cache.low if isinstance(call.cache, ExpertCache) else None
        high = self.transformer(call)
        low = self.transformer_2(RememberCall(memory=call.memory, cache=cached))
        return ExpertCache(**_fields(high, Cache), low=low)

    def _context(self, call: ContextCall) -> Context:
        memory = call.memory.low if isinstance(call.memory, ExpertCache) else call.memory
        high = self.transformer(call)
        low = self.transformer_2(ContextCall(text=call.text, memory=memory))
        return ExpertContext(**_fields(high, Context), low=low)

    def _velocity(self, call: VelocityCall) -> Tensor:
        is_high = call.t.reshape(call.t.shape[0], -1)[:, 0] >= self.boundary  # [B]
        context = call.context
        low_context = context.low if isinstance(context, ExpertContext) else context
        order, velocities, zero_of = [], [], call.noisy.new_zeros(())
        for expert, chosen, own in (
            (self.transformer, is_high, context),
            (self.transformer_2, ~is_high, low_context),
        ):
            own_call, rows = attrs.evolve(call, context=own), chosen.nonzero().flatten()
            if rows.numel():
                order.append(rows)
                velocities.append(_velocity_of_rows(expert, own_call, rows))
            elif _is_sharded(expert):  # other ranks may run it, and wait for this one's part of it
                zero_of = _velocity_of_rows(expert, own_call, rows.new_zeros(1)).sum()
            elif torch.is_grad_enabled():  # so that optimizers do the same for any number of ranks
                trained = [p for p in expert.parameters() if p.requires_grad]
                zero_of = sum((p.sum() for p in trained), zero_of)
        velocity = torch.cat(velocities)[torch.cat(order).argsort()]
        return velocity + 0.0 * zero_of if zero_of.requires_grad else velocity


def _fields(value: Cache | Context, of: type[Cache] | type[Context]) -> dict[str, Any]:
    # an expert answers an empty memory with the very cache it got, which may hold both experts'
    return {field.name: getattr(value, field.name) for field in attrs.fields(of)}


def _is_sharded(expert: WanBackbone) -> bool:
    if not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in expert.modules())


def _velocity_of_rows(expert: WanBackbone, call: VelocityCall, rows: Tensor) -> Tensor:
    some = call if rows.numel() == call.t.shape[0] else take_rows(call, rows)
    return cast(Tensor, expert(some))


def take_rows(value: Any, rows: Tensor) -> Any:
    """Return the same value with the samples `rows` of the batch alone.

    Args:
        value: a tensor `[B, ...]`, or a tuple, mapping or attrs value of such; other things, and
            tensors of no sample (an empty cache), are returned as they are.
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


def _expert_weights(weights: str | None) -> tuple[str | None, str | None]:
    """Return where the weights of the high- and of the low-noise expert are; None: random ones.

    Raises:
        UserError: both are in one place.
    """
    if weights is None:
        return None, None
    first, comma, second = weights.partition(",")
    high = find_dit(first.strip(), HIGH_NOISE.parts)
    low = find_dit((second if comma else first).strip(), LOW_NOISE.parts)
    if high.path == low.path:
        raise UserError(
            f"weights {weights} hold one model, and expert both needs two: name a pipeline with "
            "transformer and transformer_2, or `high,low` with a comma"
        )
    return str(high.path), str(low.path)


def _exported_pair(path: Path) -> tuple[Path, Path] | None:
    """Return the files of both experts where `path` is that of one of them; None: it is not."""
    stem, _, expert = path.stem.rpartition(".")
    if expert not in ("high", "low"):
        return None
    high, low = (path.with_name(f"{stem}.{name}{path.suffix}") for name in ("high", "low"))
    return (high, low) if high.is_file() and low.is_file() else None


@contextmanager
def expert_file(path: Path, name: str) -> Iterator[Path]:
    """Yield a temporary file with the adapters of one expert alone, by the keys of a single model.

    Args:
        path: of a file with the adapters of both.
        name: of the expert, as diffusers calls it: a key of `KEY_PREFIXES`.

    Raises:
        UserError: no such file, or it holds nothing for the expert; what is raised while the
            temporary file is read names `path`.
    """
    all_tensors, all_config = _read_adapters(path)
    single = {both: single for single, both in KEY_PREFIXES[name].items()}
    tensors, config = _with_prefixes(all_tensors, single), _with_prefixes(all_config, single)
    if not tensors:
        raise UserError(f"{path} holds nothing for {name}: it is of one expert, not of two")
    metadata = {LORA_ADAPTER_METADATA_KEY: json.dumps(config)} if config else None
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "adapters.safetensors"
        save_file(tensors, own, metadata=metadata)
        try:
            yield own
        except UserError as error:
            raise UserError(str(error).replace(str(own), f"{path} ({name})")) from error


def _read_adapters(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file, and the LoRA's config in its metadata."""
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    return tensors, json.loads(text) if text else {}


def _with_prefixes(values: Mapping[str, Any], prefixes: Mapping[str, str]) -> dict[str, Any]:
    """Return the values whose keys begin with one of `prefixes`, which its value replaces."""
    return {
        new + name.removeprefix(old): value
        for name, value in values.items()
        for old, new in prefixes.items()
        if name.startswith(old)
    }
