"""What a backbone is asked, and what it answers with: calls, caches and contexts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from attrs import field, frozen
from torch import Tensor

from .memory import Memory, Part
from .shapes import Coordinates, Frames, Targets, Valid
from .text import Text


class Feature(NamedTuple):
    """A feature of a memory's tokens, as cross-attention in the blocks reads it.

    Attributes:
        values: `[B, M, F]`.
        valid: `[B, M]`, False on padding; None where all are real.
    """

    values: Tensor
    valid: Tensor | None


@frozen(eq=False, kw_only=True)
class Cache:
    """Keys and values of an `isolated` memory in every block: made once, read by every step.

    A cache never changes; `Backbone.remember(more, cache)` gives a longer one.

    Attributes:
        keys, values: one `[B, N, heads, head width]` a block, rotary already applied to keys.
        positions: of the cached tokens in the order of the keys, `[B, N, 3]`.
        valid: `[B, N]`.
        memory: what it was made of: the tokens to go on from, and their features. They weigh as
            much as the keys and values of half a block.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: Coordinates
    valid: Valid
    memory: Memory = field(factory=Memory)

    @property
    def length(self) -> int:
        """The number of cached tokens N."""
        return int(self.valid.shape[1])


@frozen(eq=False, kw_only=True)
class Context:
    """What G reads beside the noisy latents; made by `Backbone.context`, read by no one else.

    Attributes:
        text: as the blocks read it. Wan: embeddings already projected to the DiT's width, so that
            it is done once for all steps. HunyuanVideo: LLaMA's states and CLIP's pooled vector
            as they came, because its token refiner and its modulation also read t; the guidance
            scale is a field of its spec.
        memory: tokens for `full` attention, or for `isolated` without a cache; None where empty.
        cache: keys and values for `isolated`.
        features: of the memory, by `part.name`, for cross-attention in the blocks; where the
            backbone has none, empty.
    """

    text: Text
    memory: Part | None = None
    cache: Cache | None = None
    features: Mapping[str, Feature] = field(factory=dict)


@frozen(eq=False, kw_only=True)
class RememberCall:
    """Ask for the keys and values of a memory."""

    memory: Memory
    cache: Cache | None


@frozen(eq=False, kw_only=True)
class ContextCall:
    """Ask for a context of text and memory."""

    text: Text
    memory: Memory | Cache


@frozen(eq=False, kw_only=True)
class VelocityCall:
    """Ask for the velocity of noisy latents."""

    noisy: Targets
    t: Tensor
    frames: Frames
    context: Context


Call: TypeAlias = RememberCall | ContextCall | VelocityCall
