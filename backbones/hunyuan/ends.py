"""What happens before and after HunyuanVideo's blocks: text, time and the head, without state."""

from __future__ import annotations

import functools
import logging
from typing import Any

import attrs
import torch
from torch import Tensor

from ...core.shapes import Valid
from ...core.text import Text
from .attend import View

STEPS = 1000.0  # HunyuanVideo counts time, and guidance, in thousandths


def packed(text: Text) -> Text:
    """Give the prompts with their real tokens first, cut to the longest prompt.

    HunyuanVideo's text has no positions, so only what is read counts; diffusers carries the
    padding along and masks it in every block.

    Raises:
        ValueError: a prompt has no real token, or no pooled vector.
    """
    if text.pooled is None:
        raise ValueError("HunyuanVideo reads a pooled vector of each prompt: this text has none")
    lengths = text.mask.sum(dim=1)
    if not bool((lengths > 0).all()):
        raise ValueError("a prompt has no real token: attention over nothing is undefined")
    if bool(text.mask.all()):
        return text
    order = text.mask.int().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    index = order[..., None].expand(-1, -1, text.embeddings.shape[-1])
    return attrs.evolve(
        text,
        embeddings=text.embeddings.gather(1, index.to(text.embeddings.device)),
        mask=text.mask.gather(1, order),
    )


def view_of(view: View, valid: Valid | None, targets: int, words: Tensor | None) -> View:
    """Give a view with the real keys of memory `[B, M]`, targets and text `[B, L]`.

    A memory of padding alone keeps all of it for itself, because a softmax over nothing is NaN;
    no one else sees it.
    """
    given = [x for x in (valid, words) if x is not None]
    if all(bool(x.all()) for x in given):
        return view
    announce_ragged()
    ones = given[0].new_ones(given[0].shape[0], targets)
    parts = [x.to(ones.device) for x in (valid, ones, words) if x is not None]
    view = view._replace(all=_places(torch.cat(parts, dim=1)))
    if valid is None or bool(valid.all()):
        return view
    return view._replace(memory=_places(valid | ~valid.any(dim=1, keepdim=True)))


def _places(real: Tensor) -> tuple[Tensor, ...]:
    return tuple(row.nonzero()[:, 0] for row in real)


@functools.cache
def announce_ragged() -> None:
    """Say once which way was taken."""
    logging.getLogger(__name__).info(
        "prompts or memories of different lengths in one batch: attention runs sample by sample, "
        "without masks; batches of one length are faster where samples are small"
    )


def embed_time(embedder: Any, t: Tensor, pooled: Tensor, guidance: float | None) -> Tensor:
    """Give the embedding `[B, D]` of time, prompt and guidance, as diffusers makes it.

    Args:
        embedder: diffusers' `HunyuanVideoConditionEmbedding`.
        t: `[B]`, 0 to 1.
        pooled: `[B, G]`.
        guidance: the scale that the model was distilled on; None where it knows none.
    """
    scale = None
    if guidance is not None:  # rounded in the model's dtype, as the pipeline does
        scale = torch.full((t.shape[0],), guidance, dtype=pooled.dtype, device=t.device) * STEPS
    time: Tensor = embedder(t.float() * STEPS, pooled, scale)[0]
    return time


def embed_clean(embedder: Any, t: Tensor, pooled: Tensor) -> Tensor:
    """Give the embedding `[B or 1, D]` of time and prompt, guidance left out.

    What diffusers' `token_replace` models use for the clean first frame, at time 0.
    """
    steps = embedder.time_proj(t.float() * STEPS).to(pooled.dtype)
    time: Tensor = embedder.timestep_embedder(steps) + embedder.text_embedder(pooled)
    return time


def unpatchify(tokens: Tensor, grid: tuple[int, ...], patch: tuple[int, int, int]) -> Tensor:
    """Give latents `[B, C, T, H, W]` of the tokens of a grid (time, rows, columns)."""
    cells = tokens.reshape(tokens.shape[0], *grid, -1, *patch)
    return cells.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
