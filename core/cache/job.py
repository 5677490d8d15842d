"""Claiming a store: what a run of `cache` shares, and whether the folder is its own."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import attrs
import numpy as np
import torch
from attrs import define, frozen
from torch import Tensor

from ..data.store import SPECS, WHAT, check_format, made_with, read_index, specs_of
from ..errors import UserError
from ..experiment import CacheSpec, Experiment
from ..interfaces.codec import Codec, from_bytes, measure_margins
from ..interfaces.spec import CodecSpec, TextEncoderSpec
from ..interfaces.text_encoder import TextEncoder
from ..registry import build
from ..tools.files import (
    create_file,
    disk_errors,
    is_live,
    only_parts,
    part_path,
    read_object,
    remove_parts,
    write_json,
)
from ..values.grid import Rate
from ..video.builtin_clip import SECONDS, builtin_clip

# ⟦core/data/share.py⟧ Which share of the videos a process takes, when several cache into one store.


T = TypeVar("T")


@frozen(kw_only=True)
class Share:
    """Process `rank` of `world`: every `world`-th item, from number `rank` on."""

    rank: int = 0
    world: int = 1

    def of(self, items: Sequence[T]) -> list[T]:
        """Return this process's items of a list that all processes share."""
        return list(items[self.rank :: self.world])

    @property
    def name(self) -> str:
        """A name that sorts by rank, for files."""
        return f"{self.rank:05d}-of-{self.world:05d}"

    def __str__(self) -> str:
        return f"share {self.rank} of {self.world}"


def find_share(rank: int | None, world: int | None, env: Mapping[str, str]) -> Share:
    """Return the share that was asked for, else the launcher's, else all.

    Launchers are torchrun and accelerate (RANK, WORLD_SIZE) and Slurm's srun (SLURM_PROCID,
    SLURM_STEP_NUM_TASKS). A Slurm script outside srun runs once, whatever its number of tasks, so
    that it takes everything.

    Raises:
        UserError: one number is given without the other, is no number, or out of range.
    """
    if rank is not None or world is not None:
        return _checked("--rank", rank, "--world", world)
    if "RANK" in env or "WORLD_SIZE" in env:
        return _from(env, "RANK", "WORLD_SIZE")
    if "SLURM_STEP_ID" in env:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        return _from(env, "SLURM_PROCID", tasks)
    return Share()


def _from(env: Mapping[str, str], rank: str, world: str) -> Share:
    numbers = [int(env[n]) if env.get(n, "").isdecimal() else None for n in (rank, world)]
    return _checked(rank, numbers[0], world, numbers[1])


def _checked(rank_name: str, rank: int | None, world_name: str, world: int | None) -> Share:
    if rank is None or world is None:
        lacking = rank_name if rank is None else world_name
        raise UserError(f"{rank_name} and {world_name} go together: {lacking} is no number")
    if not 0 <= rank < world:
        raise UserError(f"{rank_name} {rank} of {world_name} {world}: 0 to {world_name} − 1")
    return Share(rank=rank, world=world)


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
    """Return what store.json holds: what the store was made with."""
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
    """Return the share's file; a file of its own where another process has the same share."""
    claims = [path for path in root.glob(f".claim-*-{share.name}.*.part") if is_live(path)]
    own = "" if claims == [mine] else "-" + mine.name.split(".")[-2]
    return f"{share.name}{own}.jsonl"


# ⟦core/data/margins.py⟧ The margins of a store's codec, measured once and kept in its header.


SIDE = 64  # pixels of the clip that is measured on: enough, and fast on a CPU


def note_margins(job: Job) -> None:
    """Measure the margins of a codec that knows a bound only, where the header lacks them.

    The header then says `measured: {margin, encode_margin, pixels, latents}`. Weights that were
    loaded for this are let go of: workers load their own.

    Raises:
        UserError: the codec's weights cannot be loaded, or the disk refuses.
    """
    if not job.codec.margin_is_bound:
        return
    path = job.root / "store.json"
    if "measured" in read_object(path, WHAT):
        return
    codec = job.codec.to(job.device)
    video = _clip(job).to(job.device)
    found = measure_margins(codec, video)
    codec.unload()
    write_json(path, {**read_object(path, WHAT), "measured": attrs.asdict(found)})


def _clip(job: Job) -> Tensor:
    """Return photographs under a moving camera, `[1, 3, F, P, Q]`, longer than the codec's bound."""
    fps = job.experiment.backbone.geometry.fps
    count = 1 + job.codec.stride.time * (job.codec.margin + 1)
    frames = builtin_clip(max(SECONDS, (count + 1) / fps), fps, SIDE, SIDE)
    clip = torch.from_numpy(np.stack(list(islice(frames, count))))
    return from_bytes(clip).movedim(-1, 0)[None]


# ⟦core/data/room.py⟧ Room on the disk for the rest of a store, judged by what its videos have taken so far.


GIGABYTE = 1e9


@define
class Room:
    """Counts videos that were cached into the store at `root`, and their bytes."""

    root: Path
    videos: int = 0
    written: int = 0

    def add(self, clips: Iterable[Path]) -> None:
        """Count one more video, by the files of its clips."""
        self.videos += 1
        self.written += sum(path.stat().st_size for path in clips)

    def lacking(self, left: int) -> str:
        """Say what so many more videos need, where that is more than is free; "" where it is not.

        They are taken to be as large as those before, so the word is of use, and no promise.
        """
        if not self.videos:
            return ""
        wanted, free = self.written / self.videos * left, shutil.disk_usage(self.root).free
        if wanted <= free:
            return ""
        return f"the rest needs about {wanted / GIGABYTE:.1f} GB of {free / GIGABYTE:.1f} GB free"
