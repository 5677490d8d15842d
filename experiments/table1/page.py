"""A table as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean, mode, stdev
from typing import Any

from attrs import asdict, frozen

from ...core.config import to_json
from ...core.measure.result import Interval, crossed, interval
from .rows import Budget, Row
from .work import REFERENCE, Paces

# ⟦experiments/tables/figures.py⟧ From the runs of a table to its figures: over clips and seeds, with intervals.


Run = Mapping[str, Any]  # what `work` wrote
Grid = Mapping[int, Mapping[str, float]]  # a figure by seed and clip
OLD = 0.25  # share of a clip's ages that counts as old


@frozen(kw_only=True)
class Line:
    """One row of the table, over the seeds that are done.

    Attributes:
        tokens: context length of most clips' memory.
        clips: of the main retriever, by metric, from the memory of the clean history.
        sampled: the same of the retriever that samples, where one does.
        masked, same: of the frames of masked queries, by metric: from the masked history, and
            from the clean one.
        swapped: as `clips`, from the memory of another clip.
        old: the first metric on the oldest quarter of each clip.
        gain, specific, foreign: of losses, as in `core.measure.result.GainFigures`.
        ages: by age bin, (start, end, mean of the first metric).
        cost: of the encoder, of the first seed.
    """

    row: Row
    seeds: tuple[int, ...]
    tokens: int
    clips: Mapping[str, Grid]
    sampled: Mapping[str, Grid]
    masked: Mapping[str, Grid]
    same: Mapping[str, Grid]
    swapped: Mapping[str, Grid]
    old: Grid
    gain: Grid
    specific: Grid
    foreign: Grid
    ages: tuple[tuple[float, float, float], ...]
    cost: Mapping[str, Any]


def line_of(row: Row, runs: Sequence[Run]) -> Line:
    """Return the line of a row from its runs, one a seed."""
    first = runs[0]
    main, metrics = first["main"], first["metrics"]
    other = next((n for n, kind in first["kinds"].items() if kind == "learned" and n != main), "")

    def grids(field: str, name: str) -> dict[str, Grid]:
        return {m: grid(runs, partial(_at, field, name, m)) for m in metrics}

    return Line(
        row=row,
        seeds=tuple(run["seed"] for run in runs),
        tokens=mode(clip["tokens"] for clip in first["clips"]),
        clips=grids("unmasked", main),
        sampled=grids("unmasked", other) if other else {},
        masked=grids("masked", main),
        same=grids("same", main),
        swapped={m: grid(runs, partial(_swapped, m)) for m in metrics},
        old=grid(runs, lambda clip: _old(clip["ages"], metrics[0])),
        gain=grid(runs, lambda clip: clip["gain"]),
        specific=grid(runs, lambda clip: clip["specific"]),
        foreign=grid(runs, lambda clip: clip["foreign"]),
        ages=_ages(runs),
        cost=first["cost"],
    )


def grid(runs: Sequence[Run], pick: Callable[[Any], float | None]) -> Grid:
    """Return a figure of every clip of every run; clips that lack it are left out."""
    return {
        run["seed"]: {c["id"]: value for c in run["clips"] if (value := pick(c)) is not None}
        for run in runs
    }


def minus(ours: Grid, theirs: Grid) -> Grid:
    """Return how much higher a figure is than another: by seed and clip, where both have it."""
    return {
        seed: {clip: value - theirs[seed][clip] for clip, value in found.items() if clip in both}
        for seed, found in ours.items()
        if seed in theirs and (both := theirs[seed])
    }


def over(found: Grid) -> Interval | None:
    """Return the mean over seeds and clips with its interval; None where there is no figure.

    Clips that some seed lacks are left out.
    """
    runs = list(found.values())
    shared = [clip for clip in runs[0] if all(clip in run for run in runs)] if runs else []
    return crossed([[run[clip] for clip in shared] for run in runs]) if shared else None


def spread(found: Grid) -> float | None:
    """Return the standard deviation of the seeds' means; None with one seed."""
    means = [fmean(run.values()) for run in found.values()]
    return stdev(means) if len(means) > 1 else None


def floors(runs: Sequence[Run], metric: str) -> dict[str, Interval]:
    """Return ceiling and floors of a run's clips, which are alike in all rows, by name."""
    first = runs[0]
    names = [name for name, kind in first["kinds"].items() if kind in ("ceiling", "floor")]
    return {
        name: interval([clip["unmasked"][name][metric] for clip in first["clips"]])
        for name in names
    }


def _at(field: str, name: str, metric: str, clip: Any) -> float:
    found: float = clip[field][name][metric]
    return found


def _swapped(metric: str, clip: Any) -> float | None:
    found: float | None = clip["swapped"][metric] if clip["swapped"] else None
    return found


def _old(ages: Mapping[str, Mapping[str, float]], metric: str) -> float:
    oldest = sorted(ages, key=float, reverse=True)[: max(1, round(OLD * len(ages)))]
    return fmean(ages[start][metric] for start in oldest)


def _ages(runs: Sequence[Run]) -> tuple[tuple[float, float, float], ...]:
    metric = runs[0]["metrics"][0]
    bins = [run["ages"][run["main"]] for run in runs]
    return tuple(
        (found[0]["start"], found[0]["end"], fmean(b["figures"][metric]["mean"] for b in found))
        for found in zip(*bins, strict=True)
    )


# ⟦experiments/tables/claims.py⟧ What the paper's table says, asked of ours: each claim holds, fails, or is open.


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
    """Return every claim, by the first metric, over the lines that are there."""
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
    """Return how a difference that should be above 0 stands."""
    if found is None:
        return MISSING
    if found.low is None or found.high is None or found.low <= 0 <= found.high:
        return OPEN
    return HOLDS if found.low > 0 else FAILS


def signed(found: Interval | None) -> str:
    """Return a difference with its interval."""
    if found is None:
        return "no clip has both"
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


HEAD = (
    "memory", "tokens", "PSNR", "sampled PSNR", "SSIM", "LPIPS", "paper: PSNR / SSIM / LPIPS",
    "seeds ±", "masked − clean", "another clip's memory", "memory_gain", "encoder M", "GFLOP", "ms",
)  # fmt: skip
NOTHING = "–"


def markdown(
    lines: Sequence[Line], floors: Mapping[str, Interval], budget: Budget, paces: Paces
) -> str:
    """Return the table: ours with 95 % intervals over clips and seeds, the paper's beside them."""
    rows = [_cells(line, paces) for line in lines]
    rows += [
        [f"*{name}*", "", _wide(found), *[""] * (len(HEAD) - 3)] for name, found in floors.items()
    ]
    body = [list(HEAD), ["---", *["---:"] * (len(HEAD) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body) + "\n\n" + under(lines, budget)


def under(lines: Sequence[Line], budget: Budget) -> str:
    """Return what must be said below the table: data, size, budget, and what was measured."""
    clips = max((len(run) for line in lines for run in line.clips["psnr"].values()), default=0)
    pure = " all at t = 1" if budget.pure == 1 else f" {budget.pure:.0%} of samples at t = 1"
    return (
        f"One-step retrieval of every frame of {clips} unseen clips of up to {budget.measured:g} s "
        "from the memory of the clean history; mean over clips and seeds [95 % interval, both "
        "resampled; of few seeds it is too narrow]. Seeds vary Stage I alone: the DiT is one. "
        f"Budget `{budget.name}`: {budget.steps} steps of {budget.batch},{pure}, LoRA of rank "
        f"{budget.rank}, frames of about {budget.area} pixels, latents {budget.history}. All rows "
        "share a DiT that was taught to read uncompressed latents "
        f"({budget.reader_steps} steps of {budget.reader_batch} after Stage 0): memories made of "
        "the DiT's own tokens (window, pool, merge, Only LR) begin nearer to what it reads than "
        "those that are learned from nothing (Without LR). `masked − clean`: PSNR of the same "
        "frames from the masked history minus from the clean one. GFLOP: products and "
        "convolutions of the encoder; what merging searches is not in it. ms: encoders in turn on "
        f"one machine, and the ratio to {REFERENCE}. The paper's figures are of other data, a "
        "large pretrained backbone and sampled retrieval: an order to compare, no bar.\n"
    )


def _cells(line: Line, paces: Paces) -> list[str]:
    paper, cost = line.row.paper, line.cost
    theirs = f"{paper.psnr:.2f} / {paper.ssim:.3f} / {paper.lpips:.3f}" if paper else NOTHING
    seeds = spread(line.clips["psnr"])
    return [
        line.row.title,
        str(line.tokens),
        _wide(_over(line.clips, "psnr")),
        _wide(_over(line.sampled, "psnr")),
        _wide(_over(line.clips, "ssim"), digits=3),
        _wide(_over(line.clips, "lpips"), digits=3) if "lpips" in line.clips else "not measured",
        theirs,
        f"{len(line.seeds)}: {seeds:.2f}" if seeds is not None else f"{len(line.seeds)}",
        signed(over(minus(line.masked["psnr"], line.same["psnr"]))),
        _wide(_over(line.swapped, "psnr")),
        _wide(over(line.gain)),
        f"{cost['parameters'] / 1e6:.2f}",
        f"{cost['gflop']:.2f}",
        _pace(line.row.name, paces),
    ]


def _pace(name: str, paces: Paces) -> str:
    if name not in paces:
        return NOTHING
    own = f"{1000 * paces[name]:.1f}"
    return f"{own} ({paces[name] / paces[REFERENCE]:.2f}×)" if REFERENCE in paces else own


def _over(grids: Mapping[str, Grid], metric: str) -> Interval | None:
    return over(grids[metric]) if metric in grids else None


def _wide(found: Interval | None, digits: int = 2) -> str:
    if found is None:
        return NOTHING
    if found.low is None or found.high is None:
        return f"{found.mean:.{digits}f}"
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def as_data(
    lines: Sequence[Line],
    floors: Mapping[str, Interval],
    claims: Sequence[Claim],
    budget: Budget,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the table as plain data."""
    return {
        "format": 2,
        "budget": asdict(budget),
        "rows": [_plain(line) for line in lines],
        "floors": {name: asdict(found) for name, found in floors.items()},
        "claims": [asdict(claim) for claim in claims],
        **facts,
    }


def _plain(line: Line) -> dict[str, Any]:
    found = asdict(line, filter=lambda attribute, _: attribute.name != "row")
    figures = {metric: over(grid) for metric, grid in line.clips.items()}
    return {
        "row": line.row.name,
        "title": line.row.title,
        "compressor": to_json(line.row.compressor),
        "paper": asdict(line.row.paper) if line.row.paper else None,
        "figures": {metric: asdict(one) for metric, one in figures.items() if one},
        **found,
    }
