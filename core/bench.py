"""What `longtake bench` measures: each figure beside its yardstick, in one run."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .backbone import Context
from .bench_loader import loader, loader_line, some_text
from .data.store import Store
from .device import pick_device
from .experiment import Experiment
from .grid import Geometry, Size3
from .history import History
from .model import Model, build_model, compressor_needs
from .train.pretrain import check_store

REPEATS = 5


def bench(
    experiment: Experiment, *, seconds: float = 20.0, data: Path | None = None
) -> dict[str, Any]:
    """Give all figures of an experiment on this machine, with weights as training begins.

    Args:
        experiment: what to time.
        seconds: length of the history.
        data: a latent store for the loader to read; None: one is written for it.

    Raises:
        UserError: the store is none, or was made for something else.
    """
    if data is not None:
        check_store(experiment, Store.open(data))
    model = build_model(experiment).eval().to(pick_device())
    history = random_history(experiment, seconds)
    return {
        "experiment": experiment.name,
        "machine": machine(),
        "ceilings": (limits := ceilings()),
        "startup": startup(),
        "encoder": encoder(model, history, limits["matmul_flop_per_second"]),
        "denoising_step": denoising_step(model, history),
        "loader": loader(experiment, history.size, data),
    }


def median_seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Give the median wall time of `run` after one warm-up, device work included."""
    times = []
    for number in range(repeats + 1):
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times += [time.perf_counter() - began] if number else []
    return statistics.median(times)


def machine() -> dict[str, Any]:
    """Give what the figures were measured on."""
    device = pick_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    return {
        "device": device.type,
        "name": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def ceilings() -> dict[str, float]:
    """Give what this device reaches in fp32: FLOP/s of a large product, bytes/s of a large copy."""
    device = pick_device()
    side = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(2, side, side, device=device)
    source, target = torch.randn(2, 2**24, device=device)
    return {
        "matmul_flop_per_second": 2 * side**3 / median_seconds(lambda: a @ b),
        "copy_bytes_per_second": 2 * source.nbytes / median_seconds(lambda: target.copy_(source)),
    }


def startup() -> dict[str, float]:
    """Give the seconds of `longtake list` and of `import torch`, run in turn, and their ratio."""
    commands = {
        "list": [sys.executable, "-m", "longtake", "list"],
        "import_torch": [sys.executable, "-c", "import torch"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(REPEATS + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=os.environ)
            times[name] += [time.perf_counter() - began] if number else []
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {**medians, "ratio": medians["list"] / medians["import_torch"], "goal": 1.5}


@torch.no_grad()
def encoder(model: Model, history: History, ceiling: float) -> dict[str, Any]:
    """Give the seconds of a full encode beside its floor, and of appending one second to it."""
    one = max(1, round(model.backbone.geometry.fps / model.backbone.geometry.vae_stride.time))
    split = history.size.time - one
    state, _ = model.encoder.step(None, history.chunk(0, split))
    tail = history.chunk(split, history.size.time)
    with FlopCounterMode(display=False) as counter:
        memory = model.encoder(history)
    whole = median_seconds(lambda: model.encoder(history))
    append = median_seconds(lambda: model.encoder.step(state, tail))
    return {
        "history_latents": history.size.time,
        "tokens": memory.length,
        "gflop": counter.get_total_flops() / 1e9,
        "encode_seconds": whole,
        "floor_seconds": counter.get_total_flops() / ceiling,
        "append_one_second_seconds": append,
        "encode_over_append": whole / append,
    }


@torch.no_grad()
def denoising_step(model: Model, history: History) -> dict[str, Any]:
    """Give the seconds of one step over four latents without memory, and with it."""
    text = some_text(model).to(history.latents.device)
    without = model.backbone.context(text)
    reading = model.backbone.context(text, model.encoder(history))
    times = {
        "without_memory_seconds": median_seconds(lambda: _velocity(model, history, without)),
        "with_memory_seconds": median_seconds(lambda: _velocity(model, history, reading)),
    }
    price = times["with_memory_seconds"] / times["without_memory_seconds"]
    return {**times, "price_of_memory": price}


def _velocity(model: Model, history: History, context: Context) -> None:
    device = history.latents.device
    frames = torch.arange(4, device=device)[None] + history.size.time
    noisy = history.latents[:, :, :4]
    model.backbone.velocity(noisy, torch.ones(1, device=device), frames, context)


def random_history(experiment: Experiment, seconds: float) -> History:
    """Give random latents of a 16:9 video of the experiment's bucket area."""
    geometry: Geometry = experiment.backbone.geometry
    height = (experiment.cache.area * 9 / 16) ** 0.5
    size = Size3(
        time=geometry.latents(geometry.frames(seconds)),
        height=round(height / geometry.multiple[0]) * geometry.patch.height,
        width=round(height * 16 / 9 / geometry.multiple[1]) * geometry.patch.width,
    )
    generator = torch.Generator().manual_seed(0)

    def random(extent: Size3) -> torch.Tensor:
        shape = (1, geometry.channels, extent.time, extent.height, extent.width)
        return torch.randn(shape, generator=generator)

    rates = compressor_needs(experiment).rates
    lr = {rate: random(rate.lr_size(size)) for rate in rates}
    return History(latents=random(size), lr=lr).to(pick_device())


def lines(result: dict[str, Any]) -> list[str]:
    """Give the figures as lines to read."""
    start, code, step = result["startup"], result["encoder"], result["denoising_step"]
    limit = result["ceilings"]
    return [
        f"{result['experiment']} on {result['machine']['device']} ({result['machine']['name']}, "
        f"{result['machine']['threads']} threads), torch {result['machine']['torch']}",
        f"limits     matmul {limit['matmul_flop_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"copy {limit['copy_bytes_per_second'] / 1e9:.1f} GB/s",
        f"start-up   longtake list {start['list']:.2f} s, import torch "
        f"{start['import_torch']:.2f} s: {start['ratio']:.2f}× (goal ≤ {start['goal']}×)",
        f"encoder    {code['history_latents']} latents → {code['tokens']} tokens in "
        f"{code['encode_seconds'] * 1e3:.0f} ms ({code['gflop']:.1f} GFLOP, floor "
        f"{code['floor_seconds'] * 1e3:.0f} ms); one second more "
        f"{code['append_one_second_seconds'] * 1e3:.1f} ms: {code['encode_over_append']:.0f}× less",
        f"one step   {step['without_memory_seconds'] * 1e3:.0f} ms without memory, "
        f"{step['with_memory_seconds'] * 1e3:.0f} ms with it: {step['price_of_memory']:.2f}×",
        loader_line(result["loader"]),
    ]
