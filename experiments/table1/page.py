"""A table as Markdown and as JSON: figures over clips and seeds, and whether claims hold.

Runs become lines, one a row, whose figures are means with intervals. What the paper's table claims
is asked of ours: each claim holds, fails, or is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean, mode, stdev
from typing import Any

from attrs import asdict, frozen

from ...core.config import to_json
from ...core.measure.result import Interval, interval, interval_over_runs
from .rows import TableBudget, TableRow
from .work import REFERENCE, Seconds

RunResult = Mapping[str, Any]  # what `work` wrote
ByClip = Mapping[int, Mapping[str, float]]  # a figure by seed and clip
OLD = 0.25  # share of a clip's ages that counts as old

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
HEAD = (
    "memory", "tokens", "PSNR", "over the mean frame", "sampled PSNR", "SSIM", "LPIPS",
    "paper: PSNR / SSIM / LPIPS", "seeds ±", "masked − clean", "another clip's memory",
    "memory_gain", "encoder M", "GFLOP", "ms",
)  # fmt: skip
NOTHING = "–"
FLOOR = "mean-frame"  # the retriever that a memory must pass: it knows nothing of time


@frozen(kw_only=True)
class TableLine:
    """One row of the table, over the seeds that are done.

    Attributes:
        tokens: context length of most clips' memory.
        clips: of the main retriever, by metric, from the memory of the clean history.
        over: how much higher the first metric is than that of the mean frame, where that was asked.
        sampled: the same of the retriever that samples, where one does.
        masked, same: of the frames of masked queries, by metric: from the masked history, and
            from the clean one.
        swapped: as `clips`, from the memory of another clip.
        old: the first metric on the oldest quarter of each clip.
        gain, specific, foreign: of losses, as in `core.measure.result.GainFigures`.
        ages: by age bin, (start, end, mean of the first metric).
        cost: of the encoder, of the first seed.
    """

    row: TableRow
    seeds: tuple[int, ...]
    tokens: int
    clips: Mapping[str, ByClip]
    over: ByClip
    sampled: Mapping[str, ByClip]
    masked: Mapping[str, ByClip]
    same: Mapping[str, ByClip]
    swapped: Mapping[str, ByClip]
    old: ByClip
    gain: ByClip
    specific: ByClip
    foreign: ByClip
    ages: tuple[tuple[float, float, float], ...]
    cost: Mapping[str, Any]


def make_line(row: TableRow, runs: Sequence[RunResult]) -> TableLine:
    """Return the line of a row from its runs, one a seed."""
    first = runs[0]
    main, metrics = first["main"], first["metrics"]
    other = next((n for n, kind in first["kinds"].items() if kind == "learned" and n != main), "")

    def grids(field: str, name: str) -> dict[str, ByClip]:
        return {m: figures_by_clip(runs, partial(_at, field, name, m)) for m in metrics}

    return TableLine(
        row=row,
        seeds=tuple(run["seed"] for run in runs),
        tokens=mode(clip["tokens"] for clip in first["clips"]),
        clips=grids("unmasked", main),
        over=_over_floor(runs, main, metrics[0]) if FLOOR in first["kinds"] else {},
        sampled=grids("unmasked", other) if other else {},
        masked=grids("masked", main),
        same=grids("same", main),
        swapped={m: figures_by_clip(runs, partial(_swapped, m)) for m in metrics},
        old=figures_by_clip(runs, lambda clip: _old(clip["ages"], metrics[0])),
        gain=figures_by_clip(runs, lambda clip: clip["gain"]),
        specific=figures_by_clip(runs, lambda clip: clip["specific"]),
        foreign=figures_by_clip(runs, lambda clip: clip["foreign"]),
        ages=_ages(runs),
        cost=first["cost"],
    )


def figures_by_clip(runs: Sequence[RunResult], pick: Callable[[Any], float | None]) -> ByClip:
    """Return a figure of every clip of every run; clips that do not have it are left out."""
    return {
        run["seed"]: {c["id"]: value for c in run["clips"] if (value := pick(c)) is not None}
        for run in runs
    }


def paired_difference(ours: ByClip, theirs: ByClip) -> ByClip:
    """Return how much higher a figure is than another: by seed and clip, where both have it."""
    return {
        seed: {
            clip: value - theirs[seed][clip]
            for clip, value in clips.items()
            if clip in theirs[seed]
        }
        for seed, clips in ours.items()
        if theirs.get(seed)
    }


def mean_over_clips(figure: ByClip) -> Interval | None:
    """Return the mean over seeds and clips with its interval; None where there is no figure.

    Clips that are missing in some seed are left out.
    """
    runs = list(figure.values())
    shared = [clip for clip in runs[0] if all(clip in run for run in runs)] if runs else []
    return interval_over_runs([[run[clip] for clip in shared] for run in runs]) if shared else None


def seed_deviation(figure: ByClip) -> float | None:
    """Return the standard deviation of the seeds' means; None with one seed."""
    means = [fmean(run.values()) for run in figure.values()]
    return stdev(means) if len(means) > 1 else None


def floors(runs: Sequence[RunResult], metric: str) -> dict[str, Interval]:
    """Return ceiling and floors of a run's clips, which are alike in all rows, by name."""
    first = runs[0]
    names = [name for name, kind in first["kinds"].items() if kind in ("ceiling", "floor")]
    return {
        name: interval([clip["unmasked"][name][metric] for clip in first["clips"]])
        for name in names
    }


def _over_floor(runs: Sequence[RunResult], main: str, metric: str) -> ByClip:
    ours, theirs = (
        figures_by_clip(runs, partial(_at, "unmasked", name, metric)) for name in (main, FLOOR)
    )
    return paired_difference(ours, theirs)


def _at(field: str, name: str, metric: str, clip: Any) -> float:
    value: float = clip[field][name][metric]
    return value


def _swapped(metric: str, clip: Any) -> float | None:
    value: float | None = clip["swapped"][metric] if clip["swapped"] else None
    return value


def _old(ages: Mapping[str, Mapping[str, float]], metric: str) -> float:
    oldest = sorted(ages, key=float, reverse=True)[: max(1, round(OLD * len(ages)))]
    return fmean(ages[start][metric] for start in oldest)


def _ages(runs: Sequence[RunResult]) -> tuple[tuple[float, float, float], ...]:
    metric = runs[0]["metrics"][0]
    bins = [run["ages"][run["main"]] for run in runs]
    return tuple(
        (same[0]["start"], same[0]["end"], fmean(one["figures"][metric]["mean"] for one in same))
        for same in zip(*bins, strict=True)
    )


@frozen(kw_only=True)
class Claim:
    """A sentence about the table and whether it is true.

    Attributes:
        state: holds, fails, open (the interval contains 0), not measured; or a note.
        text: the sentence, with the figures.
    """

    state: str
    text: str


def claims(lines: Mapping[str, TableLine], metric: str) -> list[Claim]:
    """Return every claim, by the first metric, over the lines that are there."""
    rows = [claim for line in lines.values() for claim in _row(line, metric)]
    return [*_orders(lines, metric), _control(lines), *rows]


def _orders(lines: Mapping[str, TableLine], metric: str) -> Iterator[Claim]:
    for better, worse in ORDER:
        if better not in lines or worse not in lines:
            yield Claim(state=MISSING, text=f"{better} above {worse}")
            continue
        ours, theirs = (lines[name].clips[metric] for name in (better, worse))
        text = f"{lines[better].row.title} above {lines[worse].row.title}"
        yield _claim_above_zero(mean_over_clips(paired_difference(ours, theirs)), text)


def _control(lines: Mapping[str, TableLine]) -> Claim:
    text = "Random Ω above Ω fixed last, on the oldest quarter"
    if CONTROL not in lines or PROPOSED not in lines:
        return Claim(state=MISSING, text=text)
    return _claim_above_zero(
        mean_over_clips(paired_difference(lines[PROPOSED].old, lines[CONTROL].old)), text
    )


def _row(line: TableLine, metric: str) -> Iterator[Claim]:
    """Yield the claims about one row: what it is above, and what masking does."""
    title = line.row.title
    if line.over:
        yield _claim_above_zero(mean_over_clips(line.over), f"{title} above the mean frame")
    lost = mean_over_clips(paired_difference(line.clips[metric], line.swapped[metric]))
    yield _claim_above_zero(lost, f"{title}: the clip's own memory above another clip's")
    yield _claim_above_zero(
        mean_over_clips(line.specific), f"{title}: loss with another clip's memory above its own"
    )
    masked = mean_over_clips(paired_difference(line.masked[metric], line.same[metric]))
    yield Claim(
        state=NOTE, text=f"{title}: masked minus unmasked, same frames: {signed_interval(masked)}"
    )


def _claim_above_zero(difference: Interval | None, text: str) -> Claim:
    return Claim(state=state_of(difference), text=f"{text}: {signed_interval(difference)}")


def state_of(difference: Interval | None) -> str:
    """Return whether a difference is above 0: holds, fails, open or not measured."""
    if difference is None:
        return MISSING
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return OPEN
    return HOLDS if difference.low > 0 else FAILS


def signed_interval(difference: Interval | None) -> str:
    """Return a difference with its interval."""
    if difference is None:
        return "no clip has both"
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.2f}"
    return f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


def markdown(
    lines: Sequence[TableLine],
    floors: Mapping[str, Interval],
    budget: TableBudget,
    seconds: Seconds,
) -> str:
    """Return the table: ours with 95 % intervals over clips and seeds, the paper's beside them."""
    rows = [_cells(line, seconds) for line in lines]
    rows += [
        [f"*{name}*", "", _with_interval(mean), *[""] * (len(HEAD) - 3)]
        for name, mean in floors.items()
    ]
    body = [list(HEAD), ["---", *["---:"] * (len(HEAD) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body) + "\n\n" + under(lines, budget)


def under(lines: Sequence[TableLine], budget: TableBudget) -> str:
    """Return the text below the table: data, sizes, budget, and what was measured."""
    clips = max((len(run) for line in lines for run in line.clips["psnr"].values()), default=0)
    pure = " all at t = 1" if budget.pure == 1 else f" {budget.pure:.0%} of samples at t = 1"
    return (
        f"One-step retrieval of every frame of {clips} unseen clips of up to {budget.measured:g} s "
        "from the memory of the clean history; mean over clips and seeds [95 % interval, both "
        "resampled; of few seeds it is too narrow]. "
        f"Budget `{budget.name}`: {budget.steps} steps of {budget.batch},{pure}, LoRA of rank "
        f"{budget.rank}, frames of about {budget.area} pixels, latents {budget.history}. "
        f"{_dit(budget)} `masked − clean`: PSNR of the same "
        "frames from the masked history minus from the clean one. GFLOP: products and "
        "convolutions of the encoder; what merging searches is not in it. ms: encoders in turn on "
        f"one machine, and the ratio to {REFERENCE}. The paper's figures are of other data, a "
        "large pretrained backbone and sampled retrieval: an order to compare, no bar.\n"
    )


def _dit(budget: TableBudget) -> str:
    """Return what the text says of the DiT."""
    if budget.closed_form:
        return (
            "Each row and seed has a DiT of its own, begun in closed form on that row's tokens "
            f"({budget.batches} batches): convs of the encoder and the patchifier's projection as "
            "principal components, other encoders as they begin, heads and outputs of the DiT to "
            "read them."
        )
    return (
        "All rows share a DiT that was taught to read uncompressed latents "
        f"({budget.reader_steps} steps of {budget.reader_batch}), and seeds vary Stage I alone: "
        "memories made of the DiT's own tokens (window, pool, merge, Only LR) begin nearer to what "
        "it reads than those that are learned from nothing (Without LR)."
    )


def _cells(line: TableLine, seconds: Seconds) -> list[str]:
    paper, cost = line.row.paper, line.cost
    theirs = f"{paper.psnr:.2f} / {paper.ssim:.3f} / {paper.lpips:.3f}" if paper else NOTHING
    seeds = seed_deviation(line.clips["psnr"])
    return [
        line.row.title,
        str(line.tokens),
        _with_interval(_over(line.clips, "psnr")),
        signed_interval(mean_over_clips(line.over)) if line.over else NOTHING,
        _with_interval(_over(line.sampled, "psnr")),
        _with_interval(_over(line.clips, "ssim"), digits=3),
        _with_interval(_over(line.clips, "lpips"), digits=3)
        if "lpips" in line.clips
        else "not measured",
        theirs,
        f"{len(line.seeds)}: {seeds:.2f}" if seeds is not None else f"{len(line.seeds)}",
        signed_interval(mean_over_clips(paired_difference(line.masked["psnr"], line.same["psnr"]))),
        _with_interval(_over(line.swapped, "psnr")),
        _with_interval(mean_over_clips(line.gain)),
        f"{cost['parameters'] / 1e6:.2f}",
        f"{cost['gflop']:.2f}",
        _milliseconds(line.row.name, seconds),
    ]


def _milliseconds(name: str, seconds: Seconds) -> str:
    if name not in seconds:
        return NOTHING
    own = f"{1000 * seconds[name]:.1f}"
    return f"{own} ({seconds[name] / seconds[REFERENCE]:.2f}×)" if REFERENCE in seconds else own


def _over(grids: Mapping[str, ByClip], metric: str) -> Interval | None:
    return mean_over_clips(grids[metric]) if metric in grids else None


def _with_interval(mean: Interval | None, digits: int = 2) -> str:
    if mean is None:
        return NOTHING
    if mean.low is None or mean.high is None:
        return f"{mean.mean:.{digits}f}"
    return f"{mean.mean:.{digits}f} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"


def as_data(
    lines: Sequence[TableLine],
    floors: Mapping[str, Interval],
    claims: Sequence[Claim],
    budget: TableBudget,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the table as plain data."""
    return {
        "format": 2,
        "budget": asdict(budget),
        "rows": [_plain(line) for line in lines],
        "floors": {name: asdict(mean) for name, mean in floors.items()},
        "claims": [asdict(claim) for claim in claims],
        **facts,
    }


def _plain(line: TableLine) -> dict[str, Any]:
    fields = asdict(line, filter=lambda attribute, _: attribute.name != "row")
    figures = {
        metric: mean_over_clips(figures_by_clip) for metric, figures_by_clip in line.clips.items()
    }
    return {
        "row": line.row.name,
        "title": line.row.title,
        "compressor": to_json(line.row.compressor),
        "paper": asdict(line.row.paper) if line.row.paper else None,
        "figures": {metric: asdict(one) for metric, one in figures.items() if one},
        **fields,
    }
