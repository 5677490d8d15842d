"""`bench`: the program's own bench, then the encoder at real sizes beside the device's limits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...core import bench as program
from ...core.config import load_experiment
from ...core.experiment import Experiment
from ...core.interfaces.compressor import pad_to
from ...core.model import build_model
from ...core.values.grid import Size3
from ...plugins.compressors.conv import ConvCompressor
from ...plugins.compressors.conv_layers import CausalConv, ConvTrunk
from ..common import tinier, untrained
from .cost import floor, limits, paced, peak_mib
from .day import Book, Day
from .shapes import Case, cases

# ⟦experiments/gpu_steps/layers.py⟧ Each conv of the encoder alone, beside what the device's limits allow.


@torch.no_grad()
def layers(
    trunk: ConvTrunk, latents: Tensor, repeats: int, found: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Return shape, work, floor and time of every conv on what the ones before it give."""
    x, rows = pad_to(latents, *_multiple(trunk)), []
    for layer in trunk.layers:
        assert isinstance(layer, CausalConv)
        with FlopCounterMode(display=False) as counter:
            y = layer(x, None)
        flops = counter.get_total_flops()
        moved = x.nbytes + y.nbytes + layer.weight.nbytes
        rows.append(
            {
                "in": list(x.shape),
                "out": list(y.shape),
                "stride": list(layer.stage.stride),
                "gflop": flops / 1e9,
                "mib": moved / 2**20,
                "floor_seconds": floor(flops, moved, found),
                **_timed(layer, x, repeats),
            }
        )
        x = y
    return rows


def _timed(layer: CausalConv, x: Tensor, repeats: int) -> dict[str, Any]:
    apart = x.contiguous(memory_format=torch.channels_last_3d)
    return {
        "channels_first": paced(lambda: layer(x, None), x.device, repeats),
        "channels_last": paced(lambda: layer(apart, None), x.device, repeats),
    }


def _multiple(trunk: ConvTrunk) -> tuple[int, int]:
    """Return the rows and columns that the strides together divide."""
    high = wide = 1
    for layer in trunk.layers:
        assert isinstance(layer, CausalConv)
        high, wide = high * layer.stage.stride[1], wide * layer.stage.stride[2]
    return high, wide


# ⟦experiments/gpu_steps/peers.py⟧ Ways to run the same encoder: eager in two layouts, torch.compile, a CUDA graph.


Call = Callable[[], Tensor]


@frozen
class Peer:
    """A name, and what makes the call that is timed of encoder, latents and LR latents."""

    name: str
    make: Callable[[ConvCompressor, Tensor, Tensor], Call]


def peers(device: torch.device, *, tiny: bool) -> list[Peer]:
    """Return the peers of a device; graphs are CUDA's."""
    found = [Peer("eager", eager), Peer("channels last", channels_last)]
    if tiny:  # traced, and run as it was: compiling would take longer than all the rest
        return [*found, Peer("torch.compile", compiled(backend="aot_eager"))]
    found += [Peer("torch.compile", compiled())]
    if device.type == "cuda":
        found += [Peer("CUDA graph", graphed)]
    return [*found, Peer("torch.compile max-autotune", compiled("max-autotune-no-cudagraphs"))]


def plain(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Tensor:
    """Return the tokens of complete blocks by tensor operations alone, so that they compile."""
    assert encoder.hr is not None and encoder.lr is not None
    time, height, width = latents.shape[2:]
    hidden, _ = encoder.hr.convolve(latents, {})
    hidden, _ = encoder.hr.attend(hidden, {})
    features = F.linear(hidden, encoder.hr.out.weight, encoder.hr.out.bias)
    return features + encoder.lr.tokens(lr, Size3(time=time, height=height, width=width))


def eager(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Call:
    """Return the call as it ships."""
    return lambda: plain(encoder, latents, lr)


def channels_last(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Call:
    """Return the call on channels-last tensors and weights."""
    layout = torch.channels_last_3d
    encoder.to(memory_format=layout)  # type: ignore[call-overload]
    return eager(encoder, latents.contiguous(memory_format=layout), lr)


def compiled(
    mode: str | None = None, backend: str = "inductor"
) -> Callable[[ConvCompressor, Tensor, Tensor], Call]:
    """Return the maker of a compiled call, channels last."""

    def make(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Call:
        torch.compiler.reset()
        layout = torch.channels_last_3d
        encoder.to(memory_format=layout)  # type: ignore[call-overload]
        x = latents.contiguous(memory_format=layout)
        fast = torch.compile(plain, mode=mode, backend=backend, dynamic=False)
        return lambda: fast(encoder, x, lr)

    return make


def graphed(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Call:
    """Return the replay of a CUDA graph of the eager call, channels last."""
    call = channels_last(encoder, latents, lr)
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


SHIPPED = "tiny-wan-2x2x2"
SECONDS = 20.0


def run(day: Day, book: Book) -> None:
    """Note limits, the bench of the embedded default, and every encoder beside its peers.

    Raises:
        LongtakeError: some of it failed.
        TimeIsUp: the rest is for the next run.
    """
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device, seconds = day.device, 2.0 if day.tiny else SECONDS
    found = book.once("limits", lambda: limits(device, tiny=day.tiny))
    _, shipped = load_experiment(SHIPPED)
    bare = untrained(shipped)
    book.once("longtake bench", lambda: tiny_bench(bare) if day.tiny else program.bench(bare))
    for case in cases(tiny=day.tiny):
        bench = partial(Bench, case, seconds, device, day.tiny)
        book.once(case.name, partial(_whole, bench, found))
        for peer in peers(device, tiny=day.tiny):
            book.once(f"{case.name}, {peer.name}", partial(_beside, bench, peer))
    book.close()


def tiny_bench(experiment: Experiment) -> dict[str, Any]:
    """Return the figures of `longtake bench` that need no other process, of a tiny model."""
    model = build_model(tinier(experiment)).eval()
    history = program.random_history(model.experiment, 2.0)
    model.to(history.latents.device)
    return {
        "experiment": f"{experiment.name}, tiny",
        "machine": program.machine(),
        "encoder": program.encoder(model, history, ceiling=1e9),
        "denoising_step": program.denoising_step(model, history),
    }


class Bench:
    """One encoder on a random history, in bf16."""

    def __init__(self, case: Case, seconds: float, device: torch.device, tiny: bool) -> None:
        self.case, self.seconds, self.device = case, seconds, device
        self.dtype = torch.bfloat16
        self.repeats = 2 if tiny else 20
        self.history = case.history(seconds, device, self.dtype)
        self.encoder: ConvCompressor = case.encoder(device, self.dtype).eval()

    @torch.no_grad()
    def whole(self, found: dict[str, Any] | None) -> dict[str, Any]:
        """Return size, work and floor of an encode, its time as it ships, an append, and layers."""
        with FlopCounterMode(display=False) as counter:
            memory = self.encoder(self.history)
        flops, moved = counter.get_total_flops(), self.least_bytes(memory.length)
        peak = peak_mib(lambda: self.encoder(self.history), self.device)
        figures = {
            "latents": str(self.history.size),
            "width": self.case.geometry.width,
            "tokens": memory.length,
            "gflop": flops / 1e9,
            "least_mib": moved / 2**20,
            "floor_seconds": floor(flops, moved, found),
            "encode": paced(lambda: self.encoder(self.history), self.device, self.repeats),
            "encode_peak_mib": peak,
            "append_one_second": self.append(),
        }
        trunk = self.encoder.hr.trunk if self.encoder.hr else None
        rows = layers(trunk, self.history.latents, self.repeats, found) if trunk else []
        return {**figures, "layers": rows}

    def least_bytes(self, tokens: int) -> int:
        """Return the bytes of inputs, weights and tokens, each moved once."""
        inputs = self.history.latents.nbytes + sum(x.nbytes for x in self.history.lr.values())
        weights = sum(p.nbytes for p in self.encoder.parameters())
        return inputs + weights + tokens * self.case.geometry.width * self.dtype.itemsize

    def append(self) -> dict[str, float]:
        """Return the time of one second more, behind all that came before it."""
        shapes, total = self.case.geometry, self.history.size.time
        one = max(1, round(shapes.fps / shapes.vae_stride.time))
        state, _ = self.encoder.step(None, self.history.chunk(0, total - one))
        tail = self.history.chunk(total - one, total)
        return paced(lambda: self.encoder.step(state, tail), self.device, self.repeats)

    @torch.no_grad()
    def beside(self, peer: Peer) -> dict[str, Any]:
        """Return time, memory and error (against float32) of one way to run the encoder."""
        rate, latents = self.case.spec.rate, self.history.latents
        truth = self.reference()
        call: Callable[[], Tensor] = peer.make(self.encoder, latents, self.history.lr[rate])
        error = relative(call(), truth)
        del truth
        peak = peak_mib(call, self.device)
        first = paced(call, self.device, self.repeats)
        again = paced(call, self.device, self.repeats)
        return {**first, "again": again, "peak_mib": peak, "error": error}

    def reference(self) -> Tensor:
        """Return the tokens in float32."""
        wide = self.case.encoder(self.device, torch.float32).eval()
        history = self.history.to(self.device, torch.float32)
        return plain(wide, history.latents, history.lr[self.case.spec.rate])


def _whole(bench: Callable[[], Bench], found: dict[str, Any] | None) -> dict[str, Any]:
    return bench().whole(found)


def _beside(bench: Callable[[], Bench], peer: Peer) -> dict[str, Any]:
    return bench().beside(peer)


def relative(out: Tensor, truth: Tensor) -> float:
    """Return ‖out − truth‖ / ‖truth‖."""
    return float((out.float() - truth).norm() / truth.norm())
