"""Latent store: a folder of cached clips, read by windows (design §2, conventions A).

store.json                        what it was made with
index/<rank>-of-<world>.jsonl     one line a clip, one file a process; the newest line counts
clips/<id>.safetensors            latents, lr/<rate>, pixels
rates/<rate>/<id>.safetensors     LR latents of a rate that was added later
texts/<sha256>.safetensors        embedded prompts, "" among them, shared by clips

Format 1 had each clip's embedded caption inside its file, "" in null.safetensors, and the rates
of all clips in store.json; it is still read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import attrs
import torch
from attrs import define, field, frozen
from torch import Tensor

from ..config import SpecError, from_json, to_json
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.codec import Codec, frames_of
from ..interfaces.spec import BackboneSpec, CodecSpec, PluginSpec, TextEncoderSpec
from ..registry import build
from ..tools.files import open_tensors, read_lines, read_object
from ..values.grid import Geometry, Rate, shared_period
from ..values.history import History, lr_between
from ..values.text import Text
from .captions import Caption, caption_at, whole
from .texts import read_text, text_path

# ⟦core/data/record.py⟧ The index of a store: one line a clip, one file a process.


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
        """Return the record as a line of the index."""
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
    """Return where a clip's tensors are."""
    return root / "clips" / f"{clip}.safetensors"


def rate_path(root: Path, rate: str, clip: str) -> Path:
    """Return where the LR latents of a rate are that was added after the clip was cached."""
    return root / "rates" / rate / f"{clip}.safetensors"


def read_index(root: Path) -> list[Record]:
    """Return the newest record of every clip, by id; each process of `cache` has its own file.

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
    """Return a line of format 1: one caption, its embedding in the clip, rates in the header."""
    rest = {name: value for name, value in line.items() if name != "caption"}
    header = read_object(root / "store.json", WHAT, "rates")
    return Record(
        **rest, captions=whole(line["caption"]), rates=tuple(header["rates"]), own_text=True
    )


IDENTITY = ("codec", "text", "channels", "fps")
NAMED = 5  # clips named in a message


@define
class Store:
    """An open store; reading is lazy, by slices."""

    root: Path
    header: dict[str, Any]
    records: list[Record] = field(repr=False)

    @classmethod
    def open(cls, root: Path) -> Self:
        """Return the store in a folder.

        Raises:
            UserError: there is none, it is of another format, or it holds no clip.
        """
        header = read_object(root / "store.json", WHAT, "format", *IDENTITY, "stride")
        check_format(root, header)
        present = [r for r in read_index(root) if clip_path(root, r.id).exists()]
        if not present:
            raise UserError(f"{root} holds no clip: run `longtake cache` to its end first")
        return cls(root, header, present)

    @property
    def rates(self) -> frozenset[Rate]:
        """The LR rates that every clip has."""
        every = (frozenset(record.rates + record.added) for record in self.records)
        return frozenset(Rate.parse(text) for text in frozenset.intersection(*every))

    @property
    def fps(self) -> float:
        """Frames a second of every clip."""
        return float(self.header["fps"])

    @property
    def stride(self) -> int:
        """Video frames to a latent frame."""
        return int(self.header["stride"])

    def check(self, *, made_with: Mapping[str, Any], rates: Iterable[Rate]) -> None:
        """Refuse an experiment that the store was not made for.

        Raises:
            UserError: codec, text encoder, geometry or fps differ, or clips lack LR latents.
        """
        for key, wanted in made_with.items():
            if key in IDENTITY and self.header.get(key) != wanted:
                found = self.header.get(key)
                raise UserError(
                    f"{self.root} was cached with {key} {found}, the experiment has {wanted}"
                )
        missing = sorted(str(rate) for rate in set(rates) - self.rates)
        if missing:
            every = json.dumps(sorted(map(str, self.rates)) + missing)
            raise UserError(
                f"{self._lacking(missing)}: add them, run `longtake cache` on this store and its "
                f"videos again with --set cache.rates='{every}'"
            )

    def teach(self, codec: Codec[CodecSpec]) -> None:
        """Give the codec of this store the decode margin that was measured with it, if one was."""
        measured = self.header.get("measured")
        if measured:
            codec.use_margin(int(measured["margin"]))

    def _lacking(self, rates: list[str]) -> str:
        """Return which clips lack a rate, in words."""
        ids = [r.id for r in self.records if not set(rates) <= {*r.rates, *r.added}]
        told = f"{self.root} has no LR latents at {', '.join(rates)}"
        if len(ids) == len(self.records):
            return told
        named = ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
        return f"{told} of {len(ids)} of {len(self.records)} clips ({named})"

    def window(
        self, record: Record, start: int, length: int, rates: Iterable[Rate], pixels: bool = False
    ) -> History:
        """Return latents start … start + length − 1 of a clip as a history of one sample.

        `start` must be a multiple of every rate's time step.

        Raises:
            UserError: a file is missing or damaged.
            ValueError: the window does not start on the grid of the rates.
        """
        wanted = tuple(rates)
        if start % shared_period(wanted):
            raise ValueError(f"a window cannot start at latent {start} with rates {wanted}")
        with open_tensors(clip_path(self.root, record.id)) as file:
            latents = file.get_slice("latents")[:, start : start + length].float()
            inside = [rate for rate in wanted if str(rate) not in record.added]
            lr = {rate: _lr_slice(file, f"lr/{rate}", rate, start, length) for rate in inside}
            frames = _pixel_slice(file, start, length, self.stride) if pixels else None
        for rate in set(wanted) - set(inside):
            with open_tensors(rate_path(self.root, str(rate), record.id)) as file:
                lr[rate] = _lr_slice(file, "latents", rate, start, length)
        return History(
            latents=latents[None],
            lr={rate: lr[rate] for rate in wanted},
            start=torch.tensor([start]),
            pixels=frames,
            cuts=self._cuts(record, start, length),
        )

    def _cuts(self, record: Record, start: int, length: int) -> tuple[tuple[float, ...], ...]:
        begin, end = self.span(start, length)
        return () if record.cuts is None else (tuple(c for c in record.cuts if begin < c < end),)

    def span(self, start: int, length: int) -> tuple[float, float]:
        """Return the seconds of the video that latents start … start + length − 1 stand for."""
        last = frames_of(start + length - 1, self.stride)
        return frames_of(start, self.stride).start / self.fps, last.stop / self.fps

    def text(self, record: Record, start: int = 0, length: int | None = None) -> Text:
        """Return the embedded caption that covers most of a window (default: of the whole clip).

        Where no caption covers any of it, that is the empty prompt.

        Args:
            record: the clip.
            start: first latent of the window.
            length: its latents; None: to the end of the clip.
        """
        if record.own_text:
            return read_text(clip_path(self.root, record.id))
        count = record.latents - start if length is None else length
        prompt = caption_at(record.captions, *self.span(start, count))
        return read_text(text_path(self.root, prompt))

    def null_text(self) -> Text:
        """Return the embedding of the empty prompt."""
        shared, first_format = text_path(self.root, ""), self.root / "null.safetensors"
        old = first_format.exists() and not shared.exists()
        return read_text(first_format if old else shared)


def _lr_slice(file: Any, name: str, rate: Rate, start: int, length: int) -> Tensor:
    first = start // rate.time
    count = lr_between(rate, 0, length).stop
    part: Tensor = file.get_slice(name)[:, first : first + count]
    return part.float()[None]


def _pixel_slice(file: Any, start: int, length: int, stride: int) -> Tensor:
    if "pixels" not in file.keys():
        raise UserError("the store keeps no frames: cache with --set cache.pixels=true")
    first = start * stride
    part: Tensor = file.get_slice("pixels")[:, first : first + 1 + stride * (length - 1)]
    return part[None]


def made_with(geometry: Geometry, *, codec: str, text: str, fps: float) -> dict[str, Any]:
    """Return the part of a store's header that an experiment must share."""
    return {
        "format": FORMAT,
        "codec": codec,
        "text": text,
        "channels": geometry.channels,
        "stride": geometry.vae_stride.time,
        "fps": fps,
    }


# ⟦core/data/fits.py⟧ Whether a store fits an experiment: by the weights where they are at hand, else by their specs. Training reads latents and embedded prompts, so the machine that trains needs neither the VAE nor the text encoder: the store says by which specs it was made.


SPECS = "specs"  # in a store's header: of the codec and of the text encoder


def specs_of(backbone: BackboneSpec) -> dict[str, Any]:
    """Return the specs that a store's header keeps beside the identities, as JSON."""
    return {"codec": to_json(backbone.codec), "text": to_json(backbone.text_encoder)}


def check_fits(
    experiment: Experiment, store: Store, rates: Iterable[Rate], *, decodes: bool = False
) -> None:
    """Refuse a store that was made with another codec, text encoder or frame rate, or lacks rates.

    Of a codec or text encoder whose weights are on this machine the weights themselves are
    compared. Where they are not, nothing is fetched: the specs must be the same, `weights` as it
    is written included. A store that keeps no specs is held to the weights.

    Args:
        experiment: what is to read it.
        store: a latent store.
        rates: LR rates that it must have.
        decodes: whether the codec will be used: then its weights are compared, fetched or not.

    Raises:
        UserError: it does not fit, or weights that must be compared cannot be found.
    """
    backbone, kept = experiment.backbone, store.header.get(SPECS, {})
    wanted: dict[str, Any] = {}
    for key, spec in (("codec", backbone.codec), ("text", backbone.text_encoder)):
        part = build(spec)
        if key not in kept or part.at_hand or (decodes and key == "codec"):
            wanted[key] = part.identity
        else:
            _check_spec(store, key, spec, kept[key])
    geometry = backbone.geometry
    wanted |= {"channels": geometry.channels, "fps": geometry.fps}
    store.check(made_with=wanted, rates=rates)


def _check_spec(store: Store, key: str, spec: PluginSpec, kept: Any) -> None:
    made, mine = _whole(kept, key), to_json(spec)
    odd = [name for name in {**mine, **made} if made.get(name) != mine.get(name)]
    if odd:
        where = "codec" if key == "codec" else "text_encoder"
        raise UserError(
            f"{store.root} was cached with backbone.{where}.{odd[0]} {made.get(odd[0])}, the "
            f"experiment has {mine.get(odd[0])}, whose weights are not here to compare: name the "
            "same, or fetch them"
        )


def _whole(kept: Any, key: str) -> dict[str, Any]:
    """Return a spec of a header with the fields that have come since, at their defaults."""
    try:
        return to_json(from_json(kept, CodecSpec if key == "codec" else TextEncoderSpec))
    except SpecError:  # of a plugin that is not here
        return dict(kept)
