"""A sliding window: the newest latents as the DiT's own tokens, at their absolute places."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import sample_fit
from longtake.core.values.grid import Size3
from longtake.plugins.compressors.keyframes import WindowCompressor
from longtake.plugins.compressors.specs import Window

from .streaming import built, check_chunking, check_ragged, history_for, sizes

QUICK = settings(max_examples=15, deadline=None)


@QUICK
@given(st.integers(1, 8), sizes, st.data())
def test_any_chunking_gives_the_memory_of_the_whole(
    latents: int, size: Size3, data: st.DataObject
) -> None:
    spec = Window(latents=latents)
    check_chunking(spec, history_for(spec, size), data)


@QUICK
@given(st.integers(1, 8), sizes, st.data())
def test_each_sample_of_a_ragged_batch_is_as_alone(
    latents: int, size: Size3, data: st.DataObject
) -> None:
    spec = Window(latents=latents)
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=3))
    check_ragged(spec, history_for(spec, size, len(lengths)), lengths)


@pytest.mark.parametrize("latents", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_contract(latents: int) -> None:
    check_compressor(WindowCompressor, Window(latents=latents))


def test_it_is_the_last_latents_tokens_where_they_stand() -> None:
    history = history_for(Window(latents=3), Size3(time=7, height=5, width=8))
    (part,) = built(Window(latents=3))(history).parts
    want = sample_fit().tokens(history.latents[:, :, 4:])  # [B, 3, 3, 4, D]
    assert part.name == "window-3"
    assert torch.allclose(part.tokens, want.flatten(1, 3), rtol=0, atol=1e-12)
    cells = torch.cartesian_prod(torch.arange(12, 15), torch.arange(3), torch.arange(4))
    assert torch.equal(part.positions[0], cells.double())
    assert bool((part.extents == 1).all())


def test_the_state_is_the_window_and_nothing_settles() -> None:
    compressor = built(Window(latents=3))
    history = history_for(compressor.spec, Size3(time=20, height=4, width=4), 1)
    state, held = None, []
    for chunk in history.chunks([1, 1, 1, 1, 6, 10]):
        state, memory = compressor.step(state, chunk)
        assert memory.length == 0 and [part.name for part in memory.parts] == ["window-3"]
        held.append(sum(x.untyped_storage().nbytes() for x in state.values()))
    assert held[2:] == [held[2]] * 4
    assert not compressor.settles and not list(compressor.parameters())
