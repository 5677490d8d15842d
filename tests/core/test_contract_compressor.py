"""The contract of compressors passes a sound one and catches each kind of broken one."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from attrs import field, frozen
from torch import nn

from longtake.core.contract.compressor import (
    CompressorTest,
    check_compressor,
    check_kept,
    randomize_zeros,
)
from longtake.core.contract.samples import SMALL, alone, sample_fit, sample_history, shortened
from longtake.core.interfaces.compressor import Compressor, Fit, Length, Needs, State, project
from longtake.core.interfaces.spec import CompressorSpec, doc
from longtake.core.interfaces.streaming import CellCompressor, Encoded
from longtake.core.values.grid import Geometry, Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, merge
from longtake.plugins.compressors.conv import ConvCompressor
from longtake.plugins.compressors.keyframes import WindowCompressor
from longtake.plugins.compressors.specs import Conv, Window

SPEC = Conv(rate=Rate(height=2, width=2, time=2), channels=(4, 6), heads=2, head_width=4, window=2)


def scaled(memory: Memory, factor: float) -> Memory:
    parts = [attrs.evolve(part, tokens=part.tokens * factor) for part in memory.parts]
    return attrs.evolve(memory, parts=tuple(parts))


class DependsOnChunks(ConvCompressor):
    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        return new, scaled(memory, 1 + 1e-9 * chunk.size.time)


class ForgetsTheProvisional(ConvCompressor):
    def pending(self, state: State) -> Memory:
        return attrs.evolve(super().pending(state), parts=())


class GrowsItsState(ConvCompressor):
    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        past = [state["all"]] if state else []
        return {**new, "all": torch.cat([*past, chunk.latents], dim=2)}, memory


class HasADeadParameter(ConvCompressor):
    def __init__(self, spec: Conv, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.dead = nn.Parameter(torch.ones(3))


class HasAnUntrainedParameter(ConvCompressor):
    def forward(self, history: History) -> Memory:
        memory = super().forward(history)
        tokens = [attrs.evolve(part, tokens=part.tokens.detach()) for part in memory.parts]
        return attrs.evolve(memory, parts=tuple(tokens))


class PendingEatsTheState(ConvCompressor):
    def pending(self, state: State) -> Memory:
        memory = super().pending(state)
        state["seen"] += 1
        return memory


class MixesSamples(ConvCompressor):
    def forward(self, history: History) -> Memory:
        memory = super().forward(history)
        parts = [attrs.evolve(p, tokens=p.tokens + p.tokens.mean(0)) for p in memory.parts]
        return attrs.evolve(memory, parts=tuple(parts))

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        parts = [attrs.evolve(p, tokens=p.tokens + p.tokens.mean(0)) for p in memory.parts]
        return new, attrs.evolve(memory, parts=tuple(parts))

    def pending(self, state: State) -> Memory:
        memory = super().pending(state)
        parts = [attrs.evolve(p, tokens=p.tokens + p.tokens.mean(0)) for p in memory.parts]
        return attrs.evolve(memory, parts=tuple(parts))


class ReadsPadding(ConvCompressor):
    def forward(self, history: History) -> Memory:
        memory = super().forward(
            attrs.evolve(history, length=torch.full_like(history.length, history.size.time))
        )
        valid = super().forward(history)
        parts = [
            attrs.evolve(p, valid=q.valid, positions=q.positions, extents=q.extents)
            for p, q in zip(memory.parts, valid.parts, strict=True)
        ]
        return attrs.evolve(memory, parts=tuple(parts))  # fmt: skip


class CountsWrong(ConvCompressor):
    @classmethod
    def context_length(cls, spec: Conv, geometry: Geometry, size: Size3) -> Length:
        return Length(tokens=super().context_length(spec, geometry, size).tokens + 1)


class ForgetsTheStart(ConvCompressor):
    def forward(self, history: History) -> Memory:
        return super().forward(attrs.evolve(history, start=torch.zeros_like(history.start)))


class StandsBehindTheFrame(ConvCompressor):
    """A whole row of cells too low: none of its last row is in the frame."""

    def forward(self, history: History) -> Memory:
        memory = super().forward(history)
        down = torch.tensor([0.0, self.spec.rate.height, 0.0], dtype=torch.float64)
        parts = [attrs.evolve(p, positions=p.positions + down) for p in memory.parts]
        return attrs.evolve(memory, parts=tuple(parts))


class KeepsSlices(ConvCompressor):
    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        return {**new, "cut": chunk.latents[..., :1]}, memory


class SettlesWhatItMustRetract(ConvCompressor):
    def __init__(self, spec: Conv, fit: Fit) -> None:
        super().__init__(attrs.evolve(spec, attention="full"), fit)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, _ = super().step(state, chunk)
        return new, self.pending(new)


class MixesFullSamples(ConvCompressor):
    """Mixes where all samples are equally long, as a norm over the batch might."""

    def forward(self, history: History) -> Memory:
        memory = super().forward(history)
        return memory if history.ragged else mixed(memory)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        return new, mixed(memory)

    def pending(self, state: State) -> Memory:
        return mixed(super().pending(state))


class MixesEqualSamples(ConvCompressor):
    """Mixes samples of the same length."""

    def forward(self, history: History) -> Memory:
        memory, twins = super().forward(history), history.length[:, None] == history.length
        share = twins.to(history.latents.dtype) / twins.sum(1, keepdim=True)
        parts = [
            attrs.evolve(p, tokens=torch.einsum("ab,bnd->and", share, p.tokens))
            for p in memory.parts
        ]
        return attrs.evolve(memory, parts=tuple(parts))

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        return new, mixed(memory)

    def pending(self, state: State) -> Memory:
        return mixed(super().pending(state))


def mixed(memory: Memory) -> Memory:
    parts = [attrs.evolve(p, tokens=p.tokens.mean(0).expand_as(p.tokens)) for p in memory.parts]
    return attrs.evolve(memory, parts=tuple(parts))


class BringsUndeclaredFeatures(ConvCompressor):
    @classmethod
    def features(cls, spec: Conv) -> dict[str, int]:
        return {}


class DeclaresOtherWidths(ConvCompressor):
    @classmethod
    def features(cls, spec: Conv) -> dict[str, int]:
        return {name: width + 1 for name, width in super().features(spec).items()}


class DeclaresFeaturesOnly(ConvCompressor):
    @classmethod
    def features(cls, spec: Conv) -> dict[str, int]:
        return super().features(spec) | {"conv-2x2x2.more": 3}


class DeclaresFeaturesOfNoPart(ConvCompressor):
    @classmethod
    def features(cls, spec: Conv) -> dict[str, int]:
        return super().features(spec) | {"nothing.more": 3}


class DeclaresNoRates(ConvCompressor):
    @classmethod
    def needs(cls, spec: Conv) -> Needs:
        return Needs()


class DeclaresNoLatents(ConvCompressor):
    @classmethod
    def needs(cls, spec: Conv) -> Needs:
        return attrs.evolve(super().needs(spec), hr=False)


class DeclaresTooMuch(ConvCompressor):
    @classmethod
    def needs(cls, spec: Conv) -> Needs:
        return super().needs(spec) | Needs(rates=frozenset({Rate.parse("4x4x4")}), pixels=True)


class ReadsPixels(ConvCompressor):
    def forward(self, history: History) -> Memory:
        assert history.pixels is not None
        return super().forward(history)


class PeeksAtPixels(ConvCompressor):
    """Reads the pixels where they are there, as in a store that keeps them for measuring."""

    def forward(self, history: History) -> Memory:
        memory = super().forward(history)
        return scaled(memory, 1.0 if history.pixels is None else 1.1)


class PeeksAtRates(ConvCompressor):
    def forward(self, history: History) -> Memory:
        other = history.lr.get(Rate.parse("1x1x2"))
        return scaled(super().forward(history), 1.0 if other is None else 1 + float(other.mean()))


class GivesNoMemory(ConvCompressor):
    def forward(self, history: History) -> Any:
        return super().forward(history).parts[0].tokens


class StepGivesNoMemory(ConvCompressor):
    def step(self, state: State | None, chunk: History) -> Any:
        return super().step(state, chunk)[0]


class LengthIsANumber(ConvCompressor):
    @classmethod
    def context_length(cls, spec: Conv, geometry: Geometry, size: Size3) -> Any:
        return super().context_length(spec, geometry, size).tokens


class ChangesItsInput(ConvCompressor):
    def forward(self, history: History) -> Memory:
        memory = super().forward(history)
        history.latents.mul_(2)
        return memory


class StepEatsTheState(ConvCompressor):
    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        result = super().step({k: x.clone() for k, x in state.items()} if state else None, chunk)
        for tensor in (state or {}).values():
            tensor.zero_()
        return result


class NeverTheSame(ConvCompressor):
    def forward(self, history: History) -> Memory:
        return scaled(super().forward(history), 1 + 1e-3 * float(torch.rand(())))


class PlacesInSingle(ConvCompressor):
    def forward(self, history: History) -> Memory:
        memory = super().forward(history)
        parts = [attrs.evolve(p, positions=p.positions.float()) for p in memory.parts]
        return attrs.evolve(memory, parts=tuple(parts))


class MixesInTraining(ConvCompressor):
    """As a norm over the batch does, which is another one when it is tried."""

    def forward(self, history: History) -> Memory:
        memory = super().forward(history)
        return mixed(memory) if self.training else memory


def in_place(buffers: list[dict[str, torch.Tensor]], made: dict[str, Any]) -> dict[str, Any]:
    """Return tensors as views of buffers of their shapes, which take turns and are filled again."""
    views = {}
    for name, x in made.items():
        buffer = buffers[0].setdefault(f"{name} {tuple(x.shape)}", torch.empty_like(x))
        views[name] = buffer.copy_(x)[...]
    buffers.append(buffers.pop(0))
    return views


class Reuses(ConvCompressor):
    """Has buffers that what it returns lies in: one, or several that take turns."""

    turns = 1

    def __init__(self, spec: Conv, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.kept: list[dict[str, torch.Tensor]] = [{} for _ in range(self.turns)]

    def views(self, memory: Memory) -> Memory:
        named = {part.name: part.tokens for part in memory.parts}
        tokens = in_place(self.kept, {n: x for n, x in named.items() if x.numel()})
        parts = [
            attrs.evolve(part, tokens=tokens.get(part.name, part.tokens)) for part in memory.parts
        ]
        return attrs.evolve(memory, parts=tuple(parts))


class ReusesWhatHasSettled(Reuses):
    """Its `compute` writes into a buffer of the module; `place` copies: no step shows it."""

    def compute(self, state: State, chunk: History) -> tuple[State, dict[str, torch.Tensor]]:
        new, settled = super().compute(state, chunk)
        return new, in_place(self.kept, settled)

    def place(self, state: State, chunk: History, settled: Any) -> Memory:
        return super().place(state, chunk, {name: x.clone() for name, x in settled.items()})


class ReusesWhatIsPending(Reuses):
    def pending(self, state: State) -> Memory:
        return self.views(super().pending(state))


class ReusesItsSteps(Reuses):
    """Memories of steps lie in turns in as many buffers as a window of the contract has chunks."""

    turns = 12

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        return new, self.views(memory)


class ReusesItsStates(Reuses):
    """Two buffers in turns: the state given stays as it is for one step, and no longer."""

    turns = 2

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        counts = {name: new[name] for name in ("seen", "start")}
        return {**in_place(self.kept, {n: x for n, x in new.items()}), **counts}, memory


class ReusesWholeMemories(Reuses):
    def forward(self, history: History) -> Memory:
        memory = super().forward(history)
        return memory if torch.is_grad_enabled() else self.views(memory)


class ReusesCutStates(Reuses):
    def cut(self, state: State) -> State:
        return in_place(self.kept, state)


class ClearsPastHistory(ConvCompressor):
    """Takes what came in one step as its own in the next, and fills it with zeros."""

    taken: torch.Tensor | None = None

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        if self.taken is not None and chunk.offset > 4:
            self.taken.zero_()
        self.taken = chunk.latents
        return new, memory


class StepsOtherwise(ConvCompressor):
    """A step of its own beside its two parts, which a graph would not run."""

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        new, memory = super().step(state, chunk)
        return new, scaled(memory, 1.5)

    def forward(self, history: History) -> Memory:
        state, memory = self.step(None, history) if history.size.time else ({}, None)
        return merge([memory, self.pending(state)]) if memory else super().forward(history)


BROKEN = [
    (GivesNoMemory, "forward: what it gives is of type Tensor, must be of type Memory"),
    (StepGivesNoMemory, "ValueError: |step: it gives a dict, must be a state and a memory"),
    (LengthIsANumber, "context_length: what it gives is of type int, must be of type Length"),
    (ChangesItsInput, "forward: it changed the history that it was given"),
    (StepEatsTheState, "step: it changed the state that it was given"),
    (NeverTheSame, "forward: one history gave two memories"),
    (PlacesInSingle, "positions of part .* are torch.float32, must be torch.float64"),
    pytest.param(MixesInTraining, "training: in train mode a sample", marks=pytest.mark.slow),
    (DependsOnChunks, "law: step over chunks"),
    (ForgetsTheProvisional, "law: step over chunks"),
    pytest.param(GrowsItsState, "state: .* numbers after 65 latents", marks=pytest.mark.slow),
    (HasADeadParameter, "liveness: no gradient after 2 steps: dead"),
    (HasAnUntrainedParameter, "liveness: the memory does not depend"),
    (PendingEatsTheState, "pending: it changed the state"),
    pytest.param(MixesSamples, "ragged: a sample", marks=pytest.mark.slow),
    pytest.param(ReadsPadding, "ragged: a sample of 6 latents", marks=pytest.mark.slow),
    (CountsWrong, "context_length: "),
    (ForgetsTheStart, "places: "),
    (StandsBehindTheFrame, "places: .* covers none of its cells"),
    pytest.param(KeepsSlices, "file: safetensors cannot write", marks=pytest.mark.slow),
    (SettlesWhatItMustRetract, "settles: "),
    pytest.param(MixesFullSamples, "batch: a sample of 9 latents", marks=pytest.mark.slow),
    pytest.param(MixesEqualSamples, "ragged: a sample of 9 latents", marks=pytest.mark.slow),
    (DeclaresNoRates, "needs: it reads what it does not declare"),
    (ReadsPixels, r"needs: it reads what it does not declare \(AssertionError"),
    (DeclaresNoLatents, "needs: it reads values of HR latents that it does not declare"),
    (PeeksAtPixels, "needs: it reads pixels that it does not declare"),
    (PeeksAtRates, "needs: it reads LR latents that it does not declare"),
]
KEPT = [
    (ReusesWhatHasSettled, "compute: a later step changed the tensors of what has settled"),
    (ReusesWhatIsPending, "pending: a later pending changed the memory that it gave"),
    (ReusesItsSteps, "step: a later step changed the memory that it gave"),
    (ReusesItsStates, "step: a later step changed the state that it gave"),
    (ReusesWholeMemories, "forward: a later forward changed the memory that it gave"),
    (ReusesCutStates, "cut: a later cut changed the state that it gave"),
    (ClearsPastHistory, "step: a history was changed after all chunks of it were taken"),
    (StepsOtherwise, "step: it is not what compute and place give"),
]
FEATURES = [
    (BringsUndeclaredFeatures, "features: conv-2x2x2.hidden of the memory are not declared"),
    (DeclaresOtherWidths, "features: conv-2x2x2.hidden is "),
    (DeclaresFeaturesOnly, "features: conv-2x2x2.more are declared, the part lacks them"),
    (DeclaresFeaturesOfNoPart, "features: nothing.more are declared, but no memory"),
]


@pytest.mark.parametrize(("broken", "line"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_each_broken_compressor_is_caught(broken: type[Compressor[Conv]], line: str) -> None:
    with pytest.raises(AssertionError, match=line) as caught:
        check_compressor(broken, SPEC)
    said = str(caught.value)
    assert "\n" not in said and said.startswith(f"{broken.__name__} ({__file__}): ")


@pytest.mark.parametrize(("broken", "line"), KEPT, ids=lambda x: getattr(x, "__name__", ""))
@torch.no_grad()
def test_what_it_gave_and_changes_later_is_caught(
    broken: type[Compressor[Conv]], line: str
) -> None:
    fit = sample_fit(dtype=torch.float64)
    test = CompressorTest(compressor_cls=broken, spec=SPEC, fit=fit, seed=0, dtype=torch.float64)
    with pytest.raises(AssertionError, match=line):
        check_kept(test, randomize_zeros(test.built()).eval())


@pytest.mark.parametrize(("broken", "line"), FEATURES, ids=lambda x: getattr(x, "__name__", ""))
def test_features_that_lie_are_caught(broken: type[Compressor[Conv]], line: str) -> None:
    with pytest.raises(AssertionError, match=line):
        check_compressor(broken, attrs.evolve(SPEC, features=True))


@pytest.mark.slow
def test_declaring_more_than_is_read_is_fine() -> None:
    check_compressor(DeclaresTooMuch, SPEC)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)]
)
def test_a_sound_compressor_passes(dtype: torch.dtype) -> None:
    check_compressor(ConvCompressor, SPEC, dtype=dtype)


def test_samples_have_the_sizes_that_the_design_asks_for() -> None:
    rate = Rate(height=4, width=2, time=4)
    needs = Needs(rates=frozenset({rate}), pixels=True)
    history = sample_history(Size3(time=7, height=5, width=9), needs, 3, start=8)
    assert history.latents.shape == (3, SMALL.channels, 7, 5, 9)
    assert history.lr[rate].shape == (3, SMALL.channels, 2, 2, 5)
    assert history.pixels is not None and history.pixels.shape == (3, 3, 25, 40, 72)
    assert history.start.tolist() == [8, 8, 8]
    tokens = sample_fit().tokens(history.lr[rate])
    assert tokens.shape == (3, 2, 1, 3, SMALL.width)


def test_shortened_spoils_only_what_lies_behind_and_alone_leaves_it_out() -> None:
    rate = Rate(height=1, width=1, time=2)
    history = sample_history(Size3(time=6, height=2, width=2), Needs(rates=frozenset({rate})))
    ragged = shortened(history, [6, 3])
    assert torch.equal(ragged.latents[0], history.latents[0])
    assert ragged.latents[1, :, 3:].abs().mean() > 100
    assert ragged.lr[rate][1, :, 2:].abs().mean() > 100
    one = alone(ragged, 1)
    assert torch.equal(one.latents, history.latents[1:, :, :3])
    assert torch.equal(one.lr[rate], history.lr[rate][1:, :, :2])
    assert not one.ragged


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1), (3, 4)])
def test_latents_come_back_from_their_tokens(size: tuple[int, int]) -> None:
    patch = Size3(time=1, height=2, width=2)
    wide = sample_fit(attrs.evolve(SMALL, width=16, patch=patch))
    latents = torch.randn(2, 3, 3, *size, dtype=torch.float64)
    back = wide.latents(wide.tokens(latents), *size)
    assert back.shape == latents.shape and (back - latents).abs().max() < 1e-10
    narrow = sample_fit(SMALL)  # 8 numbers of 12: the nearest, whose tokens are nearest, too
    tokens = torch.randn_like(narrow.tokens(latents))
    near = narrow.latents(tokens, *size)
    moved = near + 1e-3 * torch.randn_like(near)
    gap = (narrow.tokens(near) - tokens).square().sum()
    assert gap <= (narrow.tokens(moved) - tokens).square().sum() + 1e-9
    with pytest.raises(ValueError, match="of 9×9 they are"):
        wide.latents(wide.tokens(latents), 9, 9)


class KeepsItsWindow(WindowCompressor):
    def cut(self, state: State) -> State:
        return state


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 3, 1)])
def test_tokens_are_those_of_a_conv_with_the_patch_as_stride(patch: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    latents = torch.randn(2, 3, 5, 6, 6).double()
    weight, bias = torch.randn(4, 3, *patch).double(), torch.randn(4).double()
    conv = torch.nn.functional.conv3d(latents, weight, bias, stride=patch)
    tokens = project(latents, weight, bias)
    torch.testing.assert_close(tokens, conv.permute(0, 2, 3, 4, 1), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_cut_that_is_told_late_and_not_heard_is_caught() -> None:
    line = r"^KeepsItsWindow \(.*\.py\): cut: after it the memory is not that of a history"
    with pytest.raises(AssertionError, match=line):
        check_compressor(KeepsItsWindow, Window(latents=2))


@frozen(kw_only=True)
class CellsSpec(CompressorSpec):
    rate: Rate = field(default=Rate(height=2, width=2, time=2), metadata=doc("of the cells"))


class Cells(CellCompressor[CellsSpec]):
    """Means of cells, with their spread as a feature."""

    part = "cells"

    def __init__(self, spec: CellsSpec, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.out = torch.nn.Linear(fit.geometry.channels, fit.geometry.width)

    @classmethod
    def feature_widths(cls, spec: CellsSpec) -> dict[str, int]:
        return {"spread": 3}

    def encode(self, cells: torch.Tensor) -> Encoded:
        spread = cells.var(dim=(2, 3, 4), correction=0)
        return self.out(cells.mean(dim=(2, 3, 4))), {"spread": spread}


@pytest.mark.slow
def test_a_compressor_of_cells_may_bring_features() -> None:
    spec = CellsSpec()
    assert Cells.features(spec) == {"cells-2x2x2.spread": 3}
    check_compressor(Cells, spec)
    (part,) = (
        Cells(spec, sample_fit())
        .double()(sample_history(Size3(time=6, height=5, width=8), Cells.needs(spec)))
        .parts
    )
    assert part.features["spread"].shape == (*part.tokens.shape[:2], 3)
