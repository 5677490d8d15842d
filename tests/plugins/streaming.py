"""What the tests of compressors share: any chunking, any batch, small random histories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from longtake.core.contract.compressor import randomize_zeros
from longtake.core.contract.samples import SMALL, alone, sample_fit, sample_history, shortened
from longtake.core.interfaces.compressor import Compressor, State
from longtake.core.interfaces.spec import CompressorSpec
from longtake.core.registry import build, registry
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, Part, merge

step = st.sampled_from([1, 2, 4, 8])
rates = st.builds(lambda h, w, t: Rate(height=h, width=w, time=t), step, step, step)
sizes = st.builds(
    lambda t, h, w: Size3(time=t, height=h, width=w),
    st.integers(1, 20),
    st.integers(1, 13),
    st.integers(1, 13),
)


def built(spec: CompressorSpec, *, awake: bool = True) -> Compressor[Any]:
    torch.manual_seed(0)
    compressor = build(spec, sample_fit()).double()
    return randomize_zeros(compressor) if awake else compressor


def history_for(spec: CompressorSpec, size: Size3, batch: int = 2, seed: int = 0) -> History:
    needs = registry().load(spec).needs(spec)
    return sample_history(size, needs, batch, start=8, seed=seed)


def streamed(compressor: Compressor[Any], history: History, lengths: Sequence[int]) -> Memory:
    state: State | None = None
    memories = []
    for chunk in history.chunks(lengths):
        state, memory = compressor.step(state, chunk)
        memories.append(memory)
    assert state is not None
    return merge([*memories, compressor.pending(state)])


def cut(data: st.DataObject, total: int) -> list[int]:
    """Give lengths of chunks that add up to `total`."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(total - 1, 1)))) - {total})
    edges = [0, *cuts, total]
    return [b - a for a, b in zip(edges, edges[1:], strict=False)]


def close(a: Tensor, b: Tensor) -> bool:
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-12 * scale).all())


def same_part(a: Part, b: Part) -> bool:
    return (
        a.name == b.name
        and close(a.tokens, b.tokens)
        and all(close(a.features[name], b.features[name]) for name in a.features | b.features)
        and all(
            torch.equal(x, y)
            for x, y in ((a.positions, b.positions), (a.extents, b.extents), (a.valid, b.valid))
        )
    )


def same(a: Memory, b: Memory) -> bool:
    """Whether two memories of one sample each, or without padding, are equal."""
    return len(a.parts) == len(b.parts) and all(map(same_part, a.parts, b.parts))


def real(memory: Memory, index: int) -> Memory:
    """Give a sample's own tokens, without padding."""
    parts = [part.select([index]) for part in memory.parts]
    own = [part.take(part.valid[0].nonzero()[None, :, 0]) for part in parts]
    return Memory(parts=tuple(own), size=memory.size)


@torch.no_grad()
def check_chunking(spec: CompressorSpec, history: History, data: st.DataObject) -> Memory:
    """Hold any chunking to one pass, and both to the context length; give the memory."""
    compressor = built(spec)
    whole = compressor(history)
    merged = streamed(compressor, history, cut(data, history.size.time))
    assert merged.size == whole.size == history.size
    assert same(merged, whole)
    told = registry().load(spec).context_length(spec, SMALL, history.size)
    assert whole.length == told.tokens if told.exact else whole.length <= told.tokens
    return whole


@torch.no_grad()
def check_ragged(spec: CompressorSpec, history: History, lengths: Sequence[int]) -> None:
    """Hold each sample of a ragged batch to itself alone; padding is never read, not even NaN."""
    compressor, ragged = built(spec), shortened(history, lengths)
    ragged = attrs.evolve(
        ragged,
        latents=ragged.latents.masked_fill(ragged.latents.abs() > 50, torch.nan),
        lr={rate: lr.masked_fill(lr.abs() > 50, torch.nan) for rate, lr in ragged.lr.items()},
    )
    memory = compressor(ragged)
    assert memory.size == history.size
    for index in range(len(lengths)):
        own = compressor(alone(ragged, index))
        assert same(real(memory, index), real(own, 0))
    assert all(bool(part.tokens.isfinite().all()) for part in memory.parts)
