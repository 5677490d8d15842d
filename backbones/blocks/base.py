"""What LoRA, weights and enhancers need to know of a backbone made of a diffusers model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from ...core.interfaces.backbone import Backbone
from ...core.values.grid import Geometry
from .setup import Setup


class DiffusersBackbone(Backbone):
    """A diffusers model as a backbone: its names, its blocks, and where adapters hang.

    Attributes:
        diffusers_class: the name under which diffusers saves and loads the model.
        linears: what LoRA's targets (`LoRA.targets`) are called here, by target: ends of module
            names, as peft's `target_modules`.
        block_lists: names of the module lists that hold the blocks, in the order they run; each
            block registers a module `enhancer`, None at first, and ends its cross-attention with
            `blocks.enhancer.enhanced`. None named: the model reads no features of a memory.
        setup: how memory enters; set by whoever builds the model, before the first call.
        feature_widths: of the features of a memory that the blocks read, by name.
    """

    diffusers_class: ClassVar[str]
    linears: ClassVar[Mapping[str, tuple[str, ...]]]
    block_lists: ClassVar[tuple[str, ...]] = ()
    setup: Setup
    feature_widths: Mapping[str, int] = MappingProxyType({})

    if TYPE_CHECKING:  # what diffusers gives is not typed

        def __getattr__(self, name: str) -> Any: ...

    @property
    def geometry(self) -> Geometry:
        """The model's shapes, as it was built."""
        return self.setup.geometry

    @property
    def memory_blocks(self) -> list[Any]:
        """All transformer blocks, in the order they run."""
        return [block for name in self.block_lists for block in self.get_submodule(name).children()]
