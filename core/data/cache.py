"""The `cache` verb: videos into a latent store; resumable, and bad files are listed, not fatal."""

from __future__ import annotations

from pathlib import Path

import torch
from attrs import define, field

from ..errors import UserError
from ..experiment import Experiment
from ..grid import Rate
from ..registry import build
from ..spec import TextEncoderSpec
from ..text import TextEncoder
from .cache_run import Progress, Run
from .claim import Job, claimed
from .margins import note_margins
from .share import Share
from .sources import find_sources
from .texts import Texts
from .work import Outcome


@define
class CacheResult:
    """What a run of `cache` did.

    Attributes:
        store: its folder.
        outcomes: one a video of this process's share.
        share: which share that was.
        gone: sources that the store has and that are no longer among the videos; they stay.
        elapsed: seconds that reading and encoding took.
    """

    store: Path
    outcomes: list[Outcome] = field(factory=list)
    share: Share = Share()
    gone: list[str] = field(factory=list)
    elapsed: float = 0.0

    def count(self, status: str) -> int:
        """Give how many videos have that status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        """Seconds of video that were cached."""
        return sum(outcome.seconds for outcome in self.outcomes)


def cache(
    experiment: Experiment,
    videos: Path,
    out: Path,
    *,
    rates: frozenset[Rate],
    pixels: bool,
    device: torch.device,
    progress: Progress | None = None,
    share: Share | None = None,
    workers: int = 1,
) -> CacheResult:
    """Cache every video of a folder into a store and give what became of each.

    What is already in the store, from an unchanged video, is kept; new captions, cuts or rates
    are added to it without touching its latents. A video that cannot be used is listed with its
    reason; the store is whole after every clip. Several processes may cache into one store.

    Args:
        experiment: its backbone implies codec, text encoder and frame rate.
        videos: a folder, a list or one file.
        out: the store's folder, made where missing.
        rates: LR rates that plugins need; those of `cache.rates` and of the store are added.
        pixels: whether a plugin needs the frames themselves.
        device: where the text encoder runs, and after it the codec.
        progress: called with done, total, and the seconds cached and the name of a video; where
            captions depend on cuts, first with how many videos were searched for them.
        share: the part of the videos that this process takes; default: all.
        workers: processes that this one spreads its share over.

    Raises:
        UserError: no video is usable, the store belongs to another spec, or the disk is full.
        LongtakeError: a worker cannot start.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: 1 or more")
    sources, mine = find_sources(videos), share or Share()
    job = Job.of(experiment, out, rates, pixels, device)
    text: TextEncoder[TextEncoderSpec] = build(experiment.backbone.text_encoder).to(device)
    with claimed(job, text, mine) as index:
        run = Run.of(job, Texts(out, text), index, progress)
        own = mine.of(sources)
        tasks = run.prepare(own, workers)
        note_margins(job)
        outcomes = run.every(own, tasks, workers)
        gone = run.gone(sources)
    result = CacheResult(out, outcomes, mine, gone, run.elapsed)
    _refuse_none(result, videos, len(sources))
    return result


def _refuse_none(result: CacheResult, videos: Path, total: int) -> None:
    """Refuse videos of which none is of use; a share may have bad luck."""
    if result.share.world == 1 and result.count("bad") == total:
        raise UserError(
            f"none of the {total} videos in {videos} could be used; the first: "
            f"{result.outcomes[0].detail}"
        )
