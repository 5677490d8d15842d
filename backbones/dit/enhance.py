"""Cross-attention to a memory's features in every block, beside the blocks' own (IP-Adapter).

Source: method.md §5, "cross-attention enhancing"; IP-Adapter, arXiv 2308.06721.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from ...core.calls import Feature


class Enhancer(nn.Module):
    """What one block reads of a memory's features: a query of its own, keys and values by feature.

    Features have no places here: what they hold of time and space their encoder put there. The
    output projection starts at zero, so that a fresh one adds nothing.
    """

    def __init__(self, width: int, heads: int, features: Mapping[str, int]) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.ModuleDict(_linears(features, width))
        self.to_v = nn.ModuleDict(_linears(features, width))
        self.to_out = nn.Linear(width, width, bias=False)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Start the output at zero and the rest at random."""
        for name, weight in self.named_parameters():
            if name.startswith("to_out"):
                weight.zero_()
            else:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)

    def forward(
        self, hidden: Tensor, features: Mapping[str, Feature], backend: Any = None
    ) -> Tensor:
        """Give what to add to the hidden tokens `[B, N, D]`.

        Args:
            hidden: the noisy tokens, as they left the block's own attention.
            features: by name; those that are missing (a part without tokens) add nothing.
            backend: of diffusers' attention, as the user chose it; None: the active one.
        """
        idle = self._idle(set(features))
        if not features:
            return idle
        query = self._heads(self.to_q, self.norm(hidden.float()), hidden)
        read = [self._read(query, name, x, backend) for name, x in features.items()]
        out = _apply(self.to_out, torch.stack(read).sum(dim=0).flatten(2))
        return out.type_as(hidden) + idle

    def _read(self, query: Tensor, name: str, feature: Feature, backend: Any) -> Tensor:
        values, valid = feature
        values = F.rms_norm(values.float(), values.shape[-1:], eps=1e-6)
        # softmax over nothing is NaN: without features a sample reads padding, and drops it
        some = None if valid is None else valid.any(dim=1, keepdim=True)
        out: Tensor = dispatch_attention_fn(
            query,
            self._heads(self.to_k[_key(name)], values, query),
            self._heads(self.to_v[_key(name)], values, query),
            attn_mask=None if valid is None or some is None else valid | ~some,
            backend=backend,
        )
        return out if some is None else out.masked_fill(~some[:, :, None, None], 0.0)

    def _heads(self, linear: nn.Module, x: Tensor, like: Tensor) -> Tensor:
        heads: Tensor = _apply(linear, x).type_as(like).unflatten(2, (self.heads, -1))
        return heads

    def _idle(self, read: set[str]) -> Tensor:
        """Give 0 times the weights that are not read: every rank has a gradient for each."""
        idle = torch.zeros((), device=self.to_q.weight.device)
        if not torch.is_grad_enabled():
            return idle
        modules: list[nn.Module] = [] if read else [self.to_q, self.to_out]
        keys = set(self.to_k) - {_key(name) for name in read}
        modules += [linears[key] for linears in (self.to_k, self.to_v) for key in sorted(keys)]
        return sum((p.sum() * 0.0 for module in modules for p in module.parameters()), idle)


def _key(name: str) -> str:
    return name.replace(".", "/")  # torch splits names of modules at dots


def _linears(features: Mapping[str, int], width: int) -> dict[str, nn.Linear]:
    return {_key(name): nn.Linear(f, width, bias=False) for name, f in sorted(features.items())}


def _apply(linear: nn.Module, x: Tensor) -> Tensor:
    # trained in float32 beside a base in bfloat16
    out: Tensor = linear(x.to(next(linear.parameters()).dtype))
    return out


def enhanced(
    enhancer: Enhancer | None, hidden: Tensor, features: Mapping[str, Feature], backend: Any = None
) -> Tensor:
    """Give the hidden tokens `[B, N, D]` with what an enhancer reads added, where there is one."""
    if enhancer is None or not (features or torch.is_grad_enabled()):
        return hidden
    added: Tensor = enhancer(hidden, features, backend)
    return hidden + added
