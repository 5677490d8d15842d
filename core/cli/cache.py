"""`longtake cache`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from ..tools.words import counted
from . import options as o

if TYPE_CHECKING:
    import torch

    from ..cache.cache import CacheResult
    from ..cache.job import Shard

STATUSES = ("cached", "updated", "kept", "bad", "lost")
LABELS = {"bad": "not used", "lost": "not done"}
LISTED = 5  # videos named in a list that may be long


def cache(
    experiment: o.ExperimentArg,
    out: Annotated[Path, o.out_option("the store's folder")],
    videos: Annotated[
        Path | None, typer.Option(help="a folder of videos, a list of them, or one video")
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(help="a folder of photographs, filmed by a virtual camera (cache.film)"),
    ] = None,
    workers: Annotated[int, typer.Option(help="processes on this machine", min=1)] = 1,
    rank: Annotated[
        int | None, typer.Option(help="this process's share; default: its launcher's", min=0)
    ] = None,
    world: Annotated[int | None, typer.Option(help="number of shares", min=1)] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="remove clips of videos that are no longer there")
    ] = False,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Turn videos, captions and photographs into a latent store; resumes where it stopped.

    Example: longtake cache tiny-wan-2x2x2 --videos clips/ --out stores/clips
    """
    from ..cache.cache import cache as cache_videos
    from ..cache.job import find_shard
    from ..errors import LongtakeError
    from ..model import all_needs, compressor_needs
    from ..tools.progress import progress_bar

    shard = find_shard(rank, world, os.environ)
    changed = o.read_experiment(experiment, sets)[1]
    specs, notice = changed.spec, o.SwapNotice.of(changed)
    with progress_bar("cache" if shard.world == 1 else f"cache, {shard}") as report:
        result = cache_videos(
            specs,
            videos,
            out,
            photos=photos,
            rates=all_needs(specs).rates,
            pixels=compressor_needs(specs).pixels,
            device=_device(shard),
            progress=notice.before(report),
            shard=shard,
            workers=workers,
            prune=prune,
        )
    notice.say()
    o.print_result(_data(result), _lines(result), as_json=as_json)
    if result.count("lost"):
        raise LongtakeError(
            f"{result.count('lost')} of {len(result.outcomes)} videos are not done, since the "
            "processes at work on them died (out of memory?): run the same command again"
        )


def _device(shard: Shard) -> torch.device:
    """Return the best device; of several GPUs the one of this process, where a launcher counts."""
    import torch

    from ..tools.device import pick_device

    device = pick_device()
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if device.type == "cuda" and shard.world > 1 and local.isdecimal():
        return torch.device("cuda", int(local) % torch.cuda.device_count())
    return device


def _data(result: CacheResult) -> dict[str, object]:
    counts = {status: result.count(status) for status in STATUSES}
    return {
        "store": str(result.store),
        **attrs.asdict(result.shard),
        **counts,
        "gone": result.gone,
        "pruned": result.pruned,
        "captions": {
            "given": result.captions.given,
            "videos": result.captions.videos,
            "from": list(result.captions.origins),
        },
        "cut_captions": result.cut_captions,
        "notes": result.notes,
        "video_seconds": result.seconds,
        "wall_seconds": result.elapsed,
        "videos": [attrs.asdict(outcome) for outcome in result.outcomes],
    }


def _lines(result: CacheResult) -> list[str]:
    outcomes = result.outcomes
    left_out = [f"  {line}" for line in result.left_out]
    updated = [f"  {one.source}: {one.detail} updated" for one in outcomes
               if one.status == "updated"]  # fmt: skip
    upscaled = [f"  {one.source}: {one.detail}" for one in outcomes if "(upscaled)" in one.detail]
    fate = "removed" if result.pruned else "kept"
    gone = [f"  no longer among the videos, {fate}: {name}" for name in result.gone[:LISTED]]
    if len(result.gone) > LISTED:
        gone.append(f"  ... and {len(result.gone) - LISTED} more")
    odd = [f"  {one.source}: {one.note}" for one in outcomes if one.note]
    notes = [f"  {note}" for note in result.notes]
    if result.cut_captions:
        long = f"{counted(result.cut_captions, 'video')} with a longer caption"
        notes.append(f"  {long} than the text encoder reads: its end is cut")
    said = [*left_out, *updated, *upscaled, *odd, *gone, *notes]
    return [*said, str(result.captions), _summary(result)]


def _summary(result: CacheResult) -> str:
    counts = [
        f"{result.count(status)} {LABELS.get(status, status)}"
        for status in STATUSES
        if status in ("cached", "kept", "bad") or result.count(status)
    ]
    if result.gone:
        counts.append(f"{len(result.gone)} {'removed' if result.pruned else 'in the store only'}")
    share = f" ({result.shard})" if result.shard.world > 1 else ""
    return f"{result.store}{share}: {', '.join(counts)}{_pace(result)}"


def _pace(result: CacheResult) -> str:
    cached = result.count("cached")
    if not cached or result.elapsed <= 0:
        return ""
    return (
        f"; {result.seconds:.0f} s of video in {result.elapsed:.0f} s "
        f"({cached / result.elapsed:.2f} clips/s)"
    )
