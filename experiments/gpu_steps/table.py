"""`table`: every way to carry history under the full budget, in slices that resume."""

from __future__ import annotations

from ...core.errors import LongtakeError
from ...core.files import read_json
from .. import table1
from .day import Book, Day, TimeIsUp

TINY = ("--budget", "tiny", "--rows", "proposed-4x4x2", "--seeds", "0")


def run(day: Day, book: Book) -> None:
    """Go on with the table where the last slice stopped, and note its rows and claims.

    Raises:
        TimeIsUp: this slice is over; the next one goes on.
        LongtakeError: a run failed, or the input is bad; the log says which.
    """
    out = day.keep / "table1"
    words = TINY if day.tiny else ("--budget", "full", "--videos", str(day.videos))
    code = table1.main([*words, "--out", str(out), "--minutes", f"{max(0.0, day.left) / 60:g}"])
    written = out / "table1.json"
    if written.exists():
        found = read_json(written, "table")
        for name in ("rows", "claims", "floors", "encoder_seconds"):
            book.note(name, found[name])
    if code == table1.AGAIN:
        raise TimeIsUp
    if code:
        raise LongtakeError(f"the table ended with exit code {code}")
