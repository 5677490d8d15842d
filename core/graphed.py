"""The streaming step of a compressor as one CUDA graph, for chunks of one length.

A second of video that is appended is a few dozen small kernels: most of its time a GPU waits to be
told the next one. Told once, as a graph, it runs them by itself.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
import torch
from torch import Tensor

from .interfaces.compressor import State
from .interfaces.streaming import TwoPartStep, advance
from .values.history import History
from .values.memory import Memory

Tensors: TypeAlias = dict[str, Tensor]
Work: TypeAlias = Callable[[], Tensors]
Recorder: TypeAlias = Callable[[Work], tuple[Tensors, Callable[[], None]]]

WARM_UPS = 3  # runs before the recording: what compiles, tries or picks algorithms does so there
COUNTS = ("seen", "start")  # of a state: kept on the host, new at every step

log = logging.getLogger(__name__)


class GraphedStep:
    """Takes chunks as a compressor's `step` does, those of one length by replaying one CUDA graph.

    The graph is recorded at the first chunk of that length behind which the state has the shapes
    that it had before (the window is full); memory and state are those of the compressor's own
    step. All other chunks, and every device without CUDA, go through that step; why is logged once.

        graphed = GraphedStep(encoder.members[0], latents=6)
        state, memory = graphed.step(state, chunk)

    **States.** A returned state may live in the graph's own memory, which the next step overwrites:
    it is good for `pending` and for the next step. `keep` copies one that is to stay (to branch,
    or to go back); such a copy may come in again at any time. A memory is never overwritten.

    **Where it pays.** Where many short chunks of one length follow each other, as of a live stream.
    A take makes one step a segment, and so has none (kernels/README.md). Which chunks are replayed
    depends on those before them: where results must come again to the bit on a GPU, take the
    compressor's own step.

    For inference: no gradient is kept. Weights that change (by an optimizer, or a load) are noticed
    and recorded anew.

    Args:
        compressor: `conv`, or any other `TwoPartStep`, on the device and in the number type that
            it runs in.
        latents: in a chunk; a multiple of the time rate, or nothing is ever replayed.
        record: runs the work, and returns the tensors that it made and how to run it again into
            the same tensors; None: as a CUDA graph where there is CUDA. For tests.
    """

    def __init__(
        self,
        compressor: TwoPartStep[Any],
        latents: int,
        *,
        record: Recorder | None = None,
    ) -> None:
        self.compressor = compressor
        self.latents = latents
        self._record = record
        self._recorded: _Recorded | None = None
        self._places: list[_Place] = []  # of every recording, also of those that are gone
        self._gave_up: torch.device | None = None  # where recording was tried in vain

    @property
    def recorded(self) -> bool:
        """Whether there is a graph to replay."""
        return self._recorded is not None

    @torch.no_grad()
    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the new state and what has settled, as `Compressor.step`.

        Raises:
            ValueError: the state was overwritten by a later step (see `keep`), or whatever the
                compressor's own step raises.
        """
        if state is None:
            return self.compressor.step(state, chunk)
        for place in self._places:
            place.check(state)
        if chunk.size.time != self.latents:
            return self._step_apart(state, chunk)
        recorded, key = self._recorded, self._key(state, chunk)
        if recorded is not None and recorded.key == key:
            new = advance(state, chunk)
            settled = recorded.replay(new, chunk)
            return new, self.compressor.place(new, chunk, settled)
        new, memory = self._step_apart(state, chunk)
        if memory.length and self._key(new, chunk) == key:
            self._record_step(key, state, chunk)
        return new, memory

    def _step_apart(self, state: State, chunk: History) -> tuple[State, Memory]:
        """Take a chunk by the compressor's own step; the new state has nothing in a graph's memory.

        A chunk that completes no block leaves most of a state as it is.
        """
        new, memory = self.compressor.step(state, chunk)
        held = {id(x()) for place in self._places for x in place.held.values()}
        return {name: x.clone() if id(x) in held else x for name, x in new.items()}, memory

    @staticmethod
    def keep(state: State) -> State:
        """Return a copy of a state that no later step overwrites."""
        return {name: x.clone() for name, x in state.items()}

    def _key(self, state: State, chunk: History) -> tuple[object, ...]:
        """Return all that decides which work a chunk is: shapes, numbers, weights, autocast."""
        device = chunk.latents.device.type
        casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        fast = casts and torch.get_autocast_dtype(device)
        tensors = {**_moving(state), **_given(chunk)}
        described = [(name, x.shape, x.dtype, x.device) for name, x in tensors.items()]
        weights = [
            (x.data_ptr(), 0 if x.is_inference() else x._version)
            for x in (*self.compressor.parameters(), *self.compressor.buffers())
        ]
        mode = fast, torch.is_inference_mode_enabled(), self.compressor.training
        return *mode, tuple(described), tuple(weights)

    def _record_step(self, key: tuple[object, ...], state: State, chunk: History) -> None:
        """Record the work of a chunk, if that is possible here; the state given stays as it is."""
        device = chunk.latents.device
        if device == self._gave_up:
            return
        self._recorded = None  # its memory is free for the next one
        if self._record is None and (why := cannot_record(device)):
            self._give_up(device, why, logging.INFO)
            return
        try:
            with torch.cuda.device_of(chunk.latents):
                self._recorded = _Recorded(
                    key, self.compressor, state, chunk, self._record or record_graph
                )
        except RuntimeError as error:  # whatever CUDA, torch or a kernel refuses while recording
            words = str(error).strip().partition("\n")[0]
            self._give_up(device, f"it cannot be recorded: {words}", logging.WARNING)
            return
        self._places = [place for place in self._places if place.taken] + [self._recorded.place]
        log.info("a step of %d latents runs as a CUDA graph", self.latents)

    def _give_up(self, device: torch.device, why: str, level: int) -> None:
        self._gave_up = device
        log.log(level, "a step of %d latents runs without a CUDA graph (%s)", self.latents, why)


class _Recorded:
    """One recording: memory that the graph reads and writes, and what goes in and out of it.

    The graph reads `given` and `held`, and writes what has settled, and the new state into `held`.
    """

    def __init__(
        self,
        key: tuple[object, ...],
        compressor: TwoPartStep[Any],
        state: State,
        chunk: History,
        record: Recorder,
    ) -> None:
        self.key = key
        self.held = {name: x.clone() for name, x in _moving(state).items()}
        self.given = {name: x.clone() for name, x in _given(chunk).items()}
        self.place = _Place(self.held)
        own = attrs.evolve(
            chunk,
            latents=self.given["latents"],
            lr={rate: self.given[f"lr {rate}"] for rate in chunk.lr},
            pixels=self.given.get("pixels"),
        )
        before = {**advance(state, chunk), **self.held}

        def work() -> Tensors:
            new, settled = compressor.compute(before, own)
            for name, x in self.held.items():
                if new[name] is not x:
                    x.copy_(new[name])
            return settled

        self.settled, self.run = record(work)

    def replay(self, new: State, chunk: History) -> Tensors:
        """Take a chunk into `new`, an advanced state; return what has settled, in its own memory.

        What is in `new` of tensors is then the graph's memory.
        """
        if not self.place.holds(new):
            for name, x in self.held.items():
                x.copy_(new[name])
        for name, x in _given(chunk).items():
            self.given[name].copy_(x)
        with torch.cuda.device_of(chunk.latents):
            self.run()
        new.update(self.held)
        self.place.seen = new["seen"]
        return {name: x.clone() for name, x in self.settled.items()}


class _Place:
    """The memory of a recording, and which state is in it; it keeps none of it alive.

    Attributes:
        seen: that of the state which is there now; None: no state is.
    """

    def __init__(self, held: Tensors) -> None:
        self.held = {name: weakref.ref(x) for name, x in held.items()}
        self.seen: Tensor | None = None

    @property
    def taken(self) -> bool:
        """Whether anyone has the memory still."""
        return any(x() is not None for x in self.held.values())

    def holds(self, state: State) -> bool:
        """Return whether a state lies in the memory, or once did."""
        return any(name in state and state[name] is x() for name, x in self.held.items())

    def check(self, state: State) -> None:
        """Raise ValueError for a state that lay here, and was overwritten."""
        if self.holds(state) and state["seen"] is not self.seen:
            raise ValueError(
                "this state was overwritten by a later step of its GraphedStep; `keep` copies one "
                "that is to stay"
            )


def _moving(state: State) -> Tensors:
    """Return the tensors of a state that a step works on; the others only count."""
    return {name: x for name, x in state.items() if name not in COUNTS}


def _given(chunk: History) -> Tensors:
    """Return the tensors of a chunk that a step reads, by name."""
    pixels: Mapping[str, Tensor] = {} if chunk.pixels is None else {"pixels": chunk.pixels}
    lr = {f"lr {rate}": x for rate, x in chunk.lr.items()}
    return {"latents": chunk.latents, **lr, **pixels}


def cannot_record(device: torch.device) -> str:
    """Return why work on a device cannot be recorded as a CUDA graph, in words; "" where it can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if torch.version.hip is not None:
        return "graphs were never tried on ROCm"
    return ""


def record_graph(work: Work) -> tuple[Tensors, Callable[[], None]]:
    """Return what work on the current CUDA device makes, and how to run it again as a graph.

    The work runs a few times beforehand, on a stream of its own, as CUDA asks; recording itself
    computes nothing, so the tensors hold no numbers before the first run.

    Raises:
        RuntimeError: it cannot be recorded, such as work that waits for the device.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may go on
        made = work()
    return made, graph.replay
