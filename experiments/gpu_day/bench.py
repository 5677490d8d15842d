"""`bench`: the program's own bench, then the encoder at real sizes beside the device's limits.

Each conv of the encoder is also timed alone, and the whole encoder is run in other ways ("peers"):
eager in two memory layouts, by torch.compile, as a CUDA graph.
"""

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
from .cost import floor, limits, peak_mib, time_calls
from .day import Session, StepResult
from .shapes import EncoderSetup, encoder_setups

SHIPPED = "tiny-wan-2x2x2"
SECONDS = 20.0

Call = Callable[[], Tensor]


def run(session: Session, results: StepResult) -> None:
    """Note limits, the bench of the embedded default, and every encoder beside its peers.

    Raises:
        LongtakeError: some of it failed.
        TimeIsUp: the rest is for the next run.
    """
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device, seconds = session.device, 2.0 if session.tiny else SECONDS
    device_limits = results.measure("limits", lambda: limits(device, tiny=session.tiny))
    _, shipped = load_experiment(SHIPPED)
    bare = untrained(shipped)
    results.measure(
        "longtake bench", lambda: tiny_bench(bare) if session.tiny else program.bench(bare)
    )
    for setup in encoder_setups(tiny=session.tiny):
        # built anew for each measurement, so that nothing of one is left for the next
        make = partial(EncoderBench, setup, seconds, device, session.tiny)
        results.measure(setup.name, partial(_whole, make, device_limits))
        for peer in peers(device, tiny=session.tiny):
            name = f"{setup.name}, {peer.name}"
            results.measure(name, partial(_beside, make, peer))
    results.raise_faults()


def _whole(
    make: Callable[[], EncoderBench], device_limits: dict[str, Any] | None
) -> dict[str, Any]:
    return make().whole(device_limits)


def _beside(make: Callable[[], EncoderBench], peer: Peer) -> dict[str, Any]:
    return make().beside(peer)


def tiny_bench(experiment: Experiment) -> dict[str, Any]:
    """Return the figures of `longtake bench` that need no other process, of a tiny model."""
    model = build_model(tinier(experiment)).eval()
    history = program.random_history(model.experiment, 2.0)
    model.to(history.latents.device)
    return {
        "experiment": f"{experiment.name}, tiny",
        "machine": program.describe_machine(),
        "encoder": program.time_encoder(model, history, ceiling=1e9),
        "denoising_step": program.time_denoising_step(model, history),
    }


class EncoderBench:
    """One encoder on a random history, in bf16."""

    def __init__(
        self, setup: EncoderSetup, seconds: float, device: torch.device, tiny: bool
    ) -> None:
        self.setup, self.device = setup, device
        self.dtype = torch.bfloat16
        self.repeats = 2 if tiny else 20
        self.history = setup.history(seconds, device, self.dtype)
        self.encoder: ConvCompressor = setup.encoder(device, self.dtype).eval()

    @torch.no_grad()
    def whole(self, device_limits: dict[str, Any] | None) -> dict[str, Any]:
        """Return size, operations, floor and times of an encode, of an append, and of each conv."""
        with FlopCounterMode(display=False) as counter:
            memory = self.encoder(self.history)
        flops, moved = counter.get_total_flops(), self.least_bytes(memory.length)
        peak = peak_mib(lambda: self.encoder(self.history), self.device)
        figures = {
            "latents": str(self.history.size),
            "width": self.setup.geometry.width,
            "tokens": memory.length,
            "gflop": flops / 1e9,
            "least_mib": moved / 2**20,
            "floor_seconds": floor(flops, moved, device_limits),
            "encode": time_calls(lambda: self.encoder(self.history), self.device, self.repeats),
            "encode_peak_mib": peak,
            "append_one_second": self.append(),
        }
        trunk = self.encoder.hr.trunk if self.encoder.hr else None
        latents = self.history.latents
        rows = layers(trunk, latents, self.repeats, device_limits) if trunk else []
        return {**figures, "layers": rows}

    def least_bytes(self, tokens: int) -> int:
        """Return the bytes of inputs, weights and tokens, each moved once."""
        inputs = self.history.latents.nbytes + sum(x.nbytes for x in self.history.lr.values())
        weights = sum(p.nbytes for p in self.encoder.parameters())
        return inputs + weights + tokens * self.setup.geometry.width * self.dtype.itemsize

    def append(self) -> dict[str, float]:
        """Return the time of one second more, behind all that came before it."""
        shapes, total = self.setup.geometry, self.history.size.time
        one = max(1, round(shapes.fps / shapes.vae_stride.time))
        state, _ = self.encoder.step(None, self.history.chunk(0, total - one))
        tail = self.history.chunk(total - one, total)
        return time_calls(lambda: self.encoder.step(state, tail), self.device, self.repeats)

    @torch.no_grad()
    def beside(self, peer: Peer) -> dict[str, Any]:
        """Return time, memory and error (against float32) of one way to run the encoder."""
        rate, latents = self.setup.spec.rate, self.history.latents
        truth = self.reference()
        call: Callable[[], Tensor] = peer.make(self.encoder, latents, self.history.lr[rate])
        error = relative(call(), truth)
        del truth
        peak = peak_mib(call, self.device)
        first = time_calls(call, self.device, self.repeats)
        again = time_calls(call, self.device, self.repeats)
        return {**first, "again": again, "peak_mib": peak, "error": error}

    def reference(self) -> Tensor:
        """Return the tokens in float32."""
        wide = self.setup.encoder(self.device, torch.float32).eval()
        history = self.history.to(self.device, torch.float32)
        return plain(wide, history.latents, history.lr[self.setup.spec.rate])


def relative(out: Tensor, truth: Tensor) -> float:
    """Return ‖out − truth‖ / ‖truth‖."""
    return float((out.float() - truth).norm() / truth.norm())


@torch.no_grad()
def layers(
    trunk: ConvTrunk, latents: Tensor, repeats: int, device_limits: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Return shapes, operations, floor and time of every conv, on the output of the one before."""
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
                "stride": list(layer.shape.stride),
                "gflop": flops / 1e9,
                "mib": moved / 2**20,
                "floor_seconds": floor(flops, moved, device_limits),
                **_timed(layer, x, repeats),
            }
        )
        x = y
    return rows


def _timed(layer: CausalConv, x: Tensor, repeats: int) -> dict[str, Any]:
    channels_last = x.contiguous(memory_format=torch.channels_last_3d)
    return {
        "channels_first": time_calls(lambda: layer(x, None), x.device, repeats),
        "channels_last": time_calls(lambda: layer(channels_last, None), x.device, repeats),
    }


def _multiple(trunk: ConvTrunk) -> tuple[int, int]:
    """Return rows and columns that all strides together divide."""
    high = wide = 1
    for layer in trunk.layers:
        assert isinstance(layer, CausalConv)
        high, wide = high * layer.shape.stride[1], wide * layer.shape.stride[2]
    return high, wide


@frozen
class Peer:
    """A way to run the encoder: `make` returns the call to time of encoder, latents, LR latents."""

    name: str
    make: Callable[[ConvCompressor, Tensor, Tensor], Call]


def peers(device: torch.device, *, tiny: bool) -> list[Peer]:
    """Return the peers that a device can run; CUDA graphs need CUDA."""
    result = [Peer("eager", eager), Peer("channels last", channels_last)]
    if tiny:  # traced, and run as it was: compiling would take longer than all the rest
        return [*result, Peer("torch.compile", compiled(backend="aot_eager"))]
    result += [Peer("torch.compile", compiled())]
    if device.type == "cuda":
        result += [Peer("CUDA graph", graphed)]
    return [*result, Peer("torch.compile max-autotune", compiled("max-autotune-no-cudagraphs"))]


def plain(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Tensor:
    """Return the tokens of complete blocks by tensor operations alone, so that they compile."""
    assert encoder.hr is not None and encoder.lr is not None
    time, height, width = latents.shape[2:]
    hidden, _ = encoder.hr.convolve(latents, {})
    hidden, _ = encoder.hr.attend(hidden, {})
    features = F.linear(hidden, encoder.hr.out.weight, encoder.hr.out.bias)
    return features + encoder.lr.tokens(lr, Size3(time=time, height=height, width=width))


def eager(encoder: ConvCompressor, latents: Tensor, lr: Tensor) -> Call:
    """Return the call as the program makes it."""
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
