"""LoRA in the layouts of other programs: what a backbone gives `longtake export`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from torch import Tensor

LAYOUTS = ("diffusers", "comfyui", "kohya")


@frozen(eq=False, kw_only=True)
class LoraFile:
    """A backbone's adapters as files hold them.

    Attributes:
        tensors: LoRA by another program's keys; none where there is no LoRA.
        besides: adapters that other programs do not know (attention to features), by our keys.
        metadata: texts for the header of the safetensors file.
        facts: plain data for our own header, by which the file is read back: `layout`, `rank`,
            `alpha`, and what else the backbone needs; empty where there is no LoRA.
    """

    tensors: Mapping[str, Tensor] = field(factory=dict)
    besides: Mapping[str, Tensor] = field(factory=dict)
    metadata: Mapping[str, str] = field(factory=dict)
    facts: Mapping[str, Any] = field(factory=dict)
