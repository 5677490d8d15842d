"""The contract of compressors: what every φ must keep, checked on a small one."""

from __future__ import annotations

from typing import Any

import torch

from ..grid import Geometry, Size3, ceil_div
from ..history import History
from ..memory import Memory, Part
from .case import AnyCompressor, Case, tensors
from .expect import require
from .liveness import awaken, check_liveness
from .samples import SMALL, alone, sample_fit, shortened
from .streaming import check_law, check_state


def check_compressor(
    compressor_cls: type[AnyCompressor],
    spec: Any,
    *,
    geometry: Geometry = SMALL,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Pass where the compressor keeps every law of `core.compressor.Compressor`.

    Give it a spec of small widths and of a window that 65 latents fill. In float64 equal means
    to 1e-12 of the largest token, in other dtypes to 1e-4.

    Raises:
        AssertionError: a law is broken; the message names it in one line.
    """
    torch.manual_seed(seed)
    fit = sample_fit(geometry, seed=seed, dtype=dtype)
    case = Case(compressor_cls=compressor_cls, spec=spec, fit=fit, seed=seed, dtype=dtype)
    check_liveness(case.built(), case.history(Size3(time=11, height=16, width=18)))
    compressor = awaken(case.built(), seed).eval()
    with torch.no_grad():
        for size in case.sizes():
            check_memory(case, compressor, case.history(size))
        for size in case.sizes()[:3]:
            check_law(case, compressor, case.history(size))
        check_samples(case, compressor)
        check_state(case, compressor)


def check_memory(case: Case, compressor: AnyCompressor, history: History) -> None:
    """Hold a memory to its length, width, finiteness, positions and size."""
    memory, size = compressor(history), history.size
    told = case.compressor_cls.context_length(case.spec, case.fit.geometry, size)
    kept = memory.length == told.tokens if told.exact else memory.length <= told.tokens
    require(kept, f"context_length: {told} told, {memory.length} tokens made of {size} latents")
    require(bool(size.time) or not memory.length, "empty history: it must give no tokens")
    require(memory.size == size, f"size: a memory of {size} latents says {memory.size}")
    for part in memory.parts:
        check_part(part, history, case.fit.geometry)


def check_part(part: Part, history: History, geometry: Geometry) -> None:
    """Hold a part to the DiT's width, finite values and places inside the history."""
    where = f"part {part.name} of {history.size} latents"
    batch, count, width = part.tokens.shape
    require(width == geometry.width, f"width: {where} has {width}, the DiT {geometry.width}")
    require(all(bool(x.isfinite().all()) for x in tensors(part)), f"finite: {where} is not")
    shapes = [tuple(x.shape) for x in (part.positions, part.extents, part.valid)]
    asked = [(batch, count, 3), (batch, count, 3), (batch, count)]
    require(shapes == asked, f"shapes: positions, extents, valid of {where}: {shapes}")
    require(bool(part.valid.all()), f"valid: {where} marks tokens of full samples as padding")
    ends = part.last_covered
    ascending = bool((ends.diff(dim=1) >= 0).all())
    require(ascending, f"order: tokens of {where} are not ascending in the last latent covered")
    low, high = part.positions - (part.extents - 1) / 2, part.positions + (part.extents - 1) / 2
    size, patch = history.size, geometry.patch
    cells = [size.time, ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)]
    first = torch.stack([history.start, *[torch.zeros_like(history.start)] * 2], dim=-1)[:, None]
    inside = (low >= first) & (high <= first + torch.tensor(cells) - 1) & (part.extents > 0)
    require(bool(inside.all()), f"places: {where} has a token that covers cells outside of it")


def check_samples(case: Case, compressor: AnyCompressor) -> None:
    """Hold samples of a ragged batch to themselves alone, and a batch to any order."""
    history = case.history(Size3(time=9, height=16, width=18), batch=4)
    ragged = shortened(history, [9, 6, 1, 0], seed=case.seed)
    memory = compressor(ragged)
    for index in range(4):
        own = compressor(alone(ragged, index, case.fit.geometry))
        line = f"ragged: a sample of {int(ragged.length[index])} latents is not as it is alone"
        require(case.same(valid_only(memory.select([index])), valid_only(own)), line)
    order = [2, 0, 3, 1]
    swapped = compressor(ragged.select(order))
    require(case.same(swapped, memory.select(order)), "batch: its order changes the samples")


def valid_only(memory: Memory) -> Memory:
    """Give the real tokens of a memory of one sample."""
    parts = [part.take(part.valid[0].nonzero()[None, :, 0]) for part in memory.parts]
    return Memory(parts=tuple(parts), size=memory.size)
