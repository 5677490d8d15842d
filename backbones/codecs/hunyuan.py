"""HunyuanVideo's VAE, streamed tile by tile in time: it is not causal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.interfaces.compressor import State
from ...core.values.shapes import Latents, Pixels
from ..weights.find import VaeRelease
from .specs import HUNYUAN_HUB, HunyuanVae
from .tiles import TimeTiles, check_frames, check_latents, check_sides
from .vae import VaeCodec

TIME, SPACE = 4, 8


class HunyuanVaeCodec(VaeCodec[HunyuanVae]):
    """diffusers' `AutoencoderKLHunyuanVideo`, as its own tiles in time encode and decode.

    Its group norms look at all frames of a tile, so a latent is final when its tile is full.
    `encode` and `decode` give what full tiles settle, which may be nothing; `encode_rest` and
    `decode_rest` what the others would be if the video ended. Together they equal one pass of
    diffusers, whose tiles these are. The state holds at most the frames of one tile, and the end
    of the one before. Latents are the mode of the posterior times the config's scaling factor.
    """

    @property
    def release(self) -> VaeRelease:
        """Which weights the spec asks for."""
        return VaeRelease(
            cls="AutoencoderKLHunyuanVideo",
            config=config(self.spec),
            defaults=config(HunyuanVae()),
            hub=HUNYUAN_HUB,
            single_file=False,
        )

    @property
    def label(self) -> str:
        """Name, and the tiles in time that latents depend on."""
        return f"hunyuan-vae-time{self.spec.tile_frames}-{self.spec.tile_step}"

    @property
    def causal(self) -> bool:
        """False: norms look at all frames of a tile."""
        return False

    @property
    def margin(self) -> int:
        """Latents of a tile beside its first: enough for the tile before, and for a full one."""
        return self.spec.tile_frames // TIME

    @property
    def margin_after(self) -> int:
        """Latents of a tile beside its first: what a latent at its beginning must see."""
        return self.spec.tile_frames // TIME

    @property
    def boundary(self) -> int:
        """Latents from a tile to the next: a slice must begin where a tile does."""
        return self.spec.tile_step // TIME

    @property
    def decode_reach(self) -> int:
        """One more than `margin`: with the tile before, whose end is blended into the next."""
        return self.margin + 1

    @property
    def encode_reach(self) -> int:
        """The same of the encoder's tiles."""
        return self.margin + 1

    def prepare(self, vae: Any) -> None:
        """Set its tiles in space."""
        tile, step = self.spec.tile, (self.spec.tile or 0) - self.spec.overlap
        if tile is not None:
            vae.enable_tiling(
                tile_sample_min_height=tile,
                tile_sample_min_width=tile,
                tile_sample_stride_height=step,
                tile_sample_stride_width=step,
            )

    def encode(self, chunk: Pixels, state: State | None = None) -> tuple[Latents, State]:
        """Return the latents that the next frames settle (maybe none), and the state after them.

        Raises:
            ValueError: not 1 + 4k frames (first) or 4k (later), or no whole cells.
            UserError: the weights cannot be loaded.
        """
        check_frames(chunk, TIME, first=state is None)
        check_sides(chunk, self.stride)
        batch, _, _, height, width = chunk.shape
        none = chunk.new_zeros(batch, self.channels, 0, height // SPACE, width // SPACE)
        with self.without_autocast():
            settled, after = self._encoding().push(self.as_computed(chunk), state)
        return self._scaled([none, *settled]), after | {"like": none}

    def encode_rest(self, state: State) -> Latents | None:
        """Return the latents of the last tiles, which are not full, as if the video ended here."""
        with self.without_autocast():
            parts = self._encoding().rest(state)
        return self._scaled([state["like"], *parts]) if parts else None

    def decode(self, chunk: Latents, state: State | None = None) -> tuple[Pixels, State]:
        """Return the pixels that the next latents settle (maybe none), and the state after them.

        Raises:
            ValueError: the chunk holds no latent, or latents of another codec.
            UserError: the weights cannot be loaded.
        """
        check_latents(chunk, self.channels)
        batch, _, _, height, width = chunk.shape
        none = chunk.new_zeros(batch, 3, 0, SPACE * height, SPACE * width)
        raw = self.as_computed(chunk.float() / self.vae.config.scaling_factor)
        with self.without_autocast():
            settled, after = self._decoding().push(raw, state)
        return _joined([none, *settled]), after | {"like": none}

    def decode_rest(self, state: State) -> Pixels | None:
        """Return the pixels of the last tiles, which are not full, as if the video ended here."""
        with self.without_autocast():
            parts = self._decoding().rest(state)
        return _joined([state["like"], *parts]) if parts else None

    def _encoding(self) -> TimeTiles:
        size, step = self.spec.tile_frames, self.spec.tile_step
        return TimeTiles(
            size=size,
            step=step,
            keep=step // TIME,
            blend=(size - step) // TIME,
            run=self._encode_tile,
            fade=self.vae.blend_t,
        )

    def _decoding(self) -> TimeTiles:
        size, step = self.spec.tile_frames, self.spec.tile_step
        return TimeTiles(
            size=size // TIME,
            step=step // TIME,
            keep=step,
            blend=size - step,
            run=self._decode_tile,
            fade=self.vae.blend_t,
        )

    def _encode_tile(self, frames: Tensor) -> Tensor:
        vae = self.vae
        cut = self._is_cut(frames, 1)
        moments = vae.tiled_encode(frames) if cut else vae.quant_conv(vae.encoder(frames))
        mode: Tensor = moments[:, : self.channels]
        return mode

    def _decode_tile(self, latents: Tensor) -> Tensor:
        vae = self.vae
        if self._is_cut(latents, SPACE):
            return vae.tiled_decode(latents, return_dict=False)[0]  # type: ignore[no-any-return]
        return vae.decoder(vae.post_quant_conv(latents))  # type: ignore[no-any-return]

    def _is_cut(self, x: Tensor, unit: int) -> bool:
        """Whether frames whose cells are `unit` pixels wide are larger than a tile."""
        tile = self.spec.tile
        return tile is not None and max(x.shape[-2:]) > tile // unit

    def _scaled(self, parts: list[Tensor]) -> Tensor:
        none, *latents = parts
        factor = self.vae.config.scaling_factor
        return _joined([none, *(part.float() * factor for part in latents)])


def _joined(parts: list[Tensor]) -> Tensor:
    """Return the parts behind the first, which is empty, in its number type."""
    return torch.cat([part.to(parts[0].dtype) for part in parts], dim=2)


def config(spec: HunyuanVae) -> dict[str, Any]:
    """Return what diffusers' config of the weights must say."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": spec.channels,
        "block_out_channels": list(spec.widths),
        "layers_per_block": spec.blocks,
        "norm_num_groups": spec.groups,
        "spatial_compression_ratio": SPACE,
        "temporal_compression_ratio": TIME,
    }
