"""Several encoders as one: the parts of each, named apart; lengths add up; the law holds."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.config import SpecError, from_json, to_json
from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import SMALL, sample_fit
from longtake.core.interfaces.compressor import MemoryEncoder, State
from longtake.core.interfaces.spec import CompressorSpec
from longtake.core.interfaces.streaming import seen_size
from longtake.core.registry import registry
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, merge
from longtake.plugins.compressors.dual import DualEncoderCompressor
from longtake.plugins.compressors.pool import PoolCompressor
from longtake.plugins.compressors.specs import (
    Conv,
    DualEncoder,
    Keyframes,
    Pool,
    Transformer,
    Window,
)

from .streaming import built, check_chunking, check_ragged, history_for, same, sizes, streamed

TINY = Transformer(rate=Rate.parse("2x2x2"), layers=1, heads=1, head_width=6, window=2, ffn=4)
TWO = DualEncoder(encoders=(TINY, attrs.evolve(TINY, rate=Rate.parse("1x1x8"))))
MIXED = DualEncoder(
    encoders=(Window(latents=2), TINY, Pool(rate=Rate.parse("4x2x4")), Keyframes(every=3, newest=2))
)
CONV = Conv(rate=Rate.parse("2x2x2"), channels=(4, 6), heads=2, head_width=4, window=2)
CONVS = DualEncoder(encoders=(CONV, attrs.evolve(CONV, rate=Rate.parse("2x2x8"))))
QUICK = settings(max_examples=15, deadline=None)
specs = st.sampled_from([TWO, MIXED])


@pytest.mark.slow
@QUICK
@given(specs, sizes, st.data())
def test_any_chunking_gives_the_memory_of_the_whole(
    spec: DualEncoder, size: Size3, data: st.DataObject
) -> None:
    check_chunking(spec, history_for(spec, size), data)


@pytest.mark.slow
@QUICK
@given(specs, sizes, st.data())
def test_each_sample_of_a_ragged_batch_is_as_alone(
    spec: DualEncoder, size: Size3, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=3))
    check_ragged(spec, history_for(spec, size, len(lengths)), lengths)


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoders", [pytest.param(MIXED.encoders, marks=pytest.mark.slow), (Window(),)]
)
def test_contract(encoders: tuple[CompressorSpec, ...]) -> None:
    check_compressor(DualEncoderCompressor, DualEncoder(encoders=encoders))


@pytest.mark.slow
def test_contract_of_the_papers_two() -> None:
    check_compressor(DualEncoderCompressor, CONVS)


@torch.no_grad()
def test_one_that_settles_nothing_may_stand_before_one_that_does() -> None:
    full = attrs.evolve(CONV, attention="full")
    spec = DualEncoder(encoders=(full, Pool(), CONV))
    compressor, history = built(spec), history_for(spec, Size3(time=6, height=4, width=4))
    assert same(streamed(compressor, history, [1, 2, 3]), compressor(history))


def test_by_default_it_is_the_papers_two() -> None:
    spec = DualEncoder()
    assert spec == DualEncoder(
        encoders=(Conv(rate=Rate.parse("4x4x2")), Conv(rate=Rate.parse("2x2x8")))
    )
    needs = DualEncoderCompressor.needs(spec)
    assert needs.rates == {Rate.parse("4x4x2"), Rate.parse("2x2x8")} and needs.hr


def test_needs_are_those_of_all_and_no_more() -> None:
    only_lr = DualEncoder(encoders=(attrs.evolve(TINY, hr=False),))
    assert not DualEncoderCompressor.needs(only_lr).hr


def test_the_length_is_the_sum_and_exact_where_all_are() -> None:
    size = Size3(time=20, height=16, width=16)

    def length(*encoders: CompressorSpec) -> tuple[int, bool]:
        found = DualEncoderCompressor.context_length(DualEncoder(encoders=encoders), SMALL, size)
        return found.tokens, found.exact

    assert length(TINY) == (11 * 16, True)
    assert length(TINY, Window(latents=3, across_cuts=True)) == (11 * 16 + 3 * 64, True)
    assert length(TINY, Window(latents=3)) == (11 * 16 + 3 * 64, False), "it may end at a cut"
    assert length(TINY, Keyframes(shots=True, newest=2)) == (11 * 16 + 2 * 64, False)


@torch.no_grad()
def test_each_encoder_gives_what_it_gives_alone_under_a_name_of_its_own() -> None:
    compressor = built(TWO)
    history = history_for(TWO, Size3(time=5, height=6, width=8))
    memory = compressor(history)
    assert [part.name for part in memory.parts] == ["0.transformer-2x2x2", "1.transformer-1x1x8"]
    assert isinstance(compressor, DualEncoderCompressor)
    for part, member in zip(memory.parts, compressor.encoder.members, strict=True):
        (own,) = member(history).parts
        assert torch.equal(part.tokens, own.tokens)


class Late(PoolCompressor):
    """Settles nothing at first, and then has no part, as encoders of long blocks of frames do."""

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        return new, memory if state else Memory(size=memory.size)

    def pending(self, state: State) -> Memory:
        if seen_size(state).time > 1:
            return super().pending(state)
        first = history_for(Pool(), Size3(time=1, height=4, width=4)).latents
        return PoolCompressor.step(self, None, History(latents=first))[1]


@pytest.mark.parametrize("kind", ["list", "dual-encoder"])
def test_parts_keep_their_order_whatever_settles_first(kind: str) -> None:
    members = [Late(Pool(), sample_fit()).double(), *map(built, MIXED.encoders)]
    encoder: Any = MemoryEncoder(members)
    names = ["0.pool-4x4x2", "1.window-2", "2.transformer-2x2x2", "3.pool-4x2x4", "4.keyframes"]
    if kind == "dual-encoder":
        encoder, names = built(MIXED), [f"{i}.{n[2:]}" for i, n in enumerate(names[1:])]
    history = history_for(MIXED, Size3(time=3, height=4, width=4))
    _, memory = encoder.step(None, history.chunk(0, 1))
    assert [part.name for part in memory.parts] == names


@torch.no_grad()
def test_a_list_of_encoders_streams_to_the_memory_of_the_whole() -> None:
    encoder = MemoryEncoder([built(encoder) for encoder in MIXED.encoders])
    history = history_for(MIXED, Size3(time=13, height=4, width=6))
    state, settled = None, []
    for chunk in history.chunks([1, 4, 2, 6]):
        state, memory = encoder.step(state, chunk)
        settled.append(memory)
    assert state is not None
    assert same(merge([*settled, encoder.pending(state)]), encoder(history))
    assert [own["seen"].tolist() for own in state] == [[13, 4, 6]] * 4


def test_features_are_named_as_in_memory() -> None:
    layers = attrs.evolve(TINY, features=True)
    spec = DualEncoder(encoders=(Pool(), layers))
    assert DualEncoderCompressor.features(spec) == {"1.transformer-2x2x2.hidden": 6}
    history = history_for(spec, Size3(time=4, height=4, width=4))
    assert set(built(spec)(history).features) == {"1.transformer-2x2x2.hidden"}
    alone = DualEncoder(encoders=(layers,))
    assert DualEncoderCompressor.features(alone) == {"transformer-2x2x2.hidden": 6}


@torch.no_grad()
def test_weights_of_two_alike_stay_apart_in_a_file() -> None:
    torch.manual_seed(1)
    one, other = built(TWO), built(TWO)
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(one.state_dict())
    history = history_for(TWO, Size3(time=4, height=4, width=4))
    assert same(one(history), other(history))


def test_json_carries_the_encoders_and_refuses_two_the_same() -> None:
    assert from_json(to_json(MIXED), CompressorSpec) == MIXED
    assert registry().find(MIXED).name == "dual-encoder"
    with pytest.raises(SpecError, match="two encoders are the same"):
        from_json({"type": "dual-encoder", "encoders": ["pool", "pool"]}, CompressorSpec)
    with pytest.raises(SpecError, match="needs at least 1, has 0"):
        from_json({"type": "dual-encoder", "encoders": []}, CompressorSpec)
