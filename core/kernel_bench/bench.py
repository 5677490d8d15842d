"""Measure the paper's encoder beside peers and the device's own limits, all in one run.

What is measured is the plugin `conv` as it runs here: with fused kernels where it takes them, else
without. Limits and every peer are measured twice, in turn, so that other work on the machine shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..bench import describe_machine
from ..errors import UserError
from ..interfaces.compressor import Compressor
from ..interfaces.spec import CompressorSpec
from ..tools.device import uses_bf16, versions
from ..tools.timing import (
    MIB,
    count_flop,
    device_limits,
    floor_seconds,
    peak_mib,
    time_calls,
    times_floor,
)
from ..tools.words import names_like
from ..values.history import History
from ..values.memory import Memory, merge
from .goals import OURS, cost, judge
from .peers import (
    ATTENTION,
    WINDOW,
    Call,
    CannotRun,
    Peer,
    PlainEncoder,
    by_reference,
    cuda_graph,
    encoder_peers,
    graphed_step,
    other_peers,
    plain_convs,
    same_tokens,
    two_largest,
)
from .setups import MEASURED, EncoderSetup, encoder_setups

PASSES = 2
GRAPHED = f"{OURS}, CUDA graph"
PLAIN = f"{OURS}, without kernels"
STREAM_SECONDS = 10.0  # of history at once, where a state is made for an append
EXACT_CHUNKS = (1, 3, 2, 1, 4)  # latents, over and over, of the check that streaming is exact

Figures = dict[str, Any]
Encoder = Compressor[CompressorSpec]


@frozen(kw_only=True)
class Form:
    """How much is measured.

    Attributes:
        name: `tiny`, which runs all of it on small frames, or `full`.
        encode: seconds of history that are encoded whole.
        peers: those of them at which peers run, too; it is compiled for the first alone.
        append: seconds of history that a second is appended to.
        repeats: timed runs of each, in each of two passes.
        side: of the product that shows the device's limit.
        floats: of the copy that does.
    """

    name: str
    encode: tuple[float, ...]
    peers: tuple[float, ...]
    append: tuple[float, ...]
    repeats: int
    side: int
    floats: int

    @classmethod
    def of(cls, device: torch.device, *, full: bool) -> Form:
        """Return the form for a device."""
        if not full:
            small: dict[str, Any] = {"encode": (4.0,), "peers": (4.0,), "append": (4.0, 8.0)}
            return cls(name="tiny", **small, repeats=2, side=128, floats=2**14)
        if device.type == "cuda":
            whole, append = (20.0, 60.0, 300.0), (20.0, 60.0, 300.0)
            large: dict[str, Any] = {"encode": whole, "peers": (20.0, 60.0), "append": append}
            return cls(name="full", **large, repeats=20, side=8192, floats=2**28)
        slow: dict[str, Any] = {"encode": (20.0,), "peers": (20.0,), "append": (20.0, 60.0)}
        return cls(name="full", **slow, repeats=1, side=1536, floats=2**24)


def kernel_bench(
    setups: Sequence[EncoderSetup], form: Form, device: torch.device, said: Callable[[str], None]
) -> Figures:
    """Return machine, figures of every encoder, and which goals are met; `said` hears each name."""
    cases: dict[str, Figures] = {}
    for setup in setups:
        said(setup.name)
        cases[setup.name] = measure_encoder(setup, form, device)
    machine = describe_device(device)
    return {
        "form": form.name,
        "machine": machine,
        "encoders": cases,
        "goals": [attrs.asdict(goal) for goal in judge(cases, machine, form.name)],
    }


def chosen_setups(names: Sequence[str], *, full: bool) -> list[EncoderSetup]:
    """Return the encoders of some names; none named: those that the goals speak of.

    Raises:
        UserError: there is none of a name.
    """
    known = {setup.name: setup for setup in encoder_setups(tiny=not full)}
    if not names:
        return [setup for name, setup in known.items() if not full or name in MEASURED]
    for name in names:
        if name not in known:
            raise UserError(f"--encoder {name}: no such encoder; known: {names_like(name, known)}")
    return [known[name] for name in dict.fromkeys(names)]


def describe_device(device: torch.device) -> Figures:
    """Return the device, its versions and memory; None where there is none."""
    cuda = device.type == "cuda"
    return {
        **describe_machine(),
        "versions": {**versions(), "triton": _version("triton")},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "memory_mib": torch.cuda.get_device_properties(device).total_memory / MIB if cuda else None,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@torch.no_grad()
def measure_encoder(setup: EncoderSetup, form: Form, device: torch.device) -> Figures:
    """Return all figures of one encoder: encode, append, streaming, layers and other memories."""
    dtype = torch.bfloat16 if uses_bf16("auto", device) else torch.float32
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # what the fastest of the peers asks for
    try:
        bench = EncoderBench(setup, form, device, dtype)
        encode = {_label(seconds): bench.encode(seconds) for seconds in form.encode}
        append = {_label(seconds): bench.append(seconds) for seconds in form.append}
        for seconds, figures in append.items():
            if seconds in encode:
                whole = cost(encode[seconds]["ways"][OURS])
                figures["encode_over_append"] = whole / cost(figures)
        return {
            "encoder": repr(setup.spec),
            "dtype": str(dtype).removeprefix("torch."),
            "latents_a_second": setup.second,
            "encode": encode,
            "append": append,
            "attention": bench.attention(),
            "streaming_error": streaming_error(setup, device),
            "layers": bench.layers(form.encode[0]),
            "others": bench.others(form.encode[0]),
        }
    finally:
        torch.backends.cudnn.benchmark = before


def _label(seconds: float) -> str:
    return f"{seconds:g} s"


class EncoderBench:
    """One encoder on a device, with random weights."""

    def __init__(
        self, setup: EncoderSetup, form: Form, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.setup, self.form, self.device, self.dtype = setup, form, device, dtype
        self.encoder: Encoder = setup.encoder(device, dtype).eval()

    def encode(self, seconds: float) -> Figures:
        """Return size, operations, floor, and of every way to encode a history its figures."""
        history = self.setup.history(seconds, self.device, self.dtype)
        run = same_tokens(self.encoder, history)
        tokens = self.setup.tokens(history.size)
        flop, moved = count_flop(run), self._least_bytes(history, tokens)
        ways: dict[str, Figures] = {}
        calls = {OURS: run}
        if seconds in self.form.peers:
            tiny, first = self.form.name == "tiny", seconds == self.form.peers[0]
            peers = encoder_peers(self.device, compiles=first, tiny=tiny)
            made, ways = self._made(peers, history)
            calls |= made
        ways |= self._timed(calls, flop, moved)
        truth = self._truth(history) if seconds == self.form.encode[0] else None
        for name, call in calls.items():
            ways[name]["peak_mib"] = self._peak(call)
            if truth is not None:
                ways[name]["error"] = relative(call(), truth)
        widths = [conv.out_channels for conv, _ in self._convs()]
        largest = two_largest(self.setup, history.size, widths, self.dtype.itemsize)
        return {
            "latents": str(history.size),
            "tokens": tokens,
            "gflop": flop / 1e9,
            "least_mib": moved / MIB,
            "input_mib": history.latents.nbytes / MIB,
            "two_largest_activations_mib": largest / MIB,
            "ways": {name: ways[name] for name in sorted(ways, key=lambda n: n != OURS)},
        }

    def append(self, seconds: float) -> Figures:
        """Return the figures of one second more behind so many seconds, and of the state."""
        history = self.setup.history(seconds, self.device, self.dtype)
        total, one = history.size.time, self.setup.second
        state, begin = None, 0
        step = self.setup.size(STREAM_SECONDS).time - 1
        for end in [*range(step, total - one, step), total - one]:
            state, _ = self.encoder.step(state, history.chunk(begin, end))
            begin = end
        assert state is not None
        held, tail = state, _own(history.chunk(total - one, total))
        grown, memory = self.encoder.step(held, tail)
        flop = count_flop(lambda: self.encoder.step(held, tail))
        kept = sum(x.nbytes for x in held.values())
        moved = self._least_bytes(tail, memory.length) + 2 * kept
        plain = partial(by_reference, self.setup, self.device, self.dtype)
        made, ways = self._made(
            [
                Peer(name=GRAPHED, make=lambda *_: graphed_step(self.encoder, held, tail)),
                Peer(name=PLAIN, make=lambda *_: partial(plain().step, held, tail)),
                Peer(
                    name=f"{PLAIN}, CUDA graph", make=lambda *_: graphed_step(plain(), held, tail)
                ),
            ],
            history,
        )
        calls: dict[str, Call] = {OURS: lambda: self.encoder.step(held, tail), **made}
        repeats = self.form.repeats if self.form.name == "tiny" else max(5, self.form.repeats)
        ways |= self._timed(calls, flop, moved, repeats)
        return {
            **ways.pop(OURS),
            "gflop": flop / 1e9,
            "least_mib": moved / MIB,
            "tokens": memory.length,
            "state_mib": kept / MIB,
            "state_grows_mib": (sum(x.nbytes for x in grown.values()) - kept) / MIB,
            "peak_mib": self._peak(calls[OURS]),
            "ways": ways,
        }

    def attention(self) -> Figures:
        """Return the figures of one attention layer of a second that is appended, its window full.

        In a CUDA graph, too, where launches cost the host nothing.
        """
        setup, size = self.setup, self.setup.size(STREAM_SECONDS)
        grid = setup.rate.token_grid(size, setup.geometry.patch)
        layer = self.encoder.get_submodule(ATTENTION)
        widths = (setup.second // setup.rate.time, grid.height * grid.width, self._width)
        x = torch.randn(1, *widths, device=self.device, dtype=self.dtype)
        past: Tensor | None = None
        for _ in range(WINDOW):  # until as many frames are kept as will be
            _, past = layer(x, past, WINDOW, None)
        assert past is not None
        run = partial(layer, x, past, WINDOW, None)
        flop = count_flop(run)
        moved = 2 * x.nbytes + 2 * past.nbytes + sum(p.nbytes for p in layer.parameters())

        def plain(*_: object) -> Call:
            other = by_reference(setup, self.device, self.dtype).get_submodule(ATTENTION)
            return partial(other, x, past, WINDOW, None)

        peers = [Peer(name=PLAIN, make=plain)]
        if self.device.type == "cuda":
            peers.append(Peer(name=GRAPHED, make=lambda *_: cuda_graph(run)))
            peers.append(Peer(name=f"{PLAIN}, CUDA graph", make=lambda *_: cuda_graph(plain())))
        calls, ways = self._made(peers, setup.history(1.0, self.device, self.dtype))
        ways |= self._timed({OURS: run, **calls}, flop, moved)
        return {
            "cells": list(x.shape),
            "gflop": flop / 1e9,
            "least_mib": moved / MIB,
            "ways": {name: ways[name] for name in sorted(ways, key=lambda n: n != OURS)},
        }

    def layers(self, seconds: float) -> list[Figures]:
        """Return each conv alone as the library runs it, channels last, beside its floor."""
        limits, rows = self._limits(), []
        for conv, x in self._convs(seconds):
            run = partial(conv, x)
            y = run()
            flop, moved = count_flop(run), x.nbytes + y.nbytes + conv.weight.nbytes
            floor = floor_seconds(flop, moved, limits)
            times = time_calls(run, self.device, self.form.repeats, warm=1)
            rows.append(
                {
                    "in": list(x.shape),
                    "out": list(y.shape),
                    "kernel": list(conv.kernel_size),
                    "stride": list(conv.stride),
                    "gflop": flop / 1e9,
                    "mib": moved / MIB,
                    "floor_seconds": floor,
                    "over_floor": times_floor(times, flop, moved, limits),
                    **times,
                }
            )
        return rows

    def others(self, seconds: float) -> dict[str, Figures]:
        """Return the figures of other memories of the same history, and of the VAE before it."""
        history = self.setup.history(seconds, self.device, self.dtype)
        calls, ways = self._made(other_peers(), history)
        for name, call in calls.items():
            flop = count_flop(call)
            ways[name] = {"gflop": flop / 1e9, **self._timed({name: call}, flop, 0)[name]}
            ways[name]["peak_mib"] = self._peak(call)
        return ways

    @property
    def _width(self) -> int:
        """How wide features are behind the convs."""
        return int([conv.out_channels for conv, _ in self._convs()][-1])

    def _convs(self, seconds: float = 1.0) -> Any:
        return plain_convs(self.setup, self.setup.history(seconds, self.device, self.dtype))

    def _peak(self, call: Call) -> float | None:
        return peak_mib(call, self.device) if self.device.type == "cuda" else None

    def _limits(self) -> Figures:
        form = self.form
        return device_limits(
            self.device,
            self.dtype,
            side=form.side,
            floats=form.floats,
            repeats=max(3, form.repeats),
        )

    def _made(
        self, peers: Sequence[Peer], history: History
    ) -> tuple[dict[str, Call], dict[str, Figures]]:
        """Return the calls of those peers that run here, and of the others why they do not."""
        calls: dict[str, Call] = {}
        left: dict[str, Figures] = {}
        for peer in peers:
            try:
                call = peer.make(self.setup, history)
                call()  # what compiles does so now
            except CannotRun as reason:
                left[peer.name] = {"skipped": str(reason)}
            except Exception as error:  # a peer is other people's code: the rest is measured
                words = str(error).splitlines() or [""]
                left[peer.name] = {"skipped": f"{type(error).__name__}: {words[0]}"}
            else:
                calls[peer.name] = call
        return calls, left

    def _timed(
        self, calls: dict[str, Call], flop: float, moved: float, repeats: int = 0
    ) -> dict[str, Figures]:
        """Return each call's seconds, and over the floor, of two passes over all of them."""
        passes: dict[str, list[Figures]] = {name: [] for name in calls}
        for _ in range(PASSES):
            for name, call in calls.items():
                limits = self._limits()
                floor = floor_seconds(flop, moved, limits)
                warm = 0 if self.device.type == "cpu" else 1  # each call has run before
                times = time_calls(call, self.device, repeats or self.form.repeats, warm=warm)
                keys = ("flop_per_second", "copy_bytes_per_second")
                facts = {key: limits[key] for key in keys}
                over = times_floor(times, flop, moved, limits)
                passes[name].append({**times, "floor_seconds": floor, "over_floor": over, **facts})
        return {name: _joined(found) for name, found in passes.items()}

    def _truth(self, history: History) -> Tensor:
        plain = PlainEncoder.of(self.setup, self.device, torch.float32)
        truth: Tensor = plain(history.latents.float(), history.lr[self.setup.rate].float())
        return truth

    def _least_bytes(self, history: History, tokens: int) -> int:
        """Return the bytes of inputs, weights and tokens, each moved once."""
        inputs = history.latents.nbytes + sum(x.nbytes for x in history.lr.values())
        weights = sum(p.nbytes for p in self.encoder.parameters())
        return inputs + weights + tokens * self.setup.geometry.width * self.dtype.itemsize


def _joined(passes: list[Figures]) -> Figures:
    """Return the middle of the passes, and each of them."""
    known = ("seconds", "cpu_seconds", "floor_seconds", "over_floor")
    keys = [key for key in known if key in passes[0]]
    middle = {key: statistics.median(one[key] for one in passes) for key in keys}
    return {**middle, "passes": passes}


def _own(history: History) -> History:
    """Return a history in memory of its own, laid out as a chunk that comes by itself is."""
    lr = {rate: x.clone() for rate, x in history.lr.items()}
    return attrs.evolve(history, latents=history.latents.clone(), lr=lr)


def relative(out: object, truth: Tensor) -> float:
    """Return ‖out − truth‖ / ‖truth‖."""
    assert isinstance(out, Tensor)
    return float((out.float() - truth).norm() / truth.norm())


@torch.no_grad()
def streaming_error(setup: EncoderSetup, device: torch.device) -> float:
    """Return the greatest difference between tokens streamed and encoded whole, over the greatest.

    In float64 where the device has it, on small frames, cut into chunks of odd lengths.
    """
    small = attrs.evolve(setup, height=min(setup.height, 96), width=min(setup.width, 160))
    dtype = torch.float32 if device.type == "mps" else torch.float64
    encoder, history = small.encoder(device, dtype).eval(), small.history(4.0, device, dtype)
    whole = encoder(history).parts[0].tokens
    state, begin, memories = None, 0, list[Memory]()
    while begin < history.size.time:
        length = EXACT_CHUNKS[len(memories) % len(EXACT_CHUNKS)]
        end = min(begin + length, history.size.time)
        state, memory = encoder.step(state, history.chunk(begin, end))
        memories.append(memory)
        begin = end
    assert state is not None
    streamed = merge([*memories, encoder.pending(state)]).parts[0].tokens
    return float((streamed - whole).abs().max() / whole.abs().max())


def lines(result: Figures) -> list[str]:
    """Return the figures as lines to read."""
    machine = result["machine"]
    head = (
        f"kernels, {result['form']} form, on {machine['device']} ({machine['name']}, "
        f"{machine['threads']} threads), torch {machine['torch']}"
    )
    cases = (line for item in result["encoders"].items() for line in _case_lines(*item))
    return [head, *cases, *goal_lines(result["goals"])]


def _case_lines(name: str, case: Figures) -> list[str]:
    found = [f"{name} ({case['dtype']})"]
    for seconds, figures in case["encode"].items():
        found.append(
            f"  encode {seconds}: {figures['latents']} latents → {figures['tokens']} tokens, "
            f"{figures['gflop']:,.1f} GFLOP"
        )
        found += [_way_line(*item) for item in figures["ways"].items()]
    for seconds, figures in case["append"].items():
        ratio = figures.get("encode_over_append")
        less = "" if ratio is None else f", {ratio:.1f}× less than to encode all"
        found.append(
            f"  one second behind {seconds}: {_ms(figures['seconds'])}, "
            f"{figures['over_floor']:.2f}× its floor{less}; state {figures['state_mib']:.1f} MiB"
        )
        found += [_way_line(*item) for item in figures["ways"].items()]
    layer = case["attention"]
    found.append(f"  attention of a second that is appended: {layer['gflop']:.3g} GFLOP a layer")
    found += [_way_line(*item) for item in layer["ways"].items()]
    found.append("  beside it")
    return [*found, *(_way_line(*item) for item in case["others"].items())]


def _way_line(name: str, way: Figures) -> str:
    if "skipped" in way:
        return f"    {name}: skipped, {way['skipped']}"
    passes = ", ".join(_ms(one["seconds"]) for one in way["passes"])
    peak, error = way.get("peak_mib"), way.get("error")
    return (
        f"    {name}: {passes}; {way['over_floor']:.2f}× the floor"
        + ("" if peak is None else f"; peak {peak:,.0f} MiB")
        + ("" if error is None else f"; error {error:.1e}")
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def goal_lines(goals: Sequence[Figures]) -> list[str]:
    """Return goals as lines to read: those that were judged, then the others by what kept them."""
    left: dict[str, list[str]] = {}
    for goal in goals:
        if goal["met"] is None:
            left.setdefault(goal["why"], []).append(goal["goal"])
    judged = [_goal_line(goal) for goal in goals if goal["met"] is not None]
    names = {why: ", ".join(dict.fromkeys(found)) for why, found in left.items()}
    return [*judged, *(f"not judged: {found} ({why})" for why, found in names.items())]


def _goal_line(goal: Figures) -> str:
    verdict = "met" if goal["met"] else "missed"
    return f"{goal['goal']}, {goal['encoder']}: {goal['asked']}: {goal['measured']:.3g}, {verdict}"
