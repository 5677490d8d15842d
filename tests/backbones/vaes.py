"""Small VAEs of diffusers' real classes, saved as diffusers saves them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn

from longtake.backbones.codecs.hunyuan import HunyuanVaeCodec
from longtake.backbones.codecs.hunyuan import config as hunyuan_config
from longtake.backbones.codecs.specs import HunyuanVae, WanVae
from longtake.backbones.codecs.wan import WanVaeCodec
from longtake.backbones.codecs.wan import config as wan_config

OLD = WanVae(channels=4, width=4, levels=(1, 1, 2, 2), blocks=1)
NEW = evolve(OLD, version="2.2", width=8, decoder_width=4, levels=(1, 1, 1, 1))
HUNYUAN = HunyuanVae(channels=4, widths=(4, 4, 4, 4), groups=2, blocks=1, tile=None)
MEAN, STD = [0.1, -0.2, 0.3, 0.4], [1.0, 2.0, 0.5, 3.0]


def diffusers_wan(spec: WanVae, **changes: Any) -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    given = {"latents_mean": MEAN, "latents_std": STD} if spec.channels == 4 else {}
    vae = AutoencoderKLWan(**wan_config(spec) | given | changes)
    return lively(vae)


def diffusers_hunyuan(spec: HunyuanVae) -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    return lively(AutoencoderKLHunyuanVideo(**hunyuan_config(spec)))


def lively(vae: Any) -> Any:
    """Random biases and norms, too, so that none can be mixed up unseen."""
    for parameter in vae.parameters():
        if parameter.ndim != 5 and parameter.ndim != 2:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vae.eval().requires_grad_(False)


class ByLatent(nn.Module):
    """A convolution that reads one latent at a time: of other shapes it rounds otherwise."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(latent) for latent in x.split(1, dim=2)], dim=2)


def same_shapes(vae: Any) -> Any:
    """A copy whose 1×1×1 convolutions, which diffusers runs last or first on all, see a latent."""
    other = copy.deepcopy(vae)
    other.quant_conv, other.post_quant_conv = (
        ByLatent(vae.quant_conv),
        ByLatent(vae.post_quant_conv),
    )
    return other


def wan_codec(vae: Any, spec: WanVae, folder: Path) -> WanVaeCodec:
    """Save a VAE and give the codec of its folder."""
    vae.save_pretrained(folder)
    return WanVaeCodec(evolve(spec, weights=str(folder)))


def hunyuan_codec(vae: Any, spec: HunyuanVae, folder: Path) -> HunyuanVaeCodec:
    vae.save_pretrained(folder)
    return HunyuanVaeCodec(evolve(spec, weights=str(folder)))


def video(frames: int, height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def normal(vae: Any, pixels: Tensor) -> Tensor:
    """The latents of Wan's pipelines: the mode, less the mean, over the deviation."""
    mean, std = shaped(vae)
    return (vae.encode(pixels).latent_dist.mode() - mean) * std


def shown(vae: Any, latents: Tensor) -> Tensor:
    """The pixels of Wan's pipelines."""
    mean, std = shaped(vae)
    return vae.decode(latents / std + mean).sample


def shaped(vae: Any) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    return mean, 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
