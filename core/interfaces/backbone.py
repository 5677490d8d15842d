"""Backbone G: a video diffusion transformer that reads memory beside text (design §3).

Its three calls, what they ask and what they answer with (`Cache`, `Context`) come first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias, cast

import attrs
import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import Parameter

from ..errors import UserError
from ..values.grid import Geometry, MemoryLimit
from ..values.memory import (
    Memory,
    Part,
    from_block,
    grid_points,
    last_covered,
    oldest_block,
    stays,
)
from ..values.shapes import Coordinates, Frames, Targets, Valid
from ..values.text import Text
from .base import Interface
from .checks import check_shape, check_type
from .compressor import Fit
from .spec import BackboneSpec, LoRA


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
        keys, values: one `[B, N, heads, head width]` a block, rotary already applied to keys, but
            where the backbone's places are relative to the targets: there it is applied at use.
        positions, extents: of the cached tokens in the order of the keys, `[B, N, 3]`.
        valid: `[B, N]`.
        memory: what it was made of: the tokens to go on from, and their features. They weigh as
            much as the keys and values of half a block.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    positions: Coordinates
    extents: Coordinates
    valid: Valid
    memory: Memory = field(factory=Memory)

    @property
    def length(self) -> int:
        """The number of cached tokens N."""
        return int(self.valid.shape[1])

    def drop_oldest(self, limit: MemoryLimit, beside: Memory | None = None) -> Self:
        """Return the cache without the oldest blocks of its memory, as `values.memory.drop_oldest`.

        What stays is not computed again: its keys and values still know what they once attended
        to. So the cost is flat, and going on with a take means dropping at the same moments again.

        Args:
            limit: what may stay; its block must be that of the backbone.
            beside: memory that is read beside it and counts, too.

        Raises:
            ValueError: of the samples not the same rows would stay, or the limit is too small.
        """
        memories = [self.memory] if beside is None else [self.memory, beside]
        oldest = oldest_block(memories, limit)
        return self if oldest is None else self.from_block(oldest, limit)

    def from_block(self, oldest: Tensor, limit: MemoryLimit) -> Self:
        """Return the rows of the first blocks and of those from `oldest` on, float64 `[B]`."""
        if not self.length:
            return self
        kept = self.valid.cpu() & stays(last_covered(self.positions, self.extents), oldest, limit)
        if not bool((kept == kept[:1]).all()):
            raise ValueError("the samples of a cache must cover the same latents to be dropped")
        rows = kept[0].nonzero()[:, 0]

        def pick(x: Tensor) -> Tensor:
            return x[:, rows.to(x.device)]

        return attrs.evolve(
            self,
            keys=tuple(map(pick, self.keys)),
            values=tuple(map(pick, self.values)),
            positions=pick(self.positions),
            extents=pick(self.extents),
            valid=pick(self.valid),
            memory=from_block(self.memory, oldest, limit),
        )


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
    """Asks for the keys and values of a memory: see `Backbone.remember`."""

    memory: Memory
    cache: Cache | None


@frozen(eq=False, kw_only=True)
class ContextCall:
    """Asks for a context of text and memory: see `Backbone.context`."""

    text: Text
    memory: Memory | Cache


@frozen(eq=False, kw_only=True)
class VelocityCall:
    """Asks for the velocity of noisy latents: see `Backbone.velocity`."""

    noisy: Targets
    t: Tensor
    frames: Frames
    context: Context


Call: TypeAlias = RememberCall | ContextCall | VelocityCall

# Velocity of noisy latents [B, C, K, H, W], frames 0 to K − 1 of a video, at times [B] in (0, 1],
# given prompts and no memory.
Reference: TypeAlias = Callable[[Tensor, Tensor, Text], Tensor]


LAYOUTS = ("diffusers", "comfyui", "kohya")


@frozen(eq=False, kw_only=True)
class LoraFile:
    """A backbone's adapters in the layout of another program, which `longtake export` writes.

    Attributes:
        tensors: LoRA by another program's keys; none where there is no LoRA.
        besides: adapters that other programs do not know (attention to features), by our keys.
        metadata: texts for the header of the safetensors file.
        facts: plain data for our own header, by which the file is read back: `layout`, `rank`,
            `alpha`, and what else the backbone needs; empty where there is no LoRA.
        dtype: number type that the LoRA was trained in, where `tensors` are wider because a scale
            went into them; None: they are as they were.
    """

    tensors: Mapping[str, Tensor] = field(factory=dict)
    besides: Mapping[str, Tensor] = field(factory=dict)
    metadata: Mapping[str, str] = field(factory=dict)
    facts: Mapping[str, Any] = field(factory=dict)
    dtype: torch.dtype | None = None


class Backbone(Interface):
    """G: predicts the velocity ε − X₀ of noisy latents at given frames, given text and memory.

    A plugin subclasses diffusers' own model and this class, and answers `forward(call)` for the
    three calls; the other abstract methods say how it is loaded, adapted and saved. Everything that
    touches weights runs inside the root's call because group offload, layerwise casting, FSDP and
    context parallelism hook it; the public methods below only wrap it. Per-call values travel
    through arguments, never on attention processors.

    The loop of generation, as these methods carry it (memory `isolated-causal`; w = guidance):

        state, settled = encoder.step(None, first_chunk)            # φ, only what is new
        cache = backbone.remember(settled)                          # durable: it never changes
        for segment in segments:
            held = backbone.remember(encoder.pending(state), cache)  # what may still change, too
            prompt, empty = (backbone.context(t, held) for t in (segment.text, null_text))
            for t, next_t in schedule:                              # one cache, both branches
                v0, v1 = (backbone.velocity(x, t, frames, c) for c in (empty, prompt))
                x = scheduler.step(v0 + w * (v1 - v0), t, x)
            state, settled = encoder.step(state, History(x))        # `held` is thrown away
            cache = backbone.remember(settled, cache)               # append, go on
            cache = cache.drop_oldest(limit, encoder.pending(state))  # where there is a budget

    `isolated` cannot append: `held = backbone.remember(merge([*all_settled, pending]))` once a
    segment. With `full` attention there is no cache: `context(text, memory)` carries the tokens.
    A budget drops from either by `values.memory.drop_oldest`.
    """

    # Names of the block classes, as diffusers' models have them: FSDP shards block by block.
    _no_split_modules: list[str] | None = None
    # Steps in which every adapter must have trained, or it is dead (`core.train.liveness`).
    awake_within: ClassVar[int] = 2

    @classmethod
    @abstractmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Return the model of the spec: its weights where it names some, else random from `seed`.

        Raises:
            UserError: weights are named but missing, or are of another model.
        """

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Shapes as built."""

    @property
    def caches(self) -> bool:
        """Whether `remember` serves all steps and prompts: memory sees neither (`isolated`)."""
        return False

    @abstractmethod
    def fit(self) -> Fit:
        """Return what compressors may know: shapes and a detached copy of the first projection."""

    @abstractmethod
    def fitted(self) -> list[Parameter]:
        """Return the parameters that `fit` copies: a run that trains all of G leaves them alone."""

    @abstractmethod
    def blank_text(self, batch: int, length: int) -> Text:
        """Return prompts of the right widths, all zero: all that a check must know of text."""

    @abstractmethod
    def add_lora(self, lora: LoRA) -> None:
        """Freeze the model and add trainable adapters; at the start outputs do not change."""

    def add_enhancer(self, widths: Mapping[str, int], seed: int = 0) -> None:
        """Add cross-attention to a memory's features in every block; at the start it adds zero.

        Its parameters count as adapters. Memories must then have these features, or be empty.

        Args:
            widths: of the features, by their name in `Memory.features`; none: nothing is added.
            seed: of what does not start at zero.

        Raises:
            ValueError: this backbone cannot, or has them already.
        """
        if widths:
            raise ValueError(f"{type(self).__name__} reads no features of a memory")

    @abstractmethod
    def adapters(self) -> dict[str, Parameter]:
        """Return the parameters that live beside the base's: LoRA, zero-initialised attention."""

    @abstractmethod
    def save_adapters(self, path: Path) -> None:
        """Write `adapters()` to one safetensors file, whole or not at all.

        Keys are diffusers' (`transformer.blocks.0.attn1.to_q.lora_A.weight`), with its metadata
        (rank, alpha), so that its loaders read the file to the same outputs.
        """

    @abstractmethod
    def load_adapters(self, path: Path) -> None:
        """Read such a file into the adapters here, or as new ones on a frozen base.

        Files that `export_adapters` makes, and bundles with an encoder, are such files, too.

        Raises:
            UserError: no such file, other keys, another width, or another rank or alpha than here.
        """

    @classmethod
    def export_adapters(cls, spec: BackboneSpec, path: Path, layout: str) -> dict[str, LoraFile]:
        """Return the adapters of a file of `save_adapters` in another program's layout.

        They stand by expert (`high`, `low`), or under `""` where the model is one; no weights are
        read. The layout is one of `LAYOUTS`.

        Raises:
            UserError: no such file, of another model, or no such keys for this one.
        """
        raise UserError(f"{cls.__name__} cannot export its adapters")

    @abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Write a diffusers checkpoint (config.json, safetensors), whole or not at all.

        Raises:
            ValueError: there are adapters; save them and the base apart.
        """

    @abstractmethod
    def set_checkpointing(self, on: bool) -> None:
        """Turn gradient checkpointing on or off; gradients stay the same to the bit on CPU."""

    def joint(self, memory_time: float | None = None) -> Self | None:
        """Return a copy that reads memory as the earlier frames of one longer video; None: cannot.

        Its attention is `full`, each token stands at its centre, and memory has the time
        `memory_time`, or the targets' where that is None. `core.contract.check_backbone` holds it
        to the longer-video law: frames B beside frames A have the velocity that they have with the
        memory `fit().tokens(A)` at A's places.
        """
        return None

    def reference(self) -> Reference | None:
        """Return the velocity of these weights without memory by other code; None: there is none.

        `core.contract.check_backbone` takes sign and scale of time from it.
        """
        return None

    @abstractmethod
    def forward(self, call: Call) -> Cache | Context | Tensor:
        """Answer one of the three calls."""

    def remember(self, memory: Memory, cache: Cache | None = None) -> Cache:
        """Return the keys and values of an `isolated` memory; of all, where `cache` holds the rest.

        Appending (`isolated-causal`) runs only the new tokens and the blocks they fall into, and
        leaves `cache` as it is: what may still change goes into one that is thrown away.

        Raises:
            ValueError: the spec's attention is `full`, or it cannot append and `cache` is given.
            UserError: `isolated-causal`, and a token covers latents of two blocks.
        """
        held = self(RememberCall(memory=memory, cache=cache))
        check_type(self, "the answer to a RememberCall", held, Cache)
        return cast(Cache, held)

    def context(self, text: Text, memory: Memory | Cache | None = None) -> Context:
        """Return what `velocity` reads for these prompts and this memory (None: no memory)."""
        context = self(ContextCall(text=text, memory=memory or Memory()))
        check_type(self, "the answer to a ContextCall", context, Context)
        return cast(Context, context)

    def velocity(self, noisy: Targets, t: Tensor, frames: Frames, context: Context) -> Tensor:
        """Return the predicted velocity `[B, C, K, H, W]` (Eq. 2).

        Args:
            noisy: X_t, `[B, C, K, H, W]`.
            t: time in (0, 1], `[B]`, or `[B, K]` where the backbone knows time per frame.
            frames: absolute latent frames of the K targets, int64 `[B, K]`; gaps are legal.
            context: of `context(...)`.

        Raises:
            ContractError: what the model gives has another shape than the targets.
        """
        call = VelocityCall(noisy=noisy, t=t, frames=frames, context=context)
        velocity = self(call)
        check_shape(self, "the velocity", velocity, noisy.shape, "B C K H W")
        return cast(Tensor, velocity)


def target_positions(frames: Frames, rows: int, columns: int) -> Tensor:
    """Return the positions `[B, K·rows·columns, 3]` of target tokens, float64."""
    row, column = (
        torch.arange(cells, dtype=torch.float64, device=frames.device) for cells in (rows, columns)
    )
    return grid_points(frames.to(torch.float64), row, column)
