"""What every backbone made of a diffusers model shares: weights, adapters, the three calls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import Parameter

from ..core.errors import UserError
from ..core.interfaces.backbone import (
    Cache,
    Call,
    Context,
    ContextCall,
    Feature,
    LoraFile,
    RememberCall,
    VelocityCall,
)
from ..core.interfaces.compressor import Fit
from ..core.interfaces.spec import BackboneSpec, LoRA
from ..core.values.memory import Memory, Part
from ..core.values.text import Text
from .blocks import enhancer as enhancers
from .blocks.base import DiffusersBackbone
from .blocks.memory import Sight, context_of, groups_of, remember
from .blocks.setup import Keys, Setup, masks_of
from .lora import adapters as lora
from .lora import export as lora_export
from .specs import DiTSpec
from .weights.find import Release
from .weights.load import load_model, save


class DiT(DiffusersBackbone):
    """A diffusers model as a backbone; written as `class Wan(DiT, WanTransformer3DModel)`.

    Attributes:
        spec_class: the class of specs that `load` takes.
        release: how the model's weights are laid out where people get them.
    """

    spec_class: ClassVar[type[DiTSpec]]
    release: ClassVar[Release] = Release()

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Return the model of a spec: its weights where it names some, else random from `seed`.

        Raises:
            UserError: the spec is another model's; weights are missing, damaged, of another class
                or of another shape; or a LoRA of the spec cannot be read.
        """
        if not isinstance(spec, cls.spec_class):
            wanted = cls.spec_class.__name__
            raise UserError(f"{cls.__name__} needs a {wanted} spec, not {type(spec).__name__}")
        return cls.load_release(spec, seed, cls.release)

    @classmethod
    def load_release(cls, spec: DiTSpec, seed: int, release: Release) -> Self:
        """Return the model of a spec whose weights are laid out as `release` says."""
        model = load_model(cls, spec, seed, release=release, begin=cls.initialiser(spec))
        lora.stack(model, spec.loras)
        model.set_up(spec)
        return model

    @classmethod
    def initialiser(cls, spec: DiTSpec) -> Callable[[Self], None] | None:
        """Return what changes random weights before they are cast; None: diffusers' own."""
        return None

    def set_up(self, spec: DiTSpec) -> None:
        """Keep what a spec says of how memory enters."""
        self.setup = Setup.of(spec)

    @property
    def caches(self) -> bool:
        """Whether `remember` serves all steps and prompts."""
        return not self.setup.joint

    def fit(self) -> Fit:
        """Return what compressors may know: shapes and a detached copy of the first projection."""
        weight, bias = (x.detach().clone() for x in self.fitted())
        return Fit(geometry=self.geometry, patch_weight=weight, patch_bias=bias)

    def add_lora(self, lora_spec: LoRA) -> None:
        """Freeze the model and add trainable adapters; at the start outputs do not change."""
        lora.add(self, lora_spec)
        enhancers.train(self)

    def add_enhancer(self, widths: Mapping[str, int], seed: int = 0) -> None:
        """Add cross-attention to a memory's features in every block; at the start it adds zero."""
        if not self.block_lists:
            super().add_enhancer(widths, seed)
        elif widths:
            enhancers.add(self, widths, seed)

    def adapters(self) -> dict[str, Parameter]:
        """Return the parameters of LoRA, such as `blocks.0.attn1.to_q.lora_A.weight`, and enhancers.

        Those of enhancers are called `blocks.0.enhancer.to_q.weight` and so on.
        """
        return lora.adapters(self) | enhancers.parameters(self)

    def save_adapters(self, path: Path) -> None:
        """Write LoRA with diffusers' keys and metadata, and enhancers as `memory.enhancer.*`."""
        lora.save(self, path, enhancers.enhancer_state(self))

    def load_adapters(self, path: Path) -> None:
        """Read such a file: LoRA into the adapters here or as new ones, enhancers into those here.

        Raises:
            UserError: no such file, other keys, another width, or another rank or alpha than here.
        """
        tensors, more = enhancers.read_state(path)
        enhancers.check_state(self, tensors, path)
        if more or lora.adapters(self) or not tensors:
            lora.load(self, path)
        enhancers.load_enhancer_state(self, tensors, path)

    @classmethod
    def export_adapters(cls, spec: BackboneSpec, path: Path, layout: str) -> dict[str, LoraFile]:
        """Return the adapters of a file by another program's keys, without loading the base."""
        return {"": lora_export.export(cls, spec, path, layout)}

    def save_weights(self, folder: Path) -> None:
        """Write a diffusers checkpoint of `diffusers_class`, without enhancers."""
        with enhancers.without(self):
            save(self, folder)

    def set_checkpointing(self, on: bool) -> None:
        """Turn gradient checkpointing on or off."""
        self.enable_gradient_checkpointing() if on else self.disable_gradient_checkpointing()

    def forward(self, call: Call) -> Cache | Context | Tensor:
        """Answer one of the three calls."""
        if isinstance(call, RememberCall):
            return self._remember(call)
        if isinstance(call, ContextCall):
            return self._context(call)
        return self._velocity(call)

    def _remember(self, call: RememberCall) -> Cache:
        return remember(call, self.setup, self.device, self._memory_keys)

    def _context(self, call: ContextCall) -> Context:
        text, features = self._read_text(call.text), self._features(call.memory)
        return context_of(call, self.setup, text, features)

    @abstractmethod
    def _memory_keys(self, new: Part, past: list[Keys] | None, every: Part) -> list[Keys]:
        """Return the keys of new memory in every block, behind those of `past`; `every` is both."""

    @abstractmethod
    def _read_text(self, text: Text) -> Text:
        """Return prompts as the blocks read them, on this device."""

    @abstractmethod
    def _velocity(self, call: VelocityCall) -> Tensor: ...

    def _memory_tokens(self, part: Part) -> Tensor:
        """Return a memory's tokens as the blocks read them, padding as zeros."""
        tokens = part.tokens.to(self.device, self.dtype)
        if bool(part.valid.all()):
            return tokens
        # padding may hold anything, and 0 · NaN is NaN
        return tokens.masked_fill(~part.valid.to(tokens.device)[..., None], 0.0)

    def _memory_time(self, t: Tensor | None, device: torch.device) -> Tensor:
        """Return the time of memory: the setup's, `[1]`, or the targets' `[B]` where it is shared."""
        if self.setup.memory_time is not None:
            return torch.full((1,), self.setup.memory_time, device=device)
        if t is None or t.ndim > 1:
            raise ValueError("t differs by frame, so memory cannot share it: set memory_time")
        return t

    def _memory_places(self, part: Part) -> tuple[Tensor, Tensor | None]:
        """Return a memory's positions, and extents where the rotary embedding is averaged.

        Padding sits at 0, since it may hold anything and what turns it reaches masked keys.
        """
        real = part.valid.to(part.positions.device)[..., None]
        positions = torch.where(real, part.positions, 0.0)
        averaged = self.setup.rotary == "averaged"
        return positions, torch.where(real, part.extents, 1.0) if averaged else None

    def _sight(self, valid: Tensor | None, targets: int, memory: Part | None) -> Sight:
        """Return who sees whom among memory and `targets` tokens.

        Args:
            valid: of all memory, that in caches too; None where there is none.
            targets: how many tokens follow the memory.
            memory: all of it, where it goes through the blocks; None where a cache stands for it.
        """
        groups, masks = None, None
        if memory is not None and self.setup.attention == "isolated-causal":
            groups = groups_of(memory, self.setup.cache_block)
        if valid is not None and (targets or groups is None):
            masks = masks_of(valid, targets, self.device)
        return Sight(joint=self.setup.joint, masks=masks, groups=groups)

    def _features(self, memory: Memory | Cache) -> dict[str, Feature]:
        """Return the features of a memory that the blocks read."""
        memory = memory.memory if isinstance(memory, Cache) else memory
        return enhancers.features_of(self, memory)
