"""What every backbone made of a diffusers model shares: weights, adapters, the three calls."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import attrs
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn import Parameter

from ..core.errors import UserError
from ..core.interfaces.backbone import (
    Cache,
    Call,
    Context,
    ContextCall,
    Feature,
    LoraFile,
    Reference,
    RememberCall,
    VelocityCall,
)
from ..core.interfaces.compressor import Fit
from ..core.interfaces.spec import BackboneSpec, LoRA
from ..core.values.memory import Memory, Part
from ..core.values.shapes import Valid
from ..core.values.text import Text
from .blocks import enhancer as enhancers
from .blocks.attention import (
    KeyValue,
    Visibility,
    announce_masks,
    announce_single_samples,
    key_indices,
    key_masks,
)
from .blocks.base import DiffusersBackbone, Setup
from .blocks.memory import block_groups, build_context, remember
from .blocks.rotary import RotaryAxes, RotaryTable, rotary_table
from .lora import adapters as lora
from .lora import export as lora_export
from .reference import diffusers_inputs, diffusers_velocity
from .specs import DiTSpec
from .weights.find import Release
from .weights.load import load_model, save


class DiT(DiffusersBackbone):
    """A diffusers model as a backbone; written as `class Wan(DiT, WanTransformer3DModel)`.

    A subclass says how text, time and memory enter its blocks (`_prepare_text`, `_memory_keys`,
    `_velocity`, `_rotary_axes`); loading, adapters and caching are done here.

    Attributes:
        spec_class: the class of specs that `load` takes.
        release: how the model's weights are laid out where people get them.
        masks_padding: whether attention leaves padding out by masks; else samples of different
            lengths attend one after the other.
    """

    spec_class: ClassVar[type[DiTSpec]]
    release: ClassVar[Release] = Release()
    masks_padding: ClassVar[bool] = True

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Load the model of a spec: its weights where it names some, else random from `seed`.

        Raises:
            UserError: the spec is another model's; weights are missing, damaged, of another class
                or of another shape; or a LoRA of the spec cannot be read.
        """
        if not isinstance(spec, cls.spec_class):
            expected = cls.spec_class.__name__
            raise UserError(f"{cls.__name__} needs a {expected} spec, not {type(spec).__name__}")
        return cls.load_release(spec, seed, cls.release)

    @classmethod
    def load_release(cls, spec: DiTSpec, seed: int, release: Release) -> Self:
        """Load the model of a spec whose weights are laid out as `release` says."""
        model = load_model(
            cls, spec, seed, release=release, initialise=lambda random: random.initialise(spec)
        )
        lora.add_frozen(model, spec.loras)
        model.set_up(spec)
        return model

    def initialise(self, spec: DiTSpec) -> None:
        """Change random weights before they are cast; here diffusers' own stay."""
        return None

    def set_up(self, spec: DiTSpec) -> None:
        """Set what a spec says of how memory enters."""
        self.setup = Setup.of(spec)

    @property
    def caches(self) -> bool:
        """Whether `remember` serves all steps and prompts."""
        return not self.setup.joint

    def fit(self) -> Fit:
        """Return what compressors may know: shapes and a detached copy of the first projection."""
        weight, *biases = (x.detach().clone() for x in self.fitted())
        if weight.ndim == 2:  # a linear over the numbers of a patch, channels first
            patch = self.geometry.patch
            weight = rearrange(
                weight, "d (c pt ph pw) -> d c pt ph pw",
                pt=patch.time, ph=patch.height, pw=patch.width,
            )  # fmt: skip
        bias = biases[0] if biases else weight.new_zeros(weight.shape[0])
        return Fit(geometry=self.geometry, patch_weight=weight, patch_bias=bias)

    def add_lora(self, lora_spec: LoRA) -> None:
        """Freeze the model and add trainable adapters; at the start outputs do not change."""
        lora.add(self, lora_spec)
        enhancers.unfreeze(self)

    def add_enhancer(self, widths: Mapping[str, int], seed: int = 0) -> None:
        """Add cross-attention to a memory's features in every block; at the start it adds zero."""
        if not self.block_lists:
            super().add_enhancer(widths, seed)
        elif widths:
            enhancers.add(self, widths, seed)

    def adapters(self) -> dict[str, Parameter]:
        """Return the parameters of LoRA and of enhancers.

        They are called `blocks.0.attn1.to_q.lora_A.weight`, `blocks.0.enhancer.to_q.weight` and so
        on.
        """
        return lora.adapters(self) | enhancers.parameters(self)

    def save_adapters(self, path: Path) -> None:
        """Write LoRA with diffusers' keys and metadata, and enhancers as `memory.enhancer.*`."""
        lora.save(self, path, enhancers.state(self))

    def load_adapters(self, path: Path) -> None:
        """Read such a file: LoRA into the adapters here or as new ones, enhancers into those here.

        Raises:
            UserError: no such file, other keys, another width, or another rank or alpha than here.
        """
        tensors, has_lora = enhancers.read_state(path)
        enhancers.check_state(self, tensors, path)
        if has_lora or lora.adapters(self) or not tensors:
            lora.load(self, path)
        enhancers.load_state(self, tensors, path)

    @classmethod
    def export_adapters(cls, spec: BackboneSpec, path: Path, layout: str) -> dict[str, LoraFile]:
        """Return the adapters of a file by another program's keys, without loading the base."""
        return {"": lora_export.export(cls, spec, path, layout)}

    def save_weights(self, folder: Path) -> None:
        """Write a diffusers checkpoint of `diffusers_class`, without enhancers and frozen LoRAs."""
        if lora.adapters(self):
            raise ValueError("a model with adapters has no plain weights: save before adding them")
        with enhancers.removed(self), lora.removed(self):
            save(self, folder)

    def set_checkpointing(self, on: bool) -> None:
        """Turn gradient checkpointing on or off."""
        self.enable_gradient_checkpointing() if on else self.disable_gradient_checkpointing()

    def joint(self, memory_time: float | None = None) -> Self | None:
        """Return a copy that reads memory as the earlier frames of one longer video."""
        model = copy.deepcopy(self)
        model.setup = attrs.evolve(
            self.setup,
            attention="full",
            memory_time=memory_time,
            rotary="centre",
            places="absolute",
        )
        return model

    def reference(self) -> Reference | None:
        """Return the velocity by diffusers' own class with these weights; None: it has others."""
        return diffusers_velocity(self, self.reference_inputs)

    def reference_inputs(self, noisy: Tensor, t: Tensor, text: Text) -> dict[str, Any]:
        """Return what diffusers' pipeline would call the model with; here by its usual names.

        Args:
            noisy: `[B, C, K, H, W]`, sizes multiples of the patch.
            t: `[B]`, 0 to 1.
            text: the prompts.
        """
        return diffusers_inputs(self, noisy, t, text)

    def forward(self, call: Call) -> Cache | Context | Tensor:
        """Answer one of the three calls.

        Raises:
            ValueError: frames or times do not belong to the targets, or attention is not of the
                kind that the call needs (`remember`, `build_context`).
            UserError: `isolated-causal`, and a token of the memory covers latents of two blocks.
        """
        if isinstance(call, RememberCall):
            return remember(call, self.setup, self.device, self._memory_keys)
        if isinstance(call, ContextCall):
            text, features = self._prepare_text(call.text), self._features(call.memory)
            return build_context(call, self.setup, text, features)
        _check_velocity_call(call, self.setup.time)
        return self._velocity(call)

    @abstractmethod
    def _memory_keys(self, new: Part, cached: list[KeyValue] | None, every: Part) -> list[KeyValue]:
        """Return keys and values of a memory in every block.

        Args:
            new: the tokens to run.
            cached: keys and values of those before them; None: there are none.
            every: all tokens, cached ones and new ones.
        """

    @abstractmethod
    def _prepare_text(self, text: Text) -> Text:
        """Return prompts as `Context` holds them, on this device."""

    @abstractmethod
    def _velocity(self, call: VelocityCall) -> Tensor:
        """Return the velocity of noisy latents, `[B, C, K, H, W]`."""

    @property
    @abstractmethod
    def _rotary_axes(self) -> RotaryAxes:
        """How the heads rotate."""

    def _rotary(self, positions: Tensor, extents: Tensor | None = None) -> RotaryTable:
        """Return the rotary table of tokens on this device (arguments of `rotary_table`)."""
        table = self._rotary_table(positions, extents)
        device = self.device  # asked once: diffusers looks through all modules for it
        return RotaryTable(*(x.to(device) for x in table))

    def _rotary_table(self, positions: Tensor, extents: Tensor | None) -> RotaryTable:
        return rotary_table(self._rotary_axes, positions, extents)

    def _memory_tokens(self, part: Part) -> Tensor:
        """Return a memory's tokens as the blocks read them, padding as zeros."""
        tokens = part.tokens.to(self.device, self.dtype)
        if bool(part.valid.all()):
            return tokens
        # padding may hold anything, and 0 · NaN is NaN
        return tokens.masked_fill(~part.valid.to(tokens.device)[..., None], 0.0)

    def _memory_positions(
        self, part: Part | Cache, origin: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return a memory's positions, and extents where the rotary embedding is averaged.

        Those of padding are 0 and 1, since they may hold anything, and NaN would reach masked keys.

        Args:
            part: the memory, or its cache.
            origin: the latent frame from which time is counted, `[B]`; None: that of the positions.
        """
        real, positions = part.valid.to(part.positions.device)[..., None], part.positions
        if origin is not None:
            start = F.pad(origin.to(positions)[:, None], (0, 2))  # [B, 3], rows and columns stay
            positions = positions - start[:, None]
        positions = torch.where(real, positions, 0.0)
        averaged = self.setup.rotary == "averaged"
        return positions, torch.where(real, part.extents, 1.0) if averaged else None

    def _context_visibility(
        self, context: Context, targets: int, text: Valid | None = None
    ) -> Visibility:
        """Return which tokens attend to which where targets read a context.

        Args:
            context: of the call.
            targets: how many tokens the targets have.
            text: which text tokens are real, `[B, L]`; None: text is not in self-attention.
        """
        remembered = context.cache or context.memory
        valid = None if remembered is None else remembered.valid
        return self._visibility(context.memory, valid, targets, text)

    def _visibility(
        self,
        memory: Part | None,
        valid: Valid | None,
        targets: int = 0,
        text: Valid | None = None,
    ) -> Visibility:
        """Return which tokens attend to which.

        Args:
            memory: the tokens of memory where they run through the blocks; None where a cache
                stands for them.
            valid: which memory tokens are real, cached ones too, `[B, M]`; None: there are none.
            targets: how many target tokens follow the memory.
            text: which text tokens are real, `[B, L]`; None: text is not in self-attention.
        """
        joint, groups = self.setup.joint, None
        if memory is not None and self.setup.attention == "isolated-causal":
            groups = block_groups(memory, self.setup.cache_block)
        if groups is not None and not targets:
            return Visibility(joint, groups=groups)  # attention by block reads no padding
        if valid is not None and not valid.shape[1]:
            valid = None  # of an empty cache, which has no samples
        memory_mask, mask = key_masks(valid, targets, text, self.device)
        if mask is None:
            return Visibility(joint, groups=groups)
        if self.masks_padding:
            announce_masks()
            return Visibility(joint, memory_mask, mask, groups)
        announce_single_samples()
        return Visibility(joint, key_indices(memory_mask), key_indices(mask), groups)

    def _run_block(self, block: nn.Module, *args: Any) -> Any:
        """Run one block, under gradient checkpointing where it is on."""
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _features(self, memory: Memory | Cache) -> dict[str, Feature]:
        """Return the features of a memory that the blocks read."""
        memory = memory.memory if isinstance(memory, Cache) else memory
        return enhancers.read_features(self, memory)


def _check_velocity_call(call: VelocityCall, time: str) -> None:
    """Raise ValueError if frames or times do not belong to the targets.

    Args:
        call: for a velocity.
        time: `Setup.time`; times by frame, `[B, K]`, are for `token` alone.
    """
    batch, frames = call.noisy.shape[0], call.noisy.shape[2]
    if tuple(call.frames.shape) != (batch, frames):
        raise ValueError(f"frames are {tuple(call.frames.shape)}, targets {(batch, frames)}")
    if call.t.ndim == 2 and time == "sample":
        raise ValueError("t is [B, K], but this backbone knows one time a sample: give [B]")
    if tuple(call.t.shape) not in ((batch,), (batch, frames)):
        raise ValueError(f"t is {tuple(call.t.shape)}, not {(batch,)} or {(batch, frames)}")
