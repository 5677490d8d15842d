"""LoRA tensors by the keys of other programs (conventions A), out of pairs by diffusers' names.

diffusers  transformer.blocks.0.attn1.to_q.lora_A.weight, with its metadata
comfyui    diffusion_model.blocks.0.self_attn.q.lora_A.weight and .alpha
kohya      lora_unet_blocks_0_self_attn_q.lora_down.weight and .alpha
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from attrs import frozen
from torch import Tensor

# ⟦backbones/lora/names.py⟧ What diffusers' linears are called in the original models, whose names other programs keep. Source: diffusers, loaders/lora_conversion_utils.py (`_convert_non_diffusers_wan_lora_to_diffusers`, `_convert_musubi_wan_lora_to_diffusers`, `_convert_hunyuan_video_lora_to_diffusers`).


_NAME = re.compile(r"(\w+)\.(\d+)\.(.+)")


class Place(NamedTuple):
    """Where a linear of diffusers lies in the original model.

    Attributes:
        linear: the original linear, such as `double_blocks.3.img_attn_qkv`.
        members: diffusers' linears that are one there, in the order of its output rows.
    """

    linear: str
    members: tuple[str, ...]


@frozen(kw_only=True)
class Blocks:
    """One list of blocks.

    Attributes:
        ours: diffusers' name of the list.
        theirs: the original name.
        linears: the original linear of a block, and diffusers' linears that are one there.
    """

    ours: str
    theirs: str
    linears: Mapping[str, tuple[str, ...]]


@frozen(kw_only=True)
class Family:
    """The names of one architecture.

    Attributes:
        lists: its lists of blocks.
        filled: original linears that diffusers' reader of kohya files wants in every block.
        scales: whether diffusers' reader knows `.alpha`; else the scale must be in the weights.
        split: original linears that diffusers' reader can split at its own model's width only.
        network: what kohya's files call the module that trains such a LoRA.
    """

    lists: Sequence[Blocks]
    network: str
    filled: tuple[str, ...] = ()
    scales: bool = True
    split: tuple[str, ...] = ()

    def place(self, name: str) -> Place | None:
        """Return where one of diffusers' linears lies in the original model."""
        found = _NAME.fullmatch(name)
        for blocks in self.lists if found else ():
            for theirs, ends in blocks.linears.items():
                if found and found[1] == blocks.ours and found[3] in ends:
                    members = tuple(f"{found[1]}.{found[2]}.{end}" for end in ends)
                    return Place(f"{blocks.theirs}.{found[2]}.{theirs}", members)
        return None

    def members(self, linear: str) -> tuple[str, ...]:
        """Return diffusers' linears that an original one holds; none where it is unknown."""
        found = _NAME.fullmatch(linear)
        for blocks in self.lists if found else ():
            if found and found[1] == blocks.theirs and found[3] in blocks.linears:
                ends = blocks.linears[found[3]]
                return tuple(f"{blocks.ours}.{found[2]}.{end}" for end in ends)
        return ()

    def dotted(self, flat: str) -> str | None:
        """Return the original linear that kohya's files write with `_` for every dot."""
        for blocks in self.lists:
            for theirs in blocks.linears:
                end = re.escape(theirs.replace(".", "_"))
                if found := re.fullmatch(rf"{blocks.theirs}_(\d+)_{end}", flat):
                    return f"{blocks.theirs}.{found[1]}.{theirs}"
        return None

    @property
    def foreign(self) -> tuple[str, ...]:
        """Original names of lists of blocks that diffusers calls otherwise."""
        return tuple(blocks.theirs for blocks in self.lists if blocks.theirs != blocks.ours)


def _attention(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    ends = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    return {f"{theirs}.{end}": (f"{ours}.{linear}",) for end, linear in ends.items()}


_WAN = {
    **_attention("attn1", "self_attn"),
    **_attention("attn2", "cross_attn"),
    "ffn.0": ("ffn.net.0.proj",),
    "ffn.2": ("ffn.net.2",),
}
WAN = Family(
    network="networks.lora_wan",
    lists=(
        Blocks(
            ours="blocks",
            theirs="blocks",
            linears={
                **_WAN,
                "cross_attn.k_img": ("attn2.add_k_proj",),
                "cross_attn.v_img": ("attn2.add_v_proj",),
            },
        ),
    ),
    filled=tuple(_WAN),
)
HUNYUAN = Family(
    network="networks.lora",
    lists=(
        Blocks(
            ours="transformer_blocks",
            theirs="double_blocks",
            linears={
                "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "img_mod.linear": ("norm1.linear",),
                "txt_mod.linear": ("norm1_context.linear",),
                "img_attn_proj": ("attn.to_out.0",),
                "txt_attn_proj": ("attn.to_add_out",),
                "img_mlp.fc1": ("ff.net.0.proj",),
                "img_mlp.fc2": ("ff.net.2",),
                "txt_mlp.fc1": ("ff_context.net.0.proj",),
                "txt_mlp.fc2": ("ff_context.net.2",),
            },
        ),
        Blocks(
            ours="single_transformer_blocks",
            theirs="single_blocks",
            linears={
                "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
                "linear2": ("proj_out",),
                "modulation.linear": ("norm.linear",),
            },
        ),
    ),
    scales=False,
    split=("linear1",),
)
FAMILIES = {
    "WanTransformer3DModel": WAN,
    "HunyuanVideoTransformer3DModel": HUNYUAN,
    "HunyuanVideoFramepackTransformer3DModel": HUNYUAN,
}


DIFFUSERS, COMFYUI, KOHYA = "transformer.", "diffusion_model.", "lora_unet_"


class Pair(NamedTuple):
    """The two matrices of one linear: `down` (A) `[rank, in]`, `up` (B) `[out, rank]`."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.down.shape[0])


class Sizes(NamedTuple):
    """Numbers of features of a linear."""

    enter: int
    leave: int


SizeOf = Callable[[str], Sizes]  # of one of diffusers' linears, by name
Pairs = Mapping[str, Pair]


def pairs_of(tensors: Mapping[str, Tensor]) -> dict[str, Pair]:
    """Return the pairs by linear of tensors such as `blocks.0.attn1.to_q.lora_A.weight`.

    Raises:
        KeyError: a linear has only one of the two.
    """
    linears = dict.fromkeys(name.partition(".lora_")[0] for name in tensors)
    return {
        linear: Pair(tensors[f"{linear}.lora_A.weight"], tensors[f"{linear}.lora_B.weight"])
        for linear in linears
    }


def kind_of(linear: str) -> str:
    """Return the name of a linear without the number of its block."""
    return re.sub(r"\.\d+\.", ".", linear, count=1)


def original(pairs: Pairs, family: Family, size_of: SizeOf) -> dict[str, Pair]:
    """Return the pairs by original names; linears that are one there become one.

    Raises:
        KeyError: a linear has no original name.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name in pairs:
        place = family.place(name)
        if place is None:
            raise KeyError(name)
        groups[place.linear] = place.members
    return {
        linear: fuse([pairs.get(m) for m in members], [size_of(m).leave for m in members])
        for linear, members in groups.items()
    }


def fuse(parts: Sequence[Pair | None], widths: Sequence[int]) -> Pair:
    """Return one pair for linears whose outputs stand side by side, exactly, at the sum of ranks.

    A are stacked, B stand on a diagonal, so that each output reads its own A alone.

    Args:
        parts: the linears in the order of their outputs; None: not adapted.
        widths: outputs of each.
    """
    given = [part for part in parts if part is not None]
    if len(parts) == 1:
        return given[0]
    down = torch.cat([part.down for part in given])
    up = given[0].up.new_zeros(sum(widths), down.shape[0])
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            up[row : row + width, column : column + part.rank] = part.up
            column += part.rank
        row += width
    return Pair(down, up)


def filled(
    pairs: Pairs, family: Family, linears: Iterable[str], size_of: SizeOf
) -> dict[str, Pair]:
    """Return original pairs with zeros of rank 1 where diffusers' reader of kohya files wants one.

    Args:
        pairs: by original names.
        family: of the model.
        linears: all of diffusers' linears that the model has.
        size_of: of those.
    """
    like = next(iter(pairs.values())).down
    every = dict(pairs)
    for name in linears:
        place = family.place(name)
        if place and place.linear not in every and _end(place.linear) in family.filled:
            size = size_of(name)
            every[place.linear] = Pair(like.new_zeros(1, size.enter), like.new_zeros(size.leave, 1))
    return every


def _end(linear: str) -> str:
    return linear.split(".", 2)[2]


def comfyui(pairs: Pairs, scale: float, *, scales: bool) -> dict[str, Tensor]:
    """Return ComfyUI's tensors of original pairs.

    Args:
        pairs: by original names.
        scale: alpha / rank.
        scales: write `.alpha`; else the scale goes into B.
    """
    tensors = {}
    for linear, pair in pairs.items():
        tensors[f"{COMFYUI}{linear}.lora_A.weight"] = pair.down
        tensors[f"{COMFYUI}{linear}.lora_B.weight"] = pair.up if scales else pair.up * scale
        if scales:
            tensors[f"{COMFYUI}{linear}.alpha"] = torch.tensor(scale * pair.rank)
    return tensors


def kohya(pairs: Pairs, scale: float) -> dict[str, Tensor]:
    """Return the tensors of original pairs as sd-scripts and musubi-tuner write them."""
    tensors = {}
    for linear, pair in pairs.items():
        flat = KOHYA + linear.replace(".", "_")
        tensors[f"{flat}.lora_down.weight"] = pair.down
        tensors[f"{flat}.lora_up.weight"] = pair.up
        tensors[f"{flat}.alpha"] = torch.tensor(scale * pair.rank)
    return tensors
