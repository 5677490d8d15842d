"""Batches: windows of several clips side by side."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from ..history import History
from ..text import Text


@frozen(eq=False, kw_only=True)
class Batch:
    """What a training step reads.

    Attributes:
        history: windows of clips, one a sample.
        text: their captions.
        names: which clips they are of.
        places: the place of each sample in the step's batch over all processes.
    """

    history: History
    text: Text
    names: tuple[str, ...]
    places: tuple[int, ...] = field()

    @places.default
    def _in_order(self) -> tuple[int, ...]:
        return tuple(range(len(self.names)))

    def to(self, device: torch.device | str) -> Batch:
        """Give the batch on `device`."""
        return attrs.evolve(self, history=self.history.to(device), text=self.text.to(device))

    def select(self, order: Sequence[int]) -> Batch:
        """Give the samples at the indices `order`, as a batch; each keeps its place."""
        return Batch(
            history=self.history.select(order),
            text=self.text.select(order),
            names=tuple(self.names[i] for i in order),
            places=tuple(self.places[i] for i in order),
        )

    def deal(self, count: int) -> list[Batch]:
        """Give the batch dealt into `count` micro-batches of equal size.

        Raises:
            ValueError: the samples cannot be dealt evenly.
        """
        if len(self.names) % count:
            raise ValueError(f"{len(self.names)} samples cannot be dealt into {count} equal parts")
        return [self.select(range(k, len(self.names), count)) for k in range(count)]


def collate(
    histories: Sequence[History],
    texts: Sequence[Text],
    names: Sequence[str],
    places: Sequence[int] | None = None,
) -> Batch:
    """Give one batch of single samples; shorter histories are padded by zeros at their end."""
    latents = pad_time([history.latents for history in histories])
    lr = {rate: pad_time([h.lr[rate] for h in histories]) for rate in histories[0].lr}
    whole = histories[0].pixels is not None
    history = History(
        latents=latents,
        lr=lr,
        start=torch.cat([history.start for history in histories]),
        length=torch.cat([history.length for history in histories]),
        pixels=pad_time([h.pixels for h in histories if h.pixels is not None]) if whole else None,
        cuts=tuple(c for h in histories for c in h.cuts) if all(h.cuts for h in histories) else (),
    )
    return Batch(
        history=history,
        text=stack_texts(texts),
        names=tuple(names),
        places=tuple(range(len(names)) if places is None else places),
    )


def pad_time(tensors: Sequence[Tensor]) -> Tensor:
    """Give tensors `[1, C, T, ...]` of different T as one batch, zeros behind the shorter."""
    longest = max(tensor.shape[2] for tensor in tensors)

    def pad(tensor: Tensor) -> Tensor:
        rest = longest - tensor.shape[2]
        shape = (*tensor.shape[:2], rest, *tensor.shape[3:])
        return torch.cat([tensor, tensor.new_zeros(shape)], dim=2) if rest else tensor

    return torch.cat([pad(tensor) for tensor in tensors])


def stack_texts(texts: Sequence[Text]) -> Text:
    """Give texts of one length as one batch."""
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return Text(
        embeddings=torch.cat([text.embeddings for text in texts]),
        mask=torch.cat([text.mask for text in texts]),
        pooled=torch.cat(pooled) if pooled else None,
    )
