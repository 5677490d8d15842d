"""What the paper's table says, asked of ours: each claim holds, fails, or is open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from ...core.measure.figures import Interval
from .figures import Line, oldest, paired

HOLDS, FAILS, OPEN, MISSING = "holds", "fails", "open", "not measured"
ORDER = (
    ("only-lr-4x4x2", "patchifier-4x4x2"),
    ("without-lr-4x4x2", "patchifier-4x4x2"),
    ("proposed-4x4x2", "only-lr-4x4x2"),
    ("proposed-4x4x2", "without-lr-4x4x2"),
    ("proposed-2x2x2", "proposed-4x4x2"),
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
    return [*_orders(lines, metric), _control(lines), *_shuffled(lines), *_masked(lines, metric)]


def _orders(lines: Mapping[str, Line], metric: str) -> Iterator[Claim]:
    for better, worse in ORDER:
        if better not in lines or worse not in lines:
            yield Claim(state=MISSING, text=f"{better} above {worse}")
            continue
        found = paired(lines[better], lines[worse], metric)
        text = f"{lines[better].row.title} above {lines[worse].row.title}: {signed(found)}"
        yield Claim(state=state_of(found), text=text)


def _control(lines: Mapping[str, Line]) -> Claim:
    text = "Ω fixed last is worse on old frames"
    if CONTROL not in lines or PROPOSED not in lines:
        return Claim(state=MISSING, text=text)
    ours, control = oldest(lines[PROPOSED]), oldest(lines[CONTROL])
    state = HOLDS if control < ours else FAILS
    text = f"{text} than random Ω: {control:.2f} against {ours:.2f} on the oldest quarter"
    return Claim(state=state, text=text)


def _shuffled(lines: Mapping[str, Line]) -> Iterator[Claim]:
    for line in lines.values():
        if line.foreign is None:
            continue
        state = FAILS if line.foreign.high is not None and line.foreign.high < 0 else HOLDS
        text = f"{line.row.title}: another clip's memory is no better than none"
        yield Claim(state=state, text=f"{text}: loss {signed(line.foreign)}")


def _masked(lines: Mapping[str, Line], metric: str) -> Iterator[Claim]:
    for line in lines.values():
        gap = line.masked[metric].mean - line.figures[metric].mean
        text = f"{line.row.title}: masked minus unmasked retrieval {gap:+.2f}"
        yield Claim(state="note", text=text)


def state_of(found: Interval) -> str:
    """Give how a difference that should be above 0 stands."""
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return OPEN
    return HOLDS if found.low > 0 else FAILS


def signed(found: Interval) -> str:
    """Give a difference with its interval."""
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
