"""DiTs whose memory and targets are two streams through the same blocks: Wan, and what is like it.

A backbone of this kind is a spec, a block (`TwoStreamBlock` beside diffusers' own) and a model
(`TwoStreamDiT` beside diffusers' own); CONTRIBUTING has a whole one outside the tree.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import Parameter

from ..core.interfaces.backbone import Context, Feature, VelocityCall, target_positions
from ..core.interfaces.base import Interface
from ..core.interfaces.compressor import pad_to
from ..core.values.memory import Part
from ..core.values.text import Text
from .blocks.attention import (
    BlockContext,
    KeyValue,
    Projections,
    Stream,
    Visibility,
    attend,
    attend_to_memory,
    concat,
)
from .blocks.enhancer import Enhancer, enhanced
from .blocks.memory import cached_by_block
from .blocks.rotary import rotate
from .dit import DiT
from .specs import DiTSpec


class TwoStreamBlock(Interface):
    """A block of diffusers for two streams; same parameters, and without memory the same bits.

    Written as `class LtxBlock(TwoStreamBlock, LTXVideoTransformerBlock)`. Each stream has its own
    modulation, and meets the other in self-attention only, as keys. A subclass says what is before
    self-attention (`project`) and what is after it (`after_attention`), both as diffusers' block
    does it; who attends to whom is done here.

    Attributes:
        attention: name of the block's self-attention.
        enhancer: cross-attention to a memory's features, None without.
    """

    attention: ClassVar[str] = "attn1"
    enhancer: Enhancer | None

    if TYPE_CHECKING:  # what diffusers' blocks have is not typed

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_module("enhancer", None)

    @classmethod
    def adopt(cls, block: nn.Module) -> Self:
        """Return a block of diffusers as one of this class; its weights stay where they are.

        Raises:
            TypeError: this class is no subclass of the block's.
        """
        if not isinstance(block, cls):
            if not issubclass(cls, type(block)):
                raise TypeError(f"{cls.__name__} is no {type(block).__name__}")
            block.__class__ = cls
            block.register_module("enhancer", None)
        return cast(Self, block)

    @abstractmethod
    def project(self, stream: Stream, query: bool = True) -> Projections:
        """Return what self-attention reads of a stream; see `project_heads`.

        Args:
            stream: hidden tokens, their modulation and rotary table.
            query: whether the tokens ask, or are only attended to.
        """

    @abstractmethod
    def after_attention(
        self,
        stream: Stream,
        projections: Projections,
        read: Tensor,
        text: Any = None,
        features: Mapping[str, Feature] | None = None,
    ) -> Tensor:
        """Return the hidden tokens after the rest of the block.

        Args:
            stream: as it went in.
            projections: of the stream; its `gates` are what `project` left there.
            read: what self-attention returned, `[B, N, heads, head width]`; see `join_heads`.
            text: for cross-attention, of `TwoStreamDiT.block_text`; None: there is none.
            features: of a memory: end cross-attention with `self.read_features`.
        """

    def forward(
        self,
        target: Stream | None,
        memory: Stream | None,
        text: Any,
        context: BlockContext,
    ) -> tuple[Tensor | None, Tensor | None, KeyValue | None]:
        """Return the hidden tokens of targets and memory, and all of the memory's keys and values.

        Args:
            target: the noisy tokens; None to run memory alone.
            memory: its tokens, those of `context.cached` left out; None where there are no more.
            text: prompts, for targets (and memory, if attention is joint).
            context: what else the block reads.
        """
        visibility, out = context.visibility, None
        attention = self.get_submodule(self.attention)
        from_memory = None if memory is None else self.project(memory, query=not context.last)
        from_target = None if target is None else self.project(target)
        memory_kv = (
            context.cached if from_memory is None else concat(context.cached, from_memory.kv)
        )
        every = concat(memory_kv, None if from_target is None else from_target.kv)
        if from_target is not None and target is not None:
            read = attend(attention, from_target.query, every, visibility.all)
            out = self.after_attention(target, from_target, read, text, context.features)
        if from_memory is None or memory is None or memory_kv is None or context.last:
            return out, None, memory_kv
        if visibility.joint:
            read = attend(attention, from_memory.query, every, visibility.all)
            return out, self.after_attention(memory, from_memory, read, text), memory_kv
        read = attend_to_memory(attention, from_memory.query, memory_kv, visibility)
        return out, self.after_attention(memory, from_memory, read), memory_kv

    def read_features(
        self, hidden: Tensor, features: Mapping[str, Feature] | None, attention: Any
    ) -> Tensor:
        """Return the hidden tokens, with what they read of a memory's features added.

        Args:
            hidden: the stream after cross-attention.
            features: None: the stream reads none.
            attention: diffusers' module, whose processor names the backend that the user chose.
        """
        if features is None:
            return hidden
        return enhanced(self.enhancer, hidden, features, attention.processor._attention_backend)


def project_heads(
    attention: Any, x: Tensor, stream: Stream, gates: Sequence[Tensor], query: bool = True
) -> Projections:
    """Return what diffusers' attention module makes of normalised tokens, keys and queries rotated.

    Args:
        attention: with `to_q`, `to_k`, `to_v`, `norm_q`, `norm_k` over all heads, and `heads`.
        x: `[B, N, D]`, normalised and modulated.
        stream: of the tokens, for the rotary table.
        gates: modulation that is applied after attention.
        query: whether the tokens ask.
    """
    heads = attention.heads
    q = None
    if query:
        q = rotate(_split(attention.norm_q(attention.to_q(x)), heads), stream.rotary)
    key = rotate(_split(attention.norm_k(attention.to_k(x)), heads), stream.rotary)
    return Projections(q, KeyValue(key, _split(attention.to_v(x), heads)), tuple(gates))


def _split(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b n (heads width) -> b n heads width", heads=heads)


def join_heads(attention: Any, read: Tensor) -> Tensor:
    """Return what attention read, `[B, N, heads, head width]`, behind its last projection."""
    project, dropout = attention.to_out
    out: Tensor = dropout(project(rearrange(read, "b n heads width -> b n (heads width)")))
    return out


class TwoStreamDiT(DiT):
    """A diffusers DiT that reads memory in its self-attention.

    Written as `class Ltx(TwoStreamDiT, LTXVideoTransformer3DModel)`. Memory and targets are two
    streams through the same blocks, each with its own time; memory is dropped before the head.
    `full`: both attend to both, and both read the prompt, as the frames of one longer video would.
    `isolated`: memory attends to memory only and reads no prompt, at a constant time, so that its
    keys and values serve every step, both guidance branches and every prompt; `isolated-causal`:
    and to no later block of memory, so that they serve a take that grows, too. Targets alone read
    the features of a memory, after the prompt.

    A subclass names `block_class`, `block_lists`, `linears`, `diffusers_class`, `spec_class` and,
    for files of other programs, `lora_family`, and answers `first_projection`, `text_width`,
    `embed_time`, `project_out` and `_rotary_axes` (or `_rotary_table`); where text is projected or
    masked, `_prepare_text` and `block_text`, too.

    `setup` must be set before the first call, as `load` does.

    Attributes:
        block_class: what the blocks become; None where the model makes them itself.
        out_order: how the last projection orders the numbers of a patch.
        steps: what time 1 is called inside the model.
    """

    block_class: ClassVar[type[TwoStreamBlock] | None] = None
    out_order: ClassVar[str] = "c pt ph pw"
    steps: ClassVar[float] = 1000.0
    _repeated_blocks: list[str] | None = None
    # diffusers' plan names arguments of its own forward: refuse instead of splitting wrongly.
    _cp_plan = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "block_class" in vars(cls) and cls.block_class is not None:
            cls._no_split_modules = [cls.block_class.__name__]
            cls._repeated_blocks = [cls.block_class.__name__]

    def set_up(self, spec: DiTSpec) -> None:
        """Set what a spec says of how memory enters, and make the blocks read it."""
        super().set_up(spec)
        if self.block_class is not None:
            for block in self.memory_blocks:
                self.block_class.adopt(block)

    @property
    @abstractmethod
    def first_projection(self) -> nn.Module:
        """The linear or convolution that makes tokens of latents."""

    @property
    @abstractmethod
    def text_width(self) -> int:
        """Width E of the text embeddings that the model takes."""

    @abstractmethod
    def embed_time(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the head and what the blocks read of times, as diffusers' model makes it.

        Args:
            t: in (0, 1], or 0 of clean memory: `[B]`, `[1]`, or a time a token, `[B, N]`; see
                `in_steps`.
            like: whose dtype and device the results have.

        Returns:
            The embedding for `project_out`, and the modulation for the blocks' `project`.
        """

    @abstractmethod
    def project_out(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the velocity's patches `[B, N, numbers of a patch]` (`out_order`).

        Args:
            hidden: the targets after all blocks, `[B, N, D]`.
            embedding: of their time.
        """

    def block_text(self, text: Text) -> Any:
        """Return the prompts as the blocks read them: tensors, or a tuple of them."""
        return text.embeddings

    def fitted(self) -> list[Parameter]:
        """Return the parameters that `fit` copies."""
        return list(self.first_projection.parameters())

    def blank_text(self, batch: int, length: int) -> Text:
        """Return all-zero embeddings `[batch, length, E]` of the width that `context` reads."""
        shape = (batch, length, self.text_width)
        empty = torch.zeros(shape, device=self.device, dtype=self.dtype)
        return Text(embeddings=empty, mask=empty.new_ones(shape[:2], dtype=torch.bool))

    def in_steps(self, t: Tensor) -> Tensor:
        """Return times in steps of the model, in float32."""
        # float64 as it is: 127/1000 in float32 is not 127 thousandths
        return (t.to(torch.promote_types(t.dtype, torch.float32)) * self.steps).float()

    def _prepare_text(self, text: Text) -> Text:
        return text.to(self.device, self.dtype)

    def _embed(self, noisy: Tensor) -> Tensor:
        """Return the tokens of noisy latents of whole patches, `[B, N, D]`."""
        first, patch = self.first_projection, self.geometry.patch
        if not isinstance(first, nn.Linear):
            convolved: Tensor = rearrange(first(noisy), "b d k h w -> b (k h w) d").contiguous()
            return convolved
        cells = rearrange(
            noisy, "b c (k pt) (h ph) (w pw) -> b (k h w) (c pt ph pw)",
            pt=patch.time, ph=patch.height, pw=patch.width,
        )  # fmt: skip
        return cast(Tensor, first(cells))

    def _memory_keys(self, new: Part, cached: list[KeyValue] | None, every: Part) -> list[KeyValue]:
        visibility = self._visibility(every, every.valid)
        return self._run_blocks(None, self._memory_stream(new, None), None, cached, visibility)[1]

    def _velocity(self, call: VelocityCall) -> Tensor:
        (height, width), patch = call.noisy.shape[-2:], self.geometry.patch
        noisy = pad_to(call.noisy, patch.height, patch.width).to(self.device, self.dtype)
        frames = noisy.shape[2] // patch.time
        rows, columns = noisy.shape[3] // patch.height, noisy.shape[4] // patch.width
        t = call.t
        if self.setup.time == "token":
            by_frame = repeat(t, "b -> b k", k=frames) if t.ndim == 1 else t
            t = repeat(by_frame, "b k -> b (k cells)", cells=rows * columns)
        embedding, modulation = self.embed_time(t, noisy)
        rotary = self._rotary(target_positions(call.frames, rows, columns))
        target = Stream(self._embed(noisy), modulation, rotary)
        out = self._read_context(target, call)
        latents: Tensor = rearrange(
            self.project_out(out, embedding),
            f"b (k h w) ({self.out_order}) -> b c (k pt) (h ph) (w pw)",
            h=rows, w=columns, pt=patch.time, ph=patch.height, pw=patch.width,
        )  # fmt: skip
        return latents[..., :height, :width]

    def _read_context(self, target: Stream, call: VelocityCall) -> Tensor:
        """Return the targets' hidden tokens after all blocks."""
        context, memory = call.context, None
        if context.memory is not None:
            memory = self._memory_stream(context.memory, call.t)
        cached = None if context.cache is None else cached_by_block(context.cache)
        visibility = self._context_visibility(context, target.hidden.shape[1])
        return cast(Tensor, self._run_blocks(target, memory, context, cached, visibility)[0])

    def _run_blocks(
        self,
        target: Stream | None,
        memory: Stream | None,
        context: Context | None,
        cached: Sequence[KeyValue] | None,
        visibility: Visibility,
    ) -> tuple[Tensor | None, list[KeyValue]]:
        """Return the targets' hidden tokens, or without targets the memory's keys and values.

        One call a block, so that whatever hooks blocks (offload, FSDP) moves weights once. Memory
        that differs from the targets in nothing but its place is one stream with them up to the
        last block, where nothing reads its hidden tokens.
        """
        text = self.block_text(context.text) if context else None
        features = context.features if context else {}
        shared = self.setup.memory_time is None and self.setup.time == "sample"
        alike = visibility.joint and shared and not features
        before, keys_values, blocks = 0, [], self.memory_blocks
        if alike and target is not None and memory is not None:
            before, target, memory = memory.hidden.shape[1], memory.then(target), None
        for i, block in enumerate(blocks):
            last = i == len(blocks) - 1
            if last and before and target is not None:
                memory, target = target.split(before)
            block_context = BlockContext(cached[i] if cached else None, visibility, features, last)
            outs = self._run_block(block, target, memory, text, block_context)
            target_hidden, memory_hidden, kv = outs
            if target is None:
                keys_values.append(kv)
            else:
                target = target._replace(hidden=target_hidden)
            memory = memory._replace(hidden=memory_hidden) if memory and not last else None
        return target.hidden if target else None, keys_values

    def _memory_stream(self, part: Part, t: Tensor | None) -> Stream:
        """Return a memory's tokens as they enter; `t` is the targets' time, where it is shared."""
        tokens = self._memory_tokens(part)
        if self.setup.memory_time is not None:
            t = torch.full((1,), self.setup.memory_time, device=tokens.device)
        elif t is None or t.ndim > 1:
            raise ValueError("t differs by frame, so memory cannot share it: set memory_time")
        # All memory of a sample has one time, which serves where targets have one a token, too.
        _, modulation = self.embed_time(t, tokens)
        return Stream(tokens, modulation, self._rotary(*self._memory_positions(part)))
