"""A small learned causal video codec: blocks of 4×8×8 pixels, and their neighbours in space."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.registry import registry, shipped_weights
from ...core.tools.files import open_tensors
from ...core.tools.hub import locate, locate_offline
from ...core.values.shapes import Latents
from .blocks import BLOCK, NUMBERS, BlockCodec, from_blocks, to_blocks
from .specs import TinyAutoencoder

FILE = "codec.safetensors"


class TinyAutoencoderCodec(BlockCodec[TinyAutoencoder]):
    """A learned codec of a million parameters, for tiny backbones.

    Each 4×8×8 block of pixels becomes the channels of one latent cell. Encoder and decoder are
    each a linear map between the two, plus a small convolutional network that also sees the
    neighbouring blocks of the same four frames. Nothing is mixed over time, so streaming in any
    chunks is exact, to the bit: each latent frame is worked out by itself, in float32.

    Its weights come with mean and standard deviation of the raw latents and the reach of each
    channel (`experiments/fit_autoencoder.py`).
    """

    mean: Tensor
    std: Tensor
    reach: Tensor

    def __init__(self, spec: TinyAutoencoder) -> None:
        super().__init__(spec)
        self.encoder = BlockEncoder(spec.channels, spec.width)
        width = spec.decoder_width or spec.width
        self.decoder = BlockDecoder(spec.channels, width, spec.layers)
        self.register_buffer("mean", torch.zeros(spec.channels))
        self.register_buffer("std", torch.ones(spec.channels))
        self.register_buffer("reach", torch.ones(spec.channels))
        if spec.weights is not None:
            load_weights(self, spec.weights)
        self.requires_grad_(requires_grad=False)

    @property
    def channels(self) -> int:
        """Channels C of a latent cell."""
        return self.spec.channels

    @property
    def channel_reach(self) -> Tensor:
        """How far a unit of each channel moves the pixels of its block, over the mean of all."""
        return self.reach / self.reach.mean()

    @functools.cached_property
    def identity(self) -> str:
        """Name and hash of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy(force=True).tobytes())
        return f"tiny-ae-{self.channels}-{digest.hexdigest()[:16]}"

    @property
    def available_offline(self) -> bool:
        """True: a codec that could be built has its weights."""
        return True

    @torch.no_grad()
    def encode_fours(self, frames: Tensor) -> Latents:
        """Return the normalised latents, float32."""
        fours = frames.float().split(BLOCK.time, dim=2)
        return torch.stack([self.encode_blocks(to_planes(four)) for four in fours], dim=2)

    @torch.no_grad()
    def decode_fours(self, latents: Latents) -> Tensor:
        """Return the frames, float32."""
        cells = latents.float().unbind(dim=2)
        fours = [from_planes(self.decode_blocks(one.contiguous())) for one in cells]
        return torch.cat(fours, dim=2)

    def encode_blocks(self, blocks: Tensor) -> Tensor:
        """Return the normalised latents `[B, C, H, W]` of blocks `[B, 768, H, W]`."""
        raw: Tensor = self.encoder(blocks)
        return (raw - planes(self.mean)) / planes(self.std)

    def decode_blocks(self, latents: Tensor) -> Tensor:
        """Return the blocks `[B, 768, H, W]` of normalised latents `[B, C, H, W]`."""
        blocks: Tensor = self.decoder(latents * planes(self.std) + planes(self.mean))
        return blocks


class BlockEncoder(nn.Module):
    """Blocks to raw latents: a linear map, and what a block's neighbours add to it."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(NUMBERS, channels, 1)
        self.network = nn.Sequential(
            nn.Conv2d(NUMBERS, width, 1), nn.SiLU(), conv3(width, width),
            nn.SiLU(), nn.Conv2d(width, channels, 1),
        )  # fmt: skip

    def forward(self, blocks: Tensor) -> Tensor:
        """Return the raw latents `[B, C, H, W]` of blocks `[B, 768, H, W]`."""
        raw: Tensor = self.linear(blocks) + self.network(blocks)
        return raw


class BlockDecoder(nn.Module):
    """Raw latents to blocks: a linear map, and what neighbours and details add to it."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(channels, NUMBERS, 1)
        self.network = nn.Sequential(
            conv3(channels, width), *(ResidualConv(width) for _ in range(layers - 1)),
            nn.SiLU(), nn.Conv2d(width, NUMBERS, 1),
        )  # fmt: skip

    def forward(self, latents: Tensor) -> Tensor:
        """Return the blocks `[B, 768, H, W]` of raw latents `[B, C, H, W]`."""
        blocks: Tensor = self.linear(latents) + self.network(latents)
        return blocks


class ResidualConv(nn.Module):
    """A 3×3 convolution and a mixing of channels, added to what they read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = conv3(width, width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, width, H, W]`."""
        added: Tensor = self.mix(F.silu(self.spread(F.silu(x))))
        return x + added


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3×3 convolution that repeats the border."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate")


def to_planes(frames: Tensor) -> Tensor:
    """Return four frames `[B, 3, 4, P, Q]` as blocks `[B, 768, ⌈P/8⌉, ⌈Q/8⌉]`."""
    # contiguous: the layout of a view decides how a convolution rounds
    return rearrange(to_blocks(frames), "b 1 h w d -> b d h w").contiguous()


def from_planes(blocks: Tensor) -> Tensor:
    """Return the four frames `[B, 3, 4, 8H, 8W]` of blocks `[B, 768, H, W]`."""
    return from_blocks(rearrange(blocks, "b d h w -> b 1 h w d"))


def planes(values: Tensor) -> Tensor:
    """Return a number a channel `[C]`, to be read with `[B, C, H, W]`."""
    return rearrange(values, "c -> c 1 1")


def find_weights(text: str) -> Path:
    """Return the file that `weights` names: of weights that ship, a folder, a file, the hub.

    Raises:
        UserError: nothing is there, or a download fails.
    """
    shipped = registry().weights.get(text)
    if shipped and locate_offline(text, [FILE]) is None:
        return shipped / FILE
    expected = (
        f"a folder with {FILE} or that file (longtake.experiments.fit_autoencoder makes it), or "
        f"weights that ship: {shipped_weights(text, FILE)}"
    )
    found = locate(
        text, [FILE], expected=expected, suffixes=(".safetensors",), label="codec weights"
    )
    file = found / FILE if found.is_dir() else found
    if not file.exists():
        raise UserError(f"codec weights {text}: the folder has no {FILE}")
    return file


def load_weights(codec: TinyAutoencoderCodec, text: str) -> None:
    """Fill a codec with the weights that `text` names.

    Raises:
        UserError: nothing is there, or what is there is of another codec or other numbers.
    """
    file = find_weights(text)
    own = codec.state_dict()
    with open_tensors(file) as tensors:
        loaded = {name: tensors.get_tensor(name) for name in tensors.keys()}
    if "encoder.linear.weight" not in loaded:
        raise UserError(f"{file} is no tiny-ae codec: it has no encoder.linear.weight")
    for name in sorted(own.keys() | loaded.keys()):
        theirs, ours = (list(x[name].shape) if name in x else None for x in (loaded, own))
        if theirs != ours:
            raise UserError(
                f"{file}: {name} is {theirs or 'missing'}, not {ours or 'there'}; "
                "codec.channels, width, layers and decoder_width must be those of these weights"
            )
    codec.load_state_dict({name: tensor.float() for name, tensor in loaded.items()})
