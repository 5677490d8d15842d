"""The public face for authors of plugins: all that a plugin is made of, from one place.

    from longtake.authors import CellCompressor, CompressorSpec, Plugin, Rate, doc, impl

What is here is stable: within one major version of longtake no name goes away and no signature
changes but by a new argument with a default. A name that must go is first announced in the
CHANGELOG, and works with a warning for one minor version. What is imported from anywhere else in
the package may move at any time.

Importing this module imports no torch: a name is looked up when it is first used, so that a module
of hooks and specs, which every command reads, stays light. `dir(longtake.authors)` lists all names,
`help` of an interface shows what its author answers, and CONTRIBUTING.md has a whole plugin of each
hard kind.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backbones.blocks.attention import (
        BlockContext,
        KeyValue,
        Projections,
        Stream,
        Visibility,
        attend,
        attend_to_memory,
        concat,
    )
    from .backbones.blocks.base import Setup
    from .backbones.blocks.enhancer import Enhancer, enhanced
    from .backbones.blocks.rotary import RotaryAxes, RotaryTable, rotary_table, rotate
    from .backbones.codecs.specs import Dct, HunyuanVae, WanVae
    from .backbones.dit import DiT
    from .backbones.lora.layouts import BlockList, Family
    from .backbones.specs import (
        DiTSpec,
        count_field,
        dtype_field,
        memory_time_field,
        number_field,
        weights_field,
    )
    from .backbones.texts.specs import Bytes, LlamaClip, Umt5
    from .backbones.two_stream import TwoStreamBlock, TwoStreamDiT, join_heads, project_heads
    from .backbones.weights.find import Release
    from .core.config import load_experiment
    from .core.contract import (
        check_backbone,
        check_codec,
        check_compressor,
        check_masker,
        check_metric,
        check_retriever,
        check_text_encoder,
    )
    from .core.contract.samples import sample_fit, sample_history
    from .core.errors import LongtakeError, UserError
    from .core.experiment import Experiment
    from .core.graphed import GraphedStep
    from .core.hooks import Plugin, impl
    from .core.interfaces.backbone import (
        Backbone,
        Cache,
        Call,
        Context,
        ContextCall,
        Feature,
        LoraFile,
        RememberCall,
        VelocityCall,
        target_positions,
    )
    from .core.interfaces.codec import Codec, from_bytes, to_bytes, to_unit
    from .core.interfaces.compressor import (
        Compressor,
        Fit,
        Length,
        MemoryEncoder,
        Needs,
        State,
        pad_to,
        project,
    )
    from .core.interfaces.masker import Masker
    from .core.interfaces.metric import Goal, Metric
    from .core.interfaces.retriever import LatentFrames, PixelFrames, Retrieved, Retriever, Scene
    from .core.interfaces.spec import (
        BackboneSpec,
        CodecSpec,
        CompressorSpec,
        LoRA,
        MaskerSpec,
        MetricSpec,
        PluginSpec,
        RetrieverSpec,
        TextEncoderSpec,
        between,
        doc,
        each,
        ge,
        gt,
        in_,
        instance_of,
        le,
        lt,
        named,
        unit,
    )
    from .core.interfaces.streaming import (
        CellCompressor,
        Encoded,
        GridCompressor,
        LatentSpan,
        Streamed,
        TwoPartStep,
        advance,
        appended,
        incomplete_block,
        own_copy,
        seen_size,
        take_blocks,
    )
    from .core.interfaces.text_encoder import TextEncoder
    from .core.values.draws import Draws
    from .core.values.flow import interpolate, levels
    from .core.values.grid import Geometry, Rate, Size3, ceil_div
    from .core.values.history import Continuation, History, Query
    from .core.values.memory import Memory, Part, grid_part, grid_points, merge, stack, token_places
    from .core.values.shapes import (
        Coordinates,
        Counts,
        Frames,
        Latents,
        Pixels,
        Targets,
        Tokens,
        Valid,
    )
    from .core.values.text import Text
    from .plugins.compressors.conv_layers import (
        AttentionStack,
        CausalConv,
        ConvShape,
        ConvTrunk,
        FrameAttention,
        TokenHead,
    )
    from .plugins.compressors.specs import Conv
    from .plugins.compressors.tokens import LrBranch
    from .plugins.maskers.hiding import (
        Branch,
        GradedMasker,
        HidingMasker,
        draw_omega,
        frames_at,
        per_frame,
    )
    from .plugins.maskers.specs import GradedSpec, HidingSpec, OmegaSpec

_HOMES = {  # by module; those of specs and hooks import no torch
    # hooks: what a package or file offers
    ".core.hooks": "Plugin impl",
    # specs: bases, and what fields are made of
    ".core.interfaces.spec": (
        "BackboneSpec CodecSpec CompressorSpec LoRA MaskerSpec MetricSpec PluginSpec "
        "RetrieverSpec TextEncoderSpec between doc each ge gt in_ instance_of le lt named unit"
    ),
    ".backbones.specs": (
        "DiTSpec count_field dtype_field memory_time_field number_field weights_field"
    ),
    ".backbones.codecs.specs": "Dct HunyuanVae WanVae",
    ".backbones.texts.specs": "Bytes LlamaClip Umt5",
    ".plugins.compressors.specs": "Conv",
    ".plugins.maskers.specs": "GradedSpec HidingSpec OmegaSpec",
    ".core.experiment": "Experiment",
    ".core.config": "load_experiment",
    # values: what flows
    ".core.values.grid": "Geometry Rate Size3 ceil_div",
    ".core.values.history": "Continuation History Query",
    ".core.values.memory": "Memory Part grid_part grid_points merge stack token_places",
    ".core.values.text": "Text",
    ".core.values.draws": "Draws",
    ".core.values.flow": "interpolate levels",
    ".core.values.shapes": "Coordinates Counts Frames Latents Pixels Targets Tokens Valid",
    ".core.errors": "LongtakeError UserError",
    # compressors
    ".core.interfaces.compressor": (
        "Compressor Fit Length MemoryEncoder Needs State pad_to project"
    ),
    ".core.interfaces.streaming": (
        "CellCompressor Encoded GridCompressor LatentSpan Streamed TwoPartStep advance appended "
        "incomplete_block own_copy seen_size take_blocks"
    ),
    ".core.graphed": "GraphedStep",
    ".plugins.compressors.conv_layers": (
        "AttentionStack CausalConv ConvShape ConvTrunk FrameAttention TokenHead"
    ),
    ".plugins.compressors.tokens": "LrBranch",
    # maskers
    ".core.interfaces.masker": "Masker",
    ".plugins.maskers.hiding": ("Branch GradedMasker HidingMasker draw_omega frames_at per_frame"),
    # retrievers and metrics
    ".core.interfaces.retriever": "LatentFrames PixelFrames Retrieved Retriever Scene",
    ".core.interfaces.metric": "Goal Metric",
    # codecs and text encoders
    ".core.interfaces.codec": "Codec from_bytes to_bytes to_unit",
    ".core.interfaces.text_encoder": "TextEncoder",
    # backbones
    ".core.interfaces.backbone": (
        "Backbone Cache Call Context ContextCall Feature LoraFile RememberCall VelocityCall "
        "target_positions"
    ),
    ".backbones.dit": "DiT",
    ".backbones.two_stream": "TwoStreamBlock TwoStreamDiT join_heads project_heads",
    ".backbones.blocks.base": "Setup",
    ".backbones.blocks.attention": (
        "BlockContext KeyValue Projections Stream Visibility attend attend_to_memory concat"
    ),
    ".backbones.blocks.enhancer": "Enhancer enhanced",
    ".backbones.blocks.rotary": "RotaryAxes RotaryTable rotary_table rotate",
    ".backbones.lora.layouts": "BlockList Family",
    ".backbones.weights.find": "Release",
    # contracts: the checks that every plugin must pass
    ".core.contract": (
        "check_backbone check_codec check_compressor check_masker check_metric check_retriever "
        "check_text_encoder"
    ),
    ".core.contract.samples": "sample_fit sample_history",
}

__all__ = [
    "AttentionStack", "Backbone", "BackboneSpec", "BlockContext", "BlockList", "Branch", "Bytes",
    "Cache", "Call", "CausalConv", "CellCompressor", "Codec", "CodecSpec", "Compressor",
    "CompressorSpec", "Context", "ContextCall", "Continuation", "Conv", "ConvShape", "ConvTrunk",
    "Coordinates", "Counts", "Dct", "DiT", "DiTSpec", "Draws", "Encoded", "Enhancer", "Experiment",
    "Family", "Feature", "Fit", "FrameAttention", "Frames", "Geometry", "Goal", "GradedMasker",
    "GradedSpec", "GraphedStep", "GridCompressor", "HidingMasker", "HidingSpec", "History",
    "HunyuanVae", "KeyValue", "LatentFrames", "LatentSpan", "Latents", "Length", "LlamaClip",
    "LoRA", "LongtakeError", "LoraFile", "LrBranch", "Masker", "MaskerSpec", "Memory",
    "MemoryEncoder", "Metric", "MetricSpec", "Needs", "OmegaSpec", "Part", "PixelFrames", "Pixels",
    "Plugin", "PluginSpec", "Projections", "Query", "Rate", "Release", "RememberCall", "Retrieved",
    "Retriever", "RetrieverSpec", "RotaryAxes", "RotaryTable", "Scene", "Setup", "Size3", "State",
    "Stream", "Streamed", "Targets", "Text", "TextEncoder", "TextEncoderSpec", "TokenHead",
    "Tokens", "TwoPartStep", "TwoStreamBlock", "TwoStreamDiT", "Umt5", "UserError", "Valid",
    "VelocityCall", "Visibility", "WanVae", "advance", "appended", "attend", "attend_to_memory",
    "between", "ceil_div", "check_backbone", "check_codec", "check_compressor", "check_masker",
    "check_metric", "check_retriever", "check_text_encoder", "concat", "count_field", "doc",
    "draw_omega", "dtype_field", "each", "enhanced", "frames_at", "from_bytes", "ge", "grid_part",
    "grid_points", "gt", "impl", "in_", "incomplete_block", "instance_of", "interpolate",
    "join_heads", "le", "levels", "load_experiment", "lt", "memory_time_field", "merge", "named",
    "number_field", "own_copy", "pad_to", "per_frame", "project", "project_heads", "rotary_table",
    "rotate", "sample_fit", "sample_history", "seen_size", "stack", "take_blocks",
    "target_positions", "to_bytes", "to_unit", "token_places", "unit", "weights_field",
]  # fmt: skip

_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Return a name of `__all__`, imported when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name], __package__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
