"""The attention of a segment alone, by each of torch's kernels: half of a step and more."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .backbones_cost import Bench
from .backbones_inputs import normal
from .backbones_plan import Subject
from .timing import paced

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@torch.no_grad()
def attention(subject: Subject, bench: Bench) -> dict[str, Any]:
    """Give seconds and share of the limit of one block's self-attention without memory.

    By kernel, and as torch chooses (`chosen`); null where the device has no such kernel.
    """
    config, patch = subject.spec.config, subject.spec.geometry.patch
    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    count = subject.segment.cells // patch.cells
    asked = normal((3, 1, heads, count, width), bench.device, torch.bfloat16)
    flops = 4 * heads * width * count**2
    found = {"chosen": _timed(asked, flops, nullcontext(), bench)}
    for name, kernel in KERNELS.items():
        found[name] = _timed(asked, flops, sdpa_kernel(kernel), bench)
    return {"blocks": subject.spec.geometry.blocks, "tflop": flops / 1e12, **found}


def _timed(
    asked: Tensor, flops: int, way: AbstractContextManager[None], bench: Bench
) -> dict[str, Any] | None:
    query, key, value = asked
    try:
        with way:
            times = paced(
                lambda: F.scaled_dot_product_attention(query, key, value),
                bench.device,
                bench.repeats,
                warm=1,
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # torch: no available kernel
        return None
    return {**times, "share_of_limit": bench.share(flops, times["seconds"])}
