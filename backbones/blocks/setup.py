"""What a backbone must know beside diffusers' config, and the tuples that go through its blocks."""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple

import torch
from attrs import frozen
from torch import Tensor, nn

from ...core.interfaces.backbone import Cache, VelocityCall
from ...core.values.grid import Geometry
from ...core.values.shapes import Valid
from ..specs import DiTSpec

# Tuples, not attrs: offload hooks move the tensors of tuples to the block's device.


class Keys(NamedTuple):
    """Keys (turned) and values of tokens, `[B, N, heads, head width]` each."""

    key: Tensor
    value: Tensor


class Masks(NamedTuple):
    """Which keys are real, bool; only where a batch of memories is ragged.

    Attributes:
        memory: of memory alone, `[B, M]`, never empty in a row (softmax over nothing is NaN).
        all: of memory and targets, `[B, M + N]`.
    """

    memory: Tensor
    all: Tensor


@frozen(kw_only=True)
class Setup:
    """How memory enters, and the shapes, of one backbone.

    Attributes:
        geometry: shapes, as compressors may know them.
        attention: `full`, `isolated` or `isolated-causal`.
        memory_time: of memory tokens, 0 to 1, or None to share the targets'.
        rotary: `centre` or `averaged`: where a memory token sits, or all cells that it covers.
        cache_block: latents of a block of `isolated-causal` memory.
        time: `sample` or `token`: whether the modulation of targets is made per sample or token.
    """

    geometry: Geometry
    attention: str
    memory_time: float | None
    rotary: str = "centre"
    cache_block: int = 8
    time: str = "sample"

    @classmethod
    def of(cls, spec: DiTSpec, *, time: str = "sample") -> Setup:
        """Return what a spec says."""
        return cls(
            geometry=spec.geometry,
            attention=spec.attention,
            memory_time=spec.memory_time,
            rotary=spec.rotary,
            cache_block=spec.cache_block,
            time=time,
        )

    @property
    def joint(self) -> bool:
        """Whether memory sees targets, too."""
        return self.attention == "full"


def check_call(call: VelocityCall, time: str) -> None:
    """Refuse targets, frames and times that do not belong together.

    Raises:
        ValueError: `frames` does not name every target, or `t` is by frame where it cannot be.
    """
    batch, frames = call.noisy.shape[0], call.noisy.shape[2]
    if tuple(call.frames.shape) != (batch, frames):
        raise ValueError(f"frames are {tuple(call.frames.shape)}, targets {(batch, frames)}")
    if call.t.ndim == 2 and time == "sample":
        raise ValueError("t is [B, K], but this backbone knows one time a sample: give [B]")
    if tuple(call.t.shape) not in ((batch,), (batch, frames)):
        raise ValueError(f"t is {tuple(call.t.shape)}, not {(batch,)} or {(batch, frames)}")


def masks_of(valid: Valid, targets: int, device: torch.device) -> Masks | None:
    """Return the masks of a memory before `targets` tokens, or None where all of it is real."""
    if bool(valid.all()):
        return None
    announce_masks()
    kept = valid.to(device)
    none = ~kept.any(dim=1, keepdim=True)  # softmax over nothing is NaN; targets never see these
    ones = torch.ones(kept.shape[0], targets, dtype=torch.bool, device=device)
    return Masks(memory=kept | none, all=torch.cat([kept, ones], dim=1))


@functools.cache
def announce_masks() -> None:
    """Say once that a slower way was taken."""
    logging.getLogger(__name__).warning(
        "memories of different lengths in one batch: attention runs with a mask, which is slower "
        "and which flash and sage backends refuse; batch by length to avoid it"
    )


def beside(first: Keys | None, second: Keys | None) -> Keys:
    """Return the keys of two streams side by side; one of them may be missing."""
    if first is None or second is None:
        given = first or second
        assert given is not None, "a block needs targets or memory"
        return given
    return Keys(
        torch.cat([first.key, second.key], dim=1), torch.cat([first.value, second.value], dim=1)
    )


def pairs(cache: Cache) -> list[Keys]:
    """Return the cached keys and values block by block."""
    return [Keys(key, value) for key, value in zip(cache.keys, cache.values, strict=True)]


def empty_cache(device: torch.device) -> Cache:
    """Return the cache of an empty memory."""
    return Cache(
        keys=(),
        values=(),
        positions=torch.zeros(0, 0, 3, dtype=torch.float64),
        valid=torch.zeros(0, 0, dtype=torch.bool, device=device),
    )


def through(model: Any, block: nn.Module, *args: Any) -> Any:
    """Run one block, under gradient checkpointing where the model asks for it."""
    if torch.is_grad_enabled() and model.gradient_checkpointing:
        return model._gradient_checkpointing_func(block, *args)
    return block(*args)
