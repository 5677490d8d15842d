"""A backbone: LTX-Video reads memory. Without memory it is diffusers' model to the bit."""

import attrs
from diffusers import LTXVideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformerBlock
from einops import rearrange

from longtake.authors import (
    BlockList,
    Family,
    RotaryTable,
    TwoStreamBlock,
    TwoStreamDiT,
    join_heads,
    project_heads,
)

from .ltx import TinyLtx

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEARS = {
    "attention": tuple(f"attn1.{name}" for name in ATTENTION),
    "cross-attention": tuple(f"attn2.{name}" for name in ATTENTION),
    "feed-forward": ("ff.net.0.proj", "ff.net.2"),
}
BLOCKS = "transformer_blocks"
NAMES = {name: (name,) for names in LINEARS.values() for name in names}  # as in the release


class LtxBlock(TwoStreamBlock, LTXVideoTransformerBlock):
    """LTX's block: what is before its self-attention, and what is after it."""

    def project(self, stream, query=True):
        shift, scale, *gates = (self.scale_shift_table + stream.modulation).unbind(dim=2)
        x = self.norm1(stream.hidden) * (1 + scale) + shift
        return project_heads(self.attn1, x, stream, gates, query)

    def after_attention(self, stream, projections, read, text=None, features=None):
        gate, shift, scale, ff_gate = projections.gates
        hidden = stream.hidden + join_heads(self.attn1, read) * gate
        if text is not None:
            prompts, bias = text
            hidden = hidden + self.attn2(hidden, prompts, bias)
        hidden = self.read_features(hidden, features, self.attn2)
        return hidden + self.ff(self.norm2(hidden) * (1 + scale) + shift) * ff_gate


class LtxBackbone(TwoStreamDiT, LTXVideoTransformer3DModel):
    """LTX-Video with memory."""

    spec_class = TinyLtx
    diffusers_class = "LTXVideoTransformer3DModel"
    block_class, block_lists, linears = LtxBlock, (BLOCKS,), LINEARS
    lora_family = Family(
        network="networks.lora",
        lists=(BlockList(diffusers=BLOCKS, original=BLOCKS, linears=NAMES),),
    )

    @property
    def first_projection(self):
        return self.proj_in

    @property
    def text_width(self):
        return self.config.caption_channels

    def embed_time(self, t, like):
        """Give the embedding [B, 1 or N, D] and the modulation [B, 1 or N, 6, D]."""
        steps = self.in_steps(t).to(like.device).flatten()
        modulation, embedding = self.time_embed(steps, hidden_dtype=like.dtype)
        batch = t.shape[0]
        modulation = rearrange(modulation, "(b n) (six d) -> b n six d", b=batch, six=6)
        return rearrange(embedding, "(b n) d -> b n d", b=batch), modulation

    def project_out(self, hidden, embedding):
        shift, scale = (self.scale_shift_table + embedding[:, :, None]).unbind(dim=2)
        return self.proj_out(self.norm_out(hidden) * (1 + scale) + shift)

    def _prepare_text(self, text):
        text = text.to(self.device, self.dtype)
        return attrs.evolve(text, embeddings=self.caption_projection(text.embeddings))

    def block_text(self, text):
        return text.embeddings, (1 - text.mask[:, None].to(text.embeddings.dtype)) * -10000.0

    def _rotary_table(self, positions, extents):
        """LTX rotates by seconds and pixels, all heads in one row of angles."""
        stride, fps = self.geometry.vae_stride, self.geometry.fps
        scale = positions.new_tensor([stride.time / fps, stride.height, stride.width]).float()
        places = rearrange(positions.float() * scale, "b n axes -> b axes n")
        cos, sin = self.rope(places, video_coords=places)
        pairs = (rearrange(x[..., ::2], "b n (h w) -> b n h w", h=self.config.num_attention_heads)
                 for x in (cos, sin))  # fmt: skip
        return RotaryTable(*pairs)

    @property
    def _rotary_axes(self):
        raise NotImplementedError("_rotary_table says all")
