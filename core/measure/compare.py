"""Several measures side by side, on the clips that all of them hold: quality by rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

import attrs
from attrs import frozen

from ..errors import UserError
from ..tools.files import read_object
from .result import Interval, MeasureResult, interval

WHAT = "measure.json (`longtake measure` writes one)"
KEYS = ("experiment", "run", "clips", "retrievals", "metrics", "asked")
Figures = Mapping[str, float | None]
Key = tuple[str, str, float]  # id, latent size, seconds


@frozen(kw_only=True)
class SideClip:
    """One clip of a measure: tokens of its memory and of each part, unmasked figures."""

    tokens: int
    parts: Mapping[str, int]
    unmasked: Mapping[str, Figures]


@frozen(kw_only=True)
class Side:
    """What one measure gives to a comparison.

    Attributes:
        rates: compression rates of its compressors.
        kinds: of its retrievers, by name.
        clips: by id, latent size and seconds: only clips alike in all three are compared.
    """

    experiment: str
    run: str
    rates: tuple[str, ...]
    kinds: Mapping[str, str]
    clips: Mapping[Key, SideClip]


@frozen(kw_only=True)
class RateRow:
    """One retriever of one measure, over the clips that all measures hold.

    Attributes:
        label: the rates, or the experiment's name where those do not tell the measures apart.
        tokens: context length at its rate, median over clips; None for the ceiling and for floors
            that are alike in all measures.
        figures: by metric; metrics that it was not measured by are left out.
        own: of the measure that is reported, not of one beside it.
    """

    label: str
    name: str
    kind: str
    tokens: int | None
    figures: Mapping[str, Interval]
    own: bool


@frozen(kw_only=True)
class ByRate:
    """The rows, and how many clips they are over."""

    rows: tuple[RateRow, ...]
    clips: int


def read_side(place: Path) -> Side:
    """Return the measure in a file, or in a folder as `longtake measure` leaves it.

    Raises:
        UserError: there is none, or it is no measure that this version reads.
    """
    tried = (place, place / "measure.json", place / "measure" / "measure.json")
    path = next((path for path in tried if path.is_file()), None)
    if path is None:
        raise UserError(f"{place} holds no {WHAT}")
    data = read_object(path, WHAT, *KEYS)
    try:
        return side_of(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is no {WHAT} that this version reads: {error!r}") from None


def side_of(data: Mapping[str, Any]) -> Side:
    """Return the side of a measure as its JSON."""
    return Side(
        experiment=str(data["experiment"]),
        run=str(data["run"]),
        rates=tuple(data.get("rates") or _rates(data.get("spec", {}))),
        kinds={found["name"]: found["kind"] for found in data["retrievals"]},
        clips={(c["id"], c["size"], round(c["seconds"], 3)): _clip(c) for c in data["clips"]},
    )


def _clip(data: Mapping[str, Any]) -> SideClip:
    figures = {name: dict(by_metric) for name, by_metric in data["unmasked"].items()}
    return SideClip(tokens=data["tokens"], parts=data.get("parts", {}), unmasked=figures)


def _rates(spec: Mapping[str, Any]) -> list[str]:
    """Return the rates of a resolved spec: files of format 1 do not name them."""
    return [one["rate"] for one in spec.get("compressors", ()) if "rate" in one]


def by_rate(result: MeasureResult, beside: Sequence[Side] = ()) -> ByRate:
    """Return the rows of a result and of the measures beside it, over the clips that all hold.

    Raises:
        UserError: a measure beside it shares no clip with it, of the same size and length.
    """
    sides = [side_of(result.to_json()), *beside]
    shared = set(sides[0].clips)
    for side in beside:
        shared &= set(side.clips)
        if not shared:
            raise UserError(
                f"the measure of {side.run or side.experiment} holds no clip of this one (the same "
                "clip, size and length): measure both on one store"
            )
    keys = [key for key in sides[0].clips if key in shared]
    labels = _labels(sides)
    names = [metric.name for metric in result.metrics]
    rows = [
        row
        for place, side in enumerate(sides)
        for row in _rows(side, labels[place], keys, names, place == 0)
    ]
    return ByRate(rows=tuple(_merged(rows)), clips=len(keys))


def _labels(sides: Sequence[Side]) -> list[str]:
    """Return the shortest names that tell all measures apart."""
    rates = [" + ".join(rate.replace("x", "×") for rate in side.rates) for side in sides]
    names = [side.experiment for side in sides]
    for found in (rates, names):
        if all(found) and len(set(found)) == len(found):
            return found
    return [f"{place}. {side.experiment} ({side.run})" for place, side in enumerate(sides, start=1)]


def _rows(
    side: Side, label: str, keys: Sequence[Key], metrics: Sequence[str], own: bool
) -> list[RateRow]:
    clips = [side.clips[key] for key in keys]
    return [
        RateRow(
            label=label,
            name=name,
            kind=kind,
            tokens=median_low([_tokens(clip, name, kind) for clip in clips]),
            figures=_figures([clip.unmasked[name] for clip in clips], metrics),
            own=own,
        )
        for name, kind in side.kinds.items()
    ]


def _tokens(clip: SideClip, name: str, kind: str) -> int:
    """Return the tokens that a retriever reads: one of a part alone reads only those of the part."""
    parts = {part: n for part, n in clip.parts.items() if name.endswith(f" of {part}")}
    return next(iter(parts.values())) if kind == "part" and parts else clip.tokens


def _figures(clips: Sequence[Figures], metrics: Sequence[str]) -> dict[str, Interval]:
    columns = {name: [clip.get(name) for clip in clips] for name in metrics}
    whole = {name: [v for v in column if v is not None] for name, column in columns.items()}
    return {name: interval(kept) for name, kept in whole.items() if len(kept) == len(clips)}


def _merged(rows: Sequence[RateRow]) -> list[RateRow]:
    """Return floors and ceilings that are alike in all measures once, without tokens."""
    found: list[RateRow] = []
    measures = {row.label for row in rows}
    for row in rows:
        alike = [r for r in rows if (r.name, r.figures) == (row.name, row.figures)]
        everywhere = {r.label for r in alike} == measures
        tokens = None if row.kind == "ceiling" else row.tokens
        if row.kind in ("learned", "part") or not everywhere:
            found.append(attrs.evolve(row, tokens=tokens))
        elif row is alike[0]:
            alone = len(measures) == 1 and row.kind != "ceiling"
            found.append(row if alone else attrs.evolve(row, label="", tokens=None))
    return found
