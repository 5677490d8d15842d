"""What `longtake bench` measures: each figure beside its yardstick, in one run."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .data.captions import untimed_captions
from .data.store import Record, Store, check_fits, clip_path, store_identity
from .data.texts import embedding_tensors, prompt_path
from .data.windows import WindowBatches, WindowSampler
from .errors import UserError
from .experiment import Experiment
from .interfaces.backbone import Context
from .interfaces.text_encoder import embed_all
from .model import Model, build_model, compressor_needs
from .registry import build
from .stage_bench import StageRound, joined, matmul_rate, time_stages
from .tools.device import flushed_denormals, pick_device
from .tools.files import append_json_line, write_json, write_tensors
from .tools.timing import count_flop
from .train.step import StageOneStep
from .values.grid import Geometry, Size3
from .values.history import History
from .values.text import Text

REPEATS = 5
PROMPT = "a walk by the sea"
PROMPT_LENGTH = 512  # tokens of a prompt that no encoder made, as many as Wan reads
STARTUP_GOAL = 1.5
LOADER_GOAL = 3.0
CLIPS = 8  # of the store that is written for the loader
BATCHES = 2  # that it loads
LOADER_REPEATS = 3


def bench(
    experiment: Experiment, *, seconds: float = 20.0, data: Path | None = None
) -> dict[str, Any]:
    """Measure all figures of an experiment on this machine, with weights as training begins.

    Args:
        experiment: what to time.
        seconds: length of the history.
        data: a latent store for the loader to read; None: one is written for it.

    Raises:
        UserError: the experiment is Stage II, or the store is none, or was made for something else.
    """
    if experiment.finetune is not None:
        raise UserError(
            f"{experiment.name} is Stage II, and bench times batches and steps of Stage I: name "
            "its Stage I experiment"
        )
    if data is not None:
        check_fits(experiment, Store.open(data), compressor_needs(experiment).rates)
    model = build_model(experiment).eval().to(pick_device())
    history = random_history(experiment, seconds)
    return {
        "experiment": experiment.name,
        "machine": describe_machine(),
        "ceilings": (limits := measure_ceilings()),
        "startup": time_startup(),
        "encoder": time_encoder(model, history, limits["matmul_flop_per_second"]),
        "denoising_step": time_denoising_step(model, history),
        "loader": (loader := time_loader(experiment, history.size, data)),
        "stages": {"pretrain": loader.pop("stage"), **time_stages(model)},
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Return the figures as lines to read."""
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
        f"{step['with_memory_seconds'] * 1e3:.0f} ms with it: {step['price_of_memory']:.2f}× "
        f"({step['price_by_operations']:.2f}× by its operations)",
        loader_line(result["loader"]),
        *(stage_line(name, figures) for name, figures in result["stages"].items()),
    ]


def stage_line(name: str, stage: dict[str, Any]) -> str:
    """Return the figures of a stage as a line to read."""
    if "skipped" in stage:
        return f"{name:<10} skipped: {stage['skipped']}"
    took, floor, decode = (
        stage[key] * 1e3 for key in ("seconds", "floor_seconds", "decode_seconds")
    )
    parts = [f"{stage['gflop']:,.1f} GFLOP", *([f"decode {decode:.0f} ms"] if decode else [])]
    ratio = f"{stage['over_floor']:.2f}×"
    return f"{name:<10} {took:,.0f} ms, floor {floor:,.0f} ms ({', '.join(parts)}): {ratio}"


def loader_line(loader: dict[str, Any]) -> str:
    """Return the figures of the loader as a line to read."""
    return (
        f"loader     a batch of {loader['batch']} in {loader['load_seconds'] * 1e3:.1f} ms, a "
        f"training step on it {loader['step_seconds'] * 1e3:.0f} ms: {loader['ratio']:.1f}× "
        f"(goal ≥ {loader['goal']:.0f}×; {loader['store']})"
    )


def describe_machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    device = pick_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    return {
        "device": device.type,
        "name": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure_ceilings() -> dict[str, float]:
    """Return FLOP/s of a large fp32 product on this device, and bytes/s of a large copy."""
    device = pick_device()
    side = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(2, side, side, device=device)
    source, target = torch.randn(2, 2**24, device=device)
    return {
        "matmul_flop_per_second": 2 * side**3 / median_seconds(lambda: a @ b),
        "copy_bytes_per_second": 2 * source.nbytes / median_seconds(lambda: target.copy_(source)),
    }


def time_startup() -> dict[str, float]:
    """Return the seconds of `longtake list` and of `import torch`, run in turn, and their ratio."""
    commands = {
        "list": [sys.executable, "-m", "longtake", "list"],
        "import_torch": [sys.executable, "-c", "import torch"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(REPEATS + 1):
        for name, command in commands.items():
            run = partial(subprocess.run, command, check=True, capture_output=True, env=os.environ)
            seconds = _seconds(run)
            times[name] += [seconds] if number else []  # the first round warms up
    medians = {name: statistics.median(each) for name, each in times.items()}
    ratio = medians["list"] / medians["import_torch"]
    return {**medians, "ratio": ratio, "goal": STARTUP_GOAL}


@torch.no_grad()
def time_encoder(model: Model, history: History, ceiling: float) -> dict[str, Any]:
    """Return the seconds of a full encode beside its floor, and of appending one second to it."""
    one = max(1, round(model.backbone.geometry.fps / model.backbone.geometry.vae_stride.time))
    split = history.size.time - one
    state, _ = model.encoder.step(None, history.chunk(0, split))
    tail = history.chunk(split, history.size.time)
    memory, flop = model.encoder(history), count_flop(lambda: model.encoder(history))
    full = median_seconds(lambda: model.encoder(history))
    append = median_seconds(lambda: model.encoder.step(state, tail))
    return {
        "history_latents": history.size.time,
        "tokens": memory.length,
        "gflop": flop / 1e9,
        "encode_seconds": full,
        "floor_seconds": flop / ceiling,
        "append_one_second_seconds": append,
        "encode_over_append": full / append,
    }


@torch.no_grad()
def time_denoising_step(model: Model, history: History) -> dict[str, Any]:
    """Return the seconds of one step over four latents without memory, and with it."""
    text = _prompt(model).to(history.latents.device)
    without = model.backbone.context(text)
    reading = model.backbone.context(text, model.encoder(history))
    times = {
        "without_memory_seconds": median_seconds(lambda: _velocity(model, history, without)),
        "with_memory_seconds": median_seconds(lambda: _velocity(model, history, reading)),
    }
    price = times["with_memory_seconds"] / times["without_memory_seconds"]
    bare = count_flop(lambda: _velocity(model, history, without))
    counted = count_flop(lambda: _velocity(model, history, reading)) / bare
    return {**times, "price_of_memory": price, "price_by_operations": counted}


def _velocity(model: Model, history: History, context: Context) -> None:
    device = history.latents.device
    frames = torch.arange(4, device=device)[None] + history.size.time
    noisy = history.latents[:, :, :4]
    model.backbone.velocity(noisy, torch.ones(1, device=device), frames, context)


def time_loader(experiment: Experiment, size: Size3, data: Path | None = None) -> dict[str, Any]:
    """Return the seconds to make batches of cached windows beside those of training on them.

    Args:
        experiment: what to train; batch and window lengths are its own.
        size: latents of each clip of the store that is written for this.
        data: a store to read instead, made for this experiment.

    Raises:
        UserError: the store is none, or its clips are shorter than a training window.
    """
    model = build_model(experiment, adapters=True)
    with _store(model, size, data) as store:
        needs = compressor_needs(experiment)
        windows = WindowSampler.of(store, experiment.backbone.geometry, experiment.train, needs)
        batches = WindowBatches(store, windows, needs, BATCHES)
        load = [_load_seconds(batches, step) for step in range(BATCHES)]
        stage = _step_figures(model, batches)
    train = [step["seconds"] for step in stage["rounds"]]
    return {
        "store": str(data) if data else f"{CLIPS} clips of {size.time} latents, written for this",
        "batch": experiment.train.batch,
        "steps": BATCHES,
        "load_seconds": sum(load) / BATCHES,
        "step_seconds": sum(train) / BATCHES,
        "ratio": sum(train) / sum(load),
        "goal": LOADER_GOAL,
        "stage": stage,
    }


def _load_seconds(batches: WindowBatches, step: int) -> float:
    """Return the median seconds to load a step's batch and to put it on the device."""
    device = pick_device()
    times = [_seconds(lambda: batches[step].to(device)) for _ in range(LOADER_REPEATS)]
    return statistics.median(times)


def _step_figures(model: Model, batches: WindowBatches) -> dict[str, Any]:
    """Return the seconds of training steps beside their floors, as a stage of `time_stages`."""
    device = pick_device()
    train = StageOneStep.of(model, batches.store.null_text(), device)
    rounds = []
    with flushed_denormals():  # as in training
        for number in range(BATCHES):
            step = partial(train, batches[number].to(device), number)
            flop = count_flop(step)  # warms up, too
            floor = flop / matmul_rate()
            seconds = _seconds(step)
            rounds.append(StageRound(seconds=seconds, flop=flop, floor=floor, decode=0.0))
    return joined(rounds)


@contextmanager
def _store(model: Model, size: Size3, data: Path | None) -> Iterator[Store]:
    if data is not None:
        yield Store.open(data)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write(model, size, Path(folder))
        yield Store.open(Path(folder))


def _write(model: Model, size: Size3, root: Path) -> None:
    """Write a store of random clips, in the files that `cache` writes."""
    experiment = model.experiment
    geometry, rates = experiment.backbone.geometry, compressor_needs(experiment).rates
    header = store_identity(geometry, codec="random", text="one prompt", fps=geometry.fps)
    write_json(root / "store.json", header)
    tensors = embedding_tensors(_prompt(model))
    for prompt in ("", PROMPT):
        write_tensors(prompt_path(root, prompt), tensors, {"prompt": prompt})
    dtype = getattr(torch, experiment.cache.dtype)
    sizes = {"latents": size, **{f"lr/{rate}": rate.lr_size(size) for rate in rates}}
    for number in range(CLIPS):
        tensors = {
            name: torch.randn(geometry.channels, s.time, s.height, s.width).to(dtype)
            for name, s in sizes.items()
        }
        record = _record(f"clip-{number}", size, experiment, rates=sorted(map(str, rates)))
        write_tensors(clip_path(root, record.id), tensors, {})
        append_json_line(root / "index" / "00000-of-00001.jsonl", record.line())


def _record(name: str, size: Size3, experiment: Experiment, rates: list[str]) -> Record:
    geometry = experiment.backbone.geometry
    return Record(
        id=name,
        source=f"{name}.mp4",
        fingerprint="",
        latents=size.time,
        height=size.height,
        width=size.width,
        frames=1 + geometry.vae_stride.time * (size.time - 1),
        fps=geometry.fps,
        captions=untimed_captions(PROMPT),
        placement="",
        rates=tuple(rates),
    )


def _prompt(model: Model) -> Text:
    """Return one embedded prompt; zeros of its widths where the encoder is not on this machine.

    No weights are downloaded for the sake of a time.
    """
    encoder = build(model.experiment.backbone.text_encoder)
    if encoder.available_offline:
        return embed_all(encoder, [PROMPT])
    return model.backbone.blank_text(1, PROMPT_LENGTH).to("cpu", torch.float32)


def random_history(experiment: Experiment, seconds: float) -> History:
    """Return random latents of a 16:9 video of the experiment's bucket area."""
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


def median_seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median wall time of `run` after one warm-up, device work included."""
    _seconds(run)
    return statistics.median(_seconds(run) for _ in range(repeats))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
