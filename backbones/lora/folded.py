"""LoRA added to its weight before the product, where that takes fewer operations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


class FoldedLinear(Linear):  # type: ignore[misc]
    """peft's linear with LoRA: (W + s·B·A)·x in float32 where W·x + s·B·(A·x) costs more.

    It does where the rank is large beside the width, as 128 beside a tiny DiT's 384; beside 3,072
    it does not. In half precisions W + s·B·A would round away what LoRA learns. Same parameters,
    and the same numbers but for rounding.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the linear of `x`, as peft's does."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if args or kwargs or len(names) != 1 or not self._plain(names[0], x):
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        base, name = self.base_layer, names[0]
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        weight = torch.addmm(base.weight, up, down, alpha=self.scaling[name])
        return F.linear(x, weight, base.bias)

    def _plain(self, name: str, x: Tensor) -> bool:
        """Return whether one LoRA in float32 acts, not merged, and folding it pays for `x`."""
        base, up = self.base_layer, self.lora_B[name]
        tensors = (x, base.weight, up.weight, self.lora_A[name].weight)
        return (
            type(base) is nn.Linear
            and not (self.disable_adapters or self.merged or self.lora_variant)
            and isinstance(self.lora_dropout[name], nn.Identity)
            and up.bias is None
            and not torch.is_autocast_enabled(x.device.type)
            and all(t.dtype is torch.float32 and t.device == x.device for t in tensors)
            and pays(x.numel() // x.shape[-1], base.in_features, base.out_features, up.in_features)
        )


def pays(tokens: int, inputs: int, outputs: int, rank: int) -> bool:
    """Return whether folding takes fewer products, with the backward pass where gradients are on.

    Folded, each token costs a product by W forward and two backward (one is W's gradient), and a
    step one by B·A and two for its gradients; else W's gradient is spared, and each token costs
    three products by A and three by B.
    """
    whole, thin = inputs * outputs, rank * (inputs + outputs)
    if torch.is_grad_enabled():
        return tokens * (3 * thin - whole) > 3 * whole * rank
    return tokens * thin > whole * rank


def fold(model: nn.Module) -> None:
    """Make every linear with LoRA of a model fold it where that pays; nothing is copied."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = FoldedLinear
