"""The experiments that ship, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.hooks import impl
from .paper import BACKBONES, RATES

TINY = "longtake.experiments.tiny"
PAPER = "longtake.experiments.paper"
CONTINUATIONS = "longtake.experiments.continuations"


@impl
def longtake_experiments() -> Mapping[str, str]:
    """Name the shipped experiments."""
    return {
        "tiny-base": f"{TINY}:TINY_BASE",
        "tiny-base-4x4x2": f"{TINY}:TINY_BASE_4X4X2",
        "tiny-plain": f"{TINY}:TINY_PLAIN",
        "tiny-wan-2x2x2": f"{TINY}:TINY_WAN_2X2X2",
        "tiny-wan-2x2x2-crops": f"{TINY}:TINY_WAN_2X2X2_CROPS",
        "tiny-wan-4x4x2": f"{TINY}:TINY_WAN_4X4X2",
        "tiny-wan-4x4x2-crops": f"{TINY}:TINY_WAN_4X4X2_CROPS",
        "tiny-wan-2x2x2-only-lr": f"{TINY}:TINY_WAN_ONLY_LR",
        "tiny-wan-2x2x2-without-lr": f"{TINY}:TINY_WAN_WITHOUT_LR",
        **{name: _target(PAPER, name) for name in _PAPER},
        **{
            f"{name}-finetune": _target(CONTINUATIONS, f"{name}-finetune")
            for name in (*_TINY, *_PAPER)
        },
        f"{_CONTROLS}-frozen-encoder": f"{CONTINUATIONS}:TINY_WAN_FROZEN_ENCODER",
        f"{_CONTROLS}-without-pretraining": f"{CONTINUATIONS}:TINY_WAN_WITHOUT_PRETRAINING",
    }


_CONTROLS = "tiny-wan-2x2x2-finetune"
_TINY = ("tiny-wan-2x2x2", "tiny-wan-4x4x2")
_PAPER = tuple(f"{backbone}-{rate}" for backbone in BACKBONES for rate in RATES)


def _target(module: str, name: str) -> str:
    """Return where an experiment stands: `wan22-5b-2x2x1` is `WAN22_5B_2X2X1` of its module."""
    return f"{module}:{name.upper().replace('-', '_').replace('.', '_')}"


@impl
def longtake_weights() -> Mapping[str, Path]:
    """Name the folders of weights that ship, each with its spec, data and curve."""
    root = Path(__file__).parent / "weights"
    files = [*root.glob("*/spec.json"), *root.glob("*/codec.safetensors")]
    return {path.parent.name: path.parent for path in sorted(files)}
