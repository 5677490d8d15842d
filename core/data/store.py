"""Latent store: a folder of cached clips, read by windows (design §2, conventions A).

store.json                        what it was made with
index/<rank>-of-<world>.jsonl     one line a clip, one file a process; the newest line counts
clips/<id>.safetensors            latents, lr/<rate>, pixels
rates/<rate>/<id>.safetensors     LR latents of a rate that was added later
texts/<sha256>.safetensors        embedded prompts, "" among them, shared by clips
gone.json                         videos that the last `cache` no longer found, where there are any

Training reads latents and embedded prompts, so the machine that trains needs neither the VAE nor
the text encoder: the header says by which specs the store was made (`check_fits`).
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
from ..tools.files import disk_errors, open_tensors, read_json_lines, read_object, write_json
from ..values.grid import Geometry, Rate, shared_period
from ..values.history import History, lr_between
from ..values.text import Text
from .captions import INSTANT, Caption, caption_at, caption_nearest
from .texts import prompt_path, read_embeddings
from .variants import suffix

STORE_KIND = "latent store (make one with `longtake cache`)"  # what messages call it
FORMAT = 2
IDENTITY = ("codec", "text", "channels", "fps")
SPECS = "specs"  # in a store's header: of the codec and of the text encoder
GONE = "gone.json"
NO_FRAMES = "the store keeps no frames: cache with --set cache.pixels=true"
MOST_NAMED = 5  # clips named in a message
RARE: dict[str, Any] = {"reverse": False, "speed": 1.0, "photos": (), "photo_marks": ()}


@frozen(kw_only=True)
class Record:
    """One clip of a store, as a line of its index says.

    Attributes:
        id: names its file; `mirror` marks the mirrored copy of a video, `reverse` one that runs
            backwards, `speed` one that is faster: its variants (`longtake.core.data.variants`).
        source, fingerprint: the video or the film that it was made of, the same for its variants.
        latents, height, width: its latent size; `frames` and `fps` its video's, as cached.
        captions: its prompts, each with the seconds it is about.
        cuts: seconds of its hard cuts; None where they were not looked for.
        rates: of the LR latents inside the clip's file; `added` of those in files of their own.
        placement: how frames were resized and cropped.
        revision: of several lines of a clip, the highest counts.
        photos: the photographs that it shows, where it is a film; none: it is a video.
        photo_marks: the fingerprints of their files.
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
    reverse: bool = False
    speed: float = 1.0
    photos: tuple[str, ...] = ()
    photo_marks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the source without its folder and suffix."""
        return Path(self.source).name if self.photos else Path(self.source).stem

    @property
    def original(self) -> bool:
        """Whether it shows its video as it is: no variant to train on."""
        return not suffix(self)

    @property
    def original_id(self) -> str:
        """The id of the clip that it is a variant of; its own where it is none."""
        return self.id.removesuffix(suffix(self))

    @property
    def origins(self) -> frozenset[str]:
        """The fingerprints of all files that it shows: two clips that share none are unrelated."""
        return frozenset(self.photo_marks or (self.fingerprint,))

    @property
    def seconds(self) -> float:
        """The length of the clip."""
        return self.frames / self.fps

    @property
    def caption(self) -> str:
        """The caption that covers most of the clip, "" where there is none."""
        return caption_at(self.captions, 0.0, self.seconds)

    def line(self) -> dict[str, Any]:
        """Return the record as a line of the index; what only films and variants have, for those.

        So lines of other clips, and what is computed from them, are as they were before there were
        any.
        """
        line = attrs.asdict(self)
        return {k: v for k, v in line.items() if k not in RARE or v != RARE[k]}


def clip_path(root: Path, clip: str) -> Path:
    """Return the path of a clip's tensors."""
    return root / "clips" / f"{clip}.safetensors"


def rate_path(root: Path, rate: str, clip: str) -> Path:
    """Return the path of LR latents whose rate was added after the clip was cached."""
    return root / "rates" / rate / f"{clip}.safetensors"


def read_index(root: Path) -> list[Record]:
    """Read the newest record of every clip, by id; each process of `cache` has its own file.

    Raises:
        UserError: a line is no record of a clip.
    """
    records: dict[str, Record] = {}
    for path in sorted((root / "index").glob("*.jsonl")):
        for line in read_json_lines(path):
            record = _record(line, path)
            earlier = records.get(record.id)
            if earlier is None or record.revision >= earlier.revision:
                records[record.id] = record
    return [records[key] for key in sorted(records)]


def read_gone(root: Path) -> list[str]:
    """Return the videos that `note_gone` wrote down last.

    Raises:
        UserError: the note of them is damaged.
    """
    path = root / GONE
    if not path.exists():
        return []
    return list(read_object(path, "note of `longtake cache`", "sources")["sources"])


def note_gone(root: Path, sources: list[str]) -> None:
    """Write down the videos that `cache` no longer found, for whoever trains on their clips.

    Raises:
        UserError: the disk refuses.
    """
    path = root / GONE
    if sources:
        write_json(path, {"sources": sources})
        return
    with disk_errors(path):
        path.unlink(missing_ok=True)


def _record(line: Mapping[str, Any], path: Path) -> Record:
    try:
        lists = {name: tuple(line[name]) for name in ("rates", "added")}
        lists |= {name: tuple(line.get(name, ())) for name in ("photos", "photo_marks")}
        cuts = None if line["cuts"] is None else tuple(line["cuts"])
        captions = tuple(Caption(**caption) for caption in line["captions"])
        return Record(**{**line, **lists, "cuts": cuts, "captions": captions})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: a line is no record of a clip: {error}") from None


@define
class Store:
    """An open store; reading is lazy, by slices."""

    root: Path
    header: dict[str, Any]
    records: list[Record] = field(repr=False)

    @classmethod
    def open(cls, root: Path) -> Self:
        """Open the store in a folder.

        Raises:
            UserError: there is none, it is of another format, or it holds no clip.
        """
        header = read_object(root / "store.json", STORE_KIND, "format", *IDENTITY, "stride")
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

    def check(self, *, identity: Mapping[str, Any], rates: Iterable[Rate]) -> None:
        """Refuse an experiment that the store was not made for.

        Args:
            identity: values of `IDENTITY` that the experiment has; those left out may be any.
            rates: LR rates that every clip must have.

        Raises:
            UserError: codec, text encoder, channels or fps differ, or clips have not all rates.
        """
        for key, value in identity.items():
            if key in IDENTITY and self.header.get(key) != value:
                raise UserError(
                    f"{self.root} was cached with {key} {self.header.get(key)}, the experiment has "
                    f"{value}"
                )
        missing = sorted(str(rate) for rate in set(rates) - self.rates)
        if missing:
            every = json.dumps(sorted(map(str, self.rates)) + missing)
            raise UserError(
                f"{self._clips_without(missing)}: add them, run `longtake cache` on this store "
                f"and its videos again with --set cache.rates='{every}'"
            )

    def gone(self) -> dict[str, str]:
        """Return the videos whose clips are here though the last `cache` no longer found them.

        Each with the name that the same video has now, "" where it has none: it was deleted.

        Raises:
            UserError: the note of them is damaged.
        """
        sources = set(read_gone(self.root))
        now = {r.fingerprint: r.source for r in self.records if r.source not in sources}
        old = {r.source: r.fingerprint for r in self.records if r.source in sources}
        return {source: now.get(mark, "") for source, mark in sorted(old.items())}

    def apply_margin(self, codec: Codec[CodecSpec]) -> None:
        """Set the codec's decode margin to the one that `cache` measured with it, if it did."""
        measured = self.header.get("measured")
        if measured:
            codec.use_margin(int(measured["margin"]))

    def _clips_without(self, rates: list[str]) -> str:
        """Return a message of which clips have no LR latents at some of the rates."""
        ids = [r.id for r in self.records if not set(rates) <= {*r.rates, *r.added}]
        message = f"{self.root} has no LR latents at {', '.join(rates)}"
        if len(ids) == len(self.records):
            return message
        named = ", ".join(ids[:MOST_NAMED]) + (", ..." if len(ids) > MOST_NAMED else "")
        return f"{message} of {len(ids)} of {len(self.records)} clips ({named})"

    def window(
        self, record: Record, start: int, length: int, rates: Iterable[Rate], pixels: bool = False
    ) -> History:
        """Read latents start … start + length − 1 of a clip as a history of one sample.

        Args:
            record: the clip.
            start: first latent of the window, a multiple of every rate's time step.
            length: its latents.
            rates: the LR latents to read beside them.
            pixels: whether to read the frames, too.

        Raises:
            UserError: a file is missing or damaged, or the store has no frames.
            ValueError: the window does not start on the grid of the rates.
        """
        rates = tuple(rates)
        if start % shared_period(rates):
            raise ValueError(f"a window cannot start at latent {start} with rates {rates}")
        with open_tensors(clip_path(self.root, record.id)) as file:
            latents = file.get_slice("latents")[:, start : start + length].float()
            inside = [rate for rate in rates if str(rate) not in record.added]
            lr = {rate: _lr_slice(file, f"lr/{rate}", rate, start, length) for rate in inside}
            frames = _pixel_slice(file, start, length, self.stride) if pixels else None
        for rate in set(rates) - set(inside):
            with open_tensors(rate_path(self.root, str(rate), record.id)) as file:
                lr[rate] = _lr_slice(file, "latents", rate, start, length)
        return History(
            latents=latents[None],
            lr={rate: lr[rate] for rate in rates},
            start=torch.tensor([start]),
            pixels=frames,
            cuts=self._cuts(record, start, length),
        )

    def _cuts(self, record: Record, start: int, length: int) -> tuple[tuple[float, ...], ...]:
        begin, end = self.span(start, length)
        return () if record.cuts is None else (tuple(c for c in record.cuts if begin < c < end),)

    def cuts_before(self, record: Record, start: int, past: int) -> tuple[tuple[float, ...], ...]:
        """Return the cuts that a past of a window knows: those in it, and one at its very end.

        As `History.cuts` has them, seconds of one sample; none where they were not looked for.
        """
        if record.cuts is None or not past:
            return () if record.cuts is None else ((),)
        begin, end = self.span(start, past)
        return (tuple(c for c in record.cuts if begin < c <= end + INSTANT),)

    def span(self, start: int, length: int) -> tuple[float, float]:
        """Return the seconds of the video that latents start … start + length − 1 stand for."""
        last = frames_of(start + length - 1, self.stride)
        return frames_of(start, self.stride).start / self.fps, last.stop / self.fps

    def text(self, record: Record, start: int = 0, length: int | None = None) -> Text:
        """Read the embedded caption that covers most of a window (default: of the whole clip).

        Where no caption covers any of it, that is the empty prompt.

        Args:
            record: the clip.
            start: first latent of the window.
            length: its latents; None: to the end of the clip.
        """
        count = record.latents - start if length is None else length
        prompt = caption_at(record.captions, *self.span(start, count))
        return read_embeddings(prompt_path(self.root, prompt))

    def text_nearest(self, record: Record, start: int, length: int) -> Text:
        """Read the embedded caption that covers most of a window, or else is nearest to it.

        Args:
            record: the clip.
            start: first latent of the window.
            length: its latents.
        """
        prompt = caption_nearest(record.captions, *self.span(start, length))
        return read_embeddings(prompt_path(self.root, prompt))

    def frames(self, record: Record, first: int, last: int) -> Tensor:
        """Read video frames first … last of a clip, uint8 `[1, 3, n, P, Q]`.

        Raises:
            UserError: the clip's file is missing or damaged, or the store has no frames.
        """
        with open_tensors(clip_path(self.root, record.id)) as file:
            if "pixels" not in file.keys():
                raise UserError(NO_FRAMES)
            frames: Tensor = file.get_slice("pixels")[:, first : last + 1]
        return frames[None]

    def null_text(self) -> Text:
        """Read the embedding of the empty prompt."""
        return read_embeddings(prompt_path(self.root, ""))


def _lr_slice(file: Any, name: str, rate: Rate, start: int, length: int) -> Tensor:
    first = start // rate.time
    count = lr_between(rate, 0, length).stop
    latents: Tensor = file.get_slice(name)[:, first : first + count]
    return latents.float()[None]


def _pixel_slice(file: Any, start: int, length: int, stride: int) -> Tensor:
    if "pixels" not in file.keys():
        raise UserError(NO_FRAMES)
    first = start * stride
    frames: Tensor = file.get_slice("pixels")[:, first : first + 1 + stride * (length - 1)]
    return frames[None]


def check_format(root: Path, header: Mapping[str, Any]) -> None:
    """Refuse a store that another version of the program made.

    Raises:
        UserError: its format is not the one of this version.
    """
    if header["format"] != FORMAT:
        raise UserError(
            f"{root} is a store of format {header['format']}; this version reads {FORMAT}"
        )


def store_identity(geometry: Geometry, *, codec: str, text: str, fps: float) -> dict[str, Any]:
    """Return the part of a store's header that a run of `cache` or of training must share.

    Args:
        geometry: of the backbone.
        codec: the codec's identity; `text` the text encoder's.
        text: the same.
        fps: frames a second of every clip.
    """
    return {
        "format": FORMAT,
        "codec": codec,
        "text": text,
        "channels": geometry.channels,
        "stride": geometry.vae_stride.time,
        "fps": fps,
    }


def header_specs(backbone: BackboneSpec) -> dict[str, Any]:
    """Return the specs that a store's header keeps beside the identities, as JSON."""
    return {"codec": to_json(backbone.codec), "text": to_json(backbone.text_encoder)}


def check_fits(
    experiment: Experiment,
    store: Store,
    rates: Iterable[Rate],
    *,
    codec: Codec[CodecSpec] | None = None,
) -> None:
    """Refuse a store made with another codec, text encoder or frame rate, or without some rate.

    Of a codec or text encoder whose weights are on this machine the weights themselves are
    compared. Where they are not, nothing is fetched: the specs must be the same, `weights` as it
    is written included. Where a header has no specs, the weights are always compared.

    Args:
        experiment: what is to read it.
        store: a latent store.
        rates: LR rates that it must have.
        codec: the experiment's, where it was built to decode: then its weights are compared,
            fetched or not.

    Raises:
        UserError: it does not fit, or weights that must be compared cannot be found.
    """
    backbone, specs = experiment.backbone, store.header.get(SPECS, {})
    identity: dict[str, Any] = {}
    for key, spec, built in (
        ("codec", backbone.codec, codec),
        ("text", backbone.text_encoder, None),
    ):
        plugin = build(spec) if built is None else built
        if key not in specs or plugin.available_offline or built is not None:
            identity[key] = plugin.identity
        else:
            _check_spec(store, key, spec, specs[key])
    identity |= {"channels": backbone.geometry.channels, "fps": backbone.geometry.fps}
    store.check(identity=identity, rates=rates)


def _check_spec(store: Store, key: str, spec: PluginSpec, header_spec: Any) -> None:
    stored, own = _with_defaults(header_spec, key), to_json(spec)
    different = [name for name in {**own, **stored} if stored.get(name) != own.get(name)]
    if different:
        where, name = "codec" if key == "codec" else "text_encoder", different[0]
        raise UserError(
            f"{store.root} was cached with backbone.{where}.{name} {stored.get(name)}, the "
            f"experiment has {own.get(name)}, whose weights are not here to compare: name the "
            "same, or fetch them"
        )


def _with_defaults(header_spec: Any, key: str) -> dict[str, Any]:
    """Return a spec of a header as JSON; fields that it does not have are at their defaults."""
    try:
        return to_json(from_json(header_spec, CodecSpec if key == "codec" else TextEncoderSpec))
    except SpecError:  # of a plugin that is not here
        return dict(header_spec)
