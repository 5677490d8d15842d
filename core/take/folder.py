"""The folder of a take: its files, in the order in which they are written, and what a segment is.

    TAKE/spec.json            written once: the run, hashes, sizes
    TAKE/order.json           the segments that are to be (`order.Order`); the one file that changes
    TAKE/history/0003.json    the order before an edit, never changed: what `undo` goes back to
    TAKE/story.orig.*         the storyboard, as it was given; title.txt is its title
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
from .order import FORMAT, Entry, Order, check_format, digest

WHAT = "take (begin one with `longtake generate RUN --out TAKE`)"


def is_take(path: Path) -> bool:
    """Return whether a folder is a take."""
    return (path / "order.json").is_file() and (path / "spec.json").is_file()


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
    """

    id: str
    recipe: Mapping[str, Any]
    made: Mapping[str, Any]
    latents_hash: str

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
        for key in ("experiment", "identity", "size", "fps", "period", "seed"):
            if key not in spec:
                raise UserError(f"{root / 'spec.json'} is of no take: it lacks {key}")
        return cls(root, spec)

    @classmethod
    def create(cls, root: Path, spec: Mapping[str, Any]) -> TakeFolder:
        """Make the folder of a new take; its order is empty.

        Raises:
            UserError: the folder holds other files, or the disk refuses.
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
            UserError: the folder holds other files, it or one above it is a file or may not be
                written to, or its name is no UTF-8.
        """
        check_utf8(root, "--out")
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
        return Order.from_json(read_object(path, "order of a take", "format"), str(path))

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
        edited = Order(entries=order.entries, before=number, open=True)
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
        before = Order(entries=before.entries, before=before.before, open=True)
        self.write_order(before)
        return before

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
            keep = f", or --drop-after {number - 1} keeps those before" if number > 1 else ""
            raise UserError(
                f"{self.root}/order.json names {id}, which is gone: put it back, --redo "
                f"{number}{keep}"
            )
        path = self.segment_path(id) / "segment.json"
        data = read_object(path, "segment of a take", "format", "recipe", "latents_sha256", "made")
        check_format(data, str(path), "segment")
        return Segment(
            id=id, recipe=data["recipe"], made=data["made"], latents_hash=data["latents_sha256"]
        )

    def latents(self, id: str, number: int) -> Tensor:
        """Return the latents of a segment, float32 `[1, C, K, H, W]`, checked against their hash.

        Raises:
            UserError: they are not what was written, or of another shape than the take's.
        """
        segment = self.segment(id, number)
        path = self.segment_path(id) / "latents.safetensors"
        ways = f"put it back, --redo {number}"
        ways += f" or --drop-after {number - 1}" if number > 1 else ""
        shown = path.relative_to(self.root)
        try:
            with open_tensors(path) as file:
                latents: Tensor = file.get_tensor("latents")
        except UserError as error:
            raise UserError(f"{error}: {ways}") from None
        except Exception as error:  # a tensor that is missing or cut
            raise UserError(f"{self.root}: {shown} is damaged ({error}): {ways}") from None
        if hash_of(latents) != segment.latents_hash:
            raise UserError(f"{self.root}: {shown} is not what was written (sha256): {ways}")
        size, expected = self.size, (segment.count, self.size.height, self.size.width)
        if latents.shape[0] != 1 or tuple(latents.shape[2:]) != expected:
            raise UserError(
                f"{self.root}: {shown} is {tuple(latents.shape)}, not {segment.count} latents of "
                f"{size.height}x{size.width}: {ways}"
            )
        self.checked[id] = segment
        return latents

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
        with new_folder(path) as part:
            write_tensors(part / "latents.safetensors", {"latents": latents}, dict(header))
            if lr is not None:
                tensors = {str(rate): x for rate, x in lr.items()}
                write_tensors(part / "lr.safetensors", tensors, {})
            if preview is not None:
                save_png(part / "preview.png", preview)
            data = {
                "format": FORMAT, "recipe": recipe.to_json(), "latents_sha256": hashed,
                "made": dict(made),
            }  # fmt: skip
            write_json(part / "segment.json", data)
        return Segment(id=recipe.id, recipe=recipe.to_json(), made=dict(made), latents_hash=hashed)

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
            UserError: something is there, or its name is no UTF-8.
        """
        check_utf8(out, "--branch")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--branch {out}: something is there already; name a new folder")

    def branch(self, out: Path, order: Order) -> None:
        """Make a new take of some segments of this one: hard links, else copies.

        Raises:
            UserError: something is at `out`, or the disk refuses.
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


def read_lr(path: Path) -> dict[Rate, Tensor]:
    """Return the LR latents of a file, by rate.

    Raises:
        UserError: it is missing or damaged.
    """
    with open_tensors(path) as file:
        return {Rate.parse(name): file.get_tensor(name) for name in file.keys()}


def write_derived(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors that follow from latents, with their hash."""
    hashes = {name: hash_of(tensor) for name, tensor in tensors.items()}
    write_tensors(path, tensors, {**header, "sha256": digest(hashes)})


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
    hashes = {name: hash_of(tensor) for name, tensor in tensors.items()}
    return (tensors, header) if digest(hashes) == header.get("sha256") else None


def facts_of(entry: Entry) -> dict[str, Any]:
    """Return what a recipe holds of an entry alone."""
    return {
        "prompt": entry.prompt, "negative": entry.negative, "seed": entry.seed,
        "cut": entry.cut, "memory": entry.memory,
        "loras": [list(lora) for lora in entry.loras],
    }  # fmt: skip
