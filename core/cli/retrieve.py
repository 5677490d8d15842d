"""`longtake retrieve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..tools.words import counted
from . import options as o


def retrieve(
    run: o.RunArg,
    video: Annotated[Path, typer.Argument(help="the video to remember")],
    at: Annotated[str, typer.Option(help="times in seconds, such as 3.2,7.5")],
    out: Annotated[Path, o.out_option("folder for the images")] = Path("retrieved"),
    steps: Annotated[int | None, typer.Option(help="sampling steps; 1 is the mean")] = None,
    seed: Annotated[int, typer.Option(help="seed of the noise", min=0, max=2**63 - 1)] = 0,
    as_json: o.Json = False,
) -> None:
    """Retrieve frames at given times from a video's memory, as images and as a strip.

    Example: longtake retrieve tiny-wan-2x2x2 holiday.mp4 --at 3.2,7.5
    """
    from .. import retrieve as retrieval

    times = parse_times(at)
    result = retrieval.retrieve(o.find_run(run), video, times, out, steps=steps, seed=seed)
    summary = {
        "files": [str(path) for path in result.files],
        "context_tokens": result.tokens,
        "uncompressed_tokens": result.uncompressed_tokens,
        "seconds": result.seconds,
        "cut_captions": result.cut_captions,
    }
    counts = f"{result.uncompressed_tokens:,} tokens compressed to {result.tokens:,}"
    lines = [f"{result.seconds:.1f} s of video: {counts}", *map(str, result.files)]
    if result.cut_captions:
        long = f"{counted(result.cut_captions, 'caption')} longer than the text encoder reads"
        lines.insert(1, f"{long}: the end is cut")
    o.print_result(summary, lines, as_json=as_json)


def parse_times(at: str) -> list[float]:
    """Return the seconds in a list such as `3.2,7.5`, each millisecond once, in their order.

    Raises:
        UserError: one of them is no number or below 0.
    """
    from ..errors import UserError

    times: dict[str, float] = {}
    for text in at.split(","):
        try:
            time = float(text)
        except ValueError:
            raise UserError(f"--at {text.strip()!r}: seconds are wanted, such as 3.2,7.5") from None
        if not 0 <= time < float("inf"):
            raise UserError(f"--at {text.strip()}: a time in the video is wanted, 0 or more")
        times.setdefault(f"{time:.3f}", time)
    return list(times.values())
