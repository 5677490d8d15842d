"""What other programs call LoRA's tensors, and how our pairs become theirs.

diffusers  transformer.blocks.0.attn1.to_q.lora_A.weight, with its metadata
comfyui    diffusion_model.blocks.0.self_attn.q.lora_A.weight and .alpha
kohya      lora_unet_blocks_0_self_attn_q.lora_down.weight and .alpha

ComfyUI and kohya keep the names of the original models, where some of diffusers' linears are one.

Source: diffusers, loaders/lora_conversion_utils.py (`_convert_non_diffusers_wan_lora_to_diffusers`,
`_convert_musubi_wan_lora_to_diffusers`, `_convert_hunyuan_video_lora_to_diffusers`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from attrs import frozen
from torch import Tensor

DIFFUSERS, COMFYUI, KOHYA = "transformer.", "diffusion_model.", "lora_unet_"
_IN_BLOCK = re.compile(r"(\w+)\.(\d+)\.(.+)")  # list of blocks, number, linear


class OriginalLinear(NamedTuple):
    """A linear of the original model.

    Attributes:
        name: such as `double_blocks.3.img_attn_qkv`.
        members: diffusers' linears that are one there, in the order of its output rows.
    """

    name: str
    members: tuple[str, ...]


@frozen(kw_only=True)
class BlockList:
    """A list of blocks, in diffusers and in the original model.

    Attributes:
        diffusers: diffusers' name of the list.
        original: the original name.
        linears: the original linears of a block, and diffusers' linears that each is made of.
        spellings: ComfyUI's names of some of them.
    """

    diffusers: str
    original: str
    linears: Mapping[str, tuple[str, ...]]
    spellings: tuple[str, ...] = ()


@frozen(kw_only=True)
class Family:
    """The names of one architecture.

    Attributes:
        lists: its lists of blocks.
        network: what kohya's files call the module that trains such a LoRA.
        required: original linears that diffusers' reader of kohya files wants in every block.
        reads_alpha: whether diffusers' reader knows `.alpha`; else the weights hold the scale.
        others: original modules outside of blocks.
    """

    lists: Sequence[BlockList]
    network: str
    required: tuple[str, ...] = ()
    reads_alpha: bool = True
    others: tuple[str, ...] = ()

    def original(self, name: str) -> OriginalLinear | None:
        """Return the original linear that one of diffusers' is in, None where it is unknown."""
        match = _IN_BLOCK.fullmatch(name)
        if match is None:
            return None
        blocks_name, number, end = match.groups()
        for blocks in self.lists:
            for original, ends in blocks.linears.items():
                if blocks_name == blocks.diffusers and end in ends:
                    members = tuple(f"{blocks_name}.{number}.{member}" for member in ends)
                    return OriginalLinear(f"{blocks.original}.{number}.{original}", members)
        return None

    def members(self, name: str) -> tuple[str, ...]:
        """Return diffusers' linears that an original one holds; none where it is unknown."""
        match = _IN_BLOCK.fullmatch(name)
        if match is None:
            return ()
        blocks_name, number, end = match.groups()
        for blocks in self.lists:
            if blocks_name == blocks.original and end in blocks.linears:
                ends = blocks.linears[end]
                return tuple(f"{blocks.diffusers}.{number}.{member}" for member in ends)
        return ()

    def dotted(self, flat: str) -> str | None:
        """Return the original module whose dots kohya's files write as `_`, None if unknown."""
        for other in self.others:
            if flat == other.replace(".", "_"):
                return other
        for blocks in self.lists:
            for original in (*blocks.linears, *blocks.spellings):
                end = re.escape(original.replace(".", "_"))
                if match := re.fullmatch(rf"{blocks.original}_(\d+)_{end}", flat):
                    return f"{blocks.original}.{match[1]}.{original}"
        return None


def _attention(diffusers: str, original: str) -> dict[str, tuple[str, ...]]:
    ends = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    return {f"{original}.{end}": (f"{diffusers}.{linear}",) for end, linear in ends.items()}


_WAN = {
    **_attention("attn1", "self_attn"),
    **_attention("attn2", "cross_attn"),
    "ffn.0": ("ffn.net.0.proj",),
    "ffn.2": ("ffn.net.2",),
}
WAN = Family(
    network="networks.lora_wan",
    lists=(
        BlockList(
            diffusers="blocks",
            original="blocks",
            linears={
                **_WAN,
                "cross_attn.k_img": ("attn2.add_k_proj",),
                "cross_attn.v_img": ("attn2.add_v_proj",),
            },
        ),
    ),
    required=tuple(_WAN),
    others=(
        "patch_embedding",
        "text_embedding.0",
        "text_embedding.2",
        "time_embedding.0",
        "time_embedding.2",
        "time_projection.1",
        "head.head",
        "img_emb.proj.1",
        "img_emb.proj.3",
    ),  # fmt: skip
)
HUNYUAN = Family(
    network="networks.lora",
    lists=(
        BlockList(
            diffusers="transformer_blocks",
            original="double_blocks",
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
            spellings=(
                "img_mod.lin",
                "txt_mod.lin",
                "img_mlp.0",
                "img_mlp.2",
                "txt_mlp.0",
                "txt_mlp.2",
            ),  # fmt: skip
        ),
        BlockList(
            diffusers="single_transformer_blocks",
            original="single_blocks",
            linears={
                "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
                "linear2": ("proj_out",),
                "modulation.linear": ("norm.linear",),
            },
            spellings=("modulation.lin",),
        ),
    ),
    reads_alpha=False,
    others=("img_in.proj", "vector_in.in_layer", "vector_in.out_layer", "final_layer.linear"),
)
FAMILIES = {
    "WanTransformer3DModel": WAN,
    "HunyuanVideoTransformer3DModel": HUNYUAN,
    "HunyuanVideoFramepackTransformer3DModel": HUNYUAN,
}


class Pair(NamedTuple):
    """The two matrices of one linear: `down` (A) `[rank, in]`, `up` (B) `[out, rank]`."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.down.shape[0])


class LinearSize(NamedTuple):
    """Numbers of features of a linear."""

    inputs: int
    outputs: int


SizeOf = Callable[[str], LinearSize]  # of one of diffusers' linears, by name
Pairs = Mapping[str, Pair]  # by linear


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


def linear_kind(linear: str) -> str:
    """Return the name of a linear without the number of its block."""
    return re.sub(r"\.\d+\.", ".", linear, count=1)


def original_pairs(pairs: Pairs, family: Family, size_of: SizeOf) -> dict[str, Pair]:
    """Return the pairs by original names; linears that are one there become one.

    Raises:
        KeyError: a linear has no original name.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name in pairs:
        linear = family.original(name)
        if linear is None:
            raise KeyError(name)
        groups[linear.name] = linear.members
    return {
        name: fuse([pairs.get(m) for m in members], [size_of(m).outputs for m in members])
        for name, members in groups.items()
    }


def fuse(parts: Sequence[Pair | None], widths: Sequence[int]) -> Pair:
    """Return one pair for linears whose outputs stand side by side, exactly, at the sum of ranks.

    A are stacked, B stand on a diagonal, so that each output reads its own A alone.

    Args:
        parts: the linears in the order of their outputs; None: not adapted.
        widths: outputs of each.
    """
    adapted = [part for part in parts if part is not None]
    if len(parts) == 1:
        return adapted[0]
    down = torch.cat([part.down for part in adapted])
    up = adapted[0].up.new_zeros(sum(widths), down.shape[0])
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            up[row : row + width, column : column + part.rank] = part.up
            column += part.rank
        row += width
    return Pair(down, up)


def with_required(
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
        original = family.original(name)
        if original is None or original.name in every:
            continue
        if original.name.split(".", 2)[2] in family.required:  # without list and number
            inputs, outputs = size_of(name)
            every[original.name] = Pair(like.new_zeros(1, inputs), like.new_zeros(outputs, 1))
    return every


def scaled(up: Tensor, scale: float) -> Tensor:
    """Return B times a scale in float32, rounded once; divided by it again, it is off by an ulp."""
    return (up.double() * scale).float()


def comfyui(pairs: Pairs, scale: float, *, with_alpha: bool) -> dict[str, Tensor]:
    """Return ComfyUI's tensors of original pairs.

    Args:
        pairs: by original names.
        scale: alpha / rank.
        with_alpha: write `.alpha`; else the scale goes into B, which is float32 then.
    """
    tensors = {}
    for linear, pair in pairs.items():
        tensors[f"{COMFYUI}{linear}.lora_A.weight"] = pair.down
        tensors[f"{COMFYUI}{linear}.lora_B.weight"] = (
            pair.up if with_alpha else scaled(pair.up, scale)
        )
        if with_alpha:
            tensors[f"{COMFYUI}{linear}.alpha"] = torch.tensor(scale * pair.rank)
    return tensors


def kohya(pairs: Pairs, scale: float) -> dict[str, Tensor]:
    """Return the tensors of original pairs as sd-scripts and musubi-tuner write them.

    Args:
        pairs: by original names.
        scale: alpha / rank.
    """
    tensors = {}
    for linear, pair in pairs.items():
        flat = KOHYA + linear.replace(".", "_")
        tensors[f"{flat}.lora_down.weight"] = pair.down
        tensors[f"{flat}.lora_up.weight"] = pair.up
        tensors[f"{flat}.alpha"] = torch.tensor(scale * pair.rank)
    return tensors
