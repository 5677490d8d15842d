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

import torch
from attrs import define, field
from torch import Tensor

from ..codec import Codec, frames_of
from ..errors import UserError
from ..files import open_tensors, read_object
from ..grid import Geometry, Rate, shared_period
from ..history import History, lr_between
from ..spec import CodecSpec
from ..text import Text
from .captions import caption_at
from .record import FORMAT, WHAT, Record, check_format, clip_path, rate_path, read_index
from .texts import read_text, text_path

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
        """Give the store in a folder.

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
        """Give which clips lack a rate, in words."""
        ids = [r.id for r in self.records if not set(rates) <= {*r.rates, *r.added}]
        told = f"{self.root} has no LR latents at {', '.join(rates)}"
        if len(ids) == len(self.records):
            return told
        named = ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")
        return f"{told} of {len(ids)} of {len(self.records)} clips ({named})"

    def window(
        self, record: Record, start: int, length: int, rates: Iterable[Rate], pixels: bool = False
    ) -> History:
        """Give latents start … start + length − 1 of a clip as a history of one sample.

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
        """Give the seconds of the video that latents start … start + length − 1 stand for."""
        last = frames_of(start + length - 1, self.stride)
        return frames_of(start, self.stride).start / self.fps, last.stop / self.fps

    def text(self, record: Record, start: int = 0, length: int | None = None) -> Text:
        """Give the embedded caption that covers most of a window (default: of the whole clip).

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
        """Give the embedding of the empty prompt."""
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
    """Give the part of a store's header that an experiment must share."""
    return {
        "format": FORMAT,
        "codec": codec,
        "text": text,
        "channels": geometry.channels,
        "stride": geometry.vae_stride.time,
        "fps": fps,
    }
