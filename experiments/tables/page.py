"""A table as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict

from ...core.edge import to_json
from ...core.measure.figures import Interval
from .budget import Budget
from .claims import Claim, signed
from .cost import REFERENCE, Paces
from .figures import Grid, Line, minus, over, spread

HEAD = (
    "memory", "tokens", "PSNR", "sampled PSNR", "SSIM", "LPIPS", "paper: PSNR / SSIM / LPIPS",
    "seeds ±", "masked − clean", "another clip's memory", "memory_gain", "encoder M", "GFLOP", "ms",
)  # fmt: skip
NOTHING = "–"


def markdown(
    lines: Sequence[Line], floors: Mapping[str, Interval], budget: Budget, paces: Paces
) -> str:
    """Give the table: ours with 95 % intervals over clips and seeds, the paper's beside them."""
    rows = [_cells(line, paces) for line in lines]
    rows += [
        [f"*{name}*", "", _wide(found), *[""] * (len(HEAD) - 3)] for name, found in floors.items()
    ]
    body = [list(HEAD), ["---", *["---:"] * (len(HEAD) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body) + "\n\n" + under(lines, budget)


def under(lines: Sequence[Line], budget: Budget) -> str:
    """Give what must be said below the table: data, size, budget, and what was measured."""
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
    """Give the table as plain data."""
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
