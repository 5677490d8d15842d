"""`longtake demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from . import options as o

WEIGHTS = "tiny-wan-2x2x2"
SECOND = f"{WEIGHTS}-finetune"  # of Stage II, where they ship


def demo(
    video: Annotated[Path | None, typer.Option(help="a video; default: a built-in clip")] = None,
    out: Annotated[Path, o.out_option("folder for the report")] = Path("longtake-demo"),
    steps: Annotated[int, typer.Option(help="training steps on the clip", min=0)] = 20,
    as_json: o.Json = False,
) -> None:
    """The whole story on a CPU in minutes: video, cache, memory, retrieved frames, report.

    Example: longtake demo
    """
    from ..demo import run_demo
    from ..registry import registry
    from ..tools.progress import progress_bar

    if video is not None and not video.is_file():
        raise UserError(f"--video {video}: no such file")
    with progress_bar("demo") as report:
        result = run_demo(
            video,
            out,
            o.find_run(WEIGHTS),
            steps=steps,
            say=lambda line: print(line, file=sys.stderr, flush=True),
            progress=report,
            second=registry().weights.get(SECOND),
        )
    o.print_result(result.to_json(), result.lines(), as_json=as_json)
