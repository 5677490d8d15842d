"""Wan's causal VAE, streamed: its feature cache is the state, so chunks equal one pass.

diffusers keeps the cache as a list, one entry a causal convolution; as a state it is a flat dict of
tensors, by tile and convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.compressor import State
from ...core.values.shapes import Latents, Pixels
from ..weights.find import VaeRelease
from .specs import WAN21, WAN21_HUB, WAN22_HUB, WanVae
from .tiles import Grid, Tiles, check_frames, check_latents, check_sides
from .vae import VaeCodec
from .wan22_release import MEAN, STD

Caches = list[Any]  # a tensor, FIRST_LATENT, or None where nothing came by yet
Step = Callable[[Tensor, Caches], Tensor]
FIRST_LATENT = "Rep"  # diffusers' mark of a first latent, which is not doubled in time
RATIO = 8  # pixels to a latent cell, after the patchify of 2.2


class WanVaeCodec(VaeCodec[WanVae]):
    """diffusers' `AutoencoderKLWan`, one latent after the other, as its own loops do.

    Streaming is exact in any chunks, with a state of constant size: the last frames before every
    causal convolution, for each tile where frames are cut into tiles. Latents are the mode of the
    posterior less the config's mean, over its deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: WanVae) -> None:
        super().__init__(spec)
        self.measured: int | None = None
        for name in ("mean", "std"):
            self.register_buffer(name, None, persistent=False)

    @property
    def release(self) -> VaeRelease:
        """Which weights the spec asks for."""
        spec, old = self.spec, self.spec.version == "2.1"
        return VaeRelease(
            cls="AutoencoderKLWan",
            config=config(spec),
            defaults=config(WAN21),
            hub=WAN21_HUB if old else WAN22_HUB,
            # the converters know two blocks; means and deviations are of 16 channels in diffusers'
            # class, and of 48 in the original release of 2.2
            single_file=(spec.channels, spec.blocks) == (16 if old else 48, 2),
            constants={} if old else {"latents_mean": list(MEAN), "latents_std": list(STD)},
        )

    @property
    def label(self) -> str:
        """Name and version."""
        return f"wan-vae-{self.spec.version}"

    @property
    def causal(self) -> bool:
        """True: convolutions look back only, norms and attention stay within a frame."""
        return True

    @property
    def margin(self) -> int:
        """All that the decoder can see (38 latents for two blocks a level), or a measured one."""
        return decode_reach(self.spec.blocks) if self.measured is None else self.measured

    @property
    def decode_reach(self) -> int:
        """All that the decoder can see, whatever margin was measured."""
        return decode_reach(self.spec.blocks)

    @property
    def encode_reach(self) -> int:
        """All that the encoder can see (28 latents for two blocks a level)."""
        return encode_reach(self.spec.blocks)

    @property
    def margin_is_bound(self) -> bool:
        """True until a measured margin is taken: what is that far back can hardly be seen."""
        return self.measured is None

    def use_margin(self, latents: int) -> None:
        """Use a margin that was measured with these weights, where it is less than the bound."""
        self.measured = min(latents, decode_reach(self.spec.blocks))

    def prepare(self, vae: Any) -> None:
        """Keep mean and standard deviation of the latents.

        Raises:
            UserError: these are not one of each channel, or a deviation is not above 0.
        """
        for name, values in (("mean", vae.config.latents_mean), ("std", vae.config.latents_std)):
            count = len(values) if isinstance(values, list | tuple) else 0
            if count != self.channels:
                raise UserError(
                    f"weights {self.weights.path}: latents_{name} has {count} values for "
                    f"{self.channels} channels"
                )
            if name == "std" and min(values) <= 0:
                raise UserError(
                    f"weights {self.weights.path}: latents_std holds {min(values):g}, not above 0"
                )
            by_channel = rearrange(torch.tensor(values), "c -> 1 c 1 1 1")
            setattr(self, name, by_channel.to(self.anchor.device))

    def encode(self, chunk: Pixels, state: State | None = None) -> tuple[Latents, State]:
        """Return the latents of the next frames, and the state after them.

        Raises:
            ValueError: not 1 + 4k frames (first) or 4k (later), or no whole cells.
            UserError: the weights cannot be loaded.
        """
        check_frames(chunk, self.stride.time, first=state is None)
        check_sides(chunk, self.stride)
        vae, tiles, means = self.vae, self._tiles(chunk, 1), []

        def run(tile: Tensor, caches: Caches) -> Tensor:
            moments: Tensor = vae.quant_conv(vae.encoder(tile, feat_cache=caches, feat_idx=[0]))
            return moments[:, : self.channels]  # the mode of the posterior

        with self.without_autocast():
            for frames in _by_latent(self.patchify(self.as_computed(chunk)), state is None):
                mean, state = self._step(vae.encoder, run, frames, state, tiles, 1 / RATIO)
                means.append(mean.float())
        assert state is not None
        normal = (torch.cat(means, dim=2) - self.mean) * (1.0 / self.std)
        return normal.to(chunk.dtype), state

    def decode(self, chunk: Latents, state: State | None = None) -> tuple[Pixels, State]:
        """Return the pixels of the next latents (not clamped), and the state after them.

        Raises:
            ValueError: the chunk holds no latent, or latents of another codec.
            UserError: the weights cannot be loaded.
        """
        check_latents(chunk, self.channels)
        vae, tiles, pixels = self.vae, self._tiles(chunk, self.stride.height), []

        def run(tile: Tensor, caches: Caches) -> Tensor:
            latent, first = vae.post_quant_conv(tile), state is None
            out: Tensor = vae.decoder(latent, feat_cache=caches, feat_idx=[0], first_chunk=first)
            return out

        with self.without_autocast():
            raw = self.as_computed(chunk.float() / (1.0 / self.std) + self.mean)
            for latent in raw.split(1, dim=2):
                frames, state = self._step(vae.decoder, run, latent, state, tiles, RATIO)
                pixels.append(frames)
        assert state is not None
        return self.unpatchify(torch.cat(pixels, dim=2)).to(chunk.dtype), state

    def _step(
        self, net: nn.Module, run: Step, x: Tensor, state: State | None, tiles: Tiles | None,
        ratio: float,
    ) -> tuple[Tensor, State]:  # fmt: skip
        """Run one latent's worth through a network, tile by tile.

        Args:
            net: whose causal convolutions the caches belong to, one each.
            run: the network on one tile, which puts new caches into the list.
            x: one latent, or its frames.
            state: before this step, left as it is.
            tiles: of `x`; None: it is not cut.
            ratio: sides of the output to those of `x`.

        Returns:
            What `run` makes of `x`, and the state after it.
        """
        count = sum(isinstance(part, nn.Conv3d) for part in net.modules())
        after: State = {}
        rows: Grid = []
        for i, row in enumerate(tiles.cut(x) if tiles else [[x]]):
            rows.append([])
            for j, tile in enumerate(row):
                caches = _caches_of(state, f"{i}.{j}.", count)
                rows[-1].append(run(tile, caches))
                after |= _state_of(caches, f"{i}.{j}.")
        if tiles is None:
            return rows[0][0], after
        height, width = (int(side * ratio) for side in x.shape[-2:])
        return tiles.scaled(ratio).join(rows, height, width, self.vae), after

    def _tiles(self, chunk: Tensor, unit: int) -> Tiles | None:
        """Return tiles for frames whose cells are `unit` pixels wide, None where one holds all."""
        size, overlap = self.spec.tile, self.spec.overlap
        if size is None or max(chunk.shape[-2:]) <= size // unit:
            return None
        return Tiles(size // unit, (size - overlap) // unit)

    @property
    def _patch(self) -> int:
        return self.stride.height // RATIO

    def patchify(self, frames: Tensor) -> Tensor:
        """Return frames with 2×2 pixels of each colour as channels (2.2), or as they are (2.1)."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        return patchify(frames, self._patch)  # type: ignore[no-any-return]

    def unpatchify(self, frames: Tensor) -> Tensor:
        """Undo `patchify`."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        return unpatchify(frames, self._patch)  # type: ignore[no-any-return]


def _by_latent(frames: Tensor, first: bool) -> tuple[Tensor, ...]:
    """Return the frames of each latent: one for the first of a video, four for others."""
    head = [1] if first else []
    return torch.split(frames, head + [4] * ((frames.shape[2] - len(head)) // 4), dim=2)


def _caches_of(state: State | None, tile: str, count: int) -> Caches:
    """Return the caches of a tile, as diffusers wants them."""
    caches: Caches = [None] * count
    for key, x in (state or {}).items():
        if key.startswith(tile):
            caches[int(key.removeprefix(tile))] = x if x.numel() else FIRST_LATENT
    return caches


def _state_of(caches: Caches, tile: str) -> State:
    """Return the caches of a tile as tensors; an empty one stands for diffusers' mark."""
    return {
        f"{tile}{index}": torch.empty(0) if isinstance(x, str) else x
        for index, x in enumerate(caches)
        if x is not None
    }


def decode_reach(blocks: int) -> int:
    """Return how many latents before its own the decoder can see at most, for b blocks a level.

    A convolution over 3 frames looks back 2 of them. In latents these are 2 + 8 + 4(b + 1) + 2
    before time is doubled first, half of 4(b + 1) + 2 before it is again, and a quarter of
    8(b + 1) + 2 after that.
    """
    level = 4 * (blocks + 1)
    return -(-(4 * (12 + level) + 2 * (level + 2) + 2 * level + 2) // 4)


def encode_reach(blocks: int) -> int:
    """Return how many latents before its own the encoder can see at most, for b blocks a level.

    Counted as in `decode_reach`: 2 + 4b + 4b frames and 2 before time is halved first, 4b and 2
    before it is again, and 4b + 8 + 2 after that.
    """
    return -(-((2 + 8 * blocks + 2) + 2 * (4 * blocks + 2) + 4 * (4 * blocks + 10)) // 4)


def config(spec: WanVae) -> dict[str, Any]:
    """Return what diffusers' config of the weights must say."""
    new = spec.version == "2.2"
    return {
        "base_dim": spec.width,
        "decoder_base_dim": spec.decoder_width,
        "z_dim": spec.channels,
        "dim_mult": list(spec.levels),
        "num_res_blocks": spec.blocks,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
        "is_residual": new,
        "in_channels": 12 if new else 3,
        "out_channels": 12 if new else 3,
        "patch_size": 2 if new else None,
        "scale_factor_spatial": 16 if new else 8,
    }
