"""What the paper's table says, asked of ours: each claim holds, fails, or is open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from ...core.measure.figures import Interval
from .figures import Line, minus, over

HOLDS, FAILS, OPEN, MISSING, NOTE = "holds", "fails", "open", "not measured", "note"
ORDER = (
    ("only-lr-4x4x2", "patchifier-4x4x2"),
    ("without-lr-4x4x2", "patchifier-4x4x2"),
    ("proposed-4x4x2", "only-lr-4x4x2"),
    ("proposed-4x4x2", "without-lr-4x4x2"),
    ("proposed-2x2x2", "proposed-4x4x2"),
    ("proposed-2x2x4", "proposed-4x4x2"),
    ("proposed-2x2x2", "proposed-2x2x4"),
    ("proposed-2x2x1", "proposed-2x2x2"),
)
CONTROL, PROPOSED = "fixed-last-4x4x2", "proposed-4x4x2"


@frozen(kw_only=True)
class Claim:
    """A sentence and how it stands: holds, fails, open (the interval holds 0), not measured."""

    state: str
    text: str


def claims(lines: Mapping[str, Line], metric: str) -> list[Claim]:
    """Give every claim, by the first metric, over the lines that are there."""
    rows = [claim for line in lines.values() for claim in _row(line, metric)]
    return [*_orders(lines, metric), _control(lines), *rows]


def _orders(lines: Mapping[str, Line], metric: str) -> Iterator[Claim]:
    for better, worse in ORDER:
        if better not in lines or worse not in lines:
            yield Claim(state=MISSING, text=f"{better} above {worse}")
            continue
        found = over(minus(lines[better].clips[metric], lines[worse].clips[metric]))
        text = f"{lines[better].row.title} above {lines[worse].row.title}"
        yield _judged(found, text)


def _control(lines: Mapping[str, Line]) -> Claim:
    text = "Random Ω above Ω fixed last, on the oldest quarter"
    if CONTROL not in lines or PROPOSED not in lines:
        return Claim(state=MISSING, text=text)
    return _judged(over(minus(lines[PROPOSED].old, lines[CONTROL].old)), text)


def _row(line: Line, metric: str) -> Iterator[Claim]:
    """Ask of one row whether its memory is the clip's own, and what masking does."""
    title = line.row.title
    lost = over(minus(line.clips[metric], line.swapped[metric]))
    yield _judged(lost, f"{title}: the clip's own memory above another clip's")
    yield _judged(over(line.specific), f"{title}: loss with another clip's memory above its own")
    masked = over(minus(line.masked[metric], line.same[metric]))
    yield Claim(state=NOTE, text=f"{title}: masked minus unmasked, same frames: {signed(masked)}")


def _judged(found: Interval | None, text: str) -> Claim:
    return Claim(state=state_of(found), text=f"{text}: {signed(found)}")


def state_of(found: Interval | None) -> str:
    """Give how a difference that should be above 0 stands."""
    if found is None:
        return MISSING
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return OPEN
    return HOLDS if found.low > 0 else FAILS


def signed(found: Interval | None) -> str:
    """Give a difference with its interval."""
    if found is None:
        return "no clip has both"
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
