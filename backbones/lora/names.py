"""What diffusers' linears are called in the original models, whose names other programs keep.

Source: diffusers, loaders/lora_conversion_utils.py (`_convert_non_diffusers_wan_lora_to_diffusers`,
`_convert_musubi_wan_lora_to_diffusers`, `_convert_hunyuan_video_lora_to_diffusers`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attrs import frozen

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
        """Give where one of diffusers' linears lies in the original model."""
        found = _NAME.fullmatch(name)
        for blocks in self.lists if found else ():
            for theirs, ends in blocks.linears.items():
                if found and found[1] == blocks.ours and found[3] in ends:
                    members = tuple(f"{found[1]}.{found[2]}.{end}" for end in ends)
                    return Place(f"{blocks.theirs}.{found[2]}.{theirs}", members)
        return None

    def members(self, linear: str) -> tuple[str, ...]:
        """Give diffusers' linears that an original one holds; none where it is unknown."""
        found = _NAME.fullmatch(linear)
        for blocks in self.lists if found else ():
            if found and found[1] == blocks.theirs and found[3] in blocks.linears:
                ends = blocks.linears[found[3]]
                return tuple(f"{blocks.ours}.{found[2]}.{end}" for end in ends)
        return ()

    def dotted(self, flat: str) -> str | None:
        """Give the original linear that kohya's files write with `_` for every dot."""
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
