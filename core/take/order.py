"""The order of a take: the segments that it is to have, and edits of it; light, no torch.

`order.json` is the one file of a take that changes. An entry whose `id` is null is still to be
made; every edit (go on, redo, drop, undo) is a new order, in place before anything is sampled.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from ..errors import UserError

FORMAT = 1
SEEDS = 2**31  # drawn seeds are below: they are to be typed again


@frozen(kw_only=True)
class Entry:
    """A segment of a take, as it is asked for.

    Attributes:
        prompt, negative: as they are embedded.
        seed: of its noise.
        latents: how many it has.
        cut: a hard cut at its beginning: uncompressed memory of before is dropped.
        memory: what it may remember: `all`, `since_cut` or `none`.
        steps, guidance: of the sampler; None: the take's.
        loras: the user's own LoRA files, `file@scale`, with the hash of each: `(text, sha256)`.
        section: of the storyboard, counted from 0; None for a source.
        start, end: of the section, seconds of new video, as they were asked for; None: until
            stopped.
        place, places: its place in its section, and how many segments that has.
        note: kept, not read.
        source: whether it is of the user's own video or picture: encoded, not sampled.
        wish: hash of what was asked for, by which a storyboard given later is compared.
        id: the folder that fulfils it, or None.
    """

    prompt: str = ""
    negative: str = ""
    seed: int = 0
    latents: int
    cut: bool = False
    memory: str = "all"
    steps: int | None = None
    guidance: float | None = None
    loras: tuple[tuple[str, str], ...] = ()
    section: int | None = None
    start: float | None = None
    end: float | None = None
    place: int = 0
    places: int = 1
    note: str = ""
    source: bool = False
    wish: str = ""
    id: str | None = None


@frozen(kw_only=True)
class Order:
    """The segments of a take in their order.

    Attributes:
        entries: of the segments.
        before: number of the order in history/ that `undo` goes back to; None: there is none.
        open: whether the last edit is not wholly carried out: what it asked for is not delivered.
    """

    entries: tuple[Entry, ...] = ()
    before: int | None = None
    open: bool = False

    @property
    def source(self) -> int:
        """How many entries at the beginning are of a source."""
        return sum(entry.source for entry in self.entries)

    @property
    def made(self) -> int:
        """How many entries are fulfilled, up to the first that is not."""
        ids = [entry.id for entry in self.entries]
        return ids.index(None) if None in ids else len(ids)

    def first(self, number: int) -> int:
        """Return the first latent of segment `number`, counted from 1."""
        return sum(entry.latents for entry in self.entries[: number - 1])

    @property
    def latents(self) -> int:
        """Latents of all segments, made or not."""
        return sum(entry.latents for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Return the order as plain JSON."""
        entries = [
            {**attrs.asdict(entry), "loras": [list(lora) for lora in entry.loras]}
            for entry in self.entries
        ]
        return {"format": FORMAT, "entries": entries, "before": self.before, "open": self.open}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Order:
        """Return the order of plain JSON; `where` is for messages.

        Raises:
            UserError: it is of a newer format, or no order.
        """
        check_format(data, where, "order")
        try:
            entries = [
                Entry(**{**entry, "loras": tuple(tuple(lora) for lora in entry["loras"])})
                for entry in data["entries"]
            ]
            return cls(entries=tuple(entries), before=data["before"], open=data["open"])
        except (TypeError, KeyError) as error:
            raise UserError(f"{where} is no order of a take: {error}") from None

    def with_id(self, number: int, id: str | None) -> Order:
        """Return the order with segment `number` fulfilled by a folder, or by none."""
        entries = list(self.entries)
        entries[number - 1] = attrs.evolve(entries[number - 1], id=id)
        return attrs.evolve(self, entries=tuple(entries))

    def redone(self, number: int, **changes: Any) -> Order:
        """Return the order with segment `number` changed, and it and all behind it to be made."""
        entries = list(self.entries)
        entries[number - 1] = attrs.evolve(entries[number - 1], **changes)
        for index in range(number - 1, len(entries)):
            entries[index] = attrs.evolve(entries[index], id=None)
        return attrs.evolve(self, entries=tuple(entries), open=True)

    def ended(self, number: int) -> Order:
        """Return the order that ends behind segment `number`."""
        return attrs.evolve(self, entries=self.entries[:number], open=True)

    def check_number(self, number: int, option: str, *, least: int = 1) -> None:
        """Raise UserError unless there is a segment of that number."""
        count = len(self.entries)
        if not least <= number <= count:
            what = f"segments {least} to {count}" if count >= least else "no segment to name"
            raise UserError(f"{option} {number}: this take has {what} (`longtake show` lists them)")


def check_format(data: Mapping[str, Any], where: str, what: str) -> None:
    """Raise UserError for data of a newer format, or of none."""
    number = data.get("format")
    if not isinstance(number, int) or number < 1:
        raise UserError(f"{where} is no {what} of a take: it has no format number")
    if number > FORMAT:
        raise UserError(
            f"{where} has take format {number}, this longtake reads {FORMAT}: update longtake"
        )


def draw_seed() -> int:
    """Draw a seed that nobody gave."""
    return secrets.randbelow(SEEDS)


def digest(data: Any) -> str:
    """Return the sha256 of plain data in its canonical form, 64 hex digits."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers to read, such as `1-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
