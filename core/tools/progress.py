"""Progress on the terminal: a bar with rate and ETA; where there is none, a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int, str], None]
QUIET_SECONDS = 20.0  # between two lines where there is no terminal


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """Yield a function to call with done, total and a note; it draws to standard error."""
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
            if pace.update(done, total):
                bar.reset(task)  # else the clock and the ETA would stay those of the other things
            bar.update(task, completed=done, total=total, note=note, pace=pace.text(done))

        yield report


class _Pace:
    """How long one thing takes: from the last report before the first was done, until now.

    A count that goes back, or another total, is of other things: it begins anew.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.since = 0.0
        self.last = (0, 0)

    def update(self, done: int, total: int) -> bool:
        """Take a report; return whether it is of other things than the reports before."""
        began = self.first is not None
        other = began and (done < self.last[0] or total != self.last[1])
        if not began or other or done == self.first:
            self.first, self.since = done, time.monotonic()
        self.last = (done, total)
        return other

    def seconds_each(self, done: int) -> float | None:
        """Return the seconds that one takes; None where none is done yet."""
        made = done - (self.first or 0)
        return (time.monotonic() - self.since) / made if made > 0 else None

    def text(self, done: int) -> str:
        """Return the pace to read, such as "7.5/s" or "3.0 s each"; "" where none is known."""
        each = self.seconds_each(done)
        if not each:
            return ""
        return f"{1 / each:.1f}/s" if each <= 1 else f"{each:.1f} s each"


def _lines(title: str) -> Report:
    pace, last_line = _Pace(), 0.0

    def report(done: int, total: int, note: str) -> None:
        nonlocal last_line
        now = time.monotonic()
        pace.update(done, total)
        if done < total and now - last_line < QUIET_SECONDS:
            return
        last_line = now
        each = pace.seconds_each(done)
        left = f"{each * (total - done):.0f} s left" if each and done < total else ""
        line = ", ".join(filter(None, (f"{title}: {done}/{total}", pace.text(done), left)))
        print(f"{line} {note}".rstrip(), file=sys.stderr, flush=True)

    return report
