"""`longtake cache`."""

from __future__ import annotations

from pathlib import Path

import attrs

from .. import edge
from ..data.cache import CacheResult
from ..data.cache import cache as cache_videos
from ..device import pick_device
from ..model import all_needs, compressor_needs
from ..progress import progress_bar
from .common import emit


def cache(experiment: str, sets: list[str], videos: Path, out: Path, *, as_json: bool) -> None:
    """Cache videos for an experiment; list those that could not be used."""
    _, found = edge.load_experiment(experiment)
    found = edge.apply_sets(found, sets)
    needs = all_needs(found)
    with progress_bar("cache") as report:
        result = cache_videos(
            found,
            videos,
            out,
            rates=needs.rates,
            pixels=compressor_needs(found).pixels,
            device=pick_device(),
            progress=report,
        )
    emit(_data(result), _lines(result), as_json=as_json)


def _data(result: CacheResult) -> dict[str, object]:
    counts = {status: result.count(status) for status in ("cached", "kept", "bad")}
    rows = [attrs.asdict(outcome) for outcome in result.outcomes]
    return {"store": str(result.store), **counts, "videos": rows}


def _lines(result: CacheResult) -> list[str]:
    bad = [f"  not used: {o.detail}" for o in result.outcomes if o.status == "bad"]
    upscaled = [
        f"  {o.source}: {o.detail}" for o in result.outcomes if "upscaled" in o.detail.lower()
    ]
    counts = f"{result.count('cached')} cached, {result.count('kept')} kept, {len(bad)} not used"
    return [*bad, *upscaled, f"{result.store}: {counts}"]
