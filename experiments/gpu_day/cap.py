"""`memory-cap`: what fits a card of 12 GB: training the encoder at real sizes, and streaming it.

The rest of the card is taken first, since libraries choose their workspaces by what is free; then
the allocator is told its limit. Both, since either alone lets more through than a small card does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from ...core.bench import random_history
from ...core.config import load_experiment
from ...core.data.windows import Batch
from ...core.experiment import Experiment
from ...core.interfaces.compressor import Compressor
from ...core.interfaces.spec import CompressorSpec
from ...core.kernel_bench.setups import EncoderSetup, encoder_setups
from ...core.model import build_model
from ...core.registry import build
from ...core.tools.device import autocast
from ...core.tools.timing import MIB
from ...core.train.step import StageOneStep
from ..common import tinier, untrained
from .day import Session, StepResult

NAME = "tiny-wan-2x2x2"
MOST = 512  # samples
CARD_MIB = 12_282  # what a card sold as 12 GB shows
ALLOCATOR_MIB = 11 * 1024  # of it, beside the CUDA context and a desktop
HISTORIES = (20.0, 60.0, 300.0)  # seconds

StepMaker = Callable[[EncoderSetup, float, torch.device], Callable[[], None]]


def run(session: Session, results: StepResult) -> None:
    """Note peak memory by encoder and length of history, and what fits.

    Raises:
        LongtakeError: some of it failed.
        TimeIsUp: the rest is for the next run.
    """
    device = session.device
    histories = (1.0, 2.0) if session.tiny else HISTORIES
    with capped(device) as cap:
        results.add("cap", cap)
        for setup in encoder_setups(tiny=session.tiny):
            for seconds in histories:
                name = f"{setup.name}, {seconds:g} s"
                for word, make in (("train", training), ("stream", stream)):
                    results.measure(f"{word} {name}", partial(_tried, make, setup, seconds, device))
        results.measure("Stage I of tiny-wan", lambda: largest_batch(device, tiny=session.tiny))
    results.raise_faults()


def _tried(
    make: StepMaker, setup: EncoderSetup, seconds: float, device: torch.device
) -> dict[str, Any]:
    return guarded(make(setup, seconds, device))


@contextmanager
def capped(device: torch.device) -> Iterator[dict[str, Any]]:
    """Leave of the device what a 12 GB card has; yield what was done, without CUDA nothing."""
    if device.type != "cuda":
        yield {"applied": False, "why": "a cap needs CUDA: shapes and code are tried, no memory"}
        return
    free, total = torch.cuda.mem_get_info()
    spare = max(0, free - CARD_MIB * MIB)
    ballast = torch.empty(spare, dtype=torch.uint8, device=device)
    share = min(1.0, (torch.cuda.memory_reserved() + ALLOCATOR_MIB * MIB) / total)
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        yield {
            "applied": True,
            "card_mib": CARD_MIB,
            "allocator_mib": ALLOCATOR_MIB,
            "ballast_mib": spare // MIB,
            "free_mib": torch.cuda.mem_get_info()[0] // MIB,
        }
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        del ballast
        torch.cuda.empty_cache()


def guarded(run: Callable[[], None]) -> dict[str, Any]:
    """Run something twice; return its peak memory and seconds, or that it does not fit."""
    if not torch.cuda.is_available():
        return {"fits": None, **_seconds(run)}
    torch.cuda.empty_cache()
    held, retries = torch.cuda.memory_reserved(), _retries()
    torch.cuda.reset_peak_memory_stats()
    try:
        took = _seconds(run)
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"fits": False, "said": str(error).splitlines()[0]}
    return {
        "fits": _retries() == retries,  # a retry is memory that was not there at first
        "retries": _retries() - retries,
        "peak_reserved_mib": (torch.cuda.max_memory_reserved() - held) // MIB,
        "peak_allocated_mib": (torch.cuda.max_memory_allocated() - held) // MIB,
        "free_after_mib": torch.cuda.mem_get_info()[0] // MIB,
        **took,
    }


def _retries() -> int:
    return int(torch.cuda.memory_stats().get("num_alloc_retries", 0))


def _seconds(run: Callable[[], None]) -> dict[str, float]:
    run()
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - began}


def training(setup: EncoderSetup, seconds: float, device: torch.device) -> Callable[[], None]:
    """Return a training step of φ on a random history: bf16, AdamW, a gradient for every token.

    The gradient that the DiT would give is random, since its size is what counts here.
    """
    made: list[tuple[Compressor[CompressorSpec], torch.optim.AdamW]] = []

    def step() -> None:
        if not made:
            encoder = setup.encoder(device, torch.float32)
            made.append((encoder, torch.optim.AdamW(encoder.parameters(), lr=1e-4)))
        encoder, optimizer = made[0]
        history = setup.history(seconds, device, torch.float32)
        with autocast("bf16", device):
            tokens: Tensor = encoder(history).parts[0].tokens
        tokens.backward(torch.randn_like(tokens))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def stream(setup: EncoderSetup, seconds: float, device: torch.device) -> Callable[[], None]:
    """Return an encode second by second: its memory should not grow with the history."""
    made: list[Compressor[CompressorSpec]] = []

    @torch.no_grad()
    def encode() -> None:
        if not made:
            made.append(setup.encoder(device, torch.bfloat16).eval())
        shapes = setup.geometry
        one = max(1, round(shapes.fps / shapes.vae_stride.time))
        history, state = setup.history(seconds, torch.device("cpu"), torch.bfloat16), None
        for first in range(0, history.size.time, one):
            chunk = history.chunk(first, min(first + one, history.size.time)).to(device)
            state, _ = made[0].step(state, chunk)

    return encode


def largest_batch(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Return the largest batch (a power of two) whose step fits, with 20 s of history a sample."""
    _, shipped = load_experiment(NAME)
    experiment = tinier(shipped) if tiny else untrained(shipped)
    seconds = 2.0 if tiny else 20.0
    step = stage_step(experiment, seconds, device)
    best = largest_power_of_two(lambda batch: fits(lambda: step(batch)), most=2 if tiny else MOST)
    return {"experiment": experiment.name, "seconds": seconds, "largest_batch": best}


def largest_power_of_two(good: Callable[[int], bool], *, most: int) -> int:
    """Return the largest of 1, 2, 4, ... ≤ most that is good before the first that is not; or 0."""
    best, number = 0, 1
    while number <= most and good(number):
        best, number = number, 2 * number
    return best


def fits(run: Callable[[], None]) -> bool:
    """Say whether something runs without running out of memory."""
    try:
        run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def stage_step(
    experiment: Experiment, seconds: float, device: torch.device
) -> Callable[[int], None]:
    """Return a Stage I step (Eq. 3) in bf16 of a batch of so many samples, with its optimizer."""
    train = attrs.evolve(experiment.train, precision="bf16")
    model = build_model(attrs.evolve(experiment, train=train), adapters=True)
    text = build(experiment.backbone.text_encoder)
    train_step = StageOneStep.of(model, text.encode([""]).to(device), device)
    one = random_history(experiment, seconds)

    def step(samples: int) -> None:
        prompts = text.encode(["a walk by the sea"] * samples).to(device)
        names = ("random",) * samples
        train_step(Batch(history=one.select([0] * samples), text=prompts, names=names))

    return step
