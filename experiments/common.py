"""What experiments share: command line, facts of the machine, tiny forms, time limits, PSNR."""

from __future__ import annotations

import _thread
import platform
import signal
import subprocess
import sys
import threading
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from ..backbones.codecs.specs import Dct
from ..backbones.texts.specs import Bytes
from ..backbones.wan.specs import TinyWan
from ..core.cache.cache import CacheResult
from ..core.experiment import CacheSpec, Experiment, MeasureSpec
from ..core.interfaces.codec import Codec, decode_whole, encode_whole, to_unit
from ..core.interfaces.spec import CompressorSpec, LoRA
from ..core.tools.device import pick_device
from ..core.tools.files import read_json_lines
from ..core.train.log import METRICS, PACE
from ..core.video.builtin_clip import write_builtin_clip
from ..plugins.compressors.specs import Conv

ROOT = Path(__file__).resolve().parents[1]  # of the package, and of its repository
PACKAGES = ("longtake", "torch", "triton", "diffusers", "accelerate")


def command_line(name: str, doc: str | None) -> ArgumentParser:
    """Return the parser of an experiment's command, whose help is its module's text.

    Args:
        name: of its module.
        doc: its text, lines as they stand.
    """
    return ArgumentParser(
        prog=f"python -m longtake.experiments.{name}",
        description=doc,
        formatter_class=RawDescriptionHelpFormatter,
    )


def machine_facts() -> dict[str, Any]:
    """Return device, driver and versions; what cannot be known is None."""
    return {
        **_device_facts(pick_device()),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _device_facts(device: torch.device) -> dict[str, Any]:
    """Return name, memory and driver of the device."""
    if device.type != "cuda":
        name = platform.processor() or platform.machine()
        return {"device": device.type, "name": name, "memory_mib": None, "driver": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": device.type,
        "name": properties.name,
        "memory_mib": properties.total_memory // 2**20,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def _version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> dict[str, Any]:
    """Return the commit of the checkout that the package lies in, and whether it was changed."""
    top = _output("git", "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return {"commit": None, "dirty": None}
    changed = _output("git", "status", "--porcelain")
    return {"commit": _output("git", "rev-parse", "HEAD"), "dirty": bool(changed)}


def _output(*command: str) -> str | None:
    """Return what a program prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


SMALL_DIT = TinyWan(
    heads=2,
    head_width=12,
    layers=2,
    ffn=16,
    codec=Dct(channels=16),
    text_encoder=Bytes(width=8, length=8),
)


def tinier(experiment: Experiment) -> Experiment:
    """Return an experiment over 32×48 pixels that trains two steps of two samples."""
    train = attrs.evolve(
        experiment.train,
        steps=2,
        batch=2,
        accumulate=1,
        seconds=(2.0, 2.0),
        crop=(0, 0),
        adapter=LoRA(rank=2, alpha=2.0),
        warmup=0,
        memory_dropout=0.0,
        precision="fp32",
        log_every=1,
        gain_every=10**6,
    )
    return attrs.evolve(
        experiment,
        backbone=SMALL_DIT,
        compressors=tuple(_thin(spec) for spec in experiment.compressors),
        retrievers=experiment.retrievers[:1],
        metrics=experiment.metrics[:1],
        cache=CacheSpec(area=32 * 48, min_seconds=1.0, mirror=experiment.cache.mirror),
        train=train,
        measure=MeasureSpec(seconds=2.0, draws=1),
    )


def untrained(experiment: Experiment) -> Experiment:
    """Return an experiment on random weights, on which speed and memory do not depend."""
    if not isinstance(experiment.backbone, TinyWan):
        return experiment
    return attrs.evolve(experiment, backbone=attrs.evolve(experiment.backbone, weights=None))


def _thin(spec: CompressorSpec) -> CompressorSpec:
    if not isinstance(spec, Conv):
        return spec
    # Where a frame is smaller than a cell, the token of `whole` stands where heads that look by
    # place read next to nothing: its gradients are 1e-30, of `ceil` 1e-9.
    return attrs.evolve(spec, channels=(4, 6), heads=2, head_width=4, rounding="ceil")


def tiny_clips(root: Path) -> Path:
    """Write three clips to train on and two to measure into a folder, and return it."""
    for place, count in (("train", 3), ("val", 2)):
        for number in range(count):
            path = root / place / f"clip-{number}.mp4"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_builtin_clip(path, 3.0 + number, 8, 32, 48)
    return root


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread after some seconds, as Ctrl-C does.

    Training then saves and ends; other work is broken off.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # as a shell starts what it puts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(max(0.0, seconds), _thread.interrupt_main)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def training_progress(run: Path, step: int, experiment: Experiment) -> dict[str, Any]:
    """Return how far a run has come: steps, minutes and its last logged figures."""
    lines = read_json_lines(run / METRICS)
    paces = [line["seconds_a_step"] for line in read_json_lines(run / PACE)]
    return {
        "step": step,
        "steps": experiment.train.steps,
        "batch": experiment.train.batch,
        "minutes": round(sum(paces) / max(1, len(paces)) * step / 60, 2),
        "last": lines[-1] if lines else None,
    }


def say_left_out(result: CacheResult) -> list[str]:
    """Return what `cache` left out, a line each, and say it on stderr."""
    odd = [f"{one.source}: {one.note}" for one in result.outcomes if one.note]
    lines = [*result.left_out, *odd, *result.notes]
    for line in lines:
        print(line, file=sys.stderr)
    return lines


@torch.no_grad()
def codec_psnr(codec: Codec[Any], pixels: Tensor) -> float:
    """Return the mean PSNR, dB, of the frames of `[1, 3, F, P, Q]` that whole latents stand for."""
    step = codec.stride.time
    whole = pixels[:, :, : 1 + (pixels.shape[2] - 1) // step * step]
    back = decode_whole(codec, encode_whole(codec, whole))
    error = to_unit(back[..., : whole.shape[-2], : whole.shape[-1]]) - to_unit(whole)
    mse = error.square().mean(dim=(0, 1, 3, 4)).clamp_min(1e-6)
    return float((-10 * mse.log10()).mean())
