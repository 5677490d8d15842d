"""Batches: windows of several clips side by side."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..history import History
from ..text import Text


@frozen(eq=False, kw_only=True)
class Batch:
    """What a training step reads: histories, captions, and which clips they are of."""

    history: History
    text: Text
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """Give the batch on `device`."""
        return attrs.evolve(self, history=self.history.to(device), text=self.text.to(device))


def collate(histories: Sequence[History], texts: Sequence[Text], names: Sequence[str]) -> Batch:
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
    )
    return Batch(history=history, text=stack_texts(texts), names=tuple(names))


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
