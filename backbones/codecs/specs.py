"""Specs of the built-in codecs; light: no torch, no diffusers."""

from __future__ import annotations

from attrs import field, frozen

from ...core.spec import CodecSpec, doc, in_


@frozen(kw_only=True)
class Dct(CodecSpec):
    """A weightless causal codec: an orthonormal 3D DCT over 4×8×8 blocks, strongest kept."""

    channels: int = field(
        default=48,
        validator=in_((16, 48)),
        metadata=doc("coefficients kept of each block: 16 or 48"),
    )
