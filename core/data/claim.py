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
from ..files import (
    is_tensors,
    only_parts,
    read_object,
    remove_parts,
    write_json,
    write_tensors,
)
from ..grid import Rate
from ..registry import build
from ..spec import CodecSpec, TextEncoderSpec
from ..text import TextEncoder
from .record import read_index
from .store import WHAT, made_with, text_tensors

LAYOUT = ("area", "max_aspect", "pixels", "mirror", "dtype")


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

    The header of a store without any clip binds nobody. What killed runs left half written goes.

    Raises:
        UserError: the folder holds other files, or a store that was made with something else.
    """
    header = store_header(job.experiment, job.codec, job.text, job.spec, job.rates)
    path, null = job.root / "store.json", job.root / "null.safetensors"
    _refuse_others(job.root)
    for folder in (job.root, job.root / "clips"):
        remove_parts(folder)
    fresh = not path.exists() or not read_index(job.root)
    if not fresh:
        _same_store(path, header)
    if fresh or not is_tensors(null):
        write_tensors(null, text_tensors(job.text.encode([""])), {})
    if fresh:  # last: a store with a header is whole
        write_json(path, header)


def _refuse_others(root: Path) -> None:
    """Refuse a folder that is no store; one that was killed before its header has only `null`."""
    if (root / "store.json").exists():
        read_object(root / "store.json", WHAT, "format")
    elif root.is_dir() and not only_parts(root, "null.safetensors"):
        raise UserError(f"--out {root} is a folder with other files in it, and no store")
    elif root.exists() and not root.is_dir():
        raise UserError(f"--out {root} is a file; a folder is wanted")


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
    made = {"rates": sorted(map(str, rates)), "margin": codec.margin, "causal": codec.causal}
    return {**identity, **layout, **made}


def _same_store(path: Path, header: Mapping[str, Any]) -> None:
    found = read_object(path, WHAT, *header)
    for key, wanted in header.items():
        if found.get(key) != wanted:
            raise UserError(
                f"{path.parent} was cached with {key} {found.get(key)}, this experiment asks for "
                f"{wanted}: name another --out, or delete it"
            )
