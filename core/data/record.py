"""The index of a store: one line a clip, one file a process."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from ..errors import UserError
from ..files import read_lines


@frozen(kw_only=True)
class Record:
    """One clip of a store: a line of its index.

    Attributes:
        id: names its file; `mirror` marks the mirrored copy of a video.
        source, fingerprint: the video it was made of.
        latents, height, width: its latent size; `frames` and `fps` its video's, as cached.
        caption: its prompt; `placement` says how frames were resized and cropped.
    """

    id: str
    source: str
    fingerprint: str
    latents: int
    height: int
    width: int
    frames: int
    fps: float
    caption: str
    placement: str
    mirror: bool = False

    @property
    def name(self) -> str:
        """The name of the source without its folder and suffix."""
        return Path(self.source).stem


def clip_path(root: Path, clip: str) -> Path:
    """Give where a clip's tensors are."""
    return root / "clips" / f"{clip}.safetensors"


def read_index(root: Path) -> list[Record]:
    """Give the newest record of every clip, by id; each process of `cache` has its own file."""
    records: dict[str, Record] = {}
    for path in sorted((root / "index").glob("*.jsonl")):
        for line in read_lines(path):
            try:
                records[line["id"]] = Record(**line)
            except (KeyError, TypeError) as error:
                raise UserError(f"{path}: a line is no record of a clip: {error}") from None
    return [records[key] for key in sorted(records)]
