"""A table as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict

from ...core.edge import to_json
from ...core.measure.figures import Interval
from .budget import Budget
from .claims import Claim
from .figures import Line

HEAD = (
    "memory", "tokens", "PSNR", "SSIM", "LPIPS", "paper: PSNR / SSIM / LPIPS", "seeds ±", "masked",
    "memory_gain", "encoder M", "GFLOP", "ms",
)  # fmt: skip
NOTHING = "–"


def markdown(lines: Sequence[Line], floors: Mapping[str, Interval], budget: Budget) -> str:
    """Give the table: ours with 95 % intervals over clips, the paper's beside them."""
    rows = [_cells(line) for line in lines]
    rows += [
        [f"*{name}*", "", _wide(found), *[""] * (len(HEAD) - 3)] for name, found in floors.items()
    ]
    body = [list(HEAD), ["---", *["---:"] * (len(HEAD) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body) + "\n\n" + under(lines, budget)


def under(lines: Sequence[Line], budget: Budget) -> str:
    """Give what must be said below the table: data, size, budget, and what was measured."""
    clips = max((line.figures[m].n for line in lines for m in line.figures), default=0)
    size = budget.history
    return (
        f"One-step retrieval of every frame of {clips} unseen clips, {budget.measured:g} s each, "
        f"from the memory of the clean history; mean over clips [95 % interval], each clip the "
        f"mean over seeds. Budget `{budget.name}`: {budget.steps} steps of {budget.batch} on a "
        f"DiT of 7 M parameters; latents {size}. The paper's figures are of other data, a large "
        "pretrained backbone and sampled retrieval: an order to compare, no bar.\n"
    )


def _cells(line: Line) -> list[str]:
    paper, cost = line.row.paper, line.cost
    theirs = f"{paper.psnr:.2f} / {paper.ssim:.3f} / {paper.lpips:.3f}" if paper else NOTHING
    spread = line.spread.get("psnr")
    return [
        line.row.title,
        str(line.tokens),
        _wide(line.figures.get("psnr")),
        _wide(line.figures.get("ssim"), digits=3),
        _wide(line.figures.get("lpips"), digits=3) if "lpips" in line.figures else "not measured",
        theirs,
        f"{len(line.seeds)}: {spread:.2f}" if spread is not None else f"{len(line.seeds)}",
        _wide(line.masked.get("psnr")),
        _wide(line.gain),
        f"{cost['parameters'] / 1e6:.2f}",
        f"{cost['gflop']:.2f}",
        f"{cost['milliseconds']:.1f}",
    ]


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
        "format": 1,
        "budget": asdict(budget),
        "rows": [_plain(line) for line in lines],
        "floors": {name: asdict(found) for name, found in floors.items()},
        "claims": [asdict(claim) for claim in claims],
        **facts,
    }


def _plain(line: Line) -> dict[str, Any]:
    found = asdict(line, filter=lambda attribute, _: attribute.name not in ("row", "tokens"))
    paper = asdict(line.row.paper) if line.row.paper else None
    return {
        "row": line.row.name,
        "title": line.row.title,
        "compressor": to_json(line.row.compressor),
        "paper": paper,
        "tokens": asdict(line.tokens),
        **found,
    }
