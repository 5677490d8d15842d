"""The step as one graph: what goes into its memory and comes out, by a recorder for CPUs.

The recorder runs the work again into the tensors of the recording, as a CUDA graph does; the graph
itself is tried by `tests/test_gpu.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
import torch
from attrs import evolve
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longtake.backbones.wan.specs import PublishedWan
from longtake.core.contract.compressor import randomize_zeros
from longtake.core.contract.samples import sample_fit, sample_history
from longtake.core.graphed import (
    COUNTS,
    GraphedStep,
    Tensors,
    Work,
    cannot_record,
    record_graph,
)
from longtake.core.interfaces.compressor import State
from longtake.core.interfaces.streaming import advance
from longtake.core.kernel_bench.setups import EncoderSetup, encoder_setups
from longtake.core.sample.spec import Sampler
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory
from longtake.experiments.gpu_day.subjects import random_backbone, thin
from longtake.experiments.sizes import published
from longtake.plugins.compressors.conv import ConvCompressor
from longtake.plugins.compressors.specs import Conv

TINY = Conv(rate=Rate.parse("2x2x2"), channels=(4, 6, 8), heads=2, head_width=4, window=3, layers=2)
LENGTH = 4  # latents of a chunk: two memory frames


class Recording:
    """A recorder that warms up, records nothing that was computed, and counts."""

    def __init__(self) -> None:
        self.recorded = self.runs = 0

    def __call__(self, work: Work) -> tuple[Tensors, Callable[[], None]]:
        self.recorded += 1
        for _ in range(3):
            work()
        made = work()
        for x in made.values():
            x.fill_(float("nan"))  # a recording computes nothing

        def again() -> None:
            self.runs += 1
            for name, x in work().items():
                made[name].copy_(x)

        return made, again


def encoder(**changes: object) -> ConvCompressor:
    torch.manual_seed(0)
    made = ConvCompressor(attrs.evolve(TINY, **changes), sample_fit())
    randomize_zeros(made)
    return made.eval()


def window(made: ConvCompressor, latents: int, batch: int = 1) -> History:
    size = Size3(time=latents, height=6, width=5)
    return sample_history(size, made.needs(made.spec), batch)


def tensors(memory: Memory) -> Iterator[Tensor]:
    for part in memory.parts:
        yield from (part.tokens, part.positions, part.extents, part.valid)
        yield from part.features.values()


def same(found: Memory, wanted: Memory) -> None:
    assert found.size == wanted.size
    pairs = list(zip(tensors(found), tensors(wanted), strict=True))
    assert all(torch.equal(one, other) for one, other in pairs)


def same_state(found: State, wanted: State) -> None:
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], x) for name, x in wanted.items())


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "batch", "first"),
    [({}, 1, 4), ({"features": True}, 2, 1), ({"stem": "pixels"}, 1, 3), ({"lr": False}, 1, 2),
     ({"hr": False}, 1, 4), ({"attention": "none", "norm": "rms"}, 1, 4)],
)  # fmt: skip
def test_memory_and_state_are_those_of_the_step(
    changes: dict[str, Any], batch: int, first: int
) -> None:
    made, recorder = encoder(**changes), Recording()
    graphed = GraphedStep(made, LENGTH, record=recorder)
    whole = window(made, first + 8 * LENGTH, batch)
    state: State | None = None
    truth: State | None = None
    kept: list[tuple[Memory, Memory]] = []
    for chunk in whole.chunks([first] + 8 * [LENGTH]):
        truth, wanted = made.step(truth, chunk)
        state, found = graphed.step(state, chunk)
        same_state(state, truth)
        same(made.pending(state), made.pending(truth))
        kept.append((found, wanted))
    for found, wanted in kept:  # none was overwritten by a later step
        same(found, wanted)
    assert recorder.recorded == 1 and recorder.runs >= 5 and graphed.recorded


@torch.no_grad()
def test_it_is_recorded_once_the_window_is_full_and_other_chunks_go_by() -> None:
    made, recorder = encoder(window=4), Recording()
    graphed = GraphedStep(made, LENGTH, record=recorder)
    lengths = [4, 4, 4, 4, 2, 4, 3, 4, 1, 4]
    state: State | None = None
    truth: State | None = None
    runs = []
    for chunk in window(made, sum(lengths)).chunks(lengths):
        truth, wanted = made.step(truth, chunk)
        state, found = graphed.step(state, chunk)
        same(found, wanted)
        same_state(state, truth)
        runs.append(recorder.runs)
    # the third chunk leaves the three frames that it found, so the fourth is replayed; behind one
    # of 3 latents blocks are cut elsewhere: other work, recorded anew, and so is the last
    assert runs == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2] and recorder.recorded == 3


@torch.no_grad()
def test_a_state_behind_a_chunk_that_completes_nothing_is_its_own() -> None:
    made, recorder = encoder(), Recording()
    graphed = GraphedStep(made, LENGTH, record=recorder)
    lengths = [5, 4, 4, 4, 1, 1, 4, 4]  # behind the first one no latent waits
    whole = list(window(made, sum(lengths)).chunks(lengths))
    states: list[State] = []
    truth: State | None = None
    for chunk in whole:
        truth, wanted = made.step(truth, chunk)
        state, found = graphed.step(states[-1] if states else None, chunk)
        same(found, wanted)
        same_state(state, truth)
        states.append(state)
    assert recorder.runs > 1, "the memory of the graph was written since"
    _, wanted = made.step(graphed.keep(states[4]), whole[5])
    _, found = graphed.step(states[4], whole[5])
    same(found, wanted)


@torch.no_grad()
def test_a_state_may_come_from_elsewhere_and_one_that_is_gone_is_refused() -> None:
    made = encoder()
    graphed, whole = GraphedStep(made, LENGTH, record=Recording()), window(made, 8 * LENGTH)
    chunks = list(whole.chunks(8 * [LENGTH]))
    state: State | None = None
    for chunk in chunks[:5]:
        state, _ = graphed.step(state, chunk)
    assert state is not None and graphed.recorded
    here, copy = state, graphed.keep(state)
    _, wanted = made.step(copy, chunks[5])
    state, found = graphed.step(here, chunks[5])
    same(found, wanted)
    state, _ = graphed.step(state, chunks[6])
    for gone in (here, dict(here)):
        with pytest.raises(ValueError, match="was overwritten by a later step"):
            graphed.step(gone, chunks[5])
    again, found = graphed.step(copy, chunks[5])  # back to where it was
    same(found, wanted)
    with pytest.raises(ValueError, match="was overwritten by a later step"):
        graphed.step(state, chunks[7])
    state, _ = graphed.step(again, chunks[6])
    with pytest.raises(ValueError, match="a chunk from latent 20 after 28 were seen"):
        graphed.step(state, chunks[5])


@torch.no_grad()
def test_changed_weights_and_number_types_are_recorded_anew() -> None:
    made, recorder = encoder(), Recording()
    graphed, whole = GraphedStep(made, LENGTH, record=recorder), window(made, 12 * LENGTH)
    state: State | None = None
    truth: State | None = None
    for index, chunk in enumerate(whole.chunks(12 * [LENGTH])):
        if index == 5:
            for parameter in made.parameters():
                parameter.mul_(1.1)
        if index == 8:
            made.load_state_dict(encoder().state_dict(), assign=True)
        truth, wanted = made.step(truth, chunk)
        state, found = graphed.step(state, chunk)
        same(found, wanted)
        same_state(state, truth)
    assert recorder.recorded == 3


@torch.no_grad()
def test_a_state_that_a_former_recording_overwrote_is_refused_too() -> None:
    made, recorder = encoder(), Recording()
    graphed, whole = GraphedStep(made, LENGTH, record=recorder), window(made, 9 * LENGTH)
    states: list[State] = []
    for index, chunk in enumerate(whole.chunks(9 * [LENGTH])):
        if index == 6:
            for parameter in made.parameters():
                parameter.mul_(1.1)
        state, _ = graphed.step(states[-1] if states else None, chunk)
        states.append(state)
    assert recorder.recorded == 2
    chunks = list(whole.chunks(9 * [LENGTH]))
    for index in (4, 7):  # of the recording that is gone, and of the one that is here
        with pytest.raises(ValueError, match="was overwritten by a later step"):
            graphed.step(states[index], chunks[index + 1])
    _, wanted = made.step(states[5], chunks[6])  # the last of its recording: no other came there
    _, found = graphed.step(states[5], chunks[6])
    same(found, wanted)


def test_inference_mode_is_recorded_apart() -> None:
    made, recorder = encoder(), Recording()
    graphed, whole = GraphedStep(made, LENGTH, record=recorder), window(made, 10 * LENGTH)
    state: State | None = None
    truth: State | None = None
    for index, chunk in enumerate(whole.chunks(10 * [LENGTH])):
        with torch.inference_mode(index < 5), torch.no_grad():
            truth, wanted = made.step(truth, chunk)
            state, found = graphed.step(state, chunk)
        same(found, wanted)
    assert recorder.recorded == 2


def test_gradients_are_not_kept() -> None:
    made = encoder()
    graphed = GraphedStep(made, LENGTH, record=Recording())
    state: State | None = None
    for chunk in window(made, 5 * LENGTH).chunks(5 * [LENGTH]):
        state, memory = graphed.step(state, chunk)
        assert not any(x.requires_grad for x in (*state.values(), *tensors(memory)))


def gives_the_steps_of(made: ConvCompressor, graphed: GraphedStep) -> None:
    """Check six chunks of a graphed step against the step itself."""
    state: State | None = None
    truth: State | None = None
    for chunk in window(made, 6 * LENGTH).chunks(6 * [LENGTH]):
        truth, wanted = made.step(truth, chunk)
        state, found = graphed.step(state, chunk)
        same(found, wanted)
        same_state(state, truth)


@torch.no_grad()
def test_without_a_gpu_it_is_the_step_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="longtake.core.graphed")
    made = encoder()
    graphed = GraphedStep(made, LENGTH)
    gives_the_steps_of(made, graphed)
    assert not graphed.recorded
    assert [r.getMessage() for r in caplog.records] == [
        "a step of 4 latents runs without a CUDA graph (the device is cpu)"
    ]


@torch.no_grad()
def test_what_cannot_be_recorded_is_the_step_and_is_tried_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = []

    def refuses(work: Work) -> tuple[Tensors, Callable[[], None]]:
        work()
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    made = encoder()
    gives_the_steps_of(made, GraphedStep(made, LENGTH, record=refuses))
    (record,) = caplog.records
    assert len(tried) == 1 and record.levelno == logging.WARNING
    assert record.getMessage().endswith(
        "(it cannot be recorded: operation not permitted when stream is capturing)"
    )


@torch.no_grad()
def test_full_attention_settles_nothing_and_is_never_recorded() -> None:
    made, recorder = encoder(attention="full"), Recording()
    graphed, state = GraphedStep(made, LENGTH, record=recorder), None
    for chunk in window(made, 4 * LENGTH).chunks(4 * [LENGTH]):
        state, memory = graphed.step(state, chunk)
        assert memory.length == 0
    assert recorder.recorded == 0


class Devices(TorchDispatchMode):
    """Notes operations with the devices of the tensors that they read and make."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, set[str]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, out))
        devices = {x.device.type for x in leaves if isinstance(x, Tensor)}
        self.seen.append((str(func), devices))
        return out


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"stem": "pixels", "features": True}])
def test_the_work_neither_waits_for_the_device_nor_reads_the_host(changes: dict[str, Any]) -> None:
    """What a graph could not hold: by tensors without numbers, any value asked for is an error."""
    made = encoder(**changes)
    *chunks, last = window(made, 5 * LENGTH).chunks(5 * [LENGTH])
    state: State | None = None
    for chunk in chunks:
        state, _ = made.step(state, chunk)
    state = advance(state, last)
    there = {name: x if name in COUNTS else x.to("meta") for name, x in state.items()}
    made.to("meta")
    last = last.to("meta")
    with Devices() as devices:
        new, settled = made.compute(there, last)
    assert settled["tokens"].is_meta and len(devices.seen) > 30
    assert [(name, where) for name, where in devices.seen if where - {"meta"}] == []
    assert all(x.is_meta for name, x in new.items() if name not in COUNTS)


def test_a_cuda_graph_is_recorded_behind_warm_ups_on_a_stream_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls to CUDA, by stand-ins: no card is needed to see their order."""
    seen: list[str] = []

    class Stream:
        def __init__(self, name: str = "aside") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            seen.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def inside(what: str) -> Iterator[None]:
        seen.append(f"in {what}")
        yield
        seen.append(f"out of {what}")

    class Graph:
        def replay(self) -> None:
            seen.append("replay")

    main, graphs = Stream("main"), []
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: inside(stream.name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)

    def recording(graph: Graph, capture_error_mode: str) -> Any:
        graphs.append((graph, capture_error_mode))
        return inside("graph")

    monkeypatch.setattr(torch.cuda, "graph", recording)

    def work() -> Tensors:
        seen.append("work")
        return {"x": torch.zeros(1)}

    made, replay = record_graph(work)
    replay()
    assert list(made) == ["x"] and graphs[0][1] == "thread_local"
    assert seen == [
        "aside waits for main", "in aside", "work", "work", "work", "out of aside",
        "main waits for aside", "in graph", "work", "out of graph", "replay",
    ]  # fmt: skip


def test_where_graphs_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cannot_record(torch.device("cpu")) == "the device is cpu"
    assert cannot_record(torch.device("mps")) == "the device is mps"
    assert cannot_record(torch.device("cuda", 0)) == ""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in cannot_record(torch.device("cuda", 0))


class Operators(TorchDispatchMode):
    """Counts the operators that write memory; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        self.count += not any(x.alias_info and not x.alias_info.is_write for x in returns)
        return func(*args, **(kwargs or {}))


def operators_of_a_step(setup: EncoderSetup, latents: int) -> int:
    """Of φ at its published size, its window full."""
    encoder = setup.encoder(torch.device("cpu"), torch.float32).eval()
    assert isinstance(encoder, ConvCompressor)
    encoder.to("meta")
    whole = evolve(setup.size(1.0), time=61 + latents)
    shapes = {setup.rate: setup.rate.lr_size(whole)}
    channels, state = setup.geometry.channels, None

    def empty(size: Size3) -> Tensor:
        shape = (1, channels, size.time, size.height, size.width)
        return torch.empty(shape, device="meta")

    history = History(latents=empty(whole), lr={r: empty(size) for r, size in shapes.items()})
    for chunk in history.chunks([31, 30, latents]):
        with Operators() as operators:
            state, settled = encoder.compute(advance(state, chunk), chunk)
    assert settled["tokens"].shape[1] == latents // setup.rate.time  # memory frames
    return operators.count


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan22-14b", "wan22-5b"])
def test_a_take_has_no_use_for_it(name: str) -> None:
    """A step is as many launches for a second as for a segment, and a take makes one a segment.

    Beside those of sampling that segment they are nothing; kernels/README.md has the figures.
    """
    (setup,) = (x for x in encoder_setups(tiny=False) if x.name == f"{name} 4x4x2")
    steps = {latents: operators_of_a_step(setup, latents) for latents in (6, 30)}
    assert steps[6] == steps[30] < 100
    whole = published()[name]
    assert isinstance(whole, PublishedWan)
    spec = evolve(thin(whole), layers=whole.layers)
    model = random_backbone(spec, torch.device("cpu"))
    latents, t = torch.randn(1, spec.geometry.channels, 2, 4, 4), torch.full((1,), 0.5)
    context = model.context(model.blank_text(1, 8), Memory())
    with Operators() as velocity:
        model.velocity(latents, t, torch.arange(2)[None], context)
    sampler = Sampler()
    assert steps[30] * 1000 < velocity.count * 2 * sampler.steps  # guidance: two velocities a step
