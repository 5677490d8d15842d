"""Text: prompts as embeddings, and the encoders that make them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import attrs
import torch
from attrs import frozen
from jaxtyping import Bool, Float
from torch import Tensor

from .spec import TextEncoderSpec

S = TypeVar("S", bound=TextEncoderSpec)


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
        """Give the same text on `device`, the floats as `dtype`."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return attrs.evolve(
            self,
            embeddings=self.embeddings.to(device, dtype),
            mask=self.mask.to(device),
            pooled=pooled,
            image=None if self.image is None else self.image.to(device, dtype),
        )

    def where(self, keep: Bool[Tensor, " B"], other: Text) -> Text:
        """Give this text where `keep` is True and `other` (of one prompt or as many) elsewhere.

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
        """Give the prompts in the order of the indices `order`."""
        index = torch.as_tensor(order, dtype=torch.int64)
        pooled = None if self.pooled is None else self.pooled[index]
        return Text(
            embeddings=self.embeddings[index],
            mask=self.mask[index],
            pooled=pooled,
            image=None if self.image is None else self.image[index],
        )


class TextEncoder(ABC, Generic[S]):
    """Turns prompts into the embeddings that a backbone was trained on; built as `cls(spec)`.

    Building one loads nothing: weights come with the first `encode`, and stay until `release`.
    The encoders of real backbones are as large as these, so whoever encodes takes all prompts
    together and releases at once. The empty prompt "" is legal everywhere: it is what guidance
    and text dropout read.
    """

    def __init__(self, spec: S) -> None:
        self.spec = spec
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> TextEncoder[S]:
        """Run on `device` from the next loading of weights on, and give the encoder itself."""
        self.release()
        self.device = torch.device(device)
        return self

    def release(self) -> None:
        """Free the weights, if there are any; the next `encode` loads them again."""
        return None

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Text:
        """Give the embeddings of the prompts on the CPU, all of one length L; longer ones are cut.

        Raises:
            UserError: the weights are missing, damaged or of another model.
        """

    @property
    @abstractmethod
    def identity(self) -> str:
        """Name of the encoder and its weights: stores with another identity are refused.

        It is known without loading weights.
        """

    @property
    def at_hand(self) -> bool:
        """Whether weights are on this machine, if it needs any: nothing must be fetched then."""
        return True


def embed_all(encoder: TextEncoder[TextEncoderSpec], prompts: Sequence[str]) -> Text:
    """Give the embeddings of all prompts of a job, and free the encoder's weights again."""
    try:
        with torch.no_grad():
            return encoder.encode(prompts)
    finally:
        encoder.release()
