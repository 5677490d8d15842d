"""What LoRA, weights and enhancers need to know of a backbone made of a diffusers model.

It stands below them, so that they need not import `dit.DiT`, which uses them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from attrs import frozen
from torch import Tensor

from ...core.interfaces.backbone import Backbone
from ...core.values.grid import Geometry
from ..lora.layouts import FAMILIES, Family
from ..specs import DiTSpec


@frozen(kw_only=True)
class Setup:
    """The shapes of one backbone, and how memory enters it: what diffusers' config does not say.

    Attributes:
        geometry: shapes, as compressors may know them.
        attention: `full`, `isolated` or `isolated-causal`.
        memory_time: flow time of memory tokens, 0 to 1, or None to share the targets'.
        rotary: `centre` or `averaged`: the rotary embedding of a memory token's centre, or the mean
            over all cells that it covers.
        cache_block: latents of a block of `isolated-causal` memory.
        time: `sample` or `token`: whether targets are modulated by one time a sample or a token.
        places: `absolute` or `relative`: whether time is counted from the beginning of the video or
            from the first target, where the model can tell (HunyuanVideo).
    """

    geometry: Geometry
    attention: str
    memory_time: float | None
    rotary: str = "centre"
    cache_block: int = 8
    time: str = "sample"
    places: str = "absolute"

    @classmethod
    def of(cls, spec: DiTSpec, *, time: str = "sample") -> Setup:
        """Return the setup that a spec describes."""
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
        """Whether memory attends to targets, too."""
        return self.attention == "full"


class Changed(NamedTuple):
    """A parameter that frozen LoRAs changed (`.diff` in their files).

    Attributes:
        original: as it was, on the CPU.
        wide: with all that was added, in float32 on the CPU.
    """

    original: Tensor
    wide: Tensor


class DiffusersBackbone(Backbone):
    """A diffusers model as a backbone: its names, its blocks, and where adapters go.

    Attributes:
        diffusers_class: the name under which diffusers saves and loads the model.
        linears: the linears that each LoRA target (`LoRA.targets`) stands for: ends of module
            names, as peft's `target_modules`.
        block_lists: names of the module lists that hold the blocks, in the order they run. Each
            block registers a module `enhancer`, None at first, and ends its cross-attention with
            `blocks.enhancer.enhanced`. Empty: the model reads no features of a memory.
        lora_family: what other programs call the model's linears, so that its LoRA can be exported
            to them and read from them; None: as `lora.layouts.FAMILIES` knows `diffusers_class`.
        setup: shapes, and how memory enters; whoever builds the model sets it before the first
            call.
        feature_widths: widths of the memory features that the blocks read, by name.
        changed: parameters that frozen LoRAs changed, by name.
    """

    diffusers_class: ClassVar[str]
    linears: ClassVar[Mapping[str, tuple[str, ...]]]
    block_lists: ClassVar[tuple[str, ...]] = ()
    lora_family: ClassVar[Family | None] = None
    setup: Setup
    feature_widths: Mapping[str, int] = MappingProxyType({})
    changed: Mapping[str, Changed] = MappingProxyType({})

    if TYPE_CHECKING:  # what diffusers' models have is not typed

        def __getattr__(self, name: str) -> Any: ...

    @property
    def geometry(self) -> Geometry:
        """The model's shapes, as it was built."""
        return self.setup.geometry

    @property
    def known_family(self) -> Family | None:
        """What other programs call the linears of the model; None where that is not known."""
        return self.lora_family or FAMILIES.get(self.diffusers_class)

    @property
    def memory_blocks(self) -> list[Any]:
        """All transformer blocks, in the order they run."""
        return [block for name in self.block_lists for block in self.get_submodule(name).children()]
