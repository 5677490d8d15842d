"""From seconds that are asked for to latents: the lengths of sections and of their segments.

n latents end at t(n) = (1 + s(n − 1)) / fps seconds, where s is the video frames to a latent. All
rates of the memory meet at n ≡ 1 mod R, R being the lcm of their time rates: there no token is
provisional, so a section ends there. The absolute end of each section is rounded once, to the
nearest such n (ties up) and the last one up, so that nothing drifts and no video is shorter than
it was asked for. A section of more latents than are made at once becomes segments as equal as
multiples of R allow.

Everything here is a pure function; seconds are exact fractions of what was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import accumulate
from math import ceil, floor

from attrs import evolve, field, frozen
from attrs.validators import ge

from ..errors import UserError
from ..tools.words import counted
from ..values.grid import ceil_div
from .storyboard import MOST_FAULTS, SEEDS, Section, exact, in_seconds

# Of a frame: seconds written with six decimals are off by less, and do not ask for one more.
SLACK = Fraction(1, 10_000)


@frozen(kw_only=True)
class TakeGrid:
    """Where sections of a take may end, and how much is made at once.

    Attributes:
        fps: video frames a second.
        stride: video frames to a latent, after the first one.
        period: R, the lcm of the time rates of the memory.
        longest: latents that are sampled at once, clean ones of a window among them.
        window: clean latents that every segment but a take's first carries.
        source: latents of the video or picture that the take goes on from, 0 or ≡ 1 mod R.
        name: of the backbone, for messages.
    """

    fps: float = field()
    stride: int = field(default=4, validator=ge(1))
    period: int = field(default=1, validator=ge(1))
    longest: int = field(validator=ge(1))
    window: int = field(default=0, validator=ge(0))
    source: int = field(default=0, validator=ge(0))
    name: str = "this run"

    def __attrs_post_init__(self) -> None:
        if not self.fps > 0:
            raise ValueError(f"fps must be more than 0, not {self.fps}")
        if self.source % self.period != (1 % self.period if self.source else 0):
            raise ValueError(f"a source of {self.source} latents is not 1 mod {self.period}")

    @property
    def step(self) -> Fraction:
        """Seconds of the shortest section but a take's first, R latents."""
        return Fraction(self.stride * self.period) / exact(self.fps)

    def frames(self, latents: int) -> int:
        """Return how many new video frames the take has up to its latent number `latents`."""
        if self.source:
            return self.stride * (latents - self.source)
        return 1 + self.stride * (latents - 1) if latents else 0

    def seconds(self, latents: int) -> float:
        """Return where in the new video that latent ends."""
        return float(self.frames(latents) / exact(self.fps))

    def snap(self, end: Fraction, *, last: bool) -> int:
        """Return the latents of the take, source included, with which an asked end is reached.

        Args:
            end: seconds of new video.
            last: whether nothing follows, so that it is rounded up.
        """
        first = self.source or 1
        frames = end * exact(self.fps) - self.frames(first)
        steps = frames / (self.stride * self.period)
        slack = SLACK / (self.stride * self.period)
        count = ceil(steps - slack) if last else floor(steps + Fraction(1, 2))
        return first + self.period * max(0, count)


def limit_segments(grid: TakeGrid, seconds: float | None) -> TakeGrid:
    """Return the grid with segments of at most so many seconds; None leaves it.

    Raises:
        UserError: the run makes less at once, or one segment could not hold R latents.
    """
    if seconds is None:
        return grid
    asked = floor((exact(seconds) * exact(grid.fps) - 1) / grid.stride + Fraction(1, 2)) + 1
    told = f"segment_seconds {seconds:.9g}"
    if asked > grid.longest:
        most = float((1 + grid.stride * (grid.longest - 1)) / exact(grid.fps))
        raise UserError(
            f"{told}: this run makes at most {most:.2f} s ({_latents(grid.longest)}) at once; "
            "leave it out and sections are split"
        )
    shortest = max(grid.window + grid.period, 1 + grid.period if grid.period > 1 else 1)
    if asked < shortest:
        least = float((1 + grid.stride * (shortest - 1)) / exact(grid.fps))
        raise UserError(
            f"{told}: a segment of {grid.name} has at least {least:.2f} s ({_latents(shortest)})"
        )
    return evolve(grid, longest=asked)


@frozen(kw_only=True)
class Border:
    """Where one section ends and the next one begins: as asked for, and as it is.

    Attributes:
        seconds: of new video that were asked for until here.
        latents: of the take until here, those of the source among them.
        segments: number of the last segment before it, 0 at the start.
    """

    seconds: Fraction = Fraction(0)
    latents: int
    segments: int = 0


def start_of(grid: TakeGrid, segments: int = 0) -> Border:
    """Return the border that a take begins with, after its source.

    Args:
        grid: of the take.
        segments: that the source takes.
    """
    return Border(latents=grid.source, segments=segments)


@frozen(kw_only=True)
class PlannedSegment:
    """A segment to be made: one sampling.

    Attributes:
        number: in the take, from 1.
        section: it is part of.
        place: in its section, from 0.
        first: its first latent in the take.
        latents: it has.
        frames: of video it has.
        seed: of its noise.
    """

    number: int
    section: Section
    place: int
    first: int
    latents: int
    frames: int
    seed: int


@frozen(kw_only=True)
class SnappedSection:
    """A section with the length that it will have.

    Attributes:
        section: as it was asked for, with what holds for all (`Storyboard.complete`).
        start, end: borders; `end.seconds` is what was asked for.
        segments: in order; of an open section, those that were asked for.
        asked: seconds of new video where it was asked to begin and end; None: until stopped.
        snapped: where it will begin and end.
        frames: of video it has.
    """

    section: Section
    start: Border
    end: Border
    segments: tuple[PlannedSegment, ...]
    asked: tuple[float, float | None]
    snapped: tuple[float, float]
    frames: int

    def __str__(self) -> str:
        """One row of the table of lengths."""
        begin, end = self.asked
        asked = "on" if end is None else f"{end:.2f} s"
        lengths = " + ".join(str(segment.latents) for segment in self.segments)
        count = len(self.segments)
        few = f"{lengths} latents" if lengths != "1" else "1 latent"
        seeds = ", ".join(str(segment.seed) for segment in self.segments[:4])
        more = ", …" if count > 4 else ""
        return (
            f"asked {_short(begin)}–{asked} → {_short(self.snapped[0])}–{self.snapped[1]:.2f} s, "
            f"{counted(self.frames, 'frame')}, "
            f"{counted(count, 'segment')} of {few}, "
            f"seed{'s' if count != 1 else ''} {seeds}{more}"
        )


def snap_sections(
    sections: Iterable[Section],
    grid: TakeGrid,
    *,
    seed: int,
    start: Border | None = None,
    open_segments: int = 1,
) -> tuple[SnappedSection, ...]:
    """Return the sections with the lengths and the segments that they will have.

    Args:
        sections: in order, complete; the last one's end is rounded up.
        grid: of the take.
        seed: base of the seeds of sections without one: a segment has it plus its number.
        start: where they begin; default: at the take's start. What is made already keeps its
            length, so appended sections begin at the border that was really reached.
        open_segments: of a last section that goes on until stopped.

    Raises:
        UserError: sections that are shorter than a step, one line each; a run whose segments hold
            less than one step.
    """
    border, snapped, faults = start or start_of(grid), list[SnappedSection](), list[str]()
    sections = list(sections)
    for index, section in enumerate(sections):
        last = index == len(sections) - 1
        try:
            one = snap_section(
                section if section.where else evolve(section, where=f"section {index + 1}"),
                grid,
                border,
                seed=seed,
                last=last,
                open_segments=open_segments,
            )
        except TooShort as error:
            faults.append(str(error))
            border = evolve(border, seconds=border.seconds + exact(section.seconds or 0.0))
            continue
        snapped.append(one)
        border = one.end
    if faults:
        raise UserError("\n".join(faults[:MOST_FAULTS]))
    return tuple(snapped)


class TooShort(UserError):
    """A section that is shorter than one step."""


def snap_section(
    section: Section,
    grid: TakeGrid,
    start: Border,
    *,
    seed: int,
    last: bool = True,
    open_segments: int = 1,
) -> SnappedSection:
    """Return one section with the length and the segments that it will have.

    For sections that come one by one, where nobody knows whether more follow: rounded up each
    (`last`), they stay as long as was asked for in all.

    Raises:
        TooShort: it would be empty.
        UserError: a segment of the run holds less than one step.
    """
    if section.seconds is None:
        asked_end, end = None, start.latents + _most(grid, start.latents, open_segments)
        until = exact(grid.seconds(end))
    else:
        until = start.seconds + exact(section.seconds)
        asked_end, end = float(until), grid.snap(until, last=last)
        if exact(section.seconds) >= grid.step:  # the one before may have been rounded far up
            end = max(end, start.latents + grid.period)
    count = end - start.latents
    if count < grid.period:
        raise TooShort(_too_short(section, grid))
    lengths = split(count, grid, start.latents)
    firsts = [start.latents, *(start.latents + n for n in accumulate(lengths))]
    segments = tuple(
        PlannedSegment(
            number=start.segments + 1 + place,
            section=section,
            place=place,
            first=first,
            latents=length,
            frames=grid.frames(first + length) - grid.frames(first),
            seed=_seed(section, seed, place, start.segments + 1 + place),
        )
        for place, (first, length) in enumerate(zip(firsts, lengths, strict=False))
    )
    return SnappedSection(
        section=section,
        start=start,
        end=Border(seconds=until, latents=end, segments=start.segments + len(segments)),
        segments=segments,
        asked=(float(start.seconds), asked_end),
        snapped=(grid.seconds(start.latents), grid.seconds(end)),
        frames=grid.frames(end) - grid.frames(start.latents),
    )


def split(count: int, grid: TakeGrid, before: int) -> tuple[int, ...]:
    """Return the latents of each segment of a section: few, and as equal as multiples of R allow.

    Args:
        count: latents of the section.
        grid: of the take.
        before: latents of the take before it; where there are none, the first segment has one
            more than a multiple of R.

    Raises:
        UserError: a segment of the run holds less than R latents.
    """
    lead = 0 if before else 1
    first, later = _rooms(grid, before)
    steps = (count - lead) // grid.period
    rooms = [first, *[later] * ceil_div(max(0, steps - first), later)]
    sizes = _fill(steps, rooms)
    return (lead + grid.period * sizes[0], *(grid.period * size for size in sizes[1:]))


def _rooms(grid: TakeGrid, before: int) -> tuple[int, int]:
    """Return how many times R latents the next segment holds, and any after that."""
    first = (grid.longest - (grid.window if before else 1)) // grid.period
    later = (grid.longest - grid.window) // grid.period
    if later < 1 or first + (0 if before else 1) < 1:
        window = f", {grid.window} of them its window" if grid.window else ""
        raise UserError(
            f"{grid.name} makes {_latents(grid.longest)} at once{window}: fewer than one step of "
            f"{_latents(grid.period)}"
        )
    return first, later


def _most(grid: TakeGrid, before: int, segments: int) -> int:
    """Return how many latents the next segments hold at most."""
    first, later = _rooms(grid, before)
    return (0 if before else 1) + grid.period * (first + later * (segments - 1))


def _fill(steps: int, rooms: Sequence[int]) -> list[int]:
    """Return how many steps go into each room, as equal as rooms allow, the first ones more."""
    sizes = [min(room, steps // len(rooms)) for room in rooms]
    rest = steps - sum(sizes)
    while rest:
        for index, room in enumerate(rooms):
            if rest and sizes[index] < room:
                sizes[index] += 1
                rest -= 1
    return sizes


def _seed(section: Section, base: int, place: int, number: int) -> int:
    return (base + number if section.seed is None else section.seed + place) % SEEDS


def _too_short(section: Section, grid: TakeGrid) -> str:
    return (
        f"{section.where or 'a section'}: {in_seconds(section.seconds or 0.0)} is less than one "
        f"step of {float(grid.step):.2f} s ({_latents(grid.period)} of {grid.name} at "
        f"{grid.fps:g} fps)"
    )


def _latents(count: int) -> str:
    return counted(count, "latent")


def _short(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds else "0"
