"""What the tests of backbones share: small models, their diffusers twins, inputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.texts.specs import Bytes
from longtake.backbones.wan import specs
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.values.memory import Memory, Part
from longtake.core.values.text import Text

from .hunyuan_kit import HunyuanKit


class WanKit:
    """Small Wans and inputs of their shapes."""

    text_width = 12
    width = 40

    def spec(self, **changes: Any) -> specs.TinyWan:
        numbers: dict[str, Any] = dict(heads=2, head_width=20, layers=2, ffn=48)
        numbers |= dict(memory_time=None, begin="diffusers")
        encoder = Bytes(width=self.text_width, length=8)
        plugged: dict[str, Any] = dict(codec=Dct(channels=16), text_encoder=encoder)
        return specs.TinyWan(**(numbers | plugged | changes))

    def small(self, dtype: torch.dtype = torch.float32, **changes: Any) -> TinyWanBackbone:
        model = TinyWanBackbone.load(self.spec(**changes), seed=0)
        return model if dtype == model.dtype else model.to(dtype)

    def isolated(self, **changes: Any) -> TinyWanBackbone:
        return self.small(**({"attention": "isolated", "memory_time": 0.0} | changes))

    def twin(self, model: TinyWanBackbone) -> Any:
        """diffusers' own class with the same weights."""
        other = WanTransformer3DModel.from_config(dict(model.config))
        other.load_state_dict(model.state_dict(), strict=True, assign=True)
        return other.eval()

    def noise(self, *shape: int, seed: int = 1) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    def text(self, batch: int, seed: int = 5, length: int = 4) -> Text:
        made = self.noise(batch, length, self.text_width, seed=seed)
        return Text(embeddings=made, mask=torch.ones(batch, length, dtype=torch.bool))

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
        cos, sin = (x.unflatten(1, (long.shape[2], -1))[:, self.shown] for x in self.rope(long))
        return cos.flatten(1, 2), sin.flatten(1, 2)


@pytest.fixture(scope="session")
def wan() -> WanKit:
    return WanKit()


@pytest.fixture(scope="session")
def hunyuan() -> HunyuanKit:
    return HunyuanKit()
