"""`longtake cache`."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import torch

from .. import config as edge
from ..cache.cache import CacheResult
from ..cache.cache import cache as cache_videos
from ..cache.job import Share, find_share
from ..errors import LongtakeError
from ..model import all_needs, compressor_needs
from ..tools.device import pick_device
from ..tools.progress import progress_bar
from .options import emit

STATUSES = ("cached", "updated", "kept", "bad", "lost")
NAMED = 5  # videos named in a list that may be long


def cache(
    experiment: str,
    sets: list[str],
    videos: Path,
    out: Path,
    *,
    workers: int,
    rank: int | None,
    world: int | None,
    as_json: bool,
) -> None:
    """Cache videos for an experiment; list those that could not be used."""
    share = find_share(rank, world, os.environ)
    _, found = edge.load_experiment(experiment)
    found = edge.apply_sets(found, sets)
    needs = all_needs(found)
    with progress_bar("cache" if share.world == 1 else f"cache, {share}") as report:
        result = cache_videos(
            found,
            videos,
            out,
            rates=needs.rates,
            pixels=compressor_needs(found).pixels,
            device=_device(share),
            progress=report,
            share=share,
            workers=workers,
        )
    emit(_data(result), _lines(result), as_json=as_json)
    if result.count("lost"):
        raise LongtakeError(
            f"{result.count('lost')} of {len(result.outcomes)} videos are not done, since the "
            "processes at work on them died (out of memory?): run the same command again"
        )


def _device(share: Share) -> torch.device:
    """Return the best device; of several GPUs the one of this process, where a launcher counts."""
    device = pick_device()
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if device.type == "cuda" and share.world > 1 and local.isdecimal():
        return torch.device("cuda", int(local) % torch.cuda.device_count())
    return device


def _data(result: CacheResult) -> dict[str, object]:
    counts = {status: result.count(status) for status in STATUSES}
    rows = [attrs.asdict(outcome) for outcome in result.outcomes]
    return {
        "store": str(result.store),
        **attrs.asdict(result.share),
        **counts,
        "gone": result.gone,
        "video_seconds": result.seconds,
        "wall_seconds": result.elapsed,
        "videos": rows,
    }


def _lines(result: CacheResult) -> list[str]:
    told = result.outcomes
    bad = [f"  not used: {o.detail}" for o in told if o.status == "bad"]
    lost = [f"  not done: {o.detail}" for o in told if o.status == "lost"]
    updated = [f"  {o.source}: {o.detail} updated" for o in told if o.status == "updated"]
    upscaled = [f"  {o.source}: {o.detail}" for o in told if "(upscaled)" in o.detail]
    gone = [f"  no longer among the videos, kept: {name}" for name in result.gone[:NAMED]]
    gone += [f"  ... and {len(result.gone) - NAMED} more"] if len(result.gone) > NAMED else []
    return [*bad, *lost, *updated, *upscaled, *gone, _counts(result)]


def _counts(result: CacheResult) -> str:
    names = {"bad": "not used", "lost": "not done"}
    always = ("cached", "kept", "bad")
    said = [
        f"{result.count(status)} {names.get(status, status)}"
        for status in STATUSES
        if status in always or result.count(status)
    ]
    said += [f"{len(result.gone)} in the store only"] if result.gone else []
    share = f" ({result.share})" if result.share.world > 1 else ""
    return f"{result.store}{share}: {', '.join(said)}{_pace(result)}"


def _pace(result: CacheResult) -> str:
    made = result.count("cached")
    if not made or result.elapsed <= 0:
        return ""
    return (
        f"; {result.seconds:.0f} s of video in {result.elapsed:.0f} s "
        f"({made / result.elapsed:.2f} clips/s)"
    )
