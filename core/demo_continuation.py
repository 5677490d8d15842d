"""How `longtake demo` ends: the clip goes on, out of the memory of its past, as a take.

The last seconds of the clip are held back; what the model makes of the rest stands beside them.
"""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from einops import rearrange

from .data.store import Record
from .measure.strips import ORIGINAL, Strip, StripRow, evenly_spaced
from .take.source import read_source
from .take.storyboard import Section
from .take.take import Take
from .tools.device import pick_device
from .tools.progress import Report
from .train.checkpoint import read_run
from .video.decode import Pixels
from .video.read import iter_frames

SECONDS = 2.0  # of video that are made, and held back of the clip
PAST = 10.0  # most seconds of the past, as Stage II trains on them
LEAST = 2.0  # seconds of a past that are worth remembering
STEPS = 12  # of sampling: twenty are no better to the eye, and the demo is to be short
SHOWN = 6  # frames
MADE = "made from the memory of the past"


@frozen(kw_only=True)
class DemoContinuation:
    """How the clip went on.

    Attributes:
        run: that made it; `take` is the folder.
        past: seconds of the clip that it remembers.
        seconds: that were made.
        tokens: of memory that were read.
        strip: what followed in the clip, beside what was made.
    """

    run: str
    take: Path
    past: float
    seconds: float
    tokens: int
    strip: Strip

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "run": self.run, "take": str(self.take), "past_seconds": self.past,
            "seconds": self.seconds, "memory_tokens": self.tokens,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """Return lines to print."""
        return [
            f"the clip goes on for {self.seconds:.1f} s that the model made, out of the memory of "
            f"{self.past:.1f} s ({self.tokens:,} tokens): {self.take / 'new.mp4'}",
            f'further: longtake generate --out {self.take} --prompt "..." --seconds 2',
        ]


def can_go_on(record: Record) -> bool:
    """Return whether a clip is long enough to be cut into a past and what follows."""
    return record.frames / record.fps >= LEAST + SECONDS


def go_on(run: Path, clip: Path, record: Record, root: Path, progress: Report) -> DemoContinuation:
    """Make a take of the clip without its last seconds, and let it go on.

    Args:
        run: of Stage II.
        clip: the video.
        record: of it, in a store, for its caption and length.
        root: folder of the take; one that is there is replaced.
        progress: called with done, total and a note.

    Raises:
        UserError: the run's weights are missing or damaged.
    """
    shutil.rmtree(root, ignore_errors=True)
    sets = [f"generate.sampler.steps={STEPS}", "generate.sampler.guidance=1.0"]
    sets += [f"generate.budget.max_history_seconds={PAST:g}"]
    take = Take.create(root, run=run, like=clip, seed=0, sets=sets, device=pick_device())
    take.begin(clip, until=record.frames / record.fps - SECONDS)
    tokens = 0
    story = Section(prompt=record.caption or "a video", seconds=SECONDS)
    for event in take.run(story):
        data = event.to_json()
        if event.kind == "step":
            progress(data["done"], data["total"], "going on")
        elif event.kind == "segment":
            tokens = data["tokens"]
    new = take.segments()[-1]
    fps, source = take.folder.fps, read_source(take.folder)
    assert source is not None
    made = list(new.frames())
    first = source.skip + source.frames
    count = first + len(made)
    chunks = iter_frames(clip, fps=fps, size=source.placement, count=count)
    true = list(islice((frame for chunk in chunks for frame in chunk), first, count))
    chosen = evenly_spaced(min(len(true), len(made)), SHOWN)
    return DemoContinuation(
        run=read_run(run)[0].name,
        take=root,
        past=min(source.frames / fps, PAST),
        seconds=len(made) / fps,
        tokens=tokens,
        strip=Strip(
            title="what follows",
            caption=record.caption,
            note="the model saw none of it",
            times=tuple((first + place) / fps for place in chosen),
            rows=(
                _row("what followed in the clip", ORIGINAL, true, chosen),
                _row(MADE, "learned", made, chosen),
            ),
            metrics=(),
        ),
    )


def _row(label: str, kind: str, frames: list[Pixels], chosen: list[int]) -> StripRow:
    pictures = torch.stack([torch.from_numpy(frames[place]) for place in chosen])
    return StripRow(
        label=label, kind=kind, frames=rearrange(pictures, "k p q c -> k c p q"), figures={}
    )
