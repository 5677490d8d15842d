"""Text encoder: prompts to the embeddings that a backbone was trained on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..errors import ContractError, plugin_label
from ..values.text import Text
from .checks import check_shape, check_type
from .spec import TextEncoderSpec

S = TypeVar("S", bound=TextEncoderSpec)


class TextEncoder(ABC, Generic[S]):
    """Turns prompts into the embeddings that a backbone was trained on; built as `cls(spec)`.

    A plugin answers `encode` and `identity`; where it holds weights, also `release` and
    `available_offline`; where it reads only so much of a prompt, also `unread`.

    Building one loads nothing: weights come with the first `encode`, and stay until `release`.
    The encoders of real backbones are as large as these, so whoever encodes takes all prompts
    together and releases at once. The empty prompt "" is legal everywhere: it is what guidance
    and text dropout read.
    """

    def __init__(self, spec: S) -> None:
        self.spec = spec
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> TextEncoder[S]:
        """Run on `device` from the next loading of weights on; return the encoder itself."""
        self.release()
        self.device = torch.device(device)
        return self

    def release(self) -> None:
        """Free the weights, if there are any; the next `encode` loads them again."""
        return None

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Text:
        """Return the embeddings of prompts on the CPU, all of one length L; longer ones are cut.

        Raises:
            UserError: the weights are missing, damaged or of another model.
        """

    def unread(self, prompts: Sequence[str]) -> Sequence[str] | None:
        """Return of each prompt the end that `encode` cuts; "" where it reads all.

        So that people are told. A prompt may be shown as the encoder reads it, such as without
        line ends. No weights are loaded; what splits text into tokens is, and is fetched as for
        `encode`.

        Returns:
            A text a prompt; None, as here: this encoder cannot say.

        Raises:
            UserError: what is needed is missing or damaged.
        """
        return None

    @property
    @abstractmethod
    def identity(self) -> str:
        """Name of the encoder and its weights: stores with another identity are refused.

        It is known without loading weights.
        """

    @property
    def available_offline(self) -> bool:
        """Whether weights are on this machine, if it needs any: nothing must be fetched then."""
        return True


def embed(encoder: TextEncoder[TextEncoderSpec], prompts: Sequence[str]) -> Text:
    """Return the embeddings of prompts, without gradients, their shapes checked.

    Raises:
        ContractError: they are no text, or not one row a prompt.
    """
    with torch.no_grad():
        text = encoder.encode(prompts)
    check_type(encoder, "its text", text, Text)
    check_type(encoder, "embeddings", text.embeddings, Tensor)
    count, (length, width) = len(prompts), (*text.embeddings.shape, 0, 0, 0)[1:3]
    check_shape(encoder, "embeddings", text.embeddings, (count, length, width), "B L E")
    check_shape(encoder, "mask", text.mask, (count, length), "B L")
    if text.pooled is not None:
        check_type(encoder, "pooled", text.pooled, Tensor)
        shape = (count, text.pooled.shape[-1] if text.pooled.dim() else 0)
        check_shape(encoder, "pooled", text.pooled, shape, "B G")
    return text


def unread_of(encoder: TextEncoder[TextEncoderSpec], prompts: Sequence[str]) -> dict[str, str]:
    """Return the end that is cut of each prompt that is; empty where the encoder cannot say.

    Raises:
        ContractError: the encoder gives no text, or not one a prompt.
    """
    wanted = list(dict.fromkeys(prompts))
    ends = encoder.unread(wanted)
    if ends is None:
        return {}
    if isinstance(ends, str) or [type(end) for end in ends] != [str] * len(wanted):
        told = f"one text for each of {len(wanted)} prompts, or None"
        raise ContractError(f"{plugin_label(encoder)}: unread must give {told}")
    return {prompt: end for prompt, end in zip(wanted, ends, strict=True) if end}


def embed_all(encoder: TextEncoder[TextEncoderSpec], prompts: Sequence[str]) -> Text:
    """Return the embeddings of all prompts of a job; the encoder's weights are freed again."""
    try:
        return embed(encoder, prompts)
    finally:
        encoder.release()
