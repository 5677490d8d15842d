"""The index of a store: one line a clip, one file a process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from ..errors import UserError
from ..files import read_lines, read_object
from .captions import Caption, caption_at, whole

WHAT = "latent store (make one with `longtake cache`)"
FORMAT = 2
READABLE = (1, 2)


@frozen(kw_only=True)
class Record:
    """One clip of a store: a line of its index.

    Attributes:
        id: names its file; `mirror` marks the mirrored copy of a video.
        source, fingerprint: the video it was made of.
        latents, height, width: its latent size; `frames` and `fps` its video's, as cached.
        captions: its prompts, each with the seconds it is about.
        cuts: seconds of its hard cuts; None where they were not looked for.
        rates: of the LR latents inside the clip's file; `added` of those in files of their own.
        placement: how frames were resized and cropped.
        revision: of several lines of a clip, the highest counts.
        own_text: its embedded caption is inside the clip's file (format 1), not shared by prompt.
    """

    id: str
    source: str
    fingerprint: str
    latents: int
    height: int
    width: int
    frames: int
    fps: float
    captions: tuple[Caption, ...]
    placement: str
    mirror: bool = False
    cuts: tuple[float, ...] | None = None
    rates: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    revision: int = 0
    own_text: bool = False

    @property
    def name(self) -> str:
        """The name of the source without its folder and suffix."""
        return Path(self.source).stem

    @property
    def seconds(self) -> float:
        """The length of the clip."""
        return self.frames / self.fps

    @property
    def caption(self) -> str:
        """The caption that covers most of the clip, "" where there is none."""
        return caption_at(self.captions, 0.0, self.seconds)

    def line(self) -> dict[str, Any]:
        """Give the record as a line of the index."""
        return attrs.asdict(self, filter=lambda attribute, _: attribute.name != "own_text")


def check_format(root: Path, header: Mapping[str, Any]) -> None:
    """Refuse a store that another version of the program made.

    Raises:
        UserError: its format is none that this version reads.
    """
    if header["format"] not in READABLE:
        found, readable = header["format"], " and ".join(map(str, READABLE))
        raise UserError(f"{root} is a store of format {found}; this version reads {readable}")


def clip_path(root: Path, clip: str) -> Path:
    """Give where a clip's tensors are."""
    return root / "clips" / f"{clip}.safetensors"


def rate_path(root: Path, rate: str, clip: str) -> Path:
    """Give where the LR latents of a rate are that was added after the clip was cached."""
    return root / "rates" / rate / f"{clip}.safetensors"


def read_index(root: Path) -> list[Record]:
    """Give the newest record of every clip, by id; each process of `cache` has its own file.

    Raises:
        UserError: a line is no record of a clip.
    """
    records: dict[str, Record] = {}
    for path in sorted((root / "index").glob("*.jsonl")):
        for line in read_lines(path):
            record = _record(line, root, path)
            known = records.get(record.id)
            if known is None or record.revision >= known.revision:
                records[record.id] = record
    return [records[key] for key in sorted(records)]


def _record(line: Mapping[str, Any], root: Path, path: Path) -> Record:
    try:
        if "caption" in line:
            return _first_format(line, root)
        lists = {name: tuple(line[name]) for name in ("rates", "added")}
        cuts = None if line["cuts"] is None else tuple(line["cuts"])
        captions = tuple(Caption(**caption) for caption in line["captions"])
        return Record(**{**line, **lists, "cuts": cuts, "captions": captions})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: a line is no record of a clip: {error}") from None


def _first_format(line: Mapping[str, Any], root: Path) -> Record:
    """Give a line of format 1: one caption, its embedding in the clip, rates in the header."""
    rest = {name: value for name, value in line.items() if name != "caption"}
    header = read_object(root / "store.json", WHAT, "rates")
    return Record(
        **rest, captions=whole(line["caption"]), rates=tuple(header["rates"]), own_text=True
    )
