"""The experiments that ship, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.hooks import impl
from .paper import named


@impl
def longtake_experiments() -> Mapping[str, str]:
    """Name the shipped experiments."""
    module, base = "longtake.experiments.tiny", "longtake.experiments.tiny"
    wan21, wan22 = "longtake.experiments.paper", "longtake.experiments.paper"
    return {
        "tiny-base": f"{base}:TINY_BASE",
        "tiny-wan-2x2x2": f"{module}:TINY_WAN_2X2X2",
        "tiny-wan-2x2x2-crops": f"{module}:TINY_WAN_2X2X2_CROPS",
        "tiny-wan-4x4x2": f"{module}:TINY_WAN_4X4X2",
        "tiny-wan-4x4x2-crops": f"{module}:TINY_WAN_4X4X2_CROPS",
        "tiny-wan-2x2x2-only-lr": f"{module}:TINY_WAN_ONLY_LR",
        "tiny-wan-2x2x2-without-lr": f"{module}:TINY_WAN_WITHOUT_LR",
        **named("wan21-1.3b", wan21),
        **named("wan21-14b", wan21),
        **named("wan22-5b", wan22),
        **named("wan22-14b", wan22),
        **named("hunyuan", "longtake.experiments.paper"),
    }


@impl
def longtake_weights() -> Mapping[str, Path]:
    """Name the folders of weights that ship, each with its spec, data and curve."""
    root = Path(__file__).parent / "weights"
    return {path.parent.name: path.parent for path in sorted(root.glob("*/spec.json"))}
