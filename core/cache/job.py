"""The job of a `cache` run: what its videos share, its hold on the store, its share of the videos.

Several processes may cache into one store, even with the same command. Each claims it while it is
at work (`claim_store`), so that the header stays as it is while anyone writes by it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import attrs
import numpy as np
import torch
from attrs import define, frozen
from einops import rearrange
from torch import Tensor

from ..data.store import SPECS, STORE_KIND, check_format, header_specs, read_index, store_identity
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

T = TypeVar("T")

PARTS = ("clips", "index", "rates", "texts")  # folders of a store
LAYOUT = ("area", "max_aspect", "pixels", "mirror", "dtype")  # fields of CacheSpec in the header
VARIANTS: dict[str, Any] = {"reverse": False, "speeds": []}  # the same; what headers without mean
SIDE = 64  # pixels of the clip that margins are measured on: enough, and fast on a CPU


@define
class Job:
    """What all videos of a run share.

    Attributes:
        root: the store's folder.
        spec: how videos are cached: that of the experiment, with what plugins and the store need.
        experiment: its backbone implies codec, text encoder and frame rate.
        codec: of the experiment.
        rates: LR rates to encode.
        device: where the codec runs.
    """

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
        """Return the job; its codec moves to `device` when the first video needs it."""
        spec = attrs.evolve(experiment.cache, pixels=experiment.cache.pixels or pixels)
        codec: Codec[CodecSpec] = build(experiment.backbone.codec)
        return cls(out, spec, experiment, codec, rates | frozenset(spec.rates), device)


@contextmanager
def claim_store(job: Job, text: TextEncoder[TextEncoderSpec], shard: Shard) -> Iterator[Path]:
    """Make the store's header, or check the one that is there; yield this process's index file.

    The header of a store without any clip binds nobody but the runs at work on it. A store that
    keeps frames goes on keeping them: `job.spec` then says so. What killed runs left half written
    is removed. A run that ends or fails without any clip in the store leaves no folder behind, but
    where the user stopped it.

    Raises:
        UserError: the folder holds other files, or a store that was made with something else.
    """
    root = job.root
    _refuse_other_folders(root)
    _keep_pixels(job)
    header = store_header(job, text)
    claim = part_path(root / f"claim-{_hash(header)}-{shard.name}")
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    stopped = True
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        claim.touch()
    try:
        _write_header(root, header, header_specs(job.experiment.backbone))
        for folder in (root, root / "clips", root / "texts", *root.glob("rates/*")):
            remove_parts(folder)
        yield root / "index" / _index_name(root, shard, claim)
        stopped = False
    except Exception:
        stopped = False
        raise
    finally:
        claim.unlink(missing_ok=True)
        if shard.world == 1 and not stopped:  # else others may be about to begin
            _remove_if_empty(root, made)


def _refuse_other_folders(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"--out {root} is a file; a folder is wanted")
    header = root / "store.json"
    if header.exists():
        check_format(root, read_object(header, STORE_KIND, "format"))
    elif root.is_dir() and not only_parts(root):
        raise UserError(f"--out {root} is a folder with other files in it, and no store")


def _keep_pixels(job: Job) -> None:
    path = job.root / "store.json"
    if path.exists() and read_object(path, STORE_KIND).get("pixels") is True:
        if read_index(job.root):
            job.spec = attrs.evolve(job.spec, pixels=True)


def store_header(job: Job, text: TextEncoder[TextEncoderSpec]) -> dict[str, Any]:
    """Return what store.json holds of what the store was made with, but the specs."""
    geometry, codec = job.experiment.backbone.geometry, job.codec
    identity = store_identity(geometry, codec=codec.identity, text=text.identity, fps=geometry.fps)
    layout = {name: getattr(job.spec, name) for name in LAYOUT}
    layout |= {"reverse": job.spec.reverse, "speeds": sorted(job.spec.speeds)}
    return {**identity, **layout, "margin": codec.margin, "causal": codec.causal}


def _hash(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:8]


def _write_header(root: Path, header: dict[str, Any], specs: dict[str, Any]) -> None:
    """Write store.json where there is none, or where no clip and no other run is bound by it."""
    path, complete = root / "store.json", {**header, SPECS: specs}
    if create_file(path, json.dumps(complete, indent=2, ensure_ascii=False) + "\n"):
        return
    has_clips = bool(read_index(root))
    required = [key for key in header if key not in VARIANTS] if has_clips else []
    present = VARIANTS | read_object(path, STORE_KIND, *required)
    different = [key for key in header if present.get(key) != header[key]]
    if not different:
        return
    key = different[0]
    if has_clips:
        raise UserError(
            f"{root} was cached with {key} {present[key]}, this experiment asks for {header[key]}: "
            "name another --out, or delete it"
        )
    if _is_claimed_otherwise(root, _hash(header)):
        raise UserError(f"another run is at work on {root}, with {key} {present.get(key)}")
    write_json(path, complete)


def _is_claimed_otherwise(root: Path, header_hash: str) -> bool:
    """Return whether a run with another header is at work on the store."""
    claims = [path for path in root.glob(".claim-*.part") if is_live(path)]
    return any(not path.name.startswith(f".claim-{header_hash}-") for path in claims)


def _index_name(root: Path, shard: Shard, own_claim: Path) -> str:
    """Return the shard's file; a file of its own where another process has the same shard."""
    claims = [path for path in root.glob(f".claim-*-{shard.name}.*.part") if is_live(path)]
    suffix = "" if claims == [own_claim] else "-" + own_claim.name.split(".")[-2]
    return f"{shard.name}{suffix}.jsonl"


def _remove_if_empty(root: Path, made: Sequence[Path]) -> None:
    """Remove a store without any clip, and the folders that were made for it.

    Stays: a store that others are at work on, and a folder that has other files in it.
    """
    claims = [path for path in root.glob(".claim-*.part") if is_live(path)]
    if claims or read_index(root) or any((root / "clips").glob("*.safetensors")):
        return
    (root / "store.json").unlink(missing_ok=True)
    for name in PARTS:
        shutil.rmtree(root / name, ignore_errors=True)
    for folder in made or [root]:
        with suppress(OSError):  # a folder that must stay, such as a disk's own
            folder.rmdir()


def measure_store_margins(job: Job) -> None:
    """Measure the margins of a codec that knows only a bound, where the header has none yet.

    The header then says `measured: {margin, encode_margin, pixels, latents}`. Weights that were
    loaded for this are unloaded: workers load their own.

    Raises:
        UserError: the codec's weights cannot be loaded, or the disk refuses.
    """
    if not job.codec.margin_is_bound:
        return
    path = job.root / "store.json"
    if "measured" in read_object(path, STORE_KIND):
        return
    codec = job.codec.to(job.device)
    margins = measure_margins(codec, _moving_photographs(job).to(job.device))
    codec.unload()
    write_json(path, {**read_object(path, STORE_KIND), "measured": attrs.asdict(margins)})


def _moving_photographs(job: Job) -> Tensor:
    """Return a clip of photographs, `[1, 3, F, P, Q]`, that is longer than the codec's bound."""
    fps = job.experiment.backbone.geometry.fps
    count = 1 + job.codec.stride.time * (job.codec.margin + 1)
    frames = builtin_clip(max(SECONDS, (count + 1) / fps), fps, SIDE, SIDE)
    clip = torch.from_numpy(np.stack(list(islice(frames, count))))
    return rearrange(from_bytes(clip), "f p q c -> 1 c f p q")


@frozen(kw_only=True)
class Shard:
    """The share of process `rank` of `world`: every `world`-th item, from number `rank` on."""

    rank: int = 0
    world: int = 1

    def of(self, items: Sequence[T]) -> list[T]:
        """Return this process's items of a list that all processes have."""
        return list(items[self.rank :: self.world])

    @property
    def name(self) -> str:
        """A name that sorts by rank, for files."""
        return f"{self.rank:05d}-of-{self.world:05d}"

    def __str__(self) -> str:
        return f"share {self.rank} of {self.world}"


def find_shard(rank: int | None, world: int | None, env: Mapping[str, str]) -> Shard:
    """Return the shard that the user names, else the launcher's, else all.

    Launchers are torchrun and accelerate (RANK, WORLD_SIZE) and Slurm's srun (SLURM_PROCID,
    SLURM_STEP_NUM_TASKS). A Slurm script outside srun runs once, whatever its number of tasks, so
    it takes everything.

    Raises:
        UserError: one number is given without the other, is no number, or out of range.
    """
    if rank is not None or world is not None:
        return _checked("--rank", rank, "--world", world)
    if "RANK" in env or "WORLD_SIZE" in env:
        return _from_env(env, "RANK", "WORLD_SIZE")
    if "SLURM_STEP_ID" in env:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        return _from_env(env, "SLURM_PROCID", tasks)
    return Shard()


def _from_env(env: Mapping[str, str], rank: str, world: str) -> Shard:
    numbers = [int(env[n]) if env.get(n, "").isdecimal() else None for n in (rank, world)]
    return _checked(rank, numbers[0], world, numbers[1])


def _checked(rank_name: str, rank: int | None, world_name: str, world: int | None) -> Shard:
    if rank is None or world is None:
        missing = rank_name if rank is None else world_name
        raise UserError(f"{rank_name} and {world_name} go together: {missing} is no number")
    if not 0 <= rank < world:
        raise UserError(f"{rank_name} {rank} of {world_name} {world}: 0 to {world_name} − 1")
    return Shard(rank=rank, world=world)
