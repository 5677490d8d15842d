"""Text: prompts as embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from attrs import frozen
from jaxtyping import Bool, Float
from torch import Tensor


@frozen(eq=False, kw_only=True)
class Text:
    """Embedded prompts, as a backbone's `context` reads them.

    Attributes:
        embeddings: `[B, L, E]`, zero where `mask` is False (Wan reads the zeros as they are).
        mask: `[B, L]`, True on real text tokens (HunyuanVideo's token refiner reads it).
        pooled: `[B, E']`, one vector a prompt (HunyuanVideo: CLIP's), or None (Wan).
        image: `[B, I, V]`, embeddings of a picture beside the prompt (FramePack: SigLIP's last
            hidden states of the first frame), or None; no text encoder here gives any.
    """

    embeddings: Float[Tensor, "B L E"]
    mask: Bool[Tensor, "B L"]
    pooled: Float[Tensor, "B G"] | None = None
    image: Float[Tensor, "B I V"] | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Text:
        """Return the same text on `device`, the floats as `dtype`."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return attrs.evolve(
            self,
            embeddings=self.embeddings.to(device, dtype),
            mask=self.mask.to(device),
            pooled=pooled,
            image=None if self.image is None else self.image.to(device, dtype),
        )

    def where(self, keep: Bool[Tensor, " B"], other: Text) -> Text:
        """Return this text where `keep` is True and `other` (of one prompt or as many) elsewhere.

        A picture is no part of the prompt: it stays.
        """
        at = keep.to(self.embeddings.device)
        pooled = self.pooled
        if pooled is not None and other.pooled is not None:
            pooled = torch.where(at[:, None], pooled, other.pooled)
        return Text(
            embeddings=torch.where(at[:, None, None], self.embeddings, other.embeddings),
            mask=torch.where(at[:, None], self.mask, other.mask),
            pooled=pooled,
            image=self.image,
        )

    def select(self, order: Sequence[int]) -> Text:
        """Return the prompts in the order of the indices `order`."""
        index = torch.as_tensor(order, dtype=torch.int64)
        pooled = None if self.pooled is None else self.pooled[index]
        return Text(
            embeddings=self.embeddings[index],
            mask=self.mask[index],
            pooled=pooled,
            image=None if self.image is None else self.image[index],
        )
