"""The order of a take: the segments that it is to have, and edits of it; light, no torch.

`order.json` is the one file of a take that changes. An entry whose `id` is null is still to be
made; every edit (go on, redo, drop, undo) is a new order, in place before anything is sampled.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

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
        ended: whether the take ends here although its last section has no end: it was cut there,
            and goes on when it is asked for again.
        title: of its videos, for people; "": they have none.
    """

    entries: tuple[Entry, ...] = ()
    before: int | None = None
    open: bool = False
    ended: bool = False
    title: str = ""

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
        return {
            "format": FORMAT, "entries": entries, "before": self.before, "open": self.open,
            "ended": self.ended, "title": self.title,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Order:
        """Return the order of plain JSON; `where` is for messages.

        Raises:
            UserError: it is of a newer format, or no order.
        """
        check_format(data, where, "order")
        data = dict[str, Any](ended=False, title="") | dict(data)  # which older takes lack
        check_types(data, _ORDER, where, "order of a take")
        for index, entry in enumerate(data["entries"]):
            place = f"{where}: entries[{index}]"
            if not isinstance(entry, Mapping):
                raise UserError(f"{place} must be an object")
            check_types(entry, _ENTRY, place, "entry of an order")
            if unknown := sorted(set(entry) - set(_ENTRY)):
                raise UserError(f"{place}.{unknown[0]} is unknown: it is no entry of an order")
        entries = [
            Entry(**{**entry, "loras": tuple(tuple(lora) for lora in entry["loras"])})
            for entry in data["entries"]
        ]
        others = {key: data[key] for key in _ORDER if key != "entries"}
        order = cls(entries=tuple(entries), **others)
        if any(entry.source for entry in order.entries[order.source :]):
            raise UserError(f"{where}: entries of a source stand at the beginning alone")
        return order

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

    def ended_behind(self, number: int) -> Order:
        """Return the order that ends behind segment `number`, also where that has no end."""
        entries = self.entries[:number]
        last = entries[-1] if entries else None
        without_end = last is not None and last.section is not None and last.end is None
        if last is not None and without_end:
            # what is left of it is all of it: a storyboard given again finds it whole
            own = sum(entry.section == last.section for entry in entries)
            entries = tuple(
                attrs.evolve(entry, places=own) if entry.section == last.section else entry
                for entry in entries
            )
        return attrs.evolve(self, entries=entries, open=True, ended=without_end)

    def check_redo(self, number: int) -> None:
        """Raise UserError unless there is a segment of that number which was not given."""
        self.check_number(number, "--redo")
        if self.entries[number - 1].source:
            raise UserError(f"--redo {number}: it is of the video that the take begins with")

    def check_number(self, number: int, option: str, *, least: int = 1) -> None:
        """Raise UserError unless there is a segment of that number."""
        count = len(self.entries)
        if not is_whole(number):
            raise UserError(f"{option} {number!r}: the number of a segment is wanted")
        if not least <= number <= count:
            what = f"segments {least} to {count}" if count >= least else "no segment to name"
            raise UserError(f"{option} {number}: this take has {what} (`longtake show` lists them)")


Rule = tuple[Callable[[Any], bool], str]


def is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number (true and false are none)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def is_id(value: Any) -> bool:
    """Return whether a value is the name of a segment's folder."""
    return isinstance(value, str) and re.fullmatch(r"\d{4,}-[0-9a-f]{8}", value) is not None


def or_null(rule: Rule) -> Rule:
    """Return the rule that takes null, too."""
    return lambda value: value is None or rule[0](value), f"{rule[1]} or null"


TEXT: Rule = (lambda value: isinstance(value, str), "text")
FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
NUMBER: Rule = (is_number, "a finite number")
# what an older longtake let through: to be undone, it must be read
ANY_NUMBER: Rule = (lambda value: is_whole(value) or isinstance(value, float), "a number")
COUNT: Rule = (lambda value: is_whole(value) and value >= 1, "a whole number, 1 or more")
FROM_ZERO: Rule = (lambda value: is_whole(value) and value >= 0, "a whole number, 0 or more")
OBJECT: Rule = (lambda value: isinstance(value, Mapping), "an object")
_LORAS: Rule = (
    lambda value: (
        isinstance(value, list)
        and all(isinstance(x, list) and list(map(type, x)) == [str, str] for x in value)
    ),
    "a list of pairs of texts",
)
_ORDER: Mapping[str, Rule] = {
    "entries": (lambda value: isinstance(value, list), "a list"),
    "before": or_null(COUNT), "open": FLAG, "ended": FLAG, "title": TEXT,
}  # fmt: skip
_ENTRY: Mapping[str, Rule] = {
    "prompt": TEXT, "negative": TEXT, "seed": (is_whole, "a whole number"), "latents": COUNT,
    "cut": FLAG, "memory": (lambda value: value in ("all", "since_cut", "none"), "a memory"),
    "steps": or_null((is_whole, "a whole number")), "guidance": or_null(ANY_NUMBER),
    "loras": _LORAS,
    "section": or_null(FROM_ZERO), "start": or_null(NUMBER), "end": or_null(NUMBER),
    "place": FROM_ZERO, "places": COUNT, "note": TEXT, "source": FLAG, "wish": TEXT,
    "id": or_null((is_id, "the name of a segment's folder")),
}  # fmt: skip


def check_types(data: Mapping[str, Any], rules: Mapping[str, Rule], where: str, what: str) -> None:
    """Raise UserError where data lacks a key, or has a value of another kind than its rule's.

    Args:
        data: an object of a JSON file.
        rules: for all keys that it must have.
        where: the file, and the place in it, for messages.
        what: it is to be, for messages.
    """
    for key, (fits, words) in rules.items():
        if key not in data:
            raise UserError(f"{where} is no {what}: it lacks {key}")
        if not fits(data[key]):
            dot = ": " if where.endswith(".json") else "."
            shown = json.dumps(data[key])
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise UserError(f"{where}{dot}{key} must be {words}, not {shown}")


def check_format(data: Mapping[str, Any], where: str, what: str) -> None:
    """Raise UserError for data of a newer format, or of none."""
    number = data.get("format")
    if not is_whole(number) or number < 1:
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
