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
class ComparedClip:
    """One clip of a measure: tokens of its memory and of each part, unmasked figures."""

    tokens: int
    parts: Mapping[str, int]
    unmasked: Mapping[str, Figures]


@frozen(kw_only=True)
class ComparedMeasure:
    """What a comparison reads of one measure.

    Attributes:
        rates: compression rates of its compressors.
        kinds: of its retrievers, by name.
        clips: by id, latent size and seconds: only clips alike in all three are compared.
    """

    experiment: str
    run: str
    rates: tuple[str, ...]
    kinds: Mapping[str, str]
    clips: Mapping[Key, ComparedClip]


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
class RateTable:
    """The rows, and how many clips they are over."""

    rows: tuple[RateRow, ...]
    clips: int


def read_measure(place: Path) -> ComparedMeasure:
    """Read the measure in a file, or in a folder as `longtake measure` leaves it.

    Raises:
        UserError: there is none, or it is no measure that this version reads.
    """
    paths = (place, place / "measure.json", place / "measure" / "measure.json")
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(f"{place} holds no {WHAT}")
    data = read_object(path, WHAT, *KEYS)
    try:
        return parse_measure(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is no {WHAT} that this version reads: {error!r}") from None


def parse_measure(data: Mapping[str, Any]) -> ComparedMeasure:
    """Return the measure that `MeasureResult.to_json` wrote; one of format 1 names no rates."""
    compressors = data.get("spec", {}).get("compressors", ())
    rates = data.get("rates") or [one["rate"] for one in compressors if "rate" in one]
    return ComparedMeasure(
        experiment=str(data["experiment"]),
        run=str(data["run"]),
        rates=tuple(rates),
        kinds={one["name"]: one["kind"] for one in data["retrievals"]},
        clips={
            (clip["id"], clip["size"], round(clip["seconds"], 3)): ComparedClip(
                tokens=clip["tokens"],
                parts=clip.get("parts", {}),
                unmasked={name: dict(figures) for name, figures in clip["unmasked"].items()},
            )
            for clip in data["clips"]
        },
    )


def compare_rates(result: MeasureResult, others: Sequence[ComparedMeasure] = ()) -> RateTable:
    """Return the rows of a result and of other measures, over the clips that all of them hold.

    Raises:
        UserError: another measure shares no clip with it, of the same size and length.
    """
    measures = [parse_measure(result.to_json()), *others]
    shared = set(measures[0].clips)
    for other in others:
        shared &= set(other.clips)
        if not shared:
            raise UserError(
                f"the measure of {other.run or other.experiment} holds no clip of this one (the "
                "same clip, size and length): measure both on one store"
            )
    keys = [key for key in measures[0].clips if key in shared]
    metrics = [metric.name for metric in result.metrics]
    rows = [
        row
        for place, (measure, label) in enumerate(zip(measures, _labels(measures), strict=True))
        for row in _rows(measure, label, keys, metrics, own=place == 0)
    ]
    return RateTable(rows=tuple(_merge_alike(rows)), clips=len(keys))


def _labels(measures: Sequence[ComparedMeasure]) -> list[str]:
    """Return the shortest names that tell all measures apart: rates, experiments, or both."""
    rates = [" + ".join(rate.replace("x", "×") for rate in one.rates) for one in measures]
    experiments = [one.experiment for one in measures]
    for labels in (rates, experiments):
        if all(labels) and len(set(labels)) == len(labels):
            return labels
    return [f"{place}. {one.experiment} ({one.run})" for place, one in enumerate(measures, start=1)]


def _rows(
    measure: ComparedMeasure,
    label: str,
    keys: Sequence[Key],
    metrics: Sequence[str],
    *,
    own: bool,
) -> list[RateRow]:
    clips = [measure.clips[key] for key in keys]
    return [
        RateRow(
            label=label,
            name=name,
            kind=kind,
            tokens=median_low([_tokens(clip, name, kind) for clip in clips]),
            figures=_figures([clip.unmasked[name] for clip in clips], metrics),
            own=own,
        )
        for name, kind in measure.kinds.items()
    ]


def _tokens(clip: ComparedClip, name: str, kind: str) -> int:
    """Return the tokens that a retriever reads: of a part alone only those of the part."""
    parts = [tokens for part, tokens in clip.parts.items() if name.endswith(f" of {part}")]
    return parts[0] if kind == "part" and parts else clip.tokens


def _figures(clips: Sequence[Figures], metrics: Sequence[str]) -> dict[str, Interval]:
    """Return the figures over clips, of the metrics that every clip has."""
    columns = {name: [clip.get(name) for clip in clips] for name in metrics}
    existing = {name: [v for v in column if v is not None] for name, column in columns.items()}
    return {
        name: interval(column) for name, column in existing.items() if len(column) == len(clips)
    }


def _merge_alike(rows: Sequence[RateRow]) -> list[RateRow]:
    """Return floors and ceilings that are alike in all measures once, and without tokens."""
    merged: list[RateRow] = []
    measures = {row.label for row in rows}
    for row in rows:
        alike = [other for other in rows if (other.name, other.figures) == (row.name, row.figures)]
        tokens = None if row.kind == "ceiling" else row.tokens
        if row.kind in ("learned", "part") or {other.label for other in alike} != measures:
            merged.append(attrs.evolve(row, tokens=tokens))
        elif row is alike[0]:
            one_measure = len(measures) == 1 and row.kind != "ceiling"
            merged.append(row if one_measure else attrs.evolve(row, label="", tokens=None))
    return merged
