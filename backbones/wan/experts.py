"""Two experts as one backbone: Wan 2.2 14B, where time says which one answers.

Each has its own text projection, its own keys and values of a memory and its own adapters, so a
context and a cache hold those of both. The memory's tokens are one: the experts were trained
apart and their first projections differ a little, but φ copies one projection, the high-noise
expert's, which is where a memory is read first. The low-noise expert's adapters learn to read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import attrs
import torch
import torch.distributed as dist
from attrs import frozen
from torch import Tensor
from torch.nn import Parameter

from ...core.backbone import Backbone
from ...core.calls import Cache, Call, Context, ContextCall, RememberCall, VelocityCall
from ...core.files import whole_folder
from ...core.fit import Fit
from ...core.grid import Geometry
from ...core.lora import LoRA
from ...core.spec import BackboneSpec
from ...core.text import Text
from . import expert_files
from .model import Wan
from .rows import take_rows


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
        """Give the experts of a spec whose `expert` is both."""
        from .moe import Wan22Moe  # which builds these

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
        """Give what compressors may know; the first projection is the high-noise expert's."""
        return self.transformer.fit()

    def fitted(self) -> list[Parameter]:
        """Give the parameters that `fit` copies."""
        return self.transformer.fitted()

    def blank_text(self, batch: int, length: int) -> Text:
        """Give empty embeddings of the width that both read."""
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
        """Give the adapters of both, such as `transformer_2.blocks.0.attn1.to_q.lora_A.weight`."""
        return {
            f"{name}.{key}": parameter
            for name, expert in self.experts.items()
            for key, parameter in expert.adapters().items()
        }

    def save_adapters(self, path: Path) -> None:
        """Write the adapters of both to one file, by the prefixes of their names."""
        expert_files.save(self.experts, path)

    def load_adapters(self, path: Path) -> None:
        """Read such a file into the adapters here, or as new ones."""
        expert_files.load(self.experts, path)

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
