"""How the models of HunyuanVideo's family read memory: what they share, whatever their class."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ...core.interfaces.backbone import Feature, VelocityCall, target_positions
from ...core.interfaces.compressor import pad_to
from ...core.values.memory import Part
from ...core.values.shapes import Valid
from ...core.values.text import Text
from ..blocks.memory import groups_of
from ..blocks.rotary import Rotary, rotary
from ..blocks.setup import Keys, check_call, pairs, through
from ..dit import DiT
from ..specs import DiTSpec
from .block import DualBlock, Known, SingleBlock, Stream, View, axes_of, blocks_of
from .specs import HunyuanSpec

# ⟦backbones/hunyuan/ends.py⟧ What happens before and after HunyuanVideo's blocks: text, time and the head, without state.


STEPS = 1000.0  # HunyuanVideo counts time, and guidance, in thousandths


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
    index = order[..., None].expand(-1, -1, text.embeddings.shape[-1])
    return attrs.evolve(
        text,
        embeddings=text.embeddings.gather(1, index.to(text.embeddings.device)),
        mask=text.mask.gather(1, order),
    )


def view_of(view: View, valid: Valid | None, targets: int, words: Tensor | None) -> View:
    """Return a view with the real keys of memory `[B, M]`, targets and text `[B, L]`.

    A memory of padding alone keeps all of it for itself, because a softmax over nothing is NaN;
    no one else sees it.
    """
    given = [x for x in (valid, words) if x is not None]
    if all(bool(x.all()) for x in given):
        return view
    announce_ragged()
    ones = given[0].new_ones(given[0].shape[0], targets)
    parts = [x.to(ones.device) for x in (valid, ones, words) if x is not None]
    view = view._replace(all=_places(torch.cat(parts, dim=1)))
    if valid is None or bool(valid.all()):
        return view
    return view._replace(memory=_places(valid | ~valid.any(dim=1, keepdim=True)))


def _places(real: Tensor) -> tuple[Tensor, ...]:
    return tuple(row.nonzero()[:, 0] for row in real)


@functools.cache
def announce_ragged() -> None:
    """Say once which way was taken."""
    logging.getLogger(__name__).info(
        "prompts or memories of different lengths in one batch: attention runs sample by sample, "
        "without masks; batches of one length are faster where samples are small"
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
    time: Tensor = embedder(t.float() * STEPS, pooled, scale)[0]
    return time


def embed_clean(embedder: Any, t: Tensor, pooled: Tensor) -> Tensor:
    """Return the embedding `[B or 1, D]` of time and prompt, guidance left out.

    What diffusers' `token_replace` models use for the clean first frame, at time 0.
    """
    steps = embedder.time_proj(t.float() * STEPS).to(pooled.dtype)
    time: Tensor = embedder.timestep_embedder(steps) + embedder.text_embedder(pooled)
    return time


def unpatchify(tokens: Tensor, grid: tuple[int, ...], patch: tuple[int, int, int]) -> Tensor:
    """Return latents `[B, C, T, H, W]` of the tokens of a grid (time, rows, columns)."""
    cells = tokens.reshape(tokens.shape[0], *grid, -1, *patch)
    return cells.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


# ⟦backbones/hunyuan/run.py⟧ All blocks of a HunyuanVideo, one after the other: those of two streams, then those of one.


class Run(NamedTuple):
    """What goes through the blocks.

    Attributes:
        target: the noisy tokens; None (and no text) to run memory alone.
        text: refined prompts `[B, L, D]`; they join the targets in the single-stream blocks.
        memory: its tokens; None where there is none, or where a cache stands for them.
    """

    target: Stream | None
    text: Tensor | None
    memory: Stream | None


def run_blocks(
    model: Any,
    run: Run,
    past: Sequence[Keys] | None,
    view: View,
    features: Mapping[str, Feature],
) -> tuple[Tensor | None, list[Keys]]:
    """Return the targets' hidden tokens `[B, N, D]`, and the memory's keys block by block.

    One call a block, so that whatever hooks blocks (offload, FSDP) moves weights once.

    Args:
        model: with `transformer_blocks` and `single_transformer_blocks`.
        run: what goes through.
        past: keys and values by block, from a cache; None where there is none.
        view: who sees whom.
        features: of a memory, for the blocks' enhancers.
    """
    total = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    held: Sequence[Keys | None] = past or [None] * total
    known = [Known(held[i], view, features, i == total - 1) for i in range(total)]
    target, text, memory = run
    made: list[Keys] = []
    for block in model.transformer_blocks:
        out, text, own, keys = through(model, block, target, text, memory, known[len(made)])
        target, memory = _moved(target, out), _moved(memory, own)
        made.append(keys)
    main = _with_text(target, text)
    for block in model.single_transformer_blocks:
        out, own, keys = through(model, block, main, memory, known[len(made)])
        main, memory = _moved(main, out), _moved(memory, own)
        made.append(keys)
    return _without_text(main, run.target), made


def _moved(stream: Stream | None, hidden: Tensor | None) -> Stream | None:
    return None if stream is None or hidden is None else stream._replace(hidden=hidden)


def _with_text(target: Stream | None, text: Tensor | None) -> Stream | None:
    if target is None or text is None:
        return None
    return target._replace(hidden=torch.cat([target.hidden, text], dim=1))


def _without_text(main: Stream | None, target: Stream | None) -> Tensor | None:
    return None if main is None or target is None else main.hidden[:, : target.hidden.shape[1]]


class HunyuanReader(DiT):
    """HunyuanVideo with memory. Without memory it is diffusers' model to the bit.

    Prompts are cut to their real tokens (`ends.packed`): on prompts that fill their length, or are
    cut already, no number differs from diffusers'; on padded ones the last bits do.

    Memory goes through the weights of latents in both kinds of blocks, and is dropped before the
    head. `full`: it stands before the targets and sees everything, as the frames of one longer
    video would. Where its time is its own, it is modulated by that time and the prompt, guidance
    left out, as the clean first frame of diffusers' `token_replace` models. `isolated`: it sees
    memory only, under a constant modulation: its time, an all-zero pooled prompt and no guidance,
    so that its keys and values serve every step, both guidance branches and every prompt. Zeros,
    because any other constant would be a vector of one text encoder's.

    Attributes:
        guidance: the scale that the model was distilled on, None where it knows none; set by
            whoever builds the model.
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
    guidance: float | None = None

    def _use_memory_blocks(self) -> None:
        config = self.config
        self.transformer_blocks = nn.ModuleList(blocks_of(DualBlock, config, config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            blocks_of(SingleBlock, config, config.num_single_layers)
        )

    def set_up(self, spec: DiTSpec) -> None:
        """Keep what a spec says of how memory enters, and its guidance scale."""
        super().set_up(spec)
        self.guidance = spec.guidance if isinstance(spec, HunyuanSpec) else None

    def fitted(self) -> list[Parameter]:
        """Return the parameters that `fit` copies."""
        return list(self.x_embedder.proj.parameters())

    def blank_text(self, batch: int, length: int) -> Text:
        """Return empty embeddings `[batch, length, E]` and pooled vectors of the widths read."""
        shape = (batch, length, self.config.text_embed_dim)
        empty = torch.zeros(shape, device=self.device, dtype=self.dtype)
        pooled = empty.new_zeros(batch, self.config.pooled_projection_dim)
        mask = empty.new_ones(shape[:2], dtype=torch.bool)
        return Text(embeddings=empty, mask=mask, pooled=pooled)

    def _memory_keys(self, new: Part, past: list[Keys] | None, every: Part) -> list[Keys]:
        stream = self._memory_stream(new, None, None)
        view = view_of(self._view(every), every.valid.to(self.device), 0, None)
        return run_blocks(self, Run(None, None, stream), past, view, {})[1]

    def _read_text(self, text: Text) -> Text:
        return packed(text.to(self.device, self.dtype))

    def _velocity(self, call: VelocityCall) -> Tensor:
        check_call(call, self.setup.time)
        patch, (height, width) = self.geometry.patch, call.noisy.shape[-2:]
        cells = (patch.time, patch.height, patch.width)
        noisy = pad_to(call.noisy, patch.height, patch.width).to(self.device, self.dtype)
        grid = tuple(size // cell for size, cell in zip(noisy.shape[2:], cells, strict=True))
        t, pooled = call.t.to(self.device), _pooled(call.context.text)
        time = embed_time(self.time_text_embed, t, pooled, self.guidance)
        turns = self._turns(target_positions(call.frames, grid[1], grid[2]))
        out = self._read(Stream(self.x_embedder(noisy), time, turns), call)
        tokens = self.proj_out(self.norm_out(out, time))
        return unpatchify(tokens, grid, cells)[..., :height, :width]

    def _read(self, target: Stream, call: VelocityCall) -> Tensor:
        context, memory = call.context, None
        words, mask = self._words(context.text, call.t.to(self.device))
        held = context.cache or context.memory
        valid = None if held is None or not held.valid.shape[1] else held.valid.to(self.device)
        view = view_of(self._view(context.memory), valid, target.hidden.shape[1], mask)
        if context.memory is not None:
            memory = self._memory_stream(context.memory, target, _pooled(context.text))
        past = pairs(context.cache) if context.cache else None
        out, _ = run_blocks(self, Run(target, words, memory), past, view, context.features)
        assert out is not None, "targets went in"
        return out

    def _words(self, text: Text, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text as the blocks read it `[B, L, D]`, and which of it is real `[B, L]`."""
        return self.context_embedder(text.embeddings, t.float() * STEPS, text.mask), text.mask

    def _view(self, memory: Part | None) -> View:
        """Return who sees whom where a memory of these tokens goes through, all of them real."""
        if memory is None or self.setup.attention != "isolated-causal":
            return View(joint=self.setup.joint)
        return View(groups=groups_of(memory, self.setup.cache_block))

    def _memory_stream(self, part: Part, target: Stream | None, pooled: Tensor | None) -> Stream:
        tokens, places = self._memory_tokens(part), self._memory_places(part)
        return Stream(tokens, self._memory_modulation(target, pooled), self._turns(*places))

    def _memory_modulation(self, target: Stream | None, pooled: Tensor | None) -> Tensor:
        if self.setup.memory_time is None:
            assert target is not None, "specs refuse isolated memory at a shared time"
            return target.time
        if pooled is None or not self.setup.joint:
            shape = (1, self.config.pooled_projection_dim)
            pooled = torch.zeros(shape, device=self.device, dtype=self.dtype)
        t = torch.full((1,), self.setup.memory_time, device=self.device)
        return embed_clean(self.time_text_embed, t, pooled)

    def _turns(self, positions: Tensor, extents: Tensor | None = None) -> Rotary:
        turns = rotary(axes_of(self.config), positions, extents)
        device = self.device  # asked once: diffusers looks through all modules for it
        return Rotary(*(x.to(device) for x in turns))


def _pooled(text: Text) -> Tensor:
    assert text.pooled is not None, "context has checked it"
    return text.pooled
