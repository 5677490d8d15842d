"""The contract of text encoders: shapes, masks, empty and long prompts, release."""

from __future__ import annotations

import torch

from ..interfaces.spec import TextEncoderSpec
from ..interfaces.text_encoder import TextEncoder, unread_of
from ..values.text import Text
from .samples import names_plugin, require, require_close, require_shape, require_type

PROMPTS = ("", "a cat", "ein Kätzchen schläft 猫", "long " * 4000)


@names_plugin
@torch.no_grad()
def check_text_encoder(encoder: TextEncoder[TextEncoderSpec], *, tolerance: float = 1e-4) -> None:
    """Check that a text encoder keeps the contract of `core.interfaces.text_encoder.TextEncoder`.

    Args:
        encoder: the encoder, ready to run.
        tolerance: of the greatest value, for a prompt alone against the same one in a batch.

    Raises:
        AssertionError: it does not; one line says what.
    """
    require(bool(encoder.identity), "identity is empty: stores could not tell encoders apart")
    text = encoder.encode(PROMPTS)
    _check_shapes(text)
    require(bool(text.mask.any(dim=1).all()), "a prompt has no real token: nothing to attend to")
    beyond = text.embeddings.masked_fill(text.mask[..., None], 0)
    require(not bool(beyond.any()), "embeddings are not zero where the mask is False")
    encoder.release()
    for row, prompt in enumerate(PROMPTS):
        _check_alone(encoder.encode([prompt]), text.select([row]), tolerance)
    gap = (text.embeddings[1] - text.embeddings[2]).abs().max()
    require(float(gap) > 0, "two different prompts have equal embeddings")
    _check_unread(encoder)


def _check_unread(encoder: TextEncoder[TextEncoderSpec]) -> None:
    """Check that an encoder that says what it cuts says so where it does, and only there."""
    ends = encoder.unread(PROMPTS)
    if ends is None:
        return
    known = unread_of(encoder, PROMPTS)
    require("" not in known, "unread: of the empty prompt nothing can be cut")
    longer = [PROMPTS[-1] + word for word in ("one", "two")]
    text, told = encoder.encode(longer), unread_of(encoder, longer)
    same = torch.equal(text.embeddings[0], text.embeddings[1])
    require(
        not same or len(told) == len(longer),
        'unread: "" for a prompt whose end changes no embedding',
    )
    require(
        all(end[-3:] == prompt[-3:] for prompt, end in told.items()),
        "unread: it must give the end of the prompt",
    )
    encoder.release()


def _check_shapes(text: Text) -> None:
    require_type(text, Text, "what encode gives")
    batch, length, width = len(PROMPTS), *text.embeddings.shape[-2:]
    require_shape(text.embeddings, (batch, length, width), "embeddings")
    require_shape(text.mask, (batch, length), "mask")
    require(text.mask.dtype == torch.bool, f"mask is {text.mask.dtype}, must be bool")
    for name, tensor in (("embeddings", text.embeddings), ("pooled", text.pooled)):
        where = "cpu" if tensor is None else tensor.device.type
        require(where == "cpu", f"{name} are on {where}, must be on the CPU")
    if text.pooled is not None:
        require_shape(text.pooled, (batch, text.pooled.shape[-1]), "pooled")


def _check_alone(alone: Text, batched: Text, tolerance: float) -> None:
    what = "a prompt alone and the same one in a batch"
    require_close(alone.embeddings, batched.embeddings, tolerance, f"{what}, embeddings")
    require(torch.equal(alone.mask, batched.mask), f"{what}: masks differ")
    require((alone.pooled is None) == (batched.pooled is None), f"{what}: pooled comes and goes")
    if alone.pooled is not None and batched.pooled is not None:
        require_close(alone.pooled, batched.pooled, tolerance, f"{what}, pooled")
