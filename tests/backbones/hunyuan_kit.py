"""Small HunyuanVideos, their diffusers twins, and inputs of their shapes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.hunyuan import specs
from longtake.backbones.hunyuan.model import HunyuanBackbone
from longtake.backbones.texts.specs import Bytes
from longtake.core.interfaces.backbone import target_positions
from longtake.core.interfaces.compressor import pad_to
from longtake.core.values.memory import Memory, Part
from longtake.core.values.text import Text


class HunyuanKit:
    """Small HunyuanVideos and inputs of their shapes."""

    text_width = 12
    pooled_width = 10
    width = 32

    def spec(self, **changes: Any) -> specs.TinyHunyuan:
        numbers: dict[str, Any] = dict(
            heads=2, head_width=16, rope=(4, 6, 6), layers=2, single_layers=2, refiner_layers=1,
            mlp_ratio=2.0,
        )  # fmt: skip
        encoder = Bytes(width=self.text_width, length=8, pooled=self.pooled_width)
        plugged: dict[str, Any] = dict(codec=Dct(channels=16), text_encoder=encoder)
        return specs.TinyHunyuan(**(numbers | plugged | changes))

    def small(self, dtype: torch.dtype = torch.float32, **changes: Any) -> HunyuanBackbone:
        model = HunyuanBackbone.load(self.spec(**changes), seed=0)
        return model if dtype == model.dtype else model.to(dtype)

    def isolated(self, **changes: Any) -> HunyuanBackbone:
        return self.small(**({"attention": "isolated", "memory_time": 0.0} | changes))

    def twin(self, model: HunyuanBackbone, **changes: Any) -> Any:
        """diffusers' own class with the same weights."""
        other = HunyuanVideoTransformer3DModel.from_config(dict(model.config) | changes)
        other.load_state_dict(model.state_dict(), strict=True, assign=True)
        return other.eval()

    def noise(self, *shape: int, seed: int = 1) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def text(self, batch: int, seed: int = 5, length: int = 4) -> Text:
        made = self.noise(batch, length, self.text_width, seed=seed)
        pooled = self.noise(batch, self.pooled_width, seed=seed + 1)
        mask = torch.ones(batch, length, dtype=torch.bool)
        return Text(embeddings=made, mask=mask, pooled=pooled)

    def frames(self, first: int, count: int, batch: int = 1) -> Tensor:
        return torch.arange(first, first + count).expand(batch, -1)

    def memory(self, batch: int, tokens: int, seed: int = 3) -> Memory:
        """Random tokens at places that need not be whole."""
        part = Part(
            name="test",
            tokens=self.noise(batch, tokens, self.width, seed=seed),
            positions=self.noise(batch, tokens, 3, seed=seed + 1).abs().double() * 3,
            extents=torch.ones(batch, tokens, 3, dtype=torch.float64),
            valid=torch.ones(batch, tokens, dtype=torch.bool),
        )
        return Memory(parts=(part,))

    def patches(self, model: HunyuanBackbone, clean: Tensor, frames: Tensor) -> Memory:
        """Memory that is the DiT's own tokens of clean latents, at their places."""
        grid = model.fit().tokens(clean)
        places = target_positions(frames.expand(clean.shape[0], -1), *grid.shape[2:4])
        tokens = grid.flatten(1, 3)
        part = Part(
            name="clean",
            tokens=tokens,
            positions=places,
            extents=torch.ones_like(places),
            valid=torch.ones(tokens.shape[:2], dtype=torch.bool),
        )
        return Memory(parts=(part,))

    def reference(
        self, model: Any, video: Tensor, t: Tensor, text: Text, guidance: float | None = 6.0
    ) -> Tensor:
        """diffusers' output, called as its pipeline does."""
        padded = pad_to(video, 2, 2)
        scale = None
        if guidance is not None:
            scale = torch.tensor([guidance] * video.shape[0], dtype=model.dtype) * 1000.0
        with torch.no_grad():
            out = model(
                padded, t * 1000, text.embeddings, text.mask, text.pooled, scale
            ).sample  # fmt: skip
        return out[..., : video.shape[-2], : video.shape[-1]]

    def show_rows(self, model: Any, shown: list[int]) -> None:
        """Let a diffusers model believe that its frames are those of a longer video."""
        model.rope = _RowsOfRope(model.rope, shown)


class _RowsOfRope(nn.Module):
    def __init__(self, rope: nn.Module, shown: list[int]) -> None:
        super().__init__()
        self.rope, self.shown = copy.deepcopy(rope), shown

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, _, height, width = latents.shape
        long = torch.empty(batch, channels, max(self.shown) + 1, height, width)
        cos, sin = (x.unflatten(0, (long.shape[2], -1))[self.shown] for x in self.rope(long))
        return cos.flatten(0, 1), sin.flatten(0, 1)
