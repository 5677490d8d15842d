"""Mean pooling: each token is the mean of the DiT's tokens of what it covers."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import SMALL, sample_fit
from longtake.core.errors import UserError
from longtake.core.values.grid import Rate, Size3
from longtake.plugins.compressors.pool import PoolCompressor
from longtake.plugins.compressors.specs import Pool

from .streaming import built, check_chunking, check_ragged, history_for, rates, sizes

QUICK = settings(max_examples=15, deadline=None)


@QUICK
@given(rates, sizes, st.data())
def test_any_chunking_gives_the_memory_of_the_whole(
    rate: Rate, size: Size3, data: st.DataObject
) -> None:
    spec = Pool(rate=rate)
    check_chunking(spec, history_for(spec, size), data)


@QUICK
@given(rates, sizes, st.data())
def test_each_sample_of_a_ragged_batch_is_as_alone(
    rate: Rate, size: Size3, data: st.DataObject
) -> None:
    spec = Pool(rate=rate)
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=3))
    check_ragged(spec, history_for(spec, size, len(lengths)), lengths)


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["4x4x2", pytest.param("1x2x8", marks=pytest.mark.slow)])
def test_contract(rate: str) -> None:
    check_compressor(PoolCompressor, Pool(rate=Rate.parse(rate)))


@QUICK
@given(rates, sizes)
def test_a_token_is_the_mean_of_the_dits_tokens_that_it_covers(rate: Rate, size: Size3) -> None:
    compressor, history = built(Pool(rate=rate)), history_for(Pool(rate=rate), size, 1)
    (part,) = compressor(history).parts
    own = sample_fit().tokens(history.latents)[0]  # [T, rows, columns, D]
    for token, place, extent in zip(
        part.tokens[0], part.positions[0], part.extents[0], strict=True
    ):
        first = (place - (extent - 1) / 2).long() - torch.tensor([8, 0, 0])
        box = own[tuple(slice(int(a), int(a + n)) for a, n in zip(first, extent, strict=True))]
        assert box.numel() == own.shape[-1] * int(extent.prod())
        assert torch.allclose(token, box.mean(dim=(0, 1, 2)), rtol=0, atol=1e-12)
    assert int(part.extents[0].prod(dim=-1).sum()) == own[..., 0].numel()  # all, each once


def test_rate_1x1x1_is_the_dits_own_tokens() -> None:
    spec = Pool(rate=Rate.parse("1x1x1"))
    history = history_for(spec, Size3(time=3, height=5, width=4))
    (part,) = built(spec)(history).parts
    want = sample_fit().tokens(history.latents).flatten(1, 3)
    assert torch.allclose(part.tokens, want, rtol=0, atol=1e-12)


def test_nothing_is_trained_and_the_state_is_less_than_a_block() -> None:
    compressor = built(Pool(rate=Rate.parse("2x2x4")))
    assert not list(compressor.parameters()) and not compressor.state_dict()
    history = history_for(compressor.spec, Size3(time=20, height=4, width=4), 1)
    state, _ = compressor.step(None, history)
    assert state["waiting"].shape[2] == 3
    assert state["waiting"].untyped_storage().nbytes() == state["waiting"].nbytes


def test_patches_of_several_latents_are_refused_in_one_line() -> None:
    geometry = attrs.evolve(SMALL, patch=Size3(time=2, height=2, width=2))
    with pytest.raises(UserError, match="a patch of one latent frame is needed, not of 2x2x2"):
        PoolCompressor(Pool(), sample_fit(geometry))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_stays_near_float64(dtype: torch.dtype) -> None:
    compressor = built(Pool())
    history = history_for(Pool(), Size3(time=6, height=8, width=8))
    want = compressor(history).parts[0].tokens
    low = compressor.to(dtype)(history.to("cpu", dtype)).parts[0].tokens
    assert low.dtype == dtype and (low.double() - want).norm() < 3e-2 * want.norm()
