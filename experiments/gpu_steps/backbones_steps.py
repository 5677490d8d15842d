"""A denoising step under a memory of some length, and what its cache takes to make and to grow."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from ...backbones.dit.specs import DiTSpec
from ...core.backbone import Backbone, Context
from ...core.memory import Memory, Part
from .backbones_cost import Bench
from .backbones_inputs import random_latents, random_memory
from .backbones_plan import Subject
from .timing import MIB

HALF = 0.5  # time of the step, where all of the model takes part


@torch.no_grad()
def step(subject: Subject, backbone: Backbone, tokens: int, bench: Bench) -> dict[str, Any]:
    """Give the cost of one velocity of a segment that follows a memory of so many tokens.

    With `isolated` the cache is made before, and its cost is told apart.
    """
    memory = random_memory(subject, tokens, bench.device, _dtype(subject.spec))
    text = backbone.blank_text(1, subject.text_length)
    if not (tokens and backbone.caches):
        context = backbone.context(text, memory)
        return {"tokens": tokens, **_velocity(subject, backbone, context, tokens, bench)}
    made = bench.cost(lambda: backbone.remember(memory))
    cache = backbone.remember(memory)
    held = sum(x.nbytes for x in (*cache.keys, *cache.values)) / MIB
    context = backbone.context(text, cache)
    found = _velocity(subject, backbone, context, tokens, bench)
    return {"tokens": tokens, **found, "cache_mib": held, "remember": made}


def _velocity(
    subject: Subject, backbone: Backbone, context: Context, tokens: int, bench: Bench
) -> dict[str, Any]:
    size, device = subject.segment, bench.device
    noisy = random_latents(subject, size, device).to(_dtype(subject.spec))
    first = subject.past(tokens).time if tokens else 0
    frames = first + torch.arange(size.time, device=device)[None]
    t = torch.full((1,), HALF, device=device)
    return bench.cost(lambda: backbone.velocity(noisy, t, frames, context))


@torch.no_grad()
def append(subject: Subject, backbone: Backbone, tokens: int, bench: Bench) -> dict[str, Any]:
    """Give the cost of a second more in an `isolated-causal` cache of so many tokens in the end."""
    memory = random_memory(subject, tokens, bench.device, _dtype(subject.spec))
    new = min(subject.tokens_a_second, tokens - 1)
    before, after = _cut(memory, tokens - new)
    cache = backbone.remember(before)
    return {
        "tokens": tokens,
        "appended": new,
        **bench.cost(lambda: backbone.remember(after, cache)),
    }


def _cut(memory: Memory, count: int) -> tuple[Memory, Memory]:
    """Give the first `count` tokens, and the others."""
    part, total = memory.parts[0], memory.length
    rows = torch.arange(total)[None]
    first, rest = (_with(memory, part.take(x)) for x in (rows[:, :count], rows[:, count:]))
    return first, rest


def _with(memory: Memory, part: Part) -> Memory:
    return attrs.evolve(memory, parts=(part,))


def _dtype(spec: DiTSpec) -> torch.dtype:
    found: torch.dtype = getattr(torch, spec.dtype)
    return found
