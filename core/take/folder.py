"""The folder of a take: its files, in the order in which they are written, and what a segment is.

    TAKE/spec.json            written once: the run, hashes, sizes
    TAKE/order.json           the segments that are to be (`order.Order`); the one file that changes
    TAKE/history/0003.json    the order before an edit, never changed: what `undo` goes back to
    TAKE/story.orig.*         the storyboard, as it was given
    TAKE/segments/0001-9f3a2c71/   never changed: latents.safetensors, segment.json, preview.png
                              (of a source, lr.safetensors too)
    TAKE/source/              of the user's own video or picture
    TAKE/texts/               embedded prompts, by hash
    TAKE/cache/0001-9f3a2c71/ follows from latents and is made again where it is missing
    TAKE/take.mp4, new.mp4, log.jsonl

Three laws: latents are all that was made, the rest follows from them; a segment exists from one
rename on, and never changes; intent (order.json) is written before anything is sampled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import define, field, frozen
from torch import Tensor

from ..errors import LongtakeError, UserError, check_utf8
from ..tools.files import (
    append_json_line,
    create_file,
    disk_errors,
    new_folder,
    open_tensors,
    read_header,
    read_object,
    remove_parts,
    whole_folder,
    write_json,
    write_tensors,
)
from ..tools.words import counted
from ..values.grid import Rate, Size3
from .order import (
    ANY_NUMBER,
    COUNT,
    FLAG,
    FORMAT,
    FROM_ZERO,
    NUMBER,
    OBJECT,
    TEXT,
    Entry,
    Order,
    Rule,
    check_format,
    check_types,
    digest,
    is_number,
    is_whole,
    or_null,
)

WHAT = "take (begin one with `longtake generate RUN --out TAKE`)"
_SIZE: Rule = (
    lambda value: (
        isinstance(value, list)
        and len(value) == 2
        and all(is_whole(side) and side > 0 for side in value)
    ),
    "a list of two whole numbers, 1 or more",
)
_POSITIVE: Rule = (lambda value: is_number(value) and value > 0, "a number more than 0")
_SPEC: Mapping[str, Rule] = {
    "experiment": OBJECT, "identity": OBJECT, "run": or_null(TEXT), "checkpoint": or_null(TEXT),
    "size": _SIZE, "latent_size": _SIZE, "channels": COUNT, "fps": _POSITIVE, "stride": COUNT,
    "period": COUNT, "seed": (is_whole, "a whole number"),
    "causal": FLAG,
}  # fmt: skip
_RECIPE: Mapping[str, Rule] = {"first": FROM_ZERO, "count": COUNT, "past": TEXT}
_NUMBERS: Rule = (
    lambda value: isinstance(value, Mapping) and all(map(is_number, value.values())),
    "an object of numbers",
)
_MADE: Mapping[str, Rule] = {  # what is read of it; a source's has none
    "seconds": or_null(NUMBER), "tokens": or_null(FROM_ZERO), "parts": or_null(_NUMBERS),
    "dropped": or_null(FROM_ZERO), "remembering": or_null(NUMBER), "gain": or_null(ANY_NUMBER),
}  # fmt: skip


_SEGMENT: Mapping[str, Rule] = {"recipe": OBJECT, "latents_sha256": TEXT, "made": OBJECT}


def is_take(path: Path) -> bool:
    """Return whether a folder is a take."""
    return (path / "order.json").is_file() and (path / "spec.json").is_file()


def was_take(path: Path) -> bool:
    """Return whether a folder is a take, or what is left of one."""
    return (path / "order.json").is_file() or (
        (path / "spec.json").is_file() and (path / "segments").is_dir()
    )


def check_outside(path: Path, option: str) -> None:
    """Raise UserError for a new folder within a take, which keeps only what is its own."""
    for above in path.absolute().resolve().parents:
        if is_take(above):
            raise UserError(f"{option} {path} lies in the take {above}: name a folder outside it")


@frozen(kw_only=True)
class Recipe:
    """What a segment is made of: all that its latents depend on, and the id that follows.

    Attributes:
        number: of the segment, from 1.
        first, count: its latents in the take.
        past: hash of the take's spec and of all latents before.
        facts: the rest, plain data: prompt, seed, sampler and so on, or what of a source.
    """

    number: int
    first: int
    count: int
    past: str
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {"first": self.first, "count": self.count, "past": self.past, **self.facts}

    @property
    def id(self) -> str:
        """Name of the segment's folder, known before anything is sampled."""
        return f"{self.number:04d}-{digest(self.to_json())[:8]}"


@frozen(eq=False, kw_only=True)
class Segment:
    """A segment as it lies in the folder.

    Attributes:
        id: name of its folder.
        recipe: what it was made of, as plain JSON.
        made: when, how long, on what: what does not count for its identity.
        latents_hash: sha256 of its latents.
        lr_hash: of a source's LR latents; None: it has none, or they were never hashed.
    """

    id: str
    recipe: Mapping[str, Any]
    made: Mapping[str, Any]
    latents_hash: str
    lr_hash: str | None = None

    @property
    def first(self) -> int:
        """Its first latent in the take."""
        return int(self.recipe["first"])

    @property
    def count(self) -> int:
        """How many latents it has."""
        return int(self.recipe["count"])


@define
class TakeFolder:
    """Reads and writes the files of a take; latents are checked against their hash."""

    root: Path
    spec: dict[str, Any] = field(factory=dict)
    checked: dict[str, Segment] = field(factory=dict, repr=False)

    @classmethod
    def open(cls, root: Path) -> TakeFolder:
        """Return the folder of a take that is there.

        Raises:
            UserError: there is none, or one of a newer format.
        """
        spec = read_object(root / "spec.json", WHAT, "format")
        check_format(spec, str(root), "spec")
        check_types(spec, _SPEC, str(root / "spec.json"), "spec of a take")
        return cls(root, spec)

    @classmethod
    def create(cls, root: Path, spec: Mapping[str, Any]) -> TakeFolder:
        """Make the folder of a new take; its order is empty.

        Raises:
            UserError: the folder holds other files or lies in a take, or the disk refuses.
        """
        cls.check_new(root)
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        written = {"format": FORMAT, **spec}
        write_json(root / "order.json", Order().to_json())
        write_json(root / "spec.json", written)  # by which it is a take
        return cls(root, written)

    @staticmethod
    def check_new(root: Path) -> None:
        """Refuse a place where no take can begin; nothing is written.

        Raises:
            UserError: the folder holds other files or lies in a take, it or one above it is a file
                or may not be written to, or its name is no UTF-8.
        """
        check_utf8(root, "--out")
        check_outside(root, "--out")
        with disk_errors(root):
            there = next(place for place in (root, *root.parents) if place.exists())
            if not there.is_dir():
                raise UserError(f"--out {root}: {there} is a file; name a folder")
            if not os.access(there, os.W_OK):
                raise UserError(f"--out {root}: {there} may not be written to")
            others = [] if there != root else [p.name for p in root.iterdir()]
        left = {name for name in others if not fnmatch(name, ".*.part")}
        if left - {"order.json", "log.jsonl"}:
            raise UserError(f"--out {root} is a folder with other files in it, and no take")

    @property
    def size(self) -> Size3:
        """Size of a latent frame; its time is 1."""
        height, width = self.spec["latent_size"]
        return Size3(time=1, height=height, width=width)

    @property
    def fps(self) -> float:
        """Frames a second."""
        return float(self.spec["fps"])

    @property
    def identity(self) -> str:
        """Hash of all in the spec that latents depend on."""
        return digest(self.spec["identity"])

    def order(self) -> Order:
        """Read the order.

        Raises:
            UserError: it is missing, damaged or of a newer format.
        """
        path = self.root / "order.json"
        try:
            return Order.from_json(read_object(path, "order of a take", "format"), str(path))
        except UserError as error:
            kept = sorted(p.name for p in (self.root / "history").glob("*.json"))
            if not kept or "update longtake" in str(error):
                raise
            raise UserError(
                f"{error}: put it back; the order before the last edit is history/{kept[-1]}"
            ) from None

    def write_order(self, order: Order) -> None:
        """Put a new order in the place of the old one."""
        write_json(self.root / "order.json", order.to_json())

    def edit(self, order: Order) -> Order:
        """Write an edited order, after the one before it went into history/; return it.

        An edit that was killed between the two leaves its copy, which is used again.
        """
        before, number = self.order(), self._last_before()
        if number == 0 or self._history(number) != before:
            number += 1
            text = _json_text(before.to_json())
            while not create_file(self.root / "history" / f"{number:04d}.json", text):
                number += 1
        edited = attrs.evolve(order, before=number, open=True)
        self.write_order(edited)
        return edited

    def undo(self) -> Order:
        """Return to the order before the last edit; segments that are gone are to be made again.

        Raises:
            UserError: there was no edit.
        """
        now = self.order()
        if now.before is None:
            raise UserError(f"{self.root}: nothing to undo")
        before = self._history(now.before)
        number = self._last_before() + 1
        while not create_file(
            self.root / "history" / f"{number:04d}.json", _json_text(now.to_json())
        ):
            number += 1
        entries = list(before.entries)
        for index, entry in enumerate(entries):
            if entry.id is not None and not self.segment_path(entry.id).is_dir():
                before = before.with_id(index + 1, None)
        before = attrs.evolve(before, open=True)
        self.write_order(before)
        return before

    def orders_before(self, order: Order) -> Iterator[Order]:
        """Yield the orders that `undo` brings back, one after the other.

        Raises:
            UserError: one of them is missing or damaged.
        """
        while order.before is not None:
            order = self._history(order.before)
            yield order

    def _last_before(self) -> int:
        numbers = [int(p.stem) for p in (self.root / "history").glob("*.json") if p.stem.isdigit()]
        return max(numbers, default=0)

    def _history(self, number: int) -> Order:
        path = self.root / "history" / f"{number:04d}.json"
        return Order.from_json(read_object(path, "order of a take", "format"), str(path))

    def segment_path(self, id: str) -> Path:
        """Return the folder of a segment."""
        return self.root / "segments" / id

    def cache_path(self, id: str) -> Path:
        """Return the folder of what follows from a segment."""
        return self.root / "cache" / id

    def has(self, id: str) -> bool:
        """Return whether a segment exists."""
        return self.segment_path(id).is_dir()

    def segment(self, id: str, number: int) -> Segment:
        """Return what a segment says of itself; `number` is its place in the order.

        Raises:
            UserError: it is missing or damaged; the message says the ways out.
        """
        if id in self.checked:
            return self.checked[id]
        if not self.has(id):
            ways = self._ways(id, number)
            raise UserError(f"{self.root}/order.json names {id}, which is gone: {ways}")
        path = self.segment_path(id) / "segment.json"
        try:
            data = read_object(path, "segment of a take", "format")
            check_format(data, str(path), "segment")
            check_types(data, _SEGMENT, str(path), "segment of a take")
            check_types(data["recipe"], _RECIPE, f"{path}: recipe", "recipe of a segment")
            made = dict.fromkeys(_MADE) | data["made"]
            check_types(made, _MADE, f"{path}: made", "record of a segment")
        except UserError as error:
            if "update longtake" in str(error):
                raise
            raise UserError(f"{error}: {self._ways(id, number)}") from None
        return Segment(
            id=id,
            recipe=data["recipe"],
            made=data["made"],
            latents_hash=data["latents_sha256"],
            lr_hash=data.get("lr_sha256"),
        )

    def segment_of(self, order: Order, number: int) -> Segment:
        """Return what a segment that is made says of itself, which must be what the order says.

        Raises:
            UserError: as `segment`; or it lies elsewhere in the take than the order has it.
        """
        entry = order.entries[number - 1]
        assert entry.id is not None
        segment, first = self.segment(entry.id, number), order.first(number)
        if (segment.first, segment.count) != (first, entry.latents):
            raise UserError(
                f"{self.root}/order.json: entries[{number - 1}] is of {entry.latents} latents from "
                f"{first} on, segments/{entry.id} has {segment.count} from {segment.first} on: "
                f"put order.json back, --redo {number} or --undo"
            )
        return segment

    def _ways(self, id: str, number: int) -> str:
        """Return what can be done about a segment that is damaged or gone, in words."""
        entries, gone = self.order().entries, not self.has(id)
        before = f"--drop-after {number - 1}" if number > 1 else ""
        if number <= len(entries) and entries[number - 1].source:
            again = "run the same command with the video in its place: it is encoded again"
            ways = [f"or {again}" if gone else f"remove segments/{id} and {again}"]
            ways += [f"or {before}"] if before else []
        elif gone:
            ways = [f"--redo {number}", *([f"or {before} keeps those before"] if before else [])]
        else:
            ways = [f"--redo {number}{f' or {before}' if before else ''}"]
        return ", ".join(["put it back", *ways])

    def latents(self, id: str, number: int) -> Tensor:
        """Return the latents of a segment, float32 `[1, C, K, H, W]`, checked against their hash.

        Raises:
            UserError: they are not what was written, or of another shape than the take's.
        """
        segment = self.segment(id, number)
        path = self.segment_path(id) / "latents.safetensors"
        latents = self._tensors(path, id, number, "latents")["latents"]
        shown = path.relative_to(self.root)
        if hash_of(latents) != segment.latents_hash:
            ways = self._ways(id, number)
            raise UserError(f"{self.root}: {shown} is not what was written (sha256): {ways}")
        size, expected = self.size, (segment.count, self.size.height, self.size.width)
        if latents.shape[0] != 1 or tuple(latents.shape[2:]) != expected:
            raise UserError(
                f"{self.root}: {shown} is {tuple(latents.shape)}, not {segment.count} latents of "
                f"{size.height}x{size.width}: {self._ways(id, number)}"
            )
        self.checked[id] = segment
        return latents

    def lr(self, id: str, number: int) -> dict[Rate, Tensor]:
        """Return the LR latents of a source's segment, by rate, checked against their hash.

        Raises:
            UserError: they are gone, or not what was written.
        """
        segment = self.segment(id, number)
        path = self.segment_path(id) / "lr.safetensors"
        found = self._tensors(path, id, number)
        # segments that older versions encoded have no hash of them, and are not checked
        if segment.lr_hash is not None and hash_of_all(found) != segment.lr_hash:
            shown, ways = path.relative_to(self.root), self._ways(id, number)
            raise UserError(f"{self.root}: {shown} is not what was written (sha256): {ways}")
        try:
            return {Rate.parse(name): x for name, x in found.items()}
        except ValueError as error:
            raise UserError(f"{path}: {error}: {self._ways(id, number)}") from None

    def _tensors(self, path: Path, id: str, number: int, *names: str) -> dict[str, Tensor]:
        """Return tensors of a segment's file: those of `names`, or all of them."""
        try:
            with open_tensors(path) as file:
                return {name: file.get_tensor(name) for name in names or file.keys()}
        except UserError as error:
            raise UserError(f"{error}: {self._ways(id, number)}") from None
        except Exception as error:  # a tensor that is missing or cut
            shown, ways = path.relative_to(self.root), self._ways(id, number)
            raise UserError(f"{self.root}: {shown} is damaged ({error}): {ways}") from None

    def commit(
        self,
        recipe: Recipe,
        latents: Tensor,
        made: Mapping[str, Any],
        *,
        header: Mapping[str, Any],
        preview: Tensor | None = None,
        lr: Mapping[Rate, Tensor] | None = None,
    ) -> Segment:
        """Make a segment exist: all its files, on the disk, then one rename.

        Args:
            recipe: what it was made of.
            latents: float32 `[1, C, K, H, W]`.
            made: what does not count for its identity.
            header: what else stands in the header of the latents.
            preview: uint8 `[3, P, Q]`.
            lr: of a source: its LR latents, which come from its own pixels.

        Raises:
            UserError: the disk refuses, or a segment of that id exists.
        """
        from ..tools.pictures import save_png

        path, latents = self.segment_path(recipe.id), latents.detach().cpu().contiguous()
        hashed = hash_of(latents)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        lr_hash: str | None = None
        with new_folder(path) as part:
            write_tensors(part / "latents.safetensors", {"latents": latents}, dict(header))
            if lr is not None:
                tensors = {str(rate): x for rate, x in lr.items()}
                write_tensors(part / "lr.safetensors", tensors, {})
                lr_hash = hash_of_all(tensors)
            if preview is not None:
                save_png(part / "preview.png", preview)
            data = {
                "format": FORMAT, "recipe": recipe.to_json(), "latents_sha256": hashed,
                "made": dict(made),
            }  # fmt: skip
            data |= {} if lr_hash is None else {"lr_sha256": lr_hash}
            write_json(part / "segment.json", data)
        return Segment(
            id=recipe.id,
            recipe=recipe.to_json(),
            made=dict(made),
            latents_hash=hashed,
            lr_hash=lr_hash,
        )

    def chain(self, hashes: Sequence[str]) -> str:
        """Return the hash of a past: of the spec, and of the latents of each segment of it."""
        return digest([self.identity, *hashes])

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to the log."""
        append_json_line(self.root / "log.jsonl", line)

    def clear_parts(self) -> None:
        """Remove what killed processes left half written."""
        for folder in (self.root, *(self.root / name for name in ("segments", "cache", "texts"))):
            if folder.is_dir():
                remove_parts(folder)
        for folder in (self.root / "cache").glob("*"):
            if folder.is_dir():
                remove_parts(folder)

    def check_branch(self, out: Path) -> None:
        """Refuse a place where no branch can be; nothing is written.

        Raises:
            UserError: something is there, it lies in a take, or its name is no UTF-8.
        """
        check_utf8(out, "--branch")
        check_outside(out, "--branch")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--branch {out}: something is there already; name a new folder")

    def branch(self, out: Path, order: Order) -> None:
        """Make a new take of some segments of this one: hard links, else copies.

        Raises:
            UserError: something is at `out`, it lies in a take, or the disk refuses.
        """
        self.check_branch(out)
        ids = [entry.id for entry in order.entries if entry.id is not None]
        if out.parent.is_dir():
            remove_parts(out.parent)
        with whole_folder(out) as part:
            shutil.copyfile(self.root / "spec.json", part / "spec.json")
            for name in ("texts", "source"):
                if (self.root / name).is_dir():
                    shutil.copytree(self.root / name, part / name, copy_function=_link_or_copy)
            for id in ids:
                for folder in ("segments", "cache"):
                    if (place := self.root / folder / id).is_dir():
                        ignored = shutil.ignore_patterns(".*.part")
                        to = part / folder / id
                        shutil.copytree(place, to, copy_function=_link_or_copy, ignore=ignored)
            write_json(part / "order.json", order.to_json())


@contextmanager
def safe_disk(made: int) -> Iterator[None]:
    """Turn a full disk into one line that says that what is made is safe.

    Raises:
        LongtakeError: in place of the disk's error.
    """
    try:
        yield
    except UserError as error:
        cause = error.__cause__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left" not in str(error):
            raise
        place = str(error).removeprefix("cannot write ").partition(": ")[0]
        raise LongtakeError(
            f"no space left writing {place}: {counted(made, 'segment')} safe; free space "
            "and run the same command"
        ) from error


def hash_of(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's type, shape and numbers."""
    tensor = tensor.detach().cpu().contiguous()
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    hashed = hashlib.sha256(head)
    if tensor.numel():
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(source, target)


def _json_text(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def hash_of_all(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash of named tensors."""
    return digest({name: hash_of(tensor) for name, tensor in tensors.items()})


def write_derived(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors that follow from latents, with their hash."""
    write_tensors(path, tensors, {**header, "sha256": hash_of_all(tensors)})


def read_derived(path: Path, chain: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and header of a derived file; None where it must be made again.

    That is where it is missing or damaged, or was made under another past than `chain`.
    """
    if not path.is_file():
        return None
    try:
        with open_tensors(path) as file:
            header = read_header(file, path)
            if header.get("past") != chain:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception:  # whatever damage does to reading
        return None
    return (tensors, header) if hash_of_all(tensors) == header.get("sha256") else None


def facts_of(entry: Entry) -> dict[str, Any]:
    """Return what a recipe holds of an entry alone."""
    return {
        "prompt": entry.prompt, "negative": entry.negative, "seed": entry.seed,
        "cut": entry.cut, "memory": entry.memory,
        "loras": [list(lora) for lora in entry.loras],
    }  # fmt: skip
