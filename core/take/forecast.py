"""What making a take would cost: segments, memory and target tokens, and time where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen

from ..model import memory_limit
from ..registry import registry
from ..values.grid import Size3
from .base import TakeBase
from .order import Order, spans
from .past import links_of


@frozen(kw_only=True)
class Cost:
    """Of a segment that is to be made.

    Attributes:
        segment: its number.
        latents: it has.
        memory: tokens that it reads, at most.
        targets: tokens that it is sampled as.
    """

    segment: int
    latents: int
    memory: int
    targets: int


@frozen(kw_only=True)
class Forecast:
    """Of all that is to be made.

    Attributes:
        costs: a segment each.
        seconds: that it takes, after what is made; None: nothing is made yet to tell from.
    """

    costs: tuple[Cost, ...]
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        rows = [
            {"segment": c.segment, "latents": c.latents, "memory_tokens": c.memory,
             "target_tokens": c.targets}
            for c in self.costs
        ]  # fmt: skip
        return {"to_make": rows, "seconds": self.seconds}

    def lines(self) -> list[str]:
        """Return it to read."""
        if not self.costs:
            return ["nothing to make"]
        most = max(self.costs, key=lambda cost: cost.memory)
        numbers = spans([cost.segment for cost in self.costs])
        time = f"about {self.seconds:.0f} s" if self.seconds else "known once one is made"
        return [
            f"segments {numbers} to make: {self.costs[0].targets:,} target tokens, up to "
            f"{most.memory:,} memory tokens (segment {most.segment})",
            f"time: {time}",
        ]


def forecast(take: TakeBase, order: Order) -> Forecast:
    """Return what an order of a take costs to make."""
    geometry, experiment = take.experiment.backbone.geometry, take.experiment
    size = take.folder.size
    limit = None
    if experiment.remembers:
        limit = memory_limit(experiment, experiment.generate.budget, size)
    costs = []
    for number, entry in enumerate(order.entries, start=1):
        if entry.id is not None or entry.source:
            continue
        past = order.first(number)
        if limit is not None and limit.latents is not None:
            past = min(past, limit.latents)
        seen = Size3(time=past, height=size.height, width=size.width)
        lengths = [
            registry().load(spec).context_length(spec, geometry, seen).tokens
            for spec in experiment.compressors
        ]
        tokens = sum(lengths) if past and entry.memory != "none" else 0
        if limit is not None and limit.tokens is not None:
            tokens = min(tokens, limit.tokens)
        own = Size3(time=entry.latents, height=size.height, width=size.width)
        costs.append(
            Cost(
                segment=number,
                latents=entry.latents,
                memory=tokens,
                targets=geometry.tokens(own),
            )
        )
    return Forecast(costs=tuple(costs), seconds=_seconds(take, costs))


def _seconds(take: TakeBase, costs: Sequence[Cost]) -> float | None:
    """Return the time by what the take's last segments took a latent."""
    made = [link for link in links_of(take.folder, take.order) if not link.source][-3:]
    stored = [take.folder.segment(link.id, link.number) for link in made]
    known = [(segment.made.get("seconds"), segment.count) for segment in stored]
    times = [(float(seconds), count) for seconds, count in known if seconds is not None]
    if not times:
        return None
    pace = sum(t for t, _ in times) / sum(n for _, n in times)
    return round(pace * sum(cost.latents for cost in costs), 1)
