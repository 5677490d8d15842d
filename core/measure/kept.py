"""Clips that were measured, kept in a folder until all are: `measure` goes on from them.

A file holds one clip: its scores by frame, what learned retrievers gave for it, its losses. All
that decides figures stands in its header (`kept_facts`); a file of other facts, of a metric less,
or a damaged one is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen
from torch import Tensor

from .. import config
from ..data.store import Record
from ..errors import UserError
from ..registry import origins, source_digest
from ..tools.device import versions
from ..tools.files import open_tensors, read_header, remove_folder, write_tensors
from .linear import NAME as LINEAR
from .linear import LinearGuide
from .prepare import MeasureSetup
from .quality import ClipGain, ClipQuality
from .result import FrameScores

FORMAT = 1
WAYS = ("unmasked", "masked")


@frozen(eq=False, kw_only=True)
class KeptClip:
    """What was measured of one clip; `gain` is None at the greater length, where there is none.

    `took` are the seconds that it took.
    """

    quality: ClipQuality
    gain: ClipGain | None
    took: float


@frozen(kw_only=True)
class KeptClips:
    """A folder of clips that were measured.

    Attributes:
        folder: is made with the first clip.
        facts: what decides the figures, as plain data (`kept_facts`).
        used: files that were read, and counted.
    """

    folder: Path
    facts: Mapping[str, Any]
    used: list[Path] = field(factory=list)

    def count(self) -> int:
        """Return how many files are kept."""
        return len(list(self.folder.glob("*.safetensors")))

    def read(self, record: Record, length: int, setup: MeasureSetup) -> KeptClip | None:
        """Return what is kept of a clip's window of `length` latents; None: nothing that fits."""
        path = self._path(record, length)
        if not path.exists():
            return None
        try:
            with open_tensors(path) as opened:
                header = read_header(opened, path)
                if header.get("facts") != self.facts:
                    return None
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            clip = _clip(header, tensors)
        except (UserError, KeyError, TypeError, ValueError):
            return None
        scores = [*clip.quality.unmasked.values(), *clip.quality.masked.values()]
        if not all(setup.metrics.keys() <= one.values.keys() for one in scores):
            return None
        self.used.append(path)
        return clip

    def write(self, record: Record, length: int, clip: KeptClip) -> None:
        """Keep a clip."""
        header, tensors = _data(clip)
        write_tensors(self._path(record, length), tensors, {"facts": self.facts, **header})

    def remove(self) -> None:
        """Remove all that is kept; a result holds it now."""
        if self.folder.exists():
            remove_folder(self.folder)

    def _path(self, record: Record, length: int) -> Path:
        return self.folder / f"{record.id}-{length}.safetensors"


def kept_facts(setup: MeasureSetup, checkpoint: Path) -> dict[str, Any]:
    """Return all that decides the figures of a measure, as plain data.

    Args:
        setup: of the model and the store.
        checkpoint: the folder that the model was read from.
    """
    experiment = setup.model.experiment
    guide = setup.retrievers.get(LINEAR)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(checkpoint)), path.stat()) for path in files]
    weights = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    clips = [record.line() for record in sorted(setup.store.records, key=lambda one: one.id)]
    facts = {
        "format": FORMAT,
        "experiment": config.to_json(experiment),
        "seed": setup.seed,
        "device": str(setup.device),
        "versions": versions(),
        "plugins": origins(experiment),
        "plugin_sources": source_digest(experiment),
        "weights": _digest(weights),
        LINEAR: guide.linear.digest if isinstance(guide, LinearGuide) else None,
        "store": _digest([setup.store.header, clips]),
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _data(clip: KeptClip) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a clip as a header of plain data, and tensors by the names that it gives them."""
    quality, tensors = clip.quality, {}
    scores = [(way, name, one) for way in WAYS for name, one in getattr(quality, way).items()]
    scores += [("foreign", "", quality.foreign)] if quality.foreign else []
    rows = []
    for index, (way, name, one) in enumerate(scores):
        tensors[f"{index}.frames"] = one.frames
        for kind in ("values", "weights"):
            for metric, x in getattr(one, kind).items():
                tensors[f"{index}.{kind}.{metric}"] = x
        row = {"way": way, "name": name, "total": one.total}
        rows.append(row | {"values": [*one.values], "weights": [*one.weights]})
    tensors |= {f"latents.{name}": x for name, x in quality.latents.items()}
    header = {
        "scores": rows,
        "latents": [*quality.latents],
        "parts": quality.parts,
        "seconds": quality.seconds,
        "numbers": quality.numbers,
        "gain": clip.gain and attrs.asdict(clip.gain),
        "took": clip.took,
    }
    return header, {name: x.contiguous() for name, x in tensors.items()}


def _clip(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> KeptClip:
    quality = ClipQuality(
        parts=header["parts"],
        seconds=header["seconds"],
        numbers=header["numbers"],
        latents={name: tensors[f"latents.{name}"] for name in header["latents"]},
    )
    for index, row in enumerate(header["scores"]):
        scores = FrameScores(
            frames=tensors[f"{index}.frames"],
            total=row["total"],
            values={m: tensors[f"{index}.values.{m}"] for m in row["values"]},
            weights={m: tensors[f"{index}.weights.{m}"] for m in row["weights"]},
        )
        if row["way"] == "foreign":
            quality.foreign = scores
        else:
            getattr(quality, row["way"])[row["name"]] = scores
    gain = header["gain"]
    return KeptClip(quality=quality, gain=gain and ClipGain(**gain), took=header["took"])
