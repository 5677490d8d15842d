"""Memory that sees no later memory, and the cache that grows with a take (design §3, §7.5)."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.backbones.blocks import attention
from longtake.backbones.blocks.attention import KeyValue, attend_by_block
from longtake.backbones.blocks.memory import block_groups, in_causal_order
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.errors import UserError
from longtake.core.interfaces.backbone import Cache
from longtake.core.interfaces.compressor import MemoryEncoder
from longtake.core.values.grid import MemoryLimit, Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, Part, merge, token_places

from .test_generation_loop import CHUNK, SIZE, PairCompressor, Pairs, denoise

RATES = (2, 4)
BLOCK = 4
CELLS = 2  # tokens of one moment
QUICK = settings(max_examples=6, deadline=None)
MODELS: dict[Any, TinyWanBackbone] = {}


def causal(wan: Any, dtype: torch.dtype = torch.float32, **changes: Any) -> TinyWanBackbone:
    key = (dtype, *sorted(changes.items()))
    if key not in MODELS:  # nothing here changes a model
        numbers = {"attention": "isolated-causal", "memory_time": 0.0, "cache_block": BLOCK}
        MODELS[key] = wan.small(dtype, **(numbers | changes))
    return MODELS[key]


def history(
    wan: Any,
    latents: int,
    start: int = 0,
    batch: int = 1,
    seed: int = 3,
    rates: tuple[int, ...] = RATES,
) -> Memory:
    """What two compressors make of a history: parts of two time rates, two tokens a moment."""
    size, parts = Size3(time=latents, height=2, width=4), []
    for time in rates:
        rate = Rate(height=1, width=1, time=time)
        grid = Size3(time=rate.time_tokens(latents), height=1, width=CELLS)
        begin, length = torch.full((batch,), start), torch.full((batch,), latents)
        patch = Size3(time=1, height=2, width=2)
        places = token_places(rate, size, patch, grid, start=begin, length=length, skip=0)
        positions, extents, valid = places
        # by position, so that a longer history begins with the same tokens
        tokens = wan.noise(batch, 400, wan.width, seed=seed + time)[:, : grid.cells]
        parts.append(Part(name=f"r{time}", tokens=tokens, positions=positions, extents=extents,
                          valid=valid))  # fmt: skip
    return Memory(parts=tuple(parts), size=size)


def between(memory: Memory, cuts: tuple[tuple[int, int], ...]) -> Memory:
    """The tokens first … last − 1 of each part."""
    pairs = zip(memory.parts, cuts, strict=True)
    parts = [p.take(torch.arange(*cut).expand(p.valid.shape[0], -1)) for p, cut in pairs]
    return attrs.evolve(memory, parts=tuple(parts))


def velocity(model: TinyWanBackbone, wan: Any, held: Memory | Cache, batch: int = 1) -> Tensor:
    x, t = wan.noise(batch, 16, 2, 4, 4).to(model.dtype), torch.linspace(0.3, 0.9, batch)
    with torch.no_grad():
        context = model.context(wan.text(batch), held)
        return model.velocity(x, t, wan.frames(40, 2, batch), context)


def apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max()) if one.numel() else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("time", ["sample", "token"])
@torch.no_grad()
def test_one_cache_serves_steps_branches_and_prompts(wan: Any, time: str) -> None:
    model, memory = causal(wan, time=time, layers=3), history(wan, 12, batch=2)
    frames = torch.stack([wan.frames(12, 2)[0], wan.frames(90, 2)[0]])
    cache = model.remember(memory)
    assert cache.length == memory.length
    for prompt in (wan.text(2), wan.text(2, seed=9, length=6), model.blank_text(2, 4)):
        kept, made = model.context(prompt, cache), model.context(prompt, memory)
        for step in (1.0, 0.2):
            x, t = wan.noise(2, 16, 2, 5, 6, seed=int(step * 10)), torch.full((2,), step)
            velocity = model.velocity(x, t, frames, kept)
            assert torch.equal(velocity, model.velocity(x, t, frames, made))


CUTS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=4)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@given(latents=st.integers(1, 17), start=st.sampled_from([0, 4, 20]), shares=CUTS)
@QUICK
@torch.no_grad()
def test_any_way_of_appending_is_the_whole(
    wan: Any, dtype: Any, gap: float, latents: int, start: int, shares: list[tuple[float, float]]
) -> None:
    """Whatever comes in which piece: even one compressor far behind the other."""
    model, memory = causal(wan, dtype), history(wan, latents, start)
    counts = [part.valid.shape[1] for part in memory.parts]
    ends = [sorted(int(s[i] * n) for s in shares) + [n] for i, n in enumerate(counts)]
    cache, done = None, (0, 0)
    for step in zip(*ends, strict=True):
        cuts = tuple(zip(done, step, strict=True))
        cache, done = model.remember(between(memory, cuts), cache), step
    whole = model.remember(memory)
    assert cache is not None and torch.equal(cache.positions, whole.positions)
    pairs = zip(cache.keys + cache.values, whole.keys + whole.values, strict=True)
    assert max(apart(one, two) for one, two in pairs) < gap
    both = velocity(model, wan, cache), velocity(model, wan, memory)
    assert apart(*both) < gap


@torch.no_grad()
def test_a_compressor_may_come_first_alone(wan: Any) -> None:
    """Its part then stands first, and keys in another order: the velocity does not care."""
    model, memory = causal(wan, torch.float64), history(wan, 9)
    one, two = (attrs.evolve(memory, parts=(part,)) for part in memory.parts)
    cache = model.remember(one, model.remember(two))
    assert apart(velocity(model, wan, cache), velocity(model, wan, memory)) < 1e-12


@torch.no_grad()
def test_later_blocks_never_change_keys(wan: Any) -> None:
    model, memory = causal(wan, layers=3), history(wan, 13)
    cache = model.remember(memory)
    part = in_causal_order(memory.joined(), BLOCK)
    last = part.last_covered[0]
    for end in (0, 4, 8):
        inside = last <= end
        spoiled = part.tokens.clone()
        spoiled[:, ~inside] += wan.noise(*spoiled[:, ~inside].shape, seed=70)
        other = model.remember(Memory(parts=(attrs.evolve(part, tokens=spoiled),)))
        for one, two in zip(cache.keys + cache.values, other.keys + other.values, strict=True):
            assert torch.equal(one[:, inside], two[:, inside])
            assert not torch.equal(one[:, ~inside], two[:, ~inside])
        shorter = model.remember(history(wan, end + 1))
        count = shorter.length
        assert count == int(inside.sum())
        assert apart(shorter.keys[-1], cache.keys[-1][:, :count]) < 1e-5


@torch.no_grad()
def test_a_block_reads_all_of_itself(wan: Any) -> None:
    """Its first token knows of its last: causal by blocks, not by tokens."""
    model, memory = causal(wan), history(wan, 9)
    part = in_causal_order(memory.joined(), BLOCK)
    spoiled = part.tokens.clone()
    spoiled[:, -1] += wan.noise(1, wan.width, seed=70)  # a constant would be lost in LayerNorm
    one, two = (
        model.remember(Memory(parts=(attrs.evolve(part, tokens=tokens),))).keys[1]
        for tokens in (part.tokens, spoiled)
    )
    changed = (one != two).flatten(2).any(-1)[0]
    assert torch.equal(changed, part.last_covered[0] > 4)


@given(data=st.data())
@QUICK
def test_by_block_is_attention_under_a_mask(data: Any) -> None:
    counts = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1,
                                max_size=3))  # fmt: skip
    length = max(max(map(sum, counts)), 1) + data.draw(st.integers(0, 2))
    skip = data.draw(st.integers(0, min(map(sum, counts))))
    blocks = torch.full((len(counts), length), torch.inf)
    for row, sizes in enumerate(counts):
        line = torch.arange(4.0).repeat_interleave(torch.tensor(sizes))
        blocks[row, : len(line)] = line
    places = torch.zeros(*blocks.shape, 3)
    places[..., 0] = torch.where(blocks.isfinite(), blocks, torch.nan) * 5
    part = Part(name="x", tokens=places, positions=places, extents=torch.ones_like(places),
                valid=blocks.isfinite())  # fmt: skip
    random = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, *blocks.shape, 2, 4, generator=random).double().unbind()
    seen = blocks[:, None, None, :] <= blocks[:, None, skip:, None]
    seen = seen & part.valid[:, None, None]

    def attend(query: Tensor, keys: KeyValue, mask: Tensor | None = None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, *keys))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2)

    groups = block_groups(part, 5)
    ours = attend_by_block(attend, query[:, skip:], KeyValue(key, value), groups)
    assert sorted(row for group in groups for row in group.rows) == list(range(len(counts)))
    asks = part.valid[:, skip:, None, None]
    truth = attend(query[:, skip:], KeyValue(key, value), seen | ~part.valid[:, None, skip:, None])
    assert apart(ours, torch.where(asks, truth, 0.0)) < 1e-12
    assert bool((ours[~part.valid[:, skip:]] == 0).all())


@torch.no_grad()
def test_remembering_is_pure(wan: Any) -> None:
    """So that what may still change is remembered into a cache that is thrown away."""
    model, memory = causal(wan), history(wan, 11)
    settled, pending = ((0, 5), (0, 3)), ((5, 8), (3, 4))
    cache = model.remember(between(memory, settled))
    before = [x.clone() for x in (*cache.keys, *cache.values, cache.positions)]
    held = model.remember(between(memory, pending), cache)
    assert held.length > cache.length == 8
    assert all(map(torch.equal, before, (*cache.keys, *cache.values, cache.positions)))
    other = history(wan, 20, seed=30)
    one = model.remember(between(other, pending), cache)
    two = model.remember(between(other, pending), model.remember(between(memory, settled)))
    assert all(map(torch.equal, one.keys, two.keys))
    assert model.remember(Memory(), cache) is cache
    nothing = model.remember(Memory())
    assert nothing.length == 0
    assert all(map(torch.equal, model.remember(memory, nothing).keys, model.remember(memory).keys))
    assert torch.equal(velocity(model, wan, nothing), velocity(model, wan, Memory()))


@torch.no_grad()
def test_only_the_open_blocks_run_again(wan: Any) -> None:
    model, memory, ran = causal(wan), history(wan, 15), []
    linear = model.blocks[0].attn1.to_k
    hook = linear.register_forward_hook(lambda _, x, y: ran.append(x[0].shape[1]))
    moments = 1 + 4 + 1 + 2  # of latents 0 to 8: three whole blocks
    cache = model.remember(between(memory, ((0, 5 * CELLS), (0, 3 * CELLS))))
    assert ran == [moments * CELLS]
    model.remember(between(memory, ((5 * CELLS, 6 * CELLS), (0, 0))), cache)  # latents 9 and 10
    assert ran[1:] == [CELLS]
    longer = model.remember(between(memory, ((5 * CELLS, 6 * CELLS), (0, 0))), cache)
    model.remember(between(memory, ((6 * CELLS, 7 * CELLS), (3 * CELLS, 4 * CELLS))), longer)
    hook.remove()
    assert ran[3:] == [3 * CELLS]  # the open block, 9 to 12, is run again with what completes it


@pytest.mark.slow
@given(lengths=st.lists(st.integers(0, 11), min_size=2, max_size=3), late=st.booleans())
@QUICK
@torch.no_grad()
def test_ragged_is_alone(wan: Any, lengths: list[int], late: bool) -> None:
    """Samples of different lengths that start at different latents, and padding full of NaN."""
    model, batch = causal(wan, layers=3), len(lengths)
    alone = [history(wan, max(1, n), 4 * late * i, seed=9 * i) for i, n in enumerate(lengths)]
    parts = [m.joined() for m in alone]
    count = max(part.valid.shape[1] for part in parts) + 1
    padded = Memory(parts=(_stack(parts, lengths, count),))
    outs = [velocity(model, wan, held, batch) for held in (padded, model.remember(padded))]
    assert torch.equal(*outs)
    appended = model.remember(padded, model.remember(_nothing(padded)))
    assert apart(velocity(model, wan, appended, batch), outs[0]) < 1e-5
    t = torch.linspace(0.3, 0.9, batch)
    for i, n in enumerate(lengths):
        context = model.context(wan.text(batch).select([i]), alone[i] if n else Memory())
        x = wan.noise(batch, 16, 2, 4, 4)[[i]]
        truth = model.velocity(x, t[[i]], wan.frames(40, 2), context)
        assert apart(outs[0][[i]], truth) < 1e-5


def _stack(parts: list[Part], lengths: list[int], count: int) -> Part:
    def padded(x: Tensor, value: float) -> Tensor:
        wide = torch.full((1, count, *x.shape[2:]), value, dtype=x.dtype)
        wide[:, : x.shape[1]] = x
        return wide

    places = [torch.cat([padded(p.positions, torch.nan) for p in parts]),
              torch.cat([padded(p.extents, torch.nan) for p in parts])]  # fmt: skip
    valid = torch.cat(
        [padded(p.valid, False) & (n > 0) for p, n in zip(parts, lengths, strict=True)]
    )
    tokens = torch.cat([padded(p.tokens, torch.nan) for p in parts])
    return Part(name="x", tokens=tokens, positions=places[0], extents=places[1], valid=valid)


def _nothing(memory: Memory) -> Memory:
    part = memory.parts[0]
    return Memory(parts=(attrs.evolve(part, valid=torch.zeros_like(part.valid)),))


def test_windows_that_start_elsewhere_need_no_mask(wan: Any, monkeypatch: Any) -> None:
    """A training batch: one length, blocks that begin at different tokens."""
    model, masks = causal(wan), []
    starts = ((0, 3), (6, 8))  # in the middle of a block, with their seeds
    one, two = (history(wan, 9, start, seed=seed, rates=(2,)) for start, seed in starts)
    both = Memory(
        parts=tuple(_beside(p, q) for p, q in zip(one.parts, two.parts, strict=True)),
        size=one.size,
    )
    assert len(block_groups(in_causal_order(both.joined(), BLOCK), BLOCK)) == 2
    dispatch = attention.dispatch_attention_fn

    def note(*args: Any, attn_mask: Any, **kwargs: Any) -> Any:
        masks.append(attn_mask)
        return dispatch(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(attention, "dispatch_attention_fn", note)
    attention.announce_masks.cache_clear()
    ours = velocity(model, wan, both, 2)
    assert masks and all(mask is None for mask in masks)
    assert attention.announce_masks.cache_info().misses == 0
    x, t = wan.noise(2, 16, 2, 4, 4), torch.tensor([0.3, 0.9])
    with torch.no_grad():
        for i, memory in enumerate((one, two)):
            context = model.context(wan.text(2).select([i]), memory)
            truth = model.velocity(x[[i]], t[[i]], wan.frames(40, 2), context)
            assert apart(ours[[i]], truth) < 1e-5


def _beside(one: Part, two: Part) -> Part:
    names = ("tokens", "positions", "extents", "valid")
    joined = {name: torch.cat([getattr(one, name), getattr(two, name)]) for name in names}
    return attrs.evolve(one, **joined)


def test_what_a_cache_refuses(wan: Any) -> None:
    model = causal(wan, cache_block=6)
    for ask in (model.remember, lambda memory: model.context(wan.text(1), memory)):
        with pytest.raises(UserError, match="latents 5 to 8, .*cache_block 6: .* multiple") as said:
            ask(history(wan, 9))
        assert "\n" not in str(said.value)
    model.remember(history(wan, 5))  # within the first block all is well
    cache = causal(wan).remember(history(wan, 5))
    with pytest.raises(ValueError, match="of 1 and 2 samples"):
        causal(wan).remember(history(wan, 5, batch=2), cache)
    with pytest.raises(ValueError, match="different latent sizes"):
        other = attrs.evolve(history(wan, 5), size=Size3(time=5, height=4, width=4))
        causal(wan).remember(other, cache)


def test_merged_and_appended_are_one_memory(wan: Any) -> None:
    memory = history(wan, 11)
    cuts = (((0, 4), (0, 2)), ((4, 12), (2, 8)))
    merged = merge([between(memory, cut) for cut in cuts])
    model = causal(wan)
    one, two = model.remember(memory), model.remember(merged)
    assert all(map(torch.equal, one.keys, two.keys))


def take(
    wan: Any, model: TinyWanBackbone, cached: bool, segments: int = 4
) -> tuple[Tensor, list[int]]:
    """The loop of `Backbone`'s docstring; or without any cache, as training runs."""
    encoder, text = MemoryEncoder([PairCompressor(Pairs(), model.fit())]), wan.text(1)
    video = wan.noise(1, 16, 1, *SIZE, seed=50).double()
    state, settled = encoder.step(None, History(latents=video))
    cache, kept, ran = model.remember(settled), [settled], []
    for segment in range(segments):
        if cached:
            held: Memory | Cache = model.remember(encoder.pending(state), cache)
        else:
            held = merge([*kept, encoder.pending(state)])
        prompt, empty = (model.context(each, held) for each in (text, model.blank_text(1, 4)))
        done = video.shape[2]
        noise = wan.noise(1, 16, CHUNK, *SIZE, seed=segment).double()
        made = denoise(model, (empty, prompt), wan.frames(done, CHUNK), noise)
        state, settled = encoder.step(state, attrs.evolve(History(latents=made), offset=done))
        video, cache = torch.cat([video, made], dim=2), model.remember(settled, cache)
        kept.append(settled)
        ran.append(held.length)
    return video, ran


@pytest.mark.slow
@torch.no_grad()
def test_a_take_with_a_growing_cache_is_the_take_without(wan: Any) -> None:
    model = causal(wan, torch.float64)
    video, lengths = take(wan, model, cached=True)
    truth, same = take(wan, model, cached=False)
    assert lengths == same and video.shape[2] == 1 + 4 * CHUNK
    assert apart(video, truth) < 1e-9


def grown(wan: Any, model: TinyWanBackbone, limit: MemoryLimit, segments: int) -> list[Cache]:
    """A cache after each segment of one block of latents, its oldest blocks dropped."""
    memory, cache, caches = history(wan, 1 + BLOCK * segments), None, []
    ends = [(CELLS * (1 + 2 * n), CELLS * (1 + n)) for n in range(segments + 1)]
    cuts = [((0, 0), (0, 0)), *[((0, fine), (0, coarse)) for fine, coarse in ends]]
    for first, last in itertools.pairwise(cuts):
        new = between(memory, tuple((a[1], b[1]) for a, b in zip(first, last, strict=True)))
        cache = model.remember(new, cache).drop_oldest(limit)
        caches.append(cache)
    return caches


def places_of(cache: Cache) -> list[tuple[object, ...]]:
    """The place of each row, and how many rows before it have the same (latent 0 of two rates)."""
    places = [tuple(row) for row in torch.cat([cache.positions, cache.extents], -1)[0].tolist()]
    return [(place, places[:i].count(place)) for i, place in enumerate(places)]


@torch.no_grad()
def test_a_budget_drops_whole_blocks_and_the_cost_is_flat(wan: Any) -> None:
    model, ran = causal(wan), []
    limit = MemoryLimit(block=BLOCK, latents=1 + 2 * BLOCK, first=1)
    hook = model.blocks[0].attn1.to_k.register_forward_hook(
        lambda _, x, y: ran.append(x[0].shape[1])
    )
    caches = grown(wan, model, limit, 8)
    hook.remove()
    assert ran == [2 * CELLS] + [3 * CELLS] * 8, "a segment costs its own tokens, however long"
    of_blocks = [2 * CELLS, *[2 * CELLS + n * 3 * CELLS for n in (1, 2, 2, 2, 2, 2, 2, 2)]]
    assert [cache.length for cache in caches] == of_blocks
    assert [cache.memory.length for cache in caches] == of_blocks
    for before, after in itertools.pairwise(caches):
        rows = {place: i for i, place in enumerate(places_of(before))}
        stayed = [(rows[p], i) for i, p in enumerate(places_of(after)) if p in rows]
        assert len(stayed) == after.length - 3 * CELLS, "all but the new block was there before"
        old, new = (list(each) for each in zip(*stayed, strict=True))
        for x, y in zip((*before.keys, *before.values), (*after.keys, *after.values), strict=True):
            assert torch.equal(x[:, old], y[:, new])
    last = caches[-1]
    order = in_causal_order(last.memory.joined(), BLOCK)  # type: ignore[arg-type]
    assert torch.equal(order.positions, last.positions), "keys and tokens are the same ones"
    again = grown(wan, model, limit, 8)[-1]
    assert all(map(torch.equal, again.keys, last.keys)), "the same drops give the same cache"
    assert bool(velocity(model, wan, last).isfinite().all())


@torch.no_grad()
def test_dropping_more_is_dropping_at_once_and_counts_what_is_beside(wan: Any) -> None:
    model, memory = causal(wan), history(wan, 1 + 3 * BLOCK)
    cache = model.remember(memory)
    limit = MemoryLimit(block=BLOCK, latents=2 * BLOCK)
    assert cache.drop_oldest(attrs.evolve(limit, latents=1 + 3 * BLOCK)) is cache
    kept = cache.drop_oldest(limit)
    assert kept.length == 2 * 3 * CELLS and kept.memory.length == kept.length
    assert torch.equal(kept.keys[0], cache.keys[0][:, -kept.length :])
    fewer = kept.drop_oldest(limit, history(wan, 2 + 3 * BLOCK))
    assert fewer.length == 3 * CELLS
    assert cache.drop_oldest(MemoryLimit(block=BLOCK, tokens=fewer.length)).length == fewer.length
    nothing = model.remember(Memory())
    assert nothing.drop_oldest(limit, history(wan, 40)) is nothing
    two = model.remember(history(wan, 9, batch=2))
    ragged = attrs.evolve(two, valid=torch.tensor([[True] * two.length, [False] * two.length]))
    with pytest.raises(ValueError, match="cover the same latents"):
        ragged.drop_oldest(attrs.evolve(limit, latents=BLOCK))
