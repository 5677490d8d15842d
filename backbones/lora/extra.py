"""More LoRAs beside ours (`DiTSpec.loras`): few-step distillation, styles; frozen and scaled.

Each is an adapter of its own in peft and acts together with ours. None is trained, and none is
written into files of ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from ...core.errors import UserError
from ..weights.sources import path_of
from . import adapters as lora
from .convert import Lora
from .read import read

if TYPE_CHECKING:
    from ..dit.model import DiT

NAME = "beside_{}"


def stack(model: DiT, loras: Sequence[str]) -> None:
    """Add LoRA files to a model, frozen, in any layout that `lora_read` knows.

    Call it where `load` ends, for every expert of a model that has two. Ranks, alphas and biases
    may differ by linear.

    Args:
        model: with or without adapters of ours.
        loras: `file` or `file@0.8`: the scale of what it adds, 1 where none is given.

    Raises:
        UserError: a file is missing, of no known layout or of another model, or a scale is no
            number.
    """
    for text in loras:
        path, scale = parse(text)
        _add(model, read(model, path), scale)


def parse(text: str) -> tuple[Path, float]:
    """Give the file and the scale that `file@0.8` names.

    Raises:
        UserError: what stands behind the last `@` is no finite number, and no such file exists.
    """
    name, at, tail = text.rpartition("@")
    if not at or path_of(text).exists():
        return path_of(text), 1.0
    try:
        scale = float(tail)
    except ValueError:
        scale = math.nan
    if not name or not math.isfinite(scale):
        raise UserError(f"backbone.loras: {text!r}: write file or file@0.8, {tail!r} is no scale")
    return path_of(name), scale


@torch.no_grad()
def _add(model: DiT, found: Lora, scale: float) -> None:
    known = model.peft_config if model._hf_peft_config_loaded else {}
    name = NAME.format(sum(other != lora.NAME for other in known))
    lora.inject(model, _config(found), name)
    for linear, pair in found.pairs.items():
        layer = model.get_submodule(linear)
        assert isinstance(layer, LoraLayer)
        layer.lora_A[name].weight.copy_(pair.down)
        # peft scales B's bias as well, but alpha is not meant for it: alpha goes into B
        layer.lora_B[name].weight.copy_(pair.up.float() * (found.alphas[linear] / pair.rank))
        if layer.lora_B[name].bias is not None:
            layer.lora_B[name].bias.copy_(found.biases.get(linear, torch.zeros(())))
        layer.set_scale(name, scale)


def _config(found: Lora) -> LoraConfig:
    ranks = {linear: pair.rank for linear, pair in found.pairs.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    # `^`: peft would take the end of another linear's name for it
    others = {f"^{linear}": other for linear, other in ranks.items() if other != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=list(found.pairs),
        lora_bias=bool(found.biases),
    )
