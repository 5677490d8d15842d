"""A backbone: the spec of a small LTX-Video, and the hook; light, as every command reads it."""

from attrs import field, frozen

from longtake.authors import (
    Bytes,
    Dct,
    DiTSpec,
    Geometry,
    Plugin,
    Size3,
    count_field,
    doc,
    impl,
    in_,
    instance_of,
    number_field,
)


@frozen(kw_only=True)
class TinyLtx(DiTSpec):
    """The real LTX-Video transformer with small numbers; its first projection is a linear."""

    heads: int = count_field(2, "attention heads")
    head_width: int = count_field(16, "width of a head")
    layers: int = count_field(2, "transformer blocks")
    fps: float = number_field(8.0, "frames a second")
    shift: float = number_field(3.0, "timestep shift of sampling and training")
    rotary: str = field(
        default="centre", validator=in_(("centre",)), metadata=doc("place of a memory token")
    )
    codec: Dct = field(
        default=Dct(channels=16), validator=instance_of(Dct), metadata=doc("of its latents")
    )
    text_encoder: Bytes = field(
        default=Bytes(width=8, length=8), validator=instance_of(Bytes), metadata=doc("of prompts")
    )

    @property
    def geometry(self):
        return Geometry(
            channels=self.codec.channels, vae_stride=self.codec.stride, fps=self.fps,
            patch=Size3(time=1, height=1, width=1), blocks=self.layers,
            width=self.heads * self.head_width,
        )  # fmt: skip

    @property
    def config(self):
        """Diffusers' config of the model."""
        return {
            "in_channels": self.codec.channels, "out_channels": self.codec.channels,
            "num_attention_heads": self.heads, "attention_head_dim": self.head_width,
            "cross_attention_dim": self.heads * self.head_width, "num_layers": self.layers,
            "caption_channels": self.text_encoder.width,
        }  # fmt: skip


@impl
def longtake_backbones():
    record = {"summary": "LTX-Video with small numbers", "spec": TinyLtx}
    return [Plugin(name="tiny-ltx", target="longtake_pool.ltx_model:LtxBackbone", **record)]
