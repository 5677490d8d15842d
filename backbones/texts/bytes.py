"""A weightless text encoder: bytes and their places as fixed vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from einops import rearrange
from torch import Tensor

from ...core.interfaces.text_encoder import TextEncoder
from ...core.values.text import Text
from .specs import Bytes

BEGIN = 256  # the code after the 256 bytes
_GOLDEN = (math.sqrt(5) - 1) / 2


class ByteEncoder(TextEncoder[Bytes]):
    """Each UTF-8 byte as a fixed vector of itself and its place, without weights or download.

    Every prompt starts with a begin token, so that the empty prompt has one real token too:
    attention over no token at all is undefined (a masked softmax gives NaN, and a masked mean
    divides by zero), and guidance reads the empty prompt at every step. Values have a variance
    of about 1.
    """

    def encode(self, prompts: Sequence[str]) -> Text:
        """Return float32 embeddings `[B, 1 + length, E]`, zero where the mask is False.

        With `pooled` in the spec, each prompt has one more vector of that width. Bytes beyond
        `length` are cut. Any `str` is legal, lone surrogates too.
        """
        places = 1 + self.spec.length
        codes = torch.zeros(len(prompts), places, dtype=torch.int64)
        mask = torch.zeros(len(prompts), places, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            row_codes = [BEGIN, *prompt.encode("utf-8", "surrogatepass")[: self.spec.length]]
            codes[row, : len(row_codes)] = torch.tensor(row_codes)
            mask[row, : len(row_codes)] = True
        embeddings = _vectors(codes, mask, self.spec.width)
        pooled = _pooled(codes, mask, self.spec.pooled) if self.spec.pooled else None
        return Text(embeddings=embeddings, mask=mask, pooled=pooled)

    def unread(self, prompts: Sequence[str]) -> list[str]:
        """Return what lies beyond `length` bytes, with a character that is cut in two."""
        return [self._beyond(prompt) for prompt in prompts]

    def _beyond(self, prompt: str) -> str:
        sizes = accumulate(len(letter.encode("utf-8", "surrogatepass")) for letter in prompt)
        return prompt[sum(size <= self.spec.length for size in sizes) :]

    @property
    def identity(self) -> str:
        """Name, version of the formula, and the fields."""
        pooled = f"+{self.spec.pooled}" if self.spec.pooled else ""
        return f"bytes-1-{self.spec.width}x{self.spec.length}{pooled}"


def _vectors(codes: Tensor, mask: Tensor, width: int) -> Tensor:
    both = byte_vectors(width)[codes] + place_vectors(codes.shape[1], width)
    return (both / math.sqrt(2) * mask[..., None]).float()  # [B, L, E]


def _pooled(codes: Tensor, mask: Tensor, width: int) -> Tensor:
    """Return one vector a prompt `[B, E']`: the mean of its tokens'."""
    return _vectors(codes, mask, width).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def byte_vectors(width: int) -> Tensor:
    """Return a vector of every code `[257, E]`, float64, of mean square 1 (E even).

    Waves over the code whose frequencies are squares times the golden ratio: they fill the circle
    without a pattern, so that two codes are far from parallel (at width 64: |cos| < 0.43).
    """
    turns = torch.arange(1, (width + 1) // 2 + 1, dtype=torch.float64).square() * _GOLDEN % 1.0
    return _waves(torch.arange(BEGIN + 1), 2 * math.pi * turns, width)


def place_vectors(places: int, width: int) -> Tensor:
    """Return a vector of every place `[L, E]`, float64: wavelengths from 2π to 20,000π in steps.

    Source: Vaswani et al. 2017, §3.5, times √2.
    """
    pairs = torch.arange((width + 1) // 2, dtype=torch.float64)
    return _waves(torch.arange(places), 10_000.0 ** (-2 * pairs / width), width)


def _waves(points: Tensor, frequencies: Tensor, width: int) -> Tensor:
    angles = points[:, None].to(torch.float64) * frequencies
    pairs = rearrange([angles.sin(), angles.cos()], "pair point wave -> point (wave pair)")
    return math.sqrt(2) * pairs[:, :width]
