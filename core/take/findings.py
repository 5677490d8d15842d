"""What a take says of itself: lengths, seams, drift, streams, memory, time; and what is amiss.

`report_take` joins what the take knows (`TakeFacts`) with what was measured of the frames that were
delivered (`figures.FrameFigures`). Its findings are errors (a length that is not what was
promised), warnings (past the thresholds below) and notes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import attrs
import numpy as np
from attrs import field, frozen
from attrs.validators import in_

from ..tools.words import counted
from .figures import NETWORK, FrameFigures

FORMAT = 1
CUT = 0.5  # P(cut) at a join: more is one, less is none
NEAR = 2  # frames before and after a join in which a cut is looked for
COLOUR_RATIO, COLOUR_STEP = 3.0, 1.0  # times the median step inside; of 255
MOTION_LEAST, MOTION_MOST = 0.2, 3.0  # times the median difference inside
DRIFT = 0.10  # relative
ENDS = 0.15  # of the video: its first and last frames that are compared
SLOWER = 1.15  # last third's seconds against the first third's
INSIDE = 10.0  # seconds beside a join that it is compared with
MEASURES = ("brightness", "contrast", "saturation", "sharpness")

Figures = np.ndarray[Any, Any]
State = Literal["error", "warning", "note"]


@frozen(kw_only=True)
class SectionFacts:
    """A section as it was asked for and planned.

    Attributes:
        prompt: what it shows.
        start: seconds of new video where it was asked to begin.
        end: where it was asked to end; None: until stopped.
        frames: that it has by the plan, of all its segments.
        segments: how many it has by the plan, made or not.
    """

    prompt: str
    start: float
    end: float | None
    frames: int
    segments: int


@frozen(kw_only=True)
class SegmentFacts:
    """A segment that was made, as the take knows it.

    Attributes:
        number: in the take, from 1.
        section: number of its section, from 1; None: it is of the source, and was encoded.
        first, latents: its place in the take.
        frames: of new video that it was to give; of a source, 0.
        delivered: frames counted in its clip; None: only those of the whole video are known.
        cut: whether a hard cut was asked for where it begins.
        stream: what the decoder began with: the state of the segment before, one of the source, or
            a fresh one.
        fresh_asked: whether a fresh one was asked for.
        memory: what it may remember: `all`, `since_cut` or `none`.
        tokens: of memory that it read.
        parts: of them by part of the memory.
        dropped: tokens that the budget has dropped until then.
        gain: loss without memory less loss with it, on its own latents; None: not measured.
        psnr: of the codec over the last second before it, in dB, where the source ends.
        seconds: by what they were spent on, such as `sampling` or `decode`.
        other_past: whether it was made under another past than the take has now.
        experimental: what of it was never trained for; "" where nothing is.
    """

    number: int
    section: int | None
    first: int
    latents: int
    frames: int
    delivered: int | None = None
    cut: bool = False
    stream: str = field(default="continued", validator=in_(("continued", "source", "fresh")))
    fresh_asked: bool = False
    memory: str = field(default="all", validator=in_(("all", "since_cut", "none")))
    tokens: int = 0
    parts: Mapping[str, int] = field(factory=dict)
    dropped: int = 0
    gain: float | None = None
    psnr: float | None = None
    seconds: Mapping[str, float] = field(factory=dict)
    other_past: bool = False
    experimental: str = ""


@frozen(kw_only=True)
class TakeFacts:
    """What a take knows of itself.

    Attributes:
        name: of the take.
        fps: video frames a second.
        source_frames: of the delivered video that are the source's own, at its beginning.
        sections: all of them.
        segments: those that were made, in order, those of the source among them.
        budget: of the memory, in words; "": none.
        notes: further lines, such as how a source was placed.
        gone: name of the source, where the codec's frames are shown in place of its own, since it
            is gone or has changed; "": they are its own, or were not asked for.
    """

    name: str
    fps: float
    source_frames: int = 0
    sections: tuple[SectionFacts, ...]
    segments: tuple[SegmentFacts, ...]
    budget: str = ""
    notes: tuple[str, ...] = ()
    gone: str = ""

    @property
    def new(self) -> tuple[SegmentFacts, ...]:
        """The segments that were sampled."""
        return tuple(one for one in self.segments if one.section is not None)

    @property
    def joins(self) -> tuple[int, ...]:
        """Frames of the delivered video with which a segment begins, where frames lie before."""
        at, joins = self.source_frames, []
        for segment in self.new:
            joins += [at] if at else []
            at += segment.frames
        return tuple(joins)


@frozen(kw_only=True)
class Finding:
    """Something that the user should know.

    Attributes:
        state: `error`: the take is not what was promised; `warning`: past a threshold; `note`.
        check: what was looked at, such as `length` or `seam, colour`.
        segment: number of the segment that it is about, or None.
        text: one line.
    """

    state: State
    check: str
    segment: int | None = None
    text: str


@frozen(kw_only=True)
class SectionLengths:
    """Lengths of a section.

    Attributes:
        number: from 1.
        prompt: what it shows.
        asked: seconds; None: until stopped.
        snapped: frames by the plan, of those segments that were made.
        delivered: frames in the video; None: the video was not counted.
        made, segments: how many segments were made, of how many.
    """

    number: int
    prompt: str
    asked: float | None
    snapped: int
    delivered: int | None
    made: int
    segments: int


@frozen(kw_only=True)
class Seam:
    """How a figure steps over a join, against inside both segments.

    Attributes:
        step: over the join, of 255.
        inside: the median step inside; None: nothing is inside.
        channel: of the colour whose step stands out most, Y, U or V; "": of motion.
    """

    step: float
    inside: float | None
    channel: str = ""

    @property
    def ratio(self) -> float | None:
        """Step over the join to that inside; None where nothing moves inside."""
        return self.step / self.inside if self.inside else None


@frozen(kw_only=True)
class Join:
    """A border of two segments.

    Attributes:
        segment: number of the one that begins.
        frame: with which it begins, in the delivered video.
        seconds: of the delivered video.
        cut: whether a hard cut was asked for.
        stream: `continued`, `source` or `fresh`.
        content: how much it looks like a cut, 0 to 1; None: no frames were measured.
        colour, motion: steps; None: no frames were measured.
        psnr: of the codec before it, in dB, where the source ends.
    """

    segment: int
    frame: int
    seconds: float
    cut: bool
    stream: str
    content: float | None = None
    colour: Seam | None = None
    motion: Seam | None = None
    psnr: float | None = None


@frozen(kw_only=True)
class Drift:
    """How a figure differs between the beginning and the end of what was made.

    Attributes:
        measure: brightness, contrast, saturation or sharpness.
        first, last: means over the first and the last 15 % of the frames, of 255.
        segments: mean over each segment's frames.
    """

    measure: str
    first: float
    last: float
    segments: tuple[float, ...]

    @property
    def relative(self) -> float | None:
        """|M(first) − M(last)| / M(first); None where M(first) is 0."""
        return abs(self.first - self.last) / self.first if self.first > 1e-6 else None


@frozen(kw_only=True)
class Flatness:
    """Seconds a latent, early and late, since the memory's budget is full.

    Attributes:
        since: number of the first segment after tokens were dropped.
        first, last: median over the first and the last third of the segments since.
    """

    since: int
    first: float
    last: float

    @property
    def ratio(self) -> float | None:
        """Last to first."""
        return self.last / self.first if self.first else None


@frozen(kw_only=True)
class TakeReport:
    """What a take says of itself.

    Attributes:
        facts: what it knew.
        frames: of the delivered video; None: they were not counted.
        sections: lengths.
        joins: of all segments but a first one without a source.
        elsewhere: how much the frame away from joins that looks most like a cut does; None: no
            frames, or none away from joins.
        cut_measure: what says so; "": nothing.
        drift: by measure.
        flatness: None: fewer than three segments since the memory's budget was full.
        findings: errors first, then warnings, then notes.
    """

    facts: TakeFacts
    frames: int | None
    sections: tuple[SectionLengths, ...]
    joins: tuple[Join, ...]
    elsewhere: float | None
    cut_measure: str
    drift: tuple[Drift, ...]
    flatness: Flatness | None
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether there are errors: what was delivered is not what was promised."""
        return any(finding.state == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON, the content of report.json."""
        facts = self.facts
        return {
            "format": FORMAT,
            "take": facts.name,
            "fps": facts.fps,
            "frames": self.frames,
            "source_frames": facts.source_frames,
            "budget": facts.budget,
            "findings": [attrs.asdict(one) for one in self.findings],
            "sections": [attrs.asdict(one) for one in self.sections],
            "cuts": {"measure": self.cut_measure, "elsewhere": self.elsewhere},
            "joins": [_join_json(join) for join in self.joins],
            "drift": [{**attrs.asdict(one), "relative": one.relative} for one in self.drift],
            "memory": [
                {
                    "segment": one.number, "asked": one.memory, "tokens": one.tokens,
                    "parts": dict(one.parts), "dropped": one.dropped, "gain": one.gain,
                }
                for one in facts.new
            ],
            "time": {
                "segments": [
                    {"segment": one.number, "latents": one.latents, "seconds": dict(one.seconds)}
                    for one in facts.segments
                ],
                "flatness": None if self.flatness is None else
                {**attrs.asdict(self.flatness), "ratio": self.flatness.ratio},
            },
            "past": {
                "other": [one.number for one in facts.segments if one.other_past],
                "experimental": {
                    str(one.number): one.experimental for one in facts.segments if one.experimental
                },
            },
            "notes": list(facts.notes),
        }  # fmt: skip


def _join_json(join: Join) -> dict[str, Any]:
    data = attrs.asdict(join)
    for name in ("colour", "motion"):
        seam: Seam | None = getattr(join, name)
        if seam is not None:
            data[name] = {**attrs.asdict(seam), "ratio": seam.ratio}
    return data


def report_take(facts: TakeFacts, figures: FrameFigures | None = None) -> TakeReport:
    """Return what a take says of itself.

    Args:
        facts: what the take knows.
        figures: of all frames of the delivered video, the source's own first; None: there is no
            video (yet).
    """
    joins = _joins(facts, figures)
    drift = _drift(facts, figures) if figures is not None else ()
    sections = _lengths(facts, figures)
    flatness = _flatness(facts.new)
    elsewhere = _elsewhere(figures, facts.joins) if figures is not None else None
    found = [
        *_length_findings(facts, sections, figures),
        *(finding for join in joins for finding in _join_findings(join, facts, figures, elsewhere)),
        *_drift_findings(drift),
        *_memory_findings(facts.new),
        *_time_findings(flatness),
        *_past_findings(facts.segments),
        *_source_findings(facts.gone),
    ]
    states = ("error", "warning", "note")
    return TakeReport(
        facts=facts,
        frames=None if figures is None else figures.frames,
        sections=sections,
        joins=joins,
        elsewhere=elsewhere,
        cut_measure="" if figures is None else figures.cut_measure,
        drift=drift,
        flatness=flatness,
        findings=tuple(sorted(found, key=lambda finding: states.index(finding.state))),
    )


def _lengths(facts: TakeFacts, figures: FrameFigures | None) -> tuple[SectionLengths, ...]:
    delivered = _delivered(facts, figures)
    rows = []
    for number, section in enumerate(facts.sections, start=1):
        made = [one for one in facts.new if one.section == number]
        counts = [delivered[one.number] for one in made]
        known = [count for count in counts if count is not None]
        rows.append(
            SectionLengths(
                number=number,
                prompt=section.prompt,
                asked=None if section.end is None else section.end - section.start,
                snapped=sum(one.frames for one in made),
                delivered=sum(known) if len(known) == len(counts) else None,
                made=len(made),
                segments=section.segments,
            )
        )
    return tuple(rows)


def _delivered(facts: TakeFacts, figures: FrameFigures | None) -> dict[int, int | None]:
    """Return the frames of each segment in the video: as counted in its clip, else in the whole."""
    counts: dict[int, int | None] = {}
    left = None if figures is None else max(0, figures.frames - facts.source_frames)
    for index, one in enumerate(facts.new):
        if one.delivered is not None or left is None:
            counts[one.number] = one.delivered
        else:  # frames too many are the last one's
            last = index == len(facts.new) - 1
            counts[one.number] = left if last else min(left, one.frames)
        left = None if left is None else max(0, left - (counts[one.number] or 0))
    return counts


def _joins(facts: TakeFacts, figures: FrameFigures | None) -> tuple[Join, ...]:
    end = facts.source_frames + sum(one.frames for one in facts.new)
    spans = [range(a, b) for a, b in pairwise([0, *facts.joins, end])]
    begun = facts.new if facts.source_frames else facts.new[1:]
    joins = []
    for segment, (before, after) in zip(begun, pairwise(spans), strict=True):
        join = Join(
            segment=segment.number,
            frame=after.start,
            seconds=after.start / facts.fps,
            cut=segment.cut,
            stream=segment.stream,
            psnr=segment.psnr,
        )
        if figures is not None and after.start < figures.frames:
            reach = max(2, round(INSIDE * facts.fps))
            inside = _inside(before, after, figures.frames, reach)
            at = after.start
            join = attrs.evolve(
                join,
                content=float(figures.cuts[max(0, at - NEAR) : at + NEAR + 1].max()),
                colour=_colour_seam(figures.colour, at, inside),
                motion=_motion_seam(figures.difference, at, inside),
            )
        joins.append(join)
    return tuple(joins)


def _inside(before: range, after: range, frames: int, reach: int) -> list[int]:
    """Return the frames near a join whose frame before is of the same segment."""
    near = range(max(before.start, before.stop - reach), before.stop)
    behind = range(after.start, min(after.stop, after.start + reach, frames))
    return [*near[1:], *behind[1:]]


def _colour_seam(colour: Figures, at: int, inside: Sequence[int]) -> Seam:
    """Return the step of the channel that warns, else of the one that stands out most."""
    steps = np.abs(colour[at] - colour[at - 1])
    indices = np.array(inside, dtype=np.int64)
    medians = np.median(np.abs(colour[indices] - colour[indices - 1]), axis=0) if inside else None
    seams = [
        Seam(
            step=float(steps[index]),
            inside=None if medians is None else float(medians[index]),
            channel=channel,
        )
        for index, channel in enumerate("YUV")
    ]
    return max(seams, key=lambda seam: (_steps_in_colour(seam), seam.step))


def _steps_in_colour(seam: Seam) -> bool:
    if seam.inside is None:
        return False
    return seam.step > COLOUR_RATIO * seam.inside and seam.step > COLOUR_STEP


def _motion_seam(difference: Figures, at: int, inside: Sequence[int]) -> Seam:
    median = float(np.median(difference[list(inside)])) if inside else None
    return Seam(step=float(difference[at]), inside=median)


def _elsewhere(figures: FrameFigures, joins: Sequence[int]) -> float | None:
    """Return how much the frame that looks most like a cut does, away from all joins."""
    away = np.ones(figures.frames, dtype=bool)
    for join in joins:
        away[max(0, join - NEAR) : join + NEAR + 1] = False
    return float(figures.cuts[away].max()) if away.any() else None


def _drift(facts: TakeFacts, figures: FrameFigures) -> tuple[Drift, ...]:
    """Return the drift of the frames that were made, those of a source left out."""
    start, end = facts.source_frames, figures.frames
    if end <= start:
        return ()
    count = max(1, math.floor(ENDS * (end - start)))
    series = (figures.colour[:, 0], figures.contrast, figures.saturation, figures.sharpness)
    borders = [start]
    for one in facts.new:
        borders.append(min(end, borders[-1] + one.frames))
    return tuple(
        Drift(
            measure=measure,
            first=float(values[start : start + count].mean()),
            last=float(values[end - count : end].mean()),
            segments=tuple(float(values[a:b].mean()) for a, b in pairwise(borders) if b > a),
        )
        for measure, values in zip(MEASURES, series, strict=True)
    )


def _flatness(segments: Sequence[SegmentFacts]) -> Flatness | None:
    since = [one for one in segments if one.dropped > 0 and one.seconds]
    if len(since) < 3:
        return None
    pace = [sum(one.seconds.values()) / one.latents for one in since]
    third = len(pace) // 3
    return Flatness(
        since=since[0].number,
        first=float(np.median(pace[:third])),
        last=float(np.median(pace[-third:])),
    )


def _length_findings(
    facts: TakeFacts, sections: Sequence[SectionLengths], figures: FrameFigures | None
) -> list[Finding]:
    found = []
    for section in sections:
        if section.delivered is not None and section.delivered != section.snapped:
            text = (
                f"section {section.number}: {section.snapped} frames were promised, "
                f"{section.delivered} are in the video"
            )
            found.append(Finding(state="error", check="length", text=text))
        if section.made < section.segments:
            text = (
                f"section {section.number}: {section.made} of {section.segments} segments are made"
            )
            found.append(Finding(state="note", check="length", text=text))
    promised = facts.source_frames + sum(one.frames for one in facts.new)
    if figures is not None and figures.frames != promised:
        text = f"{promised} frames were promised in all, {figures.frames} are in the video"
        found.append(Finding(state="error", check="length", text=text))
    return found


def _join_findings(
    join: Join, facts: TakeFacts, figures: FrameFigures | None, elsewhere: float | None
) -> list[Finding]:
    found = []

    def warn(check: str, text: str) -> None:
        text = f"segment {join.segment}, at {join.seconds:.2f} s: {text}"
        found.append(Finding(state="warning", check=check, segment=join.segment, text=text))

    if figures is not None and join.content is not None:
        value = f"{figures.cut_measure} {join.content:.2f}"
        value += "" if elsewhere is None else f", elsewhere at most {elsewhere:.2f}"
        if not join.cut and join.content > CUT:
            warn("seam, content", f"looks like a cut that nobody asked for ({value})")
        if join.cut and join.content < CUT:
            warn("seam, content", f"the cut that was asked for does not look like one ({value})")
    # where a cut was asked for, colour and motion are to jump
    if join.colour is not None and not join.cut and _steps_in_colour(join.colour):
        seam = join.colour
        warn(
            "seam, colour",
            f"{seam.channel} steps by {seam.step:.1f} of 255, inside by {seam.inside:.2f}",
        )
    if join.motion is not None and not join.cut and join.motion.inside is not None:
        step, inside = join.motion.step, join.motion.inside
        told = f"(frame difference {step:.2f} of 255, inside {inside:.2f})"
        if step < MOTION_LEAST * inside:
            warn("seam, motion", f"a frame seems repeated {told}")
        elif step > MOTION_MOST * inside:
            warn("seam, motion", f"motion jumps {told}")
    segment = next(one for one in facts.new if one.number == join.segment)
    if join.stream == "fresh" and not segment.fresh_asked:
        warn("stream", "the decoder began afresh, which nobody asked for")
    return found


def _drift_findings(drift: Sequence[Drift]) -> list[Finding]:
    return [
        Finding(
            state="warning",
            check="drift",
            text=f"{one.measure} drifts by {one.relative:.0%}: {one.first:.3g} in the first "
            f"{ENDS:.0%}, {one.last:.3g} in the last",
        )
        for one in drift
        if one.relative is not None and one.relative > DRIFT
    ]


def _memory_findings(segments: Sequence[SegmentFacts]) -> list[Finding]:
    found = []
    for one in segments:
        if one.memory == "all" and one.first > 0 and one.tokens == 0:
            text = f"segment {one.number} remembers nothing, and was to remember all"
            found.append(Finding(state="warning", check="memory", segment=one.number, text=text))
    return found


def _time_findings(flatness: Flatness | None) -> list[Finding]:
    if flatness is None or flatness.ratio is None or flatness.ratio <= SLOWER:
        return []
    text = (
        f"segments become slower though the memory's budget is full: {flatness.first:.2f} s a "
        f"latent from segment {flatness.since} on, {flatness.last:.2f} s at the end"
    )
    return [Finding(state="warning", check="time", text=text)]


def _past_findings(segments: Sequence[SegmentFacts]) -> list[Finding]:
    found = [
        Finding(
            state="note",
            check="past",
            segment=one.number,
            text=f"segment {one.number} was made under another past than the take has now",
        )
        for one in segments
        if one.other_past
    ]
    return found + [
        Finding(
            state="note",
            check="past",
            segment=one.number,
            text=f"segment {one.number} is experimental: {one.experimental}",
        )
        for one in segments
        if one.experimental
    ]


def _source_findings(gone: str) -> list[Finding]:
    if not gone:
        return []
    text = (
        f"{gone} has changed, or is gone: where its own frames were to be, the codec's are; put "
        "it back and run the same command"
    )
    return [Finding(state="warning", check="source", text=text)]


def summary_lines(report: TakeReport) -> list[str]:
    """Return the last lines of the verb: lengths, joins, drift, memory and time, then findings."""
    facts = report.facts
    lines = [_length_line(report)]
    if report.joins:
        lines.append(_join_line(report))
    if report.drift:
        most = max(report.drift, key=lambda one: one.relative or 0.0)
        lines.append(f"drift: {most.relative or 0.0:.0%} at most ({most.measure})")
    if facts.new:
        last = facts.new[-1]
        dropped = f", {last.dropped:,} dropped by the budget" if last.dropped else ""
        lines.append(f"memory: segment {last.number} read {last.tokens:,} tokens{dropped}")
    if any(one.seconds for one in facts.segments):
        lines.append(_time_line(facts.segments))
    return lines + [f"{one.state}: {one.text}" for one in report.findings]


def _length_line(report: TakeReport) -> str:
    facts = report.facts
    planned = sum(one.frames for one in facts.new)
    asked = [one.asked for one in report.sections]
    told = "until stopped" if None in asked else f"{sum(one or 0.0 for one in asked):.2f} s"
    unmade = sum(one.segments - one.made for one in report.sections)
    count = "not counted" if report.frames is None else f"{report.frames:,} in the video"
    source = f" behind {facts.source_frames:,} of the source" if facts.source_frames else ""
    rest = f", {counted(unmade, 'segment')} still to make" if unmade else ""
    return (
        f"length: asked {told}, made {planned / facts.fps:.2f} s, "
        f"{counted(planned, 'frame')}{source} ({count}){rest}"
    )


def _join_line(report: TakeReport) -> str:
    kinds = [join.stream for join in report.joins]
    few = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    seams = {one.segment for one in report.findings if one.check.startswith("seam")}
    count = len(report.joins)
    told = f"joins: {count} ({few}), {len(seams) or 'none'} to look at"
    if not report.cut_measure:
        return f"{told}; no frames were measured"
    if report.cut_measure != NETWORK:
        told += '; cuts by histogram distance, `pip install "longtake[cuts-net]"` gives P(cut)'
    return told


def _time_line(segments: Sequence[SegmentFacts]) -> str:
    totals: dict[str, float] = {}
    for segment in segments:
        for name, seconds in segment.seconds.items():
            totals[name] = totals.get(name, 0.0) + seconds
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in totals.items())
    return f"seconds: {sum(totals.values()):.1f} ({parts})"
