"""From what is asked for to an order: storyboards and sections against the segments of a take.

A storyboard that is given again is compared with the order. Sections that are as they were keep
their segments, whatever was redone of them; from the first one that differs on, all is planned
anew. Sections that come one by one are appended.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction

import attrs
from attrs import frozen

from ..errors import UserError
from ..experiment import Experiment
from ..values.grid import Geometry
from .order import Entry, Order, digest, spans
from .snapping import (
    Border,
    SnappedSection,
    TakeGrid,
    limit_segments,
    snap_section,
    snap_sections,
    split,
    start_of,
)
from .storyboard import SEEDS, Section, exact


@frozen(kw_only=True)
class Defaults:
    """What holds for sections that say nothing else.

    Attributes:
        negative, steps, guidance: of the take.
        seed: base of the seeds: a segment has it plus its number.
        loras: the user's LoRA files with their hashes.
    """

    negative: str
    steps: int
    guidance: float
    seed: int
    loras: tuple[tuple[str, str], ...] = ()


@frozen(kw_only=True)
class Plan:
    """An order that was planned anew.

    Attributes:
        order: the new one.
        lost: numbers of segments that are made, and are to be made again or go.
        rows: of the table of lengths, a line a section that was planned.
        notes: what was asked for and does not count, since segments are there, a line each.
        title: of the storyboard; None: it is no storyboard, so that the take keeps its own.
    """

    order: Order
    lost: tuple[int, ...]
    rows: tuple[str, ...]
    notes: tuple[str, ...] = ()
    title: str | None = None

    @property
    def remade(self) -> tuple[int, ...]:
        """The numbers of `lost` that the new order has, too: they are made again."""
        return tuple(number for number in self.lost if number <= len(self.order.entries))

    @property
    def dropped(self) -> tuple[int, ...]:
        """The numbers of `lost` that lie behind the new order's end: they leave the take."""
        return tuple(number for number in self.lost if number > len(self.order.entries))

    def losses(self) -> str:
        """Say what becomes of `lost`, such as `remakes segments 2-3, drops segment 4`."""
        both = (("remakes", self.remade), ("drops", self.dropped))
        return ", ".join(f"{verb} {_segments(numbers)}" for verb, numbers in both if numbers)


def grid_of(
    experiment: Experiment, *, period: int, source: int, segment_seconds: float | None
) -> TakeGrid:
    """Return where sections of a take may end.

    Args:
        experiment: of the run.
        period: latents that segments are multiples of.
        source: latents of the video that the take goes on from.
        segment_seconds: the longest segment that was asked for; None: the experiment's.

    Raises:
        UserError: segments of that length are not made by this run.
    """
    geometry = experiment.backbone.geometry
    longest = most_latents(experiment.generate.segment_seconds, geometry)
    grid = TakeGrid(
        fps=geometry.fps,
        stride=geometry.vae_stride.time,
        period=period,
        longest=longest,
        source=source,
        name=experiment.name,
    )
    return limit_segments(grid, segment_seconds)


def most_latents(seconds: float, geometry: Geometry) -> int:
    """Return how many latents fit into so many seconds, at least one."""
    return max(1, geometry.latents(geometry.frames(seconds)))


def take_period(experiment: Experiment) -> int:
    """Return the latents that segments of a take are multiples of.

    Raises:
        UserError: `generate.grid` is no multiple of what the memory's rates ask for.
    """
    grid, least = experiment.generate.grid, experiment.period
    if grid is not None and grid % least:
        raise UserError(
            f"generate.grid {grid}: the memory's time rates ask for multiples of {least}"
        )
    return grid or least


def replanned(
    order: Order, sections: Sequence[Section], grid: TakeGrid, defaults: Defaults
) -> Plan:
    """Return the order for a whole storyboard, given at first or again.

    Raises:
        UserError: as `snap_sections`; or a section has a picture that it cannot begin with.
    """
    sections = [normal(section, defaults) for section in sections]
    _check_pictures(sections)
    kept = list(order.entries[: order.source])
    border, index = start_of(grid, len(kept)), 0
    for section in sections:
        own = [entry for entry in order.entries if entry.section == index]
        end = _end(border, section)
        whole = own and len(own) == own[0].places and own[0].place == 0
        other_loras = own and defaults.loras and own[0].loras != defaults.loras
        if not whole or other_loras or own[0].wish != wish_of(section, border.seconds, end):
            break
        kept += own
        latents = sum(entry.latents for entry in kept)
        reached = exact(grid.seconds(latents)) if end is None else end
        border = Border(seconds=reached, latents=latents, segments=len(kept))
        index += 1
    if index == len(sections):
        snapped: tuple[SnappedSection, ...] = ()
    else:
        snapped = snap_sections(sections[index:], grid, seed=defaults.seed, start=border)
    entries, same = list(kept), True
    for place, one in enumerate(snapped, start=index):
        for entry in entries_of(one, place, defaults):
            number = len(entries)
            old = order.entries[number] if number < len(order.entries) else None
            fits = old is not None and alike(old, entry, defaults)
            same = same and fits
            found = old if fits and old is not None else entry
            entries.append(found if same else attrs.evolve(found, id=None))
    changed = Order(entries=tuple(entries), before=order.before, open=order.open)
    lost = tuple(
        number
        for number, entry in enumerate(order.entries, start=1)
        if entry.id is not None and (number > len(entries) or entries[number - 1].id != entry.id)
    )
    return Plan(order=changed, lost=lost, rows=tuple(map(str, snapped)))


def appended(order: Order, section: Section, grid: TakeGrid, defaults: Defaults) -> Plan:
    """Return the order with one more section; with the last one as it is, where that is still open.

    So the same command, given again after it was stopped, goes on.

    Raises:
        UserError: as `snap_section`; or the section has a picture, and is not the first one.
    """
    section = normal(section, defaults)
    entries = order.entries
    last = entries[-1] if len(entries) > order.source else None
    if last is not None and order.open:
        own = [entry for entry in entries if entry.section == last.section]
        start = exact(own[0].start or 0.0)
        end = None if section.seconds is None else start + exact(section.seconds)
        if last.wish == wish_of(section, start, end):
            return Plan(order=order, lost=(), rows=())
    border = border_of(order, grid)
    index = 0 if last is None or last.section is None else last.section + 1
    if index:
        _check_pictures([attrs.evolve(section, image=None), section])
    one = snap_section(section, grid, border, seed=defaults.seed)
    more = entries_of(one, index, defaults)
    changed = attrs.evolve(order, entries=(*entries, *more))
    return Plan(order=changed, lost=(), rows=(str(one),))


def ignored_seed(
    old: Order, new: Order, seeded: Collection[int | None], seed: int
) -> tuple[str, ...]:
    """Return the note that a base of seeds is asked for which segments that stay do not have.

    A segment has the base plus its number; one that was made again has any other, so the base is
    taken for another one only where no segment that stays has a seed of it.

    Args:
        old: order, before.
        new: and now.
        seeded: sections that have a seed of their own, which goes before the base.
        seed: base that is asked for.
    """
    pairs = enumerate(zip(old.entries, new.entries, strict=False), start=1)
    stay = [
        (number, entry)
        for number, (before, entry) in pairs
        if not entry.source
        and entry.section not in seeded
        and attrs.evolve(before, id=None) == attrs.evolve(entry, id=None)
    ]
    if not stay or any(entry.seed == (seed + number) % SEEDS for number, entry in stay):
        return ()
    return (
        f"seed {seed} does not count for {_segments([number for number, _ in stay])}, planned "
        "with other seeds before: --redo K --seed S gives one another, or begin a new take",
    )


def ignored_length(
    old: Order, new: Order, grid: TakeGrid, segment_seconds: float
) -> tuple[str, ...]:
    """Return the note that sections which stay have segments of another length than is asked for.

    Args:
        old: order, before.
        new: and now.
        grid: with the segments that are asked for.
        segment_seconds: that were asked for.
    """
    found = list[int]()
    for section in dict.fromkeys(e.section for e in new.entries if not e.source):
        numbers = [n for n, e in enumerate(new.entries, start=1) if e.section == section]
        own = [new.entries[number - 1] for number in numbers]
        stays = own == [e for e in old.entries if e.section == section and not e.source]
        if not stays or own[-1].end is None:
            continue
        before = new.first(numbers[0])
        lengths = split(sum(e.latents for e in own), grid, before)
        found += [] if lengths == tuple(e.latents for e in own) else numbers
    if not found:
        return ()
    return (
        f"segment_seconds {segment_seconds:.9g} does not count for {_segments(found)}, planned "
        "with other lengths before: begin a new take",
    )


def gone_on(order: Order, grid: TakeGrid, defaults: Defaults) -> Order | None:
    """Return the order with one more segment of a last section that goes on until it is stopped.

    None where the last section has an end.
    """
    last = order.entries[-1] if len(order.entries) > order.source else None
    if last is None or last.end is not None or last.section is None:
        return None
    section = Section(
        prompt=last.prompt, negative=last.negative, seed=None, guidance=last.guidance,
        steps=last.steps, cut=False, memory=last.memory,
    )  # fmt: skip
    border = border_of(order, grid)
    one = snap_section(section, grid, border, seed=defaults.seed)
    places = last.place + 2
    (entry,) = entries_of(one, last.section, defaults)
    entry = attrs.evolve(
        entry, wish=last.wish, start=last.start, place=places - 1, seed=last.seed + 1,
        note=last.note, loras=last.loras,
    )  # fmt: skip
    entries = [
        attrs.evolve(e, places=places) if e.section == last.section else e
        for e in (*order.entries, entry)
    ]
    return attrs.evolve(order, entries=tuple(entries))


def border_of(order: Order, grid: TakeGrid) -> Border:
    """Return where a take ends by now: as it was asked for, and as it is."""
    own = order.entries[order.source :]
    latents = order.latents
    reached = exact(grid.seconds(latents)) if own else Fraction(0)
    whole = bool(own) and own[-1].place == own[-1].places - 1 and own[-1].end is not None
    seconds = exact(own[-1].end or 0.0) if whole else reached
    return Border(seconds=seconds, latents=latents, segments=len(order.entries))


def entries_of(snapped: SnappedSection, index: int, defaults: Defaults) -> list[Entry]:
    """Return the entries of a planned section."""
    section, (start, end) = snapped.section, snapped.asked
    wish = wish_of(section, snapped.start.seconds, None if end is None else snapped.end.seconds)
    return [
        Entry(
            prompt=section.prompt,
            negative=section.negative or "",
            seed=segment.seed,
            latents=segment.latents,
            cut=section.cut and segment.place == 0,
            memory=section.memory,
            steps=section.steps,
            guidance=section.guidance,
            loras=defaults.loras,
            section=index,
            start=start,
            end=end,
            place=segment.place,
            places=len(snapped.segments),
            note=section.note or "",
            wish=wish,
        )
        for segment in snapped.segments
    ]


def normal(section: Section, defaults: Defaults) -> Section:
    """Return a section without what is the take's own, so that equal wishes look alike."""
    negative = defaults.negative if section.negative is None else section.negative
    steps = None if section.steps == defaults.steps else section.steps
    guidance = None if section.guidance == defaults.guidance else section.guidance
    return attrs.evolve(section, negative=negative, steps=steps, guidance=guidance)


def wish_of(section: Section, start: Fraction, end: Fraction | None) -> str:
    """Return the hash of what a section asks for; notes and pictures do not count."""
    asked = attrs.evolve(section, note=None, image=None).to_json()
    asked.pop("duration", None)
    return digest([asked, str(start), None if end is None else str(end)])[:12]


def alike(old: Entry, new: Entry, defaults: Defaults) -> bool:
    """Return whether an entry is of the same wish, place and length as another."""
    if defaults.loras and old.loras != new.loras:
        return False
    return (old.wish, old.place, old.latents) == (new.wish, new.place, new.latents)


def _segments(numbers: Sequence[int]) -> str:
    return f"segment{'s' if len(numbers) > 1 else ''} {spans(numbers)}"


def _end(border: Border, section: Section) -> Fraction | None:
    return None if section.seconds is None else border.seconds + exact(section.seconds)


def _check_pictures(sections: Sequence[Section]) -> None:
    for number, section in enumerate(sections, start=1):
        if number > 1 and section.image is not None:
            where = section.where or f"section {number}"
            raise UserError(
                f"{where}: image: this run begins with a picture only at the start of a take"
            )
