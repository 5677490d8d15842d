"""Claiming a store: what a run of `cache` shares, and whether the folder is its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import define

from ..codec import Codec
from ..errors import UserError
from ..experiment import CacheSpec, Experiment
from ..files import read_json, write_json, write_tensors
from ..grid import Rate
from ..registry import build
from ..spec import CodecSpec, TextEncoderSpec
from ..text import TextEncoder
from .store import made_with, text_tensors

LAYOUT = ("area", "max_aspect", "min_seconds", "pixels", "mirror", "dtype")


@define
class Job:
    """The parts that all videos of a run share."""

    root: Path
    spec: CacheSpec
    experiment: Experiment
    codec: Codec[CodecSpec]
    text: TextEncoder[TextEncoderSpec]
    rates: frozenset[Rate]
    device: torch.device


def make_job(
    experiment: Experiment, out: Path, rates: frozenset[Rate], pixels: bool, device: torch.device
) -> Job:
    """Give the shared parts of a run, its codec on `device`."""
    spec = attrs.evolve(experiment.cache, pixels=experiment.cache.pixels or pixels)
    codec = build(experiment.backbone.codec).to(device)
    return Job(out, spec, experiment, codec, build(experiment.backbone.text_encoder), rates, device)


def claim_store(job: Job) -> None:
    """Make the store's header, or hold the one that is there to this run.

    Raises:
        UserError: the folder holds other files, or a store that was made with something else.
    """
    header = store_header(job.experiment, job.codec, job.text, job.spec, job.rates)
    path = job.root / "store.json"
    if path.exists():
        _same_store(path, header)
        return
    if job.root.is_dir() and any(job.root.iterdir()):
        raise UserError(f"--out {job.root} is a folder with other files in it, and no store")
    write_json(path, header)
    write_tensors(job.root / "null.safetensors", text_tensors(job.text.encode([""])), {})


def store_header(
    experiment: Experiment,
    codec: Codec[CodecSpec],
    text: TextEncoder[TextEncoderSpec],
    spec: CacheSpec,
    rates: frozenset[Rate],
) -> dict[str, Any]:
    """Give what store.json holds: what the store was made with."""
    geometry = experiment.backbone.geometry
    identity = made_with(geometry, codec=codec.identity, text=text.identity, fps=geometry.fps)
    layout = {name: getattr(spec, name) for name in LAYOUT}
    return {**identity, **layout, "rates": sorted(map(str, rates)), "margin": codec.margin}


def _same_store(path: Path, header: Mapping[str, Any]) -> None:
    found = read_json(path, "latent store")
    for key, wanted in header.items():
        if found.get(key) != wanted:
            raise UserError(
                f"{path.parent} was cached with {key} {found.get(key)}, this experiment asks for "
                f"{wanted}: name another --out, or delete it"
            )
