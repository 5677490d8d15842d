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
    """Yield a function to call with done, total and a note; draws to standard error."""
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
        pace = _Pace()

        def report(done: int, total: int, note: str) -> None:
            if pace.see(done, total):
                bar.reset(task)  # else the clock and the ETA would stay those of the other things
            bar.update(task, completed=done, total=total, note=note, pace=pace.words(done))

        yield report


class _Pace:
    """How fast things are done: from the last word before the first of them was, until now.

    A count that goes back, or another total, is of other things: it begins anew.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.since = 0.0
        self.last = (0, 0)

    def see(self, done: int, total: int) -> bool:
        """Begin to count at what was done when work began; say whether it is of other things."""
        began = self.first is not None
        other = began and (done < self.last[0] or total != self.last[1])
        if not began or other or done == self.first:
            self.first, self.since = done, time.monotonic()
        self.last = (done, total)
        return other

    def each(self, done: int) -> float | None:
        """Return the seconds that one takes; None where none is done yet."""
        made = done - (self.first or 0)
        return (time.monotonic() - self.since) / made if made > 0 else None

    def words(self, done: int) -> str:
        """Return the pace to read, "" where none is known."""
        each = self.each(done)
        if not each:
            return ""
        return f"{1 / each:.1f}/s" if each <= 1 else f"{each:.1f} s each"


def _lines(title: str) -> Report:
    pace, told = _Pace(), [0.0]

    def report(done: int, total: int, note: str) -> None:
        now = time.monotonic()
        pace.see(done, total)
        if done < total and now - told[0] < QUIET_SECONDS:
            return
        told[0] = now
        each = pace.each(done)
        eta = f"{each * (total - done):.0f} s left" if each and done < total else ""
        said = ", ".join(filter(None, (f"{title}: {done}/{total}", pace.words(done), eta)))
        print(f"{said} {note}".rstrip(), file=sys.stderr, flush=True)

    return report
