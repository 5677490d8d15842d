"""Progress on the terminal: a bar with rate and ETA, or now and then a line where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int, str], None]
QUIET_SECONDS = 20.0


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """Give a function to call with done, total and a note; draws to standard error."""
    if sys.stderr.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, pace="", note="")
        began: list[tuple[float, int]] = []

        def report(done: int, total: int, note: str) -> None:
            began[:] = began or [(time.monotonic(), done)]
            bar.update(task, completed=done, total=total, note=note, pace=_pace(done, *began[0]))

        yield report


def _pace(done: int, since: float, first: int) -> str:
    seconds = time.monotonic() - since
    if done <= first or seconds <= 0:
        return ""
    rate = (done - first) / seconds
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def _lines(title: str) -> Report:
    state = {"told": 0.0, "since": 0.0, "first": 0}

    def report(done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if not state["since"]:
            state.update(since=now, first=done)
        if done < total and now - state["told"] < QUIET_SECONDS:
            return
        state["told"] = now
        left = (now - state["since"]) / max(1, done - state["first"]) * (total - done)
        eta = f", {left:.0f} s left" if state["first"] < done < total else ""
        print(f"{title}: {done}/{total}{eta} {note}".rstrip(), file=sys.stderr, flush=True)

    return report
