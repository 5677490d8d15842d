"""Claiming a store: what a run of `cache` shares, and whether the folder is its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import define

from ..codec import Codec
from ..errors import UserError
from ..experiment import CacheSpec, Experiment
from ..files import (
    create_file,
    disk_errors,
    is_live,
    only_parts,
    part_path,
    read_object,
    remove_parts,
    write_json,
)
from ..grid import Rate
from ..registry import build
from ..spec import CodecSpec, TextEncoderSpec
from ..text import TextEncoder
from .fits import SPECS, specs_of
from .record import WHAT, check_format, read_index
from .share import Share
from .store import made_with

LAYOUT = ("area", "max_aspect", "pixels", "mirror", "dtype")


@define
class Job:
    """The parts that all videos of a run share."""

    root: Path
    spec: CacheSpec
    experiment: Experiment
    codec: Codec[CodecSpec]
    rates: frozenset[Rate]
    device: torch.device

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        out: Path,
        rates: frozenset[Rate],
        pixels: bool,
        device: torch.device,
    ) -> Job:
        """Build them; the codec moves to `device` when the first video needs it."""
        spec = attrs.evolve(experiment.cache, pixels=experiment.cache.pixels or pixels)
        every = rates | frozenset(experiment.cache.rates)
        codec: Codec[CodecSpec] = build(experiment.backbone.codec)
        return cls(out, spec, experiment, codec, every, device)


@contextmanager
def claimed(job: Job, text: TextEncoder[TextEncoderSpec], share: Share) -> Iterator[Path]:
    """Make the store's header, or hold the one that is there to this run; give its index file.

    The header of a store without any clip binds nobody but the runs at work on it. A store that
    keeps frames goes on keeping them. What killed runs left half written goes.

    Raises:
        UserError: the folder holds other files, or a store that was made with something else.
    """
    root = job.root
    _refuse_others(root)
    _keep_pixels(job)
    header = store_header(job, text)
    claim = part_path(root / f"claim-{_hash(header)}-{share.name}")
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        claim.touch()
    try:
        _hold(root, header, specs_of(job.experiment.backbone))
        for folder in (root, root / "clips", root / "texts", *root.glob("rates/*")):
            remove_parts(folder)
        yield root / "index" / _index_name(root, share, claim)
    finally:
        claim.unlink(missing_ok=True)
        if share.world == 1:  # else others may be about to begin
            _drop_bare(root)


def _drop_bare(root: Path) -> None:
    """Remove a store of nothing but a header that says nothing yet: what failed leaves nothing."""
    header = root / "store.json"
    if list(root.iterdir()) == [header] and "measured" not in read_object(header, WHAT):
        header.unlink()
        with suppress(OSError):  # a folder that must stay, such as a disk's own
            root.rmdir()


def _refuse_others(root: Path) -> None:
    """Refuse a folder that is no store; one of format 1 may hold `null` before its header."""
    if root.exists() and not root.is_dir():
        raise UserError(f"--out {root} is a file; a folder is wanted")
    header = root / "store.json"
    if root.is_dir() and not only_parts(root, "null.safetensors") and not header.exists():
        raise UserError(f"--out {root} is a folder with other files in it, and no store")
    if header.exists():
        check_format(root, read_object(header, WHAT, "format"))


def _keep_pixels(job: Job) -> None:
    path = job.root / "store.json"
    if path.exists() and read_object(path, WHAT).get("pixels") is True and read_index(job.root):
        job.spec = attrs.evolve(job.spec, pixels=True)


def store_header(job: Job, text: TextEncoder[TextEncoderSpec]) -> dict[str, Any]:
    """Give what store.json holds: what the store was made with."""
    geometry, codec = job.experiment.backbone.geometry, job.codec
    identity = made_with(geometry, codec=codec.identity, text=text.identity, fps=geometry.fps)
    layout = {name: getattr(job.spec, name) for name in LAYOUT}
    return {**identity, **layout, "margin": codec.margin, "causal": codec.causal}


def _hash(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:8]


def _hold(root: Path, header: dict[str, Any], specs: dict[str, Any]) -> None:
    path, whole = root / "store.json", {**header, SPECS: specs}
    if create_file(path, json.dumps(whole, indent=2, ensure_ascii=False) + "\n"):
        return
    # a store without clips may have been made with anything
    bound = bool(read_index(root))
    found = read_object(path, WHAT, *(header if bound else ()))
    differs = [key for key in header if key != "format" and found.get(key) != header[key]]
    if bound and differs:
        key = differs[0]
        raise UserError(
            f"{root} was cached with {key} {found[key]}, this experiment asks for {header[key]}: "
            "name another --out, or delete it"
        )
    if differs and _others(root, f"claim-{_hash(header)}"):
        found_here = found.get(differs[0])
        raise UserError(f"another run is at work on {root}, with {differs[0]} {found_here}")
    if differs or found["format"] != header["format"]:
        # clips of format 1 have the rates that its header names
        old = {"rates": found.get("rates", [])} if bound else {}
        write_json(path, {**whole, **old})


def _others(root: Path, mine: str) -> bool:
    """Whether a run with another header is at work on the store."""
    claims = [path for path in root.glob(".claim-*.part") if is_live(path)]
    return any(not path.name.startswith(f".{mine}-") for path in claims)


def _index_name(root: Path, share: Share, mine: Path) -> str:
    """Give the share's file; a file of its own where another process has the same share."""
    claims = [path for path in root.glob(f".claim-*-{share.name}.*.part") if is_live(path)]
    own = "" if claims == [mine] else "-" + mine.name.split(".")[-2]
    return f"{share.name}{own}.jsonl"
