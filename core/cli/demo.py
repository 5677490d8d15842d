"""`longtake demo`."""

from __future__ import annotations

import sys
from pathlib import Path

from ..demo import tell
from ..errors import UserError
from ..tools.progress import progress_bar
from .options import emit, find_run

WEIGHTS = "tiny-wan-2x2x2"


def demo(video: Path | None, out: Path, *, steps: int, as_json: bool) -> None:
    """Tell the whole story on one clip."""
    if video is not None and not video.is_file():
        raise UserError(f"--video {video}: no such file")
    with progress_bar("demo") as report:
        story = tell(
            video,
            out,
            find_run(WEIGHTS),
            steps=steps,
            say=lambda line: print(line, file=sys.stderr, flush=True),
            progress=report,
        )
    emit(story.to_json(), story.lines(), as_json=as_json)
