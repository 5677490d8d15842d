"""What every backbone made of a diffusers model shares: weights, adapters, the three calls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ...core.backbone import Backbone
from ...core.calls import Cache, Call, Context, ContextCall, RememberCall, VelocityCall
from ...core.fit import Fit
from ...core.grid import Geometry
from ...core.lora import LoRA
from ...core.memory import Part
from . import files, lora
from .setup import Setup


class DiT(Backbone):
    """A diffusers model as a backbone; written as `class Wan(DiT, WanTransformer3DModel)`.

    Attributes:
        diffusers_class: the name under which diffusers saves and loads the model.
        linears: what LoRA's targets (`core.lora.LoRA.targets`) are called here, by target: ends
            of module names, as peft's `target_modules`.
        setup: set by whoever builds the model, before the first call.
    """

    diffusers_class: ClassVar[str]
    linears: ClassVar[Mapping[str, tuple[str, ...]]]
    setup: Setup

    if TYPE_CHECKING:  # what diffusers gives is not typed

        def __getattr__(self, name: str) -> Any: ...

    @property
    def geometry(self) -> Geometry:
        """Shapes as built."""
        return self.setup.geometry

    def fit(self) -> Fit:
        """Give what compressors may know: shapes and a detached copy of the first projection."""
        weight, bias = (x.detach().clone() for x in self.fitted())
        return Fit(geometry=self.geometry, patch_weight=weight, patch_bias=bias)

    def add_lora(self, lora_spec: LoRA) -> None:
        """Freeze the model and add trainable adapters; at the start outputs do not change."""
        lora.add(self, lora_spec)

    def adapters(self) -> dict[str, Parameter]:
        """Give the LoRA parameters by name, such as `blocks.0.attn1.to_q.lora_A.weight`."""
        return lora.adapters(self)

    def save_adapters(self, path: Path) -> None:
        """Write the LoRA as one safetensors file with diffusers' keys and metadata."""
        lora.save(self, path)

    def load_adapters(self, path: Path) -> None:
        """Read a LoRA in diffusers' keys, into the adapters here or as new ones."""
        lora.load(self, path)

    def save_weights(self, folder: Path) -> None:
        """Write a diffusers checkpoint of `diffusers_class`."""
        files.save(self, folder)

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

    @abstractmethod
    def _remember(self, call: RememberCall) -> Cache: ...

    @abstractmethod
    def _context(self, call: ContextCall) -> Context: ...

    @abstractmethod
    def _velocity(self, call: VelocityCall) -> Tensor: ...

    def _memory_tokens(self, part: Part) -> Tensor:
        """Give a memory's tokens as the blocks read them, padding as zeros."""
        tokens = part.tokens.to(self.device, self.dtype)
        if bool(part.valid.all()):
            return tokens
        # padding may hold anything, and 0 · NaN is NaN
        return tokens.masked_fill(~part.valid.to(tokens.device)[..., None], 0.0)

    def _memory_time(self, t: Tensor | None, device: torch.device) -> Tensor:
        """Give the time of memory: the setup's, `[1]`, or the targets' `[B]` where it is shared."""
        if self.setup.memory_time is not None:
            return torch.full((1,), self.setup.memory_time, device=device)
        if t is None or t.ndim > 1:
            raise ValueError("t differs by frame, so memory cannot share it: set memory_time")
        return t
