"""Latent store: a folder of cached clips, read by windows (design §2, conventions A).

store.json              what it was made with
index/00000.jsonl       one line a clip, one file a process
clips/<id>.safetensors  latents, lr/<rate>, text.*, pixels
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from attrs import define, field
from torch import Tensor

from ..errors import UserError
from ..files import open_tensors, read_object
from ..grid import Geometry, Rate, shared_period
from ..history import History, lr_between
from ..text import Text
from .record import Record, clip_path, read_index

FORMAT = 1
WHAT = "latent store (make one with `longtake cache`)"
IDENTITY = ("codec", "text", "channels", "fps")


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
        header = read_object(root / "store.json", WHAT, "format", *IDENTITY, "stride", "rates")
        if header["format"] != FORMAT:
            found = header["format"]
            raise UserError(f"{root} is a store of format {found}; this version reads {FORMAT}")
        records = read_index(root)
        present = [r for r in records if clip_path(root, r.id).exists()]
        if not present:
            raise UserError(f"{root} holds no clip: run `longtake cache` to its end first")
        return cls(root, header, present)

    @property
    def rates(self) -> frozenset[Rate]:
        """The LR rates that every clip has."""
        return frozenset(Rate.parse(text) for text in self.header["rates"])

    @property
    def fps(self) -> float:
        """Frames a second of every clip."""
        return float(self.header["fps"])

    def check(self, *, made_with: Mapping[str, Any], rates: Iterable[Rate]) -> None:
        """Refuse an experiment that the store was not made for.

        Raises:
            UserError: codec, text encoder, geometry or fps differ, or LR latents are missing.
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
                f"{self.root} has no LR latents at {', '.join(missing)}: cache again into another "
                f"folder with --set cache.rates='{every}'"
            )

    def window(
        self, record: Record, start: int, length: int, rates: Iterable[Rate], pixels: bool = False
    ) -> History:
        """Give latents start … start + length − 1 of a clip as a history of one sample.

        `start` must be a multiple of every rate's time step.

        Raises:
            UserError: the file is missing or damaged.
            ValueError: the window does not start on the grid of the rates.
        """
        wanted = tuple(rates)
        if start % shared_period(wanted):
            raise ValueError(f"a window cannot start at latent {start} with rates {wanted}")
        with open_tensors(clip_path(self.root, record.id)) as file:
            latents = file.get_slice("latents")[:, start : start + length].float()
            lr = {rate: _lr_slice(file, rate, start, length) for rate in wanted}
            frames = _pixel_slice(file, start, length, self.stride) if pixels else None
        return History(latents=latents[None], lr=lr, start=torch.tensor([start]), pixels=frames)

    @property
    def stride(self) -> int:
        """Video frames to a latent frame."""
        return int(self.header["stride"])

    def text(self, record: Record) -> Text:
        """Give the embedded caption of a clip."""
        return read_text(clip_path(self.root, record.id))

    def null_text(self) -> Text:
        """Give the embedding of the empty prompt."""
        return read_text(self.root / "null.safetensors")


def _lr_slice(file: Any, rate: Rate, start: int, length: int) -> Tensor:
    first = start // rate.time
    count = lr_between(rate, 0, length).stop
    part: Tensor = file.get_slice(f"lr/{rate}")[:, first : first + count]
    return part.float()[None]


def _pixel_slice(file: Any, start: int, length: int, stride: int) -> Tensor:
    if "pixels" not in file.keys():
        raise UserError("the store keeps no frames: cache with --set cache.pixels=true")
    first = start * stride
    part: Tensor = file.get_slice("pixels")[:, first : first + 1 + stride * (length - 1)]
    return part[None]


def read_text(path: Path) -> Text:
    """Give the embeddings of one prompt out of a safetensors file."""
    with open_tensors(path) as file:
        names = set(file.keys())
        return Text(
            embeddings=file.get_tensor("text.embeddings").float(),
            mask=file.get_tensor("text.mask"),
            pooled=file.get_tensor("text.pooled").float() if "text.pooled" in names else None,
        )


def text_tensors(text: Text) -> dict[str, Tensor]:
    """Give embedded prompts as named tensors for a file."""
    named = {"text.embeddings": text.embeddings, "text.mask": text.mask, "text.pooled": text.pooled}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


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
