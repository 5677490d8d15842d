"""The contract of compressors: what every φ must keep, checked on a small one.

A memory has the length that `context_length` says, finite tokens and places inside of the history;
`step` and `pending` give what `forward` gives, however the history is cut, and when a hard cut in
the video is told late, too; the state is constant in size and goes through a file; samples of a
batch, ragged or not, do not depend on each other; it reads what `needs` declares and nothing else,
and brings the features that it declares; what it returned and what it was given stay as they are,
whatever is called later; no parameter is dead (three released systems shipped a memory that nothing
had trained).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import torch
from attrs import define, field, frozen
from safetensors.torch import load, save
from torch import Tensor

from ..interfaces.codec import Codec
from ..interfaces.compressor import Compressor, Fit, Length, Needs, State
from ..interfaces.spec import CodecSpec
from ..interfaces.streaming import TwoPartStep, advance
from ..registry import build
from ..values.grid import Geometry, Rate, Size3, ceil_div
from ..values.history import History
from ..values.memory import Memory, Part, merge
from .samples import (
    SMALL,
    alone,
    first_line,
    names_plugin,
    require,
    require_type,
    sample_fit,
    sample_history,
    shortened,
)

AnyCompressor: TypeAlias = Compressor[Any]
LONG = 65  # latents that must fill any window: 1 + 8·8, eight blocks of the coarsest rate
BATCHES = ((9, 9, 6, 1, 0), (9, 9, 9))  # real latents of the samples of a batch
KEPT_CHUNKS = ((1, 8, 8), (4, 2, 2, 2, 7))  # latents: steps of one shape, with and without a rest
SIDES, TIMES = (1, 2, 4), (1, 2, 4, 8)
OPTIMIZER_STEPS = 2  # the first opens zero-initialised outputs, the second reaches what feeds them


@names_plugin
def check_compressor(
    compressor_cls: type[AnyCompressor],
    spec: Any,
    *,
    geometry: Geometry = SMALL,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    codec: CodecSpec | None = None,
) -> None:
    """Check that a compressor keeps every law of `core.interfaces.compressor.Compressor`.

    One that encodes pictures of its own reads `fit.codec`: give it a codec that needs no weights,
    whose channels and stride the geometry then takes. Give it a spec of small widths and of a
    window that 65 latents fill. In float64 equal means to 1e-12 of the largest token, in other
    dtypes to 1e-4.

    Raises:
        AssertionError: a law is broken; the message names it in one line.
    """
    torch.manual_seed(seed)
    if codec is not None:
        made: Codec[CodecSpec] = build(codec)
        geometry = attrs.evolve(geometry, channels=made.channels, vae_stride=made.stride)
    fit = sample_fit(geometry, seed=seed, dtype=dtype, codec=codec)
    test = CompressorTest(compressor_cls=compressor_cls, spec=spec, fit=fit, seed=seed, dtype=dtype)
    check_answers(test)
    check_reads(test)
    check_given(test)
    check_liveness(test.built(), test.history(Size3(time=11, height=16, width=18)))
    compressor = randomize_zeros(test.built(), seed).eval()
    with torch.no_grad():
        for size in test.sizes():
            check_memory(test, compressor, test.history(size))
        check_features(test, compressor)
        check_needs(test, compressor)
        for size in test.sizes()[:3]:
            check_law(test, compressor, test.history(size))
        check_samples(test, compressor)
        check_neighbours_in_training(test)
        check_state(test, compressor)
        check_cut(test, compressor)
        check_kept(test, compressor)


@frozen(kw_only=True)
class CompressorTest:
    """The compressor under test: how to build it and its input, and when two memories are equal."""

    compressor_cls: type[AnyCompressor]
    spec: Any
    fit: Fit
    seed: int
    dtype: torch.dtype

    def built(self) -> AnyCompressor:
        """Return a new compressor."""
        return self.compressor_cls(self.spec, self.fit).to(self.dtype)

    def history(self, size: Size3, batch: int = 2) -> History:
        """Return a random history with what the compressor needs."""
        needs = self.compressor_cls.needs(self.spec)
        return sample_history(
            size,
            needs,
            batch,
            geometry=self.fit.geometry,
            seed=self.seed,
            dtype=self.dtype,
            start=16,
        )

    def sizes(self) -> list[Size3]:
        """Return sizes of histories: landscape, portrait, nothing divides, one latent, none."""
        shapes = [(11, 16, 18), (10, 9, 5), (8, 7, 7), (1, 6, 6), (2, 3, 17), (0, 6, 6)]
        return [Size3(time=t, height=h, width=w) for t, h, w in shapes]

    def near(self, a: Tensor, b: Tensor) -> bool:
        """Say whether two tensors are equal up to rounding."""
        tolerance = 1e-12 if self.dtype == torch.float64 else 1e-4
        if a.shape != b.shape or a.numel() == 0:
            return a.shape == b.shape
        scale = max(1.0, float(b.double().abs().max()))
        return float((a.double() - b.double()).abs().max()) <= tolerance * scale

    def same(self, a: Memory, b: Memory) -> bool:
        """Say whether two memories are equal up to rounding; parts without tokens do not count."""
        parts_a, parts_b = real_parts(a), real_parts(b)
        return list(parts_a) == list(parts_b) and all(
            self.near(x, y)
            for name in parts_a
            for x, y in zip(tensors(parts_a[name]), tensors(parts_b[name]), strict=True)
        )

    def with_everything(self, history: History) -> History:
        """Return the history with random LR latents at many rates, and pixels, where it has none.

        What it has stays as it is.
        """
        rates = frozenset(
            Rate(height=h, width=w, time=t) for h, w, t in itertools.product(SIDES, SIDES, TIMES)
        )
        other = sample_history(
            history.size,
            Needs(rates=rates, pixels=True),
            history.batch,
            geometry=self.fit.geometry,
            seed=self.seed + 1,
            dtype=self.dtype,
        )
        pixels = other.pixels if history.pixels is None else history.pixels
        return attrs.evolve(history, lr={**other.lr, **history.lr}, pixels=pixels)


def real_parts(memory: Memory) -> dict[str, Part]:
    """Return the parts that have tokens, by name."""
    return {part.name: part for part in memory.parts if part.tokens.shape[1]}


def tensors(part: Part) -> list[Tensor]:
    """Return all tensors of a part; features by name."""
    features = [part.features[name] for name in sorted(part.features)]
    return [part.tokens, part.positions, part.extents, part.valid.double(), *features]


def snapshot(memory: Memory) -> State:
    """Return copies of all tensors of a memory."""
    named = {f"{p.name}.{i}": x for p in memory.parts for i, x in enumerate(tensors(p))}
    return {name: x.clone() for name, x in named.items()}


def equal(a: State, b: State) -> bool:
    """Say whether two dicts hold the same tensors, bit for bit."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def check_answers(test: CompressorTest) -> None:
    """Check the classes of what a compressor answers before and when it is called."""
    cls, spec, geometry = test.compressor_cls, test.spec, test.fit.geometry
    require_type(cls.needs(spec), Needs, "needs: what it gives")
    size = Size3(time=9, height=16, width=18)
    require_type(cls.context_length(spec, geometry, size), Length, "context_length: what it gives")
    require_type(cls.features(spec), dict, "features: what it gives")


def check_given(test: CompressorTest) -> None:
    """Check that it leaves what it is given as it is, and gives a memory, the same one twice."""
    history, compressor = test.history(Size3(time=9, height=16, width=18)), test.built().eval()
    with torch.no_grad():
        before = _history_tensors(history)
        made = compressor(history)
        require_type(made, Memory, "forward: what it gives")
        for part in made.parts:
            check_part(part, history, test.fit.geometry)
        same = equal(before, _history_tensors(history))
        require(same, "forward: it changed the history that it was given")
        require(test.same(compressor(history), made), "forward: one history gave two memories")
        state: State | None = None
        for chunk in history.chunks([4, 5]):
            before, held = _history_tensors(chunk), {k: v.clone() for k, v in (state or {}).items()}
            stepped = compressor.step(state, chunk)
            pair = isinstance(stepped, tuple) and len(stepped) == 2
            require(
                pair, f"step: it gives a {type(stepped).__name__}, must be a state and a memory"
            )
            same = equal(before, _history_tensors(chunk))
            require(same, "step: it changed the chunk that it was given")
            require(equal(held, state or {}), "step: it changed the state that it was given")
            state, memory = stepped
            require_type(memory, Memory, "step: the memory that it gives")
            require_type(check_pending(compressor, state), Memory, "pending: what it gives")
            check_plain(compressor.cut(state), "cut: what it gives")


def check_plain(state: State, what: str) -> None:
    """Check that a state is a dict of tensors."""
    plain = isinstance(state, dict) and all(isinstance(x, Tensor) for x in state.values())
    require(plain, f"{what}: it is not a dict of tensors")


def _history_tensors(history: History) -> State:
    """Return copies of all tensors of a history."""
    pixels = {} if history.pixels is None else {"pixels": history.pixels}
    lr = {f"lr {rate}": x for rate, x in history.lr.items()}
    own = {"latents": history.latents, "start": history.start, "length": history.length}
    return {name: x.clone() for name, x in (own | lr | pixels).items()}


def check_neighbours_in_training(test: CompressorTest) -> None:
    """Check that a sample is as it is whatever its neighbours are, also in training mode.

    What is random in training is drawn alike for both: the shapes are the same.
    """
    compressor, memories = test.built().train(), []
    history = test.history(Size3(time=9, height=16, width=18), batch=3)
    other = attrs.evolve(
        history.select([0, 2, 2]),
        latents=torch.cat([history.latents[:1], 2 - 3 * history.latents[1:]]),
    )
    for each in (history, other):
        torch.manual_seed(test.seed)
        memories.append(copy.deepcopy(compressor)(each).select([0]))
    line = "training: in train mode a sample depends on the others of its batch"
    require(test.same(*memories), line)


def check_reads(test: CompressorTest) -> None:
    """Check that a history with what `needs` declares is enough."""
    history, compressor = test.history(Size3(time=9, height=16, width=18)), test.built()
    try:
        compressor(history)
    except Exception as error:  # of a stranger's code
        try:
            compressor(test.with_everything(history))
        except Exception:
            raise error from None
        line = f"{type(error).__name__}: {first_line(error) or 'no message'}"
        raise AssertionError(f"needs: it reads what it does not declare ({line})") from error


def check_needs(test: CompressorTest, compressor: AnyCompressor) -> None:
    """Check that what `needs` does not declare changes nothing where it is there."""
    history = test.history(Size3(time=9, height=16, width=18))
    expected = [compressor(history), _streamed(compressor, history)]
    declared, more = test.compressor_cls.needs(test.spec), test.with_everything(history)
    cases = {
        "LR latents": attrs.evolve(more, pixels=history.pixels),
        "pixels": attrs.evolve(more, lr=history.lr),
    }
    if not declared.hr:
        noise = sample_history(
            history.size, Needs(), geometry=test.fit.geometry, seed=test.seed + 2
        )
        cases["values of HR latents"] = attrs.evolve(history, latents=noise.latents.to(test.dtype))
    for name, other in cases.items():
        for same, memory in zip(
            expected, [compressor(other), _streamed(compressor, other)], strict=True
        ):
            require(test.same(memory, same), f"needs: it reads {name} that it does not declare")


def _streamed(compressor: AnyCompressor, history: History) -> Memory:
    """Return the memory of a window of 9 latents by way of `step` and `pending`."""
    first, second = history.chunks([4, 5])
    state, settled = compressor.step(None, first)
    state, more = compressor.step(state, second)
    return merge([settled, more, compressor.pending(state)])


def check_features(test: CompressorTest, compressor: AnyCompressor) -> None:
    """Check that memories bring the features that `features` declares, at their widths."""
    declared = test.compressor_cls.features(test.spec)
    seen: set[str] = set()
    history = test.history(Size3(time=9, height=16, width=18))
    for memory in (compressor(history), _streamed(compressor, history)):
        for part in real_parts(memory).values():
            own = {f"{part.name}.{name}": x for name, x in part.features.items()}
            others = sorted(own.keys() - declared.keys())
            require(not others, f"features: {', '.join(others)} of the memory are not declared")
            lacking = [n for n in declared if n.startswith(f"{part.name}.") and n not in own]
            require(
                not lacking, f"features: {', '.join(lacking)} are declared, the part lacks them"
            )
            for name, x in own.items():
                shape = (*part.tokens.shape[:2], declared[name])
                line = f"features: {name} is {tuple(x.shape)}, must be {shape}"
                require(tuple(x.shape) == shape, line)
            seen |= own.keys()
    never = sorted(declared.keys() - seen)
    require(not never, f"features: {', '.join(never)} are declared, but no memory brings them")


def check_liveness(compressor: Compressor[Any], history: History) -> None:
    """Check that every parameter has a gradient, and has moved after two optimizer steps.

    Raises:
        AssertionError: naming the parameters that have none or did not move.
    """
    named = dict(compressor.named_parameters())
    if not named:
        return
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.Adam(named.values(), lr=1e-2)
    compressor.train()
    for _ in range(OPTIMIZER_STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = weighed_sum(compressor(history))
        require(loss.requires_grad, "liveness: the memory does not depend on any parameter")
        loss.backward()
        optimizer.step()
    silent = [name for name, p in named.items() if p.grad is None or not bool(p.grad.any())]
    require(not silent, f"liveness: no gradient after {OPTIMIZER_STEPS} steps: {', '.join(silent)}")
    still = [name for name, p in named.items() if torch.equal(p.detach(), before[name])]
    require(not still, f"liveness: not moved after {OPTIMIZER_STEPS} steps: {', '.join(still)}")


def weighed_sum(memory: Memory) -> Tensor:
    """Return a sum of all tokens and features of a memory, each number with a random weight."""
    random = torch.Generator().manual_seed(0)
    floats = [x for part in memory.parts for x in (part.tokens, *part.features.values())]
    terms = [(x * torch.randn(x.shape, generator=random, dtype=x.dtype)).sum() for x in floats]
    return sum(terms, torch.zeros(()))


def randomize_zeros(compressor: Compressor[Any], seed: int = 0) -> Compressor[Any]:
    """Return the compressor, all its zero-initialised parameters made random.

    With zeros, outputs would agree whatever the rest does.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in compressor.parameters():
            if not bool(parameter.any()):
                noise = torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
                parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
    return compressor


def check_memory(test: CompressorTest, compressor: AnyCompressor, history: History) -> None:
    """Check length, size and parts of a memory."""
    memory, size = compressor(history), history.size
    length = test.compressor_cls.context_length(test.spec, test.fit.geometry, size)
    fits = memory.length == length.tokens if length.exact else memory.length <= length.tokens
    require(fits, f"context_length: {length} told, {memory.length} tokens made of {size} latents")
    require(bool(size.time) or not memory.length, "empty history: it must give no tokens")
    require(memory.size == size, f"size: a memory of {size} latents says {memory.size}")
    for part in memory.parts:
        check_part(part, history, test.fit.geometry)


def check_part(part: Part, history: History, geometry: Geometry) -> None:
    """Check that a part has the DiT's width, finite values and places inside of the history."""
    where = f"part {part.name} of {history.size} latents"
    for name, x, kind in (
        ("positions", part.positions, torch.float64),
        ("extents", part.extents, torch.float64),
        ("valid", part.valid, torch.bool),
    ):
        require_type(x, Tensor, f"{name} of {where}")
        require(x.dtype == kind, f"{name} of {where} are {x.dtype}, must be {kind}")
    batch, count, width = part.tokens.shape
    require(width == geometry.width, f"width: {where} has {width}, the DiT {geometry.width}")
    require(all(bool(x.isfinite().all()) for x in tensors(part)), f"finite: {where} is not")
    shapes = [tuple(x.shape) for x in (part.positions, part.extents, part.valid)]
    expected = [(batch, count, 3), (batch, count, 3), (batch, count)]
    require(shapes == expected, f"shapes: positions, extents, valid of {where}: {shapes}")
    require(bool(part.valid.all()), f"valid: {where} marks tokens of full samples as padding")
    ends = part.last_covered
    ascending = bool((ends.diff(dim=1) >= 0).all())
    require(ascending, f"order: tokens of {where} are not ascending in the last latent covered")
    low, high = part.positions - (part.extents - 1) / 2, part.positions + (part.extents - 1) / 2
    size, patch = history.size, geometry.patch
    cells = [size.time, ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)]
    first = torch.stack([history.start, *[torch.zeros_like(history.start)] * 2], dim=-1)[:, None]
    last = first + torch.tensor(cells) - 1
    reach = torch.cat([high[..., :1], low[..., 1:]], dim=-1)  # whole cells may hang over the frame
    inside = (low >= first) & (reach <= last) & (part.extents > 0)
    require(
        bool(inside.all()),
        f"places: {where} has a token that covers latents outside of it, begins above it or left "
        "of it, or covers none of its cells",
    )


def check_law(test: CompressorTest, compressor: AnyCompressor, history: History) -> None:
    """Check after every chunk: all that `step` gave, merged with `pending`, equals `forward`."""
    for lengths in chunkings(history.size.time, test.seed):
        state, settled, copies = None, [], []
        seen = 0
        for chunk in history.chunks(lengths):
            state, memory = compressor.step(state, chunk)
            pending = check_pending(compressor, state)
            settled.append(memory)
            copies.append(snapshot(memory))
            seen += chunk.size.time
            check_settled(compressor, memory, pending, seen)
            whole = compressor(history.chunk(0, seen))
            line = f"law: step over chunks of {lengths} latents, then pending, is not forward"
            require(test.same(merge([*settled, pending]), whole), f"{line} at {seen} latents")
        same = all(equal(snapshot(m), copy) for m, copy in zip(settled, copies, strict=True))
        require(same, "settled: what step gave was changed later")


def check_cut(test: CompressorTest, compressor: AnyCompressor) -> None:
    """Check that `cut` makes of a state what a history with a cut at its end gives, and goes on."""
    geometry, history = test.fit.geometry, test.history(Size3(time=9, height=6, width=10))
    first_frame = geometry.vae_stride.time * (int(history.start[0]) + 4) + 1  # of latent 5
    cuts = ((first_frame / geometry.fps,),) * history.batch
    unknown = attrs.evolve(history, cuts=((),) * history.batch)
    known = attrs.evolve(history, cuts=cuts)
    state, settled = compressor.step(None, unknown.chunk(0, 5))
    before = {name: x.clone() for name, x in state.items()}
    after = compressor.cut(state)
    require(equal(before, state), "cut: it changed the state that it was given")
    late = merge([settled, compressor.pending(after)])
    line = "cut: after it the memory is not that of a history with the cut"
    require(test.same(late, compressor(known.chunk(0, 5))), line)
    state, more = compressor.step(after, known.chunk(5, 9))
    late = merge([settled, more, compressor.pending(state)])
    require(test.same(late, compressor(known)), f"{line}, once the history goes on")


def chunkings(latents: int, seed: int) -> list[list[int]]:
    """Return ways to cut latents into chunks: by ones, whole, the first alone, two at random."""
    random = torch.Generator().manual_seed(seed)
    ways = [[1] * latents, [latents], [1, latents - 1]]
    for _ in range(2):
        cuts = torch.randperm(latents - 1, generator=random)[: latents // 3].sort().values + 1
        ends = [0, *cuts.tolist(), latents]
        ways.append([b - a for a, b in zip(ends, ends[1:], strict=False)])
    return ways


def check_pending(compressor: AnyCompressor, state: State) -> Memory:
    """Return what is pending; check that the state is plain tensors, and is left as it was."""
    check_plain(state, "state")
    before = {name: x.clone() for name, x in state.items()}
    memory = compressor.pending(state)
    require(equal(before, state), "pending: it changed the state")
    return memory


def check_settled(compressor: AnyCompressor, memory: Memory, pending: Memory, seen: int) -> None:
    """Check the size that a step tells; a compressor that never settles gives no tokens in it."""
    for name, each in (("step", memory), ("pending", pending)):
        latents = each.size.time if each.size else None
        require(latents == seen, f"size: {name} says {latents} latents of {seen} seen")
    fits = compressor.settles or not memory.length
    require(fits, "settles: it is False, but step gave tokens")


def check_state(test: CompressorTest, compressor: AnyCompressor) -> None:
    """Check that the state has a constant size, and that a safetensors file can hold it."""
    history = test.history(Size3(time=2 * LONG - 1, height=4, width=4), batch=1)
    state, sizes = None, {}
    for chunk in history.chunks([1, *[8] * (LONG // 4)]):
        state, _ = compressor.step(state, chunk)
        sizes[chunk.offset + chunk.size.time] = sum(x.numel() for x in state.values())
    small, large = sizes[LONG], sizes[2 * LONG - 1]
    constant = small == large or not compressor.settles
    require(constant, f"state: {small} numbers after {LONG} latents, {large} after {2 * LONG - 1}")
    check_file(test, compressor)


def check_kept(test: CompressorTest, compressor: AnyCompressor) -> None:
    """Check that nothing it returned is changed by a later call, for its own video or another.

    A compressor that hands out views of a buffer which it fills again breaks whoever still has
    them: a take that branches, a memory that is cached, two takes side by side.
    """
    size = Size3(time=17, height=6, width=10)
    history = test.history(size)
    videos = [history, attrs.evolve(history, latents=1 - history.latents)]
    given = [_history_tensors(video) for video in videos]
    kept = _Kept()
    for lengths in KEPT_CHUNKS:
        states: list[State | None] = [None] * len(videos)
        for chunks in zip(*(video.chunks(lengths) for video in videos), strict=True):
            for index, chunk in enumerate(chunks):
                states[index] = _step_kept(test, compressor, states[index], chunk, kept)
    for video in (*videos, videos[0]):
        kept.add("forward", "the memory", _live(compressor(video)))
    for video, before in zip(videos, given, strict=True):
        line = "step: a history was changed after all chunks of it were taken"
        require(equal(before, _history_tensors(video)), line)


def _step_kept(
    test: CompressorTest,
    compressor: AnyCompressor,
    state: State | None,
    chunk: History,
    kept: _Kept,
) -> State:
    """Take a chunk in every way that there is; return the new state, and keep all that is made."""
    new, memory = compressor.step(state, chunk)
    kept.add("step", "the memory", _live(memory))
    kept.add("step", "the state", new)
    kept.add("pending", "the memory", _live(compressor.pending(new)))
    kept.add("cut", "the state", compressor.cut(new))
    if isinstance(compressor, TwoPartStep):
        after, settled = compressor.compute(advance(state, chunk), chunk)
        kept.add("compute", "the state", after)
        kept.add("compute", "the tensors of what has settled", settled)
        placed = compressor.place(after, chunk, settled)
        kept.add("place", "the memory", _live(placed))
        line = "step: it is not what compute and place give, which a graph of the step runs"
        require(test.same(placed, memory), line)
        pending = compressor.pending(after)
        require(test.same(pending, compressor.pending(new)), line)
    return new


@define
class _Kept:
    """What a compressor returned, as it is now and as it was: who gave it, what, and its tensors.

    Attributes:
        all: of every call so far.
    """

    all: list[tuple[str, str, State, State]] = field(factory=list)

    def add(self, call: str, what: str, made: State) -> None:
        """Keep what a call made, after a look at whether all before it is as it was.

        Raises:
            AssertionError: the call changed what an earlier one returned.
        """
        for earlier, other, now, before in self.all:
            if not equal(now, before):
                raise AssertionError(
                    f"{earlier}: a later {call} changed {other} that it gave; return copies "
                    "(own_copy) of buffers that are used again"
                )
        self.all.append((call, what, dict(made), {n: x.clone() for n, x in made.items()}))


def _live(memory: Memory) -> State:
    """Return all tensors of a memory by name, themselves and no copies."""
    return {
        f"{part.name} {name}": x
        for part in memory.parts
        for name, x in {
            "tokens": part.tokens,
            "positions": part.positions,
            "extents": part.extents,
            "valid": part.valid,
            **{f"feature {name}": x for name, x in part.features.items()},
        }.items()
    }


def check_file(test: CompressorTest, compressor: AnyCompressor) -> None:
    """Check that a state that was saved and loaded goes on as the first one."""
    history = test.history(Size3(time=10, height=6, width=10))
    state, _ = compressor.step(None, history.chunk(0, 6))
    try:
        loaded = load(save(state))
    except (RuntimeError, ValueError) as error:
        raise AssertionError(f"file: safetensors cannot write the state: {error}") from error
    for one, other in zip(
        _next(compressor, state, history), _next(compressor, loaded, history), strict=True
    ):
        require(test.same(one, other), "file: a saved state goes on otherwise")


def _next(compressor: AnyCompressor, state: State, history: History) -> list[Memory]:
    pending = compressor.pending(state)
    state, memory = compressor.step(state, history.chunk(6, 10))
    return [pending, memory, compressor.pending(state)]


def check_samples(test: CompressorTest, compressor: AnyCompressor) -> None:
    """Check that samples of a batch, ragged or not, are as they are alone, and in any order."""
    for lengths in BATCHES:
        history = test.history(Size3(time=9, height=16, width=18), batch=len(lengths))
        batch = shortened(history, lengths, seed=test.seed)
        memory = compressor(batch)
        kind = "ragged" if batch.ragged else "batch"
        for index, length in enumerate(lengths):
            one = alone(batch, index, test.fit.geometry)
            line = f"{kind}: a sample of {length} latents is not as it is alone"
            own = valid_only(compressor(one))
            require(test.same(valid_only(memory.select([index])), own), line)
        if not batch.ragged:
            streamed = _streamed(compressor, batch)
            for index in range(len(lengths)):
                own = _streamed(compressor, alone(batch, index, test.fit.geometry))
                line = "batch: step and pending of a sample are not as they are alone"
                require(test.same(streamed.select([index]), own), line)
        order = _shuffled(len(lengths))
        swapped = compressor(batch.select(order))
        require(test.same(swapped, memory.select(order)), "batch: its order changes the samples")


def _shuffled(count: int) -> Sequence[int]:
    return [*range(2, count), 0, 1]


def valid_only(memory: Memory) -> Memory:
    """Return the real tokens of a memory of one sample."""
    parts = [part.take(part.valid[0].nonzero()[None, :, 0]) for part in memory.parts]
    return Memory(parts=tuple(parts), size=memory.size)
