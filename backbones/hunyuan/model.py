"""HunyuanVideo and FramePack as backbones: diffusers' own models that read memory beside text."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel, HunyuanVideoTransformer3DModel
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import Parameter

from ...core.interfaces.backbone import Context, Feature, VelocityCall, target_positions
from ...core.interfaces.compressor import pad_to
from ...core.values.memory import Part
from ...core.values.text import Text
from ..blocks.attention import BlockContext, KeyValue, MemoryRotary, Stream, Visibility
from ..blocks.memory import cached_by_block
from ..blocks.rotary import RotaryAxes, RotaryTable, rotary_table
from ..dit import DiT
from ..specs import DiTSpec
from ..weights.find import Release
from . import specs
from .block import DualBlock, SingleBlock

STEPS = 1000.0  # HunyuanVideo counts time, and guidance, in thousandths
GUIDANCE = "time_text_embed.guidance_embedder."


class HunyuanVideoDiT(DiT):
    """What HunyuanVideo and FramePack share. Without memory they are diffusers' models to the bit.

    Prompts are cut to their real tokens (`packed`): on prompts that fill their length, or are cut
    already, no number differs from diffusers'; on padded ones the last bits do.

    Memory goes through the weights of latents in both kinds of blocks, and is dropped before the
    head. `full`: it stands before the targets and attends to everything, as the frames of one
    longer video would. Where its time is its own, it is modulated by that time and the prompt,
    guidance left out, as the clean first frame of diffusers' `token_replace` models. `isolated`: it
    attends to memory only, under a constant modulation: its time, an all-zero pooled prompt and no
    guidance, so that its keys and values serve every step, both guidance branches and every prompt.
    Zeros, because any other constant would be a vector of one text encoder's.

    Latents know of each other's places only how far they are apart, but text, which has none, reads
    and is read at the places themselves. With `relative` ones the first target stands at time 0, as
    in the model's training, and memory before it. An `isolated` memory then reads itself at its own
    places, which serve every target, and its keys are rotated where targets read them: a cache
    holds keys that are not rotated.

    Attributes:
        guidance: the scale that the model was distilled on, None where it knows none; whoever
            builds the model sets it.
    """

    _no_split_modules = ["DualBlock", "SingleBlock"]
    _repeated_blocks = ["DualBlock", "SingleBlock"]
    # diffusers' plan names arguments of its own forward: refuse instead of splitting wrongly.
    _cp_plan = None
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    # `cross-attention` is the text's side of attention where it stands beside latents
    linears = {
        "attention": ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        "cross-attention": (
            "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        ),
        "feed-forward": (
            "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
            "proj_mlp", "proj_out",
        ),
    }  # fmt: skip
    masks_padding = False  # every batch of prompts is ragged, and flash attention refuses masks
    guidance: float | None = None

    def _use_memory_blocks(self) -> None:
        def blocks(kind: type[Any], count: int) -> nn.ModuleList:
            config = self.config
            sizes = {"mlp_ratio": config.mlp_ratio, "qk_norm": config.qk_norm}
            heads, width = config.num_attention_heads, config.attention_head_dim
            return nn.ModuleList([kind(heads, width, **sizes) for _ in range(count)])

        self.transformer_blocks = blocks(DualBlock, self.config.num_layers)
        self.single_transformer_blocks = blocks(SingleBlock, self.config.num_single_layers)

    def set_up(self, spec: DiTSpec) -> None:
        """Set what a spec says of how memory enters, of places, and its guidance scale."""
        super().set_up(spec)
        if isinstance(spec, specs.HunyuanSpec):
            self.setup = attrs.evolve(self.setup, places=spec.places)
            self.guidance = spec.guidance

    def reference_inputs(self, noisy: Tensor, t: Tensor, text: Text) -> dict[str, Any]:
        """Return what diffusers' pipeline would call the model with, its guidance scale, too."""
        inputs = super().reference_inputs(noisy, t, text)
        if self.guidance is not None:
            inputs["guidance"] = torch.full_like(t, self.guidance) * STEPS
        return inputs

    def fitted(self) -> list[Parameter]:
        """Return the parameters that `fit` copies."""
        return list(self.x_embedder.proj.parameters())

    def blank_text(self, batch: int, length: int) -> Text:
        """Return all-zero embeddings `[batch, length, E]` and pooled vectors of the widths read."""
        shape = (batch, length, self.config.text_embed_dim)
        empty = torch.zeros(shape, device=self.device, dtype=self.dtype)
        pooled = empty.new_zeros(batch, self.config.pooled_projection_dim)
        mask = empty.new_ones(shape[:2], dtype=torch.bool)
        return Text(embeddings=empty, mask=mask, pooled=pooled)

    def _memory_keys(self, new: Part, cached: list[KeyValue] | None, every: Part) -> list[KeyValue]:
        stream, rotary = self._memory_stream(new, None, None), None
        if self.setup.places == "relative":
            rotary = MemoryRotary(self._rotary(*self._memory_positions(every)), None)
        visibility = self._visibility(every, every.valid)
        return self._run_blocks(None, None, stream, cached, visibility, {}, rotary)[1]

    def _prepare_text(self, text: Text) -> Text:
        return packed(text.to(self.device, self.dtype))

    def _velocity(self, call: VelocityCall) -> Tensor:
        (height, width), patch = call.noisy.shape[-2:], self.geometry.patch
        noisy = pad_to(call.noisy, patch.height, patch.width).to(self.device, self.dtype)
        rows, columns = noisy.shape[3] // patch.height, noisy.shape[4] // patch.width
        t, pooled = call.t.to(self.device), _pooled(call.context.text)
        modulation = embed_time(self.time_text_embed, t, pooled, self.guidance)
        origin, frames = None, call.frames
        if self.setup.places == "relative":
            origin = frames.amin(dim=1)
            frames = frames - origin[:, None]
        rotary = self._rotary(target_positions(frames, rows, columns))
        target = Stream(self.x_embedder(noisy), modulation, rotary)
        out = self._read_context(target, call, origin)
        latents: Tensor = rearrange(
            self.proj_out(self.norm_out(out, modulation)),
            "b (k h w) (c pt ph pw) -> b c (k pt) (h ph) (w pw)",
            h=rows, w=columns, pt=patch.time, ph=patch.height, pw=patch.width,
        )  # fmt: skip
        return latents[..., :height, :width]

    def _read_context(self, target: Stream, call: VelocityCall, origin: Tensor | None) -> Tensor:
        """Return the targets' hidden tokens after all blocks.

        Args:
            target: as it enters.
            call: what was asked.
            origin: the latent frame from which time is counted, `[B]`; None: that of the video.
        """
        context, memory, rotary = call.context, None, None
        text, mask = self._refined_text(context.text, call.t.to(self.device))
        visibility = self._context_visibility(context, target.hidden.shape[1], mask)
        if context.memory is not None:
            start = origin if self.setup.joint else None
            memory = self._memory_stream(context.memory, target, _pooled(context.text), start)
        if origin is not None and not self.setup.joint:
            rotary = self._rotary_by_reader(context, origin)
        cached = None if context.cache is None else cached_by_block(context.cache)
        out, _ = self._run_blocks(
            target, text, memory, cached, visibility, context.features, rotary
        )
        assert out is not None, "targets went in"
        return out

    def _run_blocks(
        self,
        target: Stream | None,
        text: Tensor | None,
        memory: Stream | None,
        cached: Sequence[KeyValue] | None,
        visibility: Visibility,
        features: Mapping[str, Feature],
        rotary: MemoryRotary | None,
    ) -> tuple[Tensor | None, list[KeyValue]]:
        """Return the targets' hidden tokens `[B, N, D]`, and the memory's keys and values by block.

        One call a block, so that whatever hooks blocks (offload, FSDP) moves weights once.

        Args:
            target: the noisy tokens; None (and no text) to run memory alone.
            text: refined prompts `[B, L, D]`; they join the targets in the single-stream blocks.
            memory: its tokens; None where there is none, or where a cache stands for them.
            cached: keys and values by block, from a cache; None where there is none.
            visibility: which tokens attend to which.
            features: of a memory, for the blocks' enhancers.
            rotary: of the memory's keys, where they are rotated as they are read.
        """
        count = len(self.memory_blocks)
        contexts = (
            BlockContext(
                cached[i] if cached else None, visibility, features, i == count - 1, rotary
            )
            for i in range(count)
        )
        keys_values: list[KeyValue] = []
        for block in self.transformer_blocks:
            target_hidden, text, memory_hidden, kv = self._run_block(
                block, target, text, memory, next(contexts)
            )
            target, memory = _moved(target, target_hidden), _moved(memory, memory_hidden)
            keys_values.append(kv)
        main = None
        if target is not None and text is not None:
            main = target._replace(hidden=torch.cat([target.hidden, text], dim=1))
        for block in self.single_transformer_blocks:
            main_hidden, memory_hidden, kv = self._run_block(block, main, memory, next(contexts))
            main, memory = _moved(main, main_hidden), _moved(memory, memory_hidden)
            keys_values.append(kv)
        if main is None or target is None:
            return None, keys_values
        return main.hidden[:, : target.hidden.shape[1]], keys_values

    def _refined_text(self, text: Text, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text as the blocks read it `[B, L, D]`, and which of it is real `[B, L]`."""
        return self.context_embedder(text.embeddings, t.float() * STEPS, text.mask), text.mask

    def _rotary_by_reader(self, context: Context, origin: Tensor) -> MemoryRotary | None:
        """Return the tables of an `isolated` memory for itself and for targets that count time."""
        remembered = context.cache or context.memory
        if remembered is None or not remembered.valid.shape[1]:
            return None
        own = None
        if context.memory is not None:
            own = self._rotary(*self._memory_positions(context.memory))
        return MemoryRotary(own, self._rotary(*self._memory_positions(remembered, origin)))

    def _memory_stream(
        self,
        part: Part,
        target: Stream | None,
        pooled: Tensor | None,
        origin: Tensor | None = None,
    ) -> Stream:
        """Return a memory's tokens as they enter.

        Args:
            part: the tokens.
            target: what the targets enter as, where memory may share their time.
            pooled: the prompts' vectors, where memory may know them.
            origin: the latent frame from which time is counted, `[B]`; None: that of the video.
        """
        tokens = self._memory_tokens(part)
        rotary = self._rotary(*self._memory_positions(part, origin))
        if self.setup.memory_time is None:
            assert target is not None, "specs refuse isolated memory at a shared time"
            return Stream(tokens, target.modulation, rotary)
        if pooled is None or not self.setup.joint:
            shape = (1, self.config.pooled_projection_dim)
            pooled = torch.zeros(shape, device=self.device, dtype=self.dtype)
        t = torch.full((1,), self.setup.memory_time, device=self.device)
        return Stream(tokens, embed_clean_time(self.time_text_embed, t, pooled), rotary)

    @property
    def _rotary_axes(self) -> RotaryAxes:
        return rotary_axes(self.config)


def _moved(stream: Stream | None, hidden: Tensor | None) -> Stream | None:
    return None if stream is None or hidden is None else stream._replace(hidden=hidden)


def _pooled(text: Text) -> Tensor:
    assert text.pooled is not None, "context has checked it"
    return text.pooled


def rotary_axes(config: Any) -> RotaryAxes:
    """Return how a model's heads rotate, from diffusers' config; float32, as its table is."""
    return RotaryAxes(config.rope_theta, tuple(config.rope_axes_dim), torch.float32)


def packed(text: Text) -> Text:
    """Return the prompts with their real tokens first, cut to the longest prompt.

    HunyuanVideo's text has no positions, so only what is read counts; diffusers carries the
    padding along and masks it in every block.

    Raises:
        ValueError: a prompt has no real token, or no pooled vector.
    """
    if text.pooled is None:
        raise ValueError("HunyuanVideo reads a pooled vector of each prompt: this text has none")
    lengths = text.mask.sum(dim=1)
    if not bool((lengths > 0).all()):
        raise ValueError("a prompt has no real token: attention over nothing is undefined")
    if bool(text.mask.all()):
        return text
    order = text.mask.int().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    index = repeat(order, "b l -> b l e", e=text.embeddings.shape[-1])
    return attrs.evolve(
        text,
        embeddings=text.embeddings.gather(1, index.to(text.embeddings.device)),
        mask=text.mask.gather(1, order),
    )


def embed_time(embedder: Any, t: Tensor, pooled: Tensor, guidance: float | None) -> Tensor:
    """Return the embedding `[B, D]` of time, prompt and guidance, as diffusers makes it.

    Args:
        embedder: diffusers' `HunyuanVideoConditionEmbedding`.
        t: `[B]`, 0 to 1.
        pooled: `[B, G]`.
        guidance: the scale that the model was distilled on; None where it knows none.
    """
    scale = None
    if guidance is not None:  # rounded in the model's dtype, as the pipeline does
        scale = torch.full((t.shape[0],), guidance, dtype=pooled.dtype, device=t.device) * STEPS
    embedding: Tensor = embedder(t.float() * STEPS, pooled, scale)[0]
    return embedding


def embed_clean_time(embedder: Any, t: Tensor, pooled: Tensor) -> Tensor:
    """Return the embedding `[B or 1, D]` of time and prompt, guidance left out.

    What diffusers' `token_replace` models use for the clean first frame, at time 0.
    """
    steps = embedder.time_proj(t.float() * STEPS).to(pooled.dtype)
    embedding: Tensor = embedder.timestep_embedder(steps) + embedder.text_embedder(pooled)
    return embedding


def config_from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return numbers of diffusers' config from the shapes of a HunyuanVideo's tensors.

    Args:
        tensors: by diffusers' names; what is missing is left out.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def layers(prefix: str) -> int:
        return len({name.split(".")[1] for name in shapes if name.startswith(prefix)})

    config: dict[str, Any] = {
        "num_layers": layers("transformer_blocks."),
        "num_single_layers": layers("single_transformer_blocks."),
        "guidance_embeds": any(name.startswith(GUIDANCE) for name in shapes),
    }
    if first := shapes.get("x_embedder.proj.weight"):
        config |= {"in_channels": first[1], "patch_size_t": first[2], "patch_size": first[3]}
        if last := shapes.get("proj_out.weight"):
            config["out_channels"] = last[0] // (first[2] * first[3] * first[4])
    if norm := shapes.get("transformer_blocks.0.attn.norm_q.weight"):
        config["attention_head_dim"] = norm[0]
        if first:
            config["num_attention_heads"] = first[0] // norm[0]
    if text := shapes.get("context_embedder.proj_in.weight"):
        config["text_embed_dim"] = text[1]
    if pooled := shapes.get("time_text_embed.text_embedder.linear_1.weight"):
        config["pooled_projection_dim"] = pooled[1]
    return config


class HunyuanBackbone(HunyuanVideoDiT, HunyuanVideoTransformer3DModel):  # type: ignore[misc]
    """`hunyuan` and `tiny-hunyuan`; see `HunyuanVideoDiT` for what is exact.

    The weights of a `token_replace` checkpoint (image to video) have the same names: its clean
    first frame is a memory of one latent at time 0.
    """

    diffusers_class = "HunyuanVideoTransformer3DModel"
    spec_class = specs.HunyuanSpec
    release = Release(facts=config_from_tensors)

    # `wraps` keeps diffusers' signature, which its config loader reads.
    @functools.wraps(HunyuanVideoTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._use_memory_blocks()


class FramePackBackbone(HunyuanVideoDiT, HunyuanVideoFramepackTransformer3DModel):  # type: ignore[misc]
    """FramePack's transformer, whose past is a memory like any other.

    With the tokens of its own projections (`clean_x_embedder`; compressor `patchifier` reads them
    out of these weights, here they are kept only for files) and the rotary embedding `averaged`, it
    is diffusers' model. An image is read where `Text.image` brings its embeddings: they stand
    before the words. Without one there are no image tokens.
    """

    diffusers_class = "HunyuanVideoFramepackTransformer3DModel"
    spec_class = specs.FramePack
    release = Release(original="HunyuanVideoTransformer3DModelPacked", facts=config_from_tensors)

    # `wraps` keeps diffusers' signature, which its config loader reads.
    @functools.wraps(HunyuanVideoFramepackTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._use_memory_blocks()

    def reference(self) -> None:
        """Return None: diffusers' class does not run without a past."""
        return None

    def _refined_text(self, text: Text, t: Tensor) -> tuple[Tensor, Tensor]:
        tokens, mask = super()._refined_text(text, t)
        if text.image is None:
            return tokens, mask
        image = self.image_projection(text.image)
        real = mask.new_ones(image.shape[:2])
        return torch.cat([image, tokens], dim=1), torch.cat([real, mask], dim=1)

    def _rotary_table(self, positions: Tensor, extents: Tensor | None) -> RotaryTable:
        if extents is None:
            return super()._rotary_table(positions, None)
        return pooled_rotary_table(self._rotary_axes, positions, extents)


def pooled_rotary_table(axes: RotaryAxes, positions: Tensor, extents: Tensor) -> RotaryTable:
    """Return the mean rotary table of the cells that each token covers, as FramePack pools it.

    FramePack fills the table up to whole blocks by repeating its last row and column. So where a
    token covers fewer rows (columns) than others of its moment do, the last of them counts for the
    missing ones, too. A frame smaller than one block, and frames missing in time, are not filled.

    Args:
        axes: of the model.
        positions: centres of what tokens cover, float64 `[B, N, 3]`.
        extents: real cells that they cover, `[B, N, 3]`.

    Source: FramePack, arXiv 2504.12626; diffusers' `_pad_rotary_emb`.
    """
    share = extents / _block_sizes(positions, extents)  # [B, N, 3]
    counts = torch.tensor([width // 2 for width in axes.widths], device=positions.device)
    share = share.repeat_interleave(counts, dim=-1)[:, :, None].float()
    inside = rotary_table(axes, positions, extents)
    last = rotary_table(axes, positions + (extents - 1) / 2)
    return RotaryTable(
        inside.cos * share + last.cos * (1 - share), inside.sin * share + last.sin * (1 - share)
    )


def _block_sizes(positions: Tensor, extents: Tensor) -> Tensor:
    """Return the size of each token's block, `[B, N, 3]`: the largest extents of its moment.

    A moment is the tokens of one sample that share time and extent in time.
    """
    batch, count = positions.shape[:2]
    sample = torch.arange(batch, device=positions.device, dtype=positions.dtype)
    keys = [repeat(sample, "b -> b n", n=count), positions[..., 0], extents[..., 0]]
    _, moment = rearrange(keys, "key b n -> (b n) key").unique(dim=0, return_inverse=True)
    area = rearrange(extents[..., 1:], "b n axes -> (b n) axes")
    largest = area.new_zeros(int(moment.max()) + 1, 2)
    largest.scatter_reduce_(0, repeat(moment, "tokens -> tokens axes", axes=2), area, "amax")
    sizes = rearrange(largest[moment], "(b n) axes -> b n axes", b=batch)
    return torch.cat([extents[..., :1], sizes], dim=-1)
