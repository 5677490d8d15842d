"""Specs of the built-in text encoders; light: no torch, no transformers."""

from __future__ import annotations

from attrs import field, frozen

from ...core.spec import TextEncoderSpec, doc, ge


@frozen(kw_only=True)
class Bytes(TextEncoderSpec):
    """A weightless text encoder: fixed vectors of bytes and places."""

    width: int = field(default=64, validator=ge(2), metadata=doc("width E of an embedding, ≥ 2"))
    length: int = field(
        default=64, validator=ge(1), metadata=doc("bytes that are read; the rest is cut, ≥ 1")
    )
